//! `/v1/chat/completions`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::harness::{HOUSE, TINY, app, app_with, ask, ask_json, post};

const PATH: &str = "/v1/chat/completions";

fn story(extra: Value) -> Value {
    let mut body = json!({
        "model": HOUSE, "temperature": 0, "max_tokens": 5,
        "messages": [{"role": "user", "content": "Tell me a story about a cat."}],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

/// Replaces what differs from answer to answer.
fn normalised(text: &str, answer: &Value) -> String {
    let id = answer["id"].as_str().unwrap();
    assert!(id.starts_with("chatcmpl-") && id.len() == 41, "{id}");
    text.replace(id, "ID").replace(&answer["created"].to_string(), "0")
}

#[tokio::test]
async fn an_answer_has_every_field_clients_read() {
    let app = app();
    let answer = ask(&app, post(PATH, story(json!({})))).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(
        normalised(&answer.text, &answer.json()),
        concat!(
            r#"{"id":"ID","object":"chat.completion","created":0,"model":"house","choices":[{"index":0,"#,
            r#""message":{"role":"assistant","content":"Once upon a time,","refusal":null},"logprobs":null,"#,
            r#""finish_reason":"length"}],"usage":{"prompt_tokens":16,"completion_tokens":5,"total_tokens":21,"#,
            r#""prompt_tokens_details":{"cached_tokens":0}},"#,
            r#""system_fingerprint":"mlxr-0.1.0"}"#
        )
    );
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let app = app();
    let body = story(json!({"stream": true, "stream_options": {"include_usage": true}}));
    let answer = ask(&app, post(PATH, body)).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    let frame = |tail: &str| {
        let head = concat!(
            r#"data: {"id":"ID","object":"chat.completion.chunk","created":0,"model":"house","#,
            r#""system_fingerprint":"mlxr-0.1.0","choices":["#
        );
        format!("{head}{tail}}}\n\n")
    };
    let delta = |delta: &str, reason: &str| {
        let tail = format!(r#""logprobs":null,"finish_reason":{reason}}}],"usage":null"#);
        frame(&format!(r#"{{"index":0,"delta":{{{delta}}},{tail}"#))
    };
    let mut expected = delta(r#""role":"assistant","content":"""#, "null");
    for piece in ["Once", " upon", " a", " time", ","] {
        expected += &delta(&format!(r#""content":"{piece}""#), "null");
    }
    expected += &delta("", r#""length""#);
    expected += &frame(concat!(
        r#"],"usage":{"prompt_tokens":16,"completion_tokens":5,"total_tokens":21,"#,
        r#""prompt_tokens_details":{"cached_tokens":0}}"#
    ));
    expected += "data: [DONE]\n\n";
    assert_eq!(normalised(&answer.text, &answer.events()[0]), expected);
}

/// The text of a stream's first choice, and why it ended.
fn streamed(events: &[Value]) -> (String, String) {
    let (mut text, mut reason) = (String::new(), String::new());
    for event in events {
        for choice in event["choices"].as_array().unwrap() {
            assert_eq!(event["object"], "chat.completion.chunk");
            text += choice["delta"]["content"].as_str().unwrap_or_default();
            reason += choice["finish_reason"].as_str().unwrap_or_default();
        }
    }
    (text, reason)
}

#[tokio::test]
async fn stream_and_whole_answer_say_the_same() {
    let app = app();
    for extra in [
        json!({"max_tokens": 60}),
        json!({"max_tokens": 60, "temperature": 0.9, "seed": 5}),
        json!({"max_completion_tokens": 60, "max_tokens": 3, "stop": ["."]}),
        json!({"max_tokens": 20, "model": TINY, "temperature": 1, "seed": 1}),
    ] {
        let whole = ask_json(&app, PATH, story(extra.clone())).await;
        let mut body = story(extra.clone());
        body["stream"] = json!(true);
        let events = ask(&app, post(PATH, body)).await.events();
        let (text, reason) = streamed(&events);
        assert_eq!(content(&whole), text, "{extra}");
        assert_eq!(whole["choices"][0]["finish_reason"], reason, "{extra}");
        assert!(events.iter().all(|event| event.get("usage").is_none()), "usage was not asked for");
    }
}

#[tokio::test]
async fn stop_strings_end_the_answer_and_are_not_part_of_it() {
    let app = app();
    let free = ask_json(&app, PATH, story(json!({"max_tokens": 40}))).await;
    let first_sentence = content(&free).split('.').next().unwrap().to_owned();
    assert!(first_sentence.len() < content(&free).len());
    let stopped = ask_json(&app, PATH, story(json!({"max_tokens": 40, "stop": "."}))).await;
    assert_eq!(content(&stopped), first_sentence);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn seeds_repeat_an_answer_and_choices_differ() {
    let app = app();
    let body = || story(json!({"max_tokens": 30, "temperature": 1.2, "seed": 11, "n": 3}));
    let first = ask_json(&app, PATH, body()).await;
    let second = ask_json(&app, PATH, body()).await;
    assert_eq!(first["choices"], second["choices"]);
    let choices = first["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|c| c["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_ne!(choices[0]["message"]["content"], choices[1]["message"]["content"]);
    let usage = &first["usage"];
    assert!(usage["completion_tokens"].as_u64().unwrap() <= 90);
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap())
    );
}

#[tokio::test]
async fn logprobs_come_with_their_alternatives() {
    let app = app();
    let answer = ask_json(&app, PATH, story(json!({"logprobs": true, "top_logprobs": 2}))).await;
    let tokens = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 5);
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, content(&answer));
    for token in tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        // Greedy: the token is the likeliest.
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&token["token"], &token["logprob"]));
        assert!(top[1]["logprob"].as_f64() <= top[0]["logprob"].as_f64());
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(bytes, token["token"].as_str().unwrap().as_bytes());
    }
    let body = story(json!({"logprobs": true, "top_logprobs": 2, "stream": true}));
    let events = ask(&app, post(PATH, body)).await.events();
    let streamed: Vec<Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(&streamed, tokens);
}

#[tokio::test]
async fn a_forbidden_token_does_not_come() {
    let app = app();
    let answer = ask_json(&app, PATH, story(json!({"logprobs": true, "max_tokens": 1}))).await;
    let first = answer["choices"][0]["logprobs"]["content"][0]["token"].clone();
    let lease = app.models.acquire(HOUSE).await.unwrap();
    let text = first.as_str().unwrap();
    let ids = lease.tokenizer.encode(text, Default::default()).unwrap();
    assert_eq!(ids.len(), 1, "{text:?}");
    let bias = json!({"max_tokens": 1, "logit_bias": {ids[0].to_string(): -100}});
    let answer = ask_json(&app, PATH, story(bias)).await;
    assert_ne!(content(&answer), text);
}

#[tokio::test]
async fn parts_and_developer_messages_read_like_plain_ones() {
    let app = app();
    let ask = async |messages: Value| ask_json(&app, PATH, story(json!({"messages": messages}))).await;
    let plain = ask(json!([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello\nthere"}
    ]))
    .await;
    let parts = ask(json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]}
    ]))
    .await;
    assert_eq!(plain["choices"], parts["choices"]);
    assert_eq!(plain["usage"]["prompt_tokens"], parts["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn a_large_body_says_what_a_small_one_says() {
    let app = app();
    let small = ask_json(&app, PATH, story(json!({}))).await;
    let large = ask_json(&app, PATH, story(json!({"safety_identifier": "x".repeat(100_000)}))).await;
    assert_eq!(small["choices"], large["choices"]);
}

#[tokio::test]
async fn what_has_no_effect_is_reported_and_in_strict_mode_refused() {
    let app = app();
    let extra =
        json!({"store": true, "frobnicate": 1, "reasoning_effort": "low", "parallel_tool_calls": true});
    let answer = ask(&app, post(PATH, story(extra.clone()))).await;
    assert_eq!(answer.headers["x-mlxr-unsupported"], "reasoning_effort, store, frobnicate");
    let warnings = answer.json()["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 3);
    assert_eq!(warnings[1], "store is not honoured: nothing is stored");

    let mut streaming = story(extra.clone());
    streaming["stream"] = json!(true);
    let answer = ask(&app, post(PATH, streaming)).await;
    assert_eq!(answer.headers["x-mlxr-unsupported"], "reasoning_effort, store, frobnicate");
    let events = answer.events();
    assert_eq!(events[0]["warnings"], warnings);
    assert!(events[1..].iter().all(|event| event.get("warnings").is_none()));

    let mut strict = story(extra.clone());
    strict["strict"] = json!(true);
    let strict_app =
        app_with(Default::default(), mlxr_server::Limits { strict: true, ..mlxr_server::Limits::default() });
    for (app, body) in [(&app, strict), (&strict_app, story(extra))] {
        let refused = ask(app, post(PATH, body)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        let error = &refused.json()["error"];
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!("reasoning_effort"), &json!("unsupported_field"))
        );
    }
    // Nothing to report: strict mode says nothing either.
    ask_json(&app, PATH, story(json!({"strict": true, "top_k": 40, "service_tier": "auto"}))).await;
}
