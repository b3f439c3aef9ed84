//! Anthropic's dialect.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Answer, HOUSE, TINY, app, app_with, ask, ask_json, assert_idle, get, post};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn story(extra: Value) -> Value {
    let mut body = json!({
        "model": HOUSE, "temperature": 0, "max_tokens": 5,
        "messages": [{"role": "user", "content": "Tell me a story about a cat."}],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Replaces what differs from answer to answer.
fn normalised(answer: &Answer, id: &Value) -> String {
    let id = id.as_str().unwrap();
    assert!(id.starts_with("msg_") && id.len() == 36, "{id}");
    assert!(answer.headers["request-id"].to_str().unwrap().starts_with("req_"));
    answer.text.replace(id, "ID")
}

/// Name and data of every event.
fn events(answer: &Answer) -> Vec<(String, Value)> {
    let event = |text: &str| {
        let (name, data) = text.split_once("\ndata: ").unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap())
    };
    answer.text.split_terminator("\n\n").map(event).collect()
}

fn usage(n_output: usize) -> String {
    let cache = r#""cache_creation_input_tokens":0,"cache_read_input_tokens":0"#;
    format!(r#""usage":{{"input_tokens":16,{cache},"output_tokens":{n_output}}}"#)
}

#[tokio::test]
async fn an_answer_has_every_field_clients_read() {
    let app = app();
    let answer = ask(&app, post(MESSAGES, story(json!({})))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/json");
    let head = concat!(
        r#"{"id":"ID","type":"message","role":"assistant","model":"house","#,
        r#""content":[{"type":"text","text":"Once upon a time,"}],"stop_reason":"max_tokens","stop_sequence":null,"#
    );
    assert_eq!(normalised(&answer, &answer.json()["id"]), format!("{head}{}}}", usage(5)));
}

#[tokio::test]
async fn a_stream_is_these_bytes() {
    let app = app();
    let answer = ask(&app, post(MESSAGES, story(json!({"stream": true})))).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let message = concat!(
        r#"{"id":"ID","type":"message","role":"assistant","model":"house","content":[],"stop_reason":null,"#,
        r#""stop_sequence":null,"#
    );
    let event = |name: &str, rest: &str| format!("event: {name}\ndata: {{\"type\":\"{name}\"{rest}}}\n\n");
    let mut expected = event("message_start", &format!(r#","message":{message}{}}}"#, usage(0)));
    expected += &event("ping", "");
    expected += &event("content_block_start", r#","index":0,"content_block":{"type":"text","text":""}"#);
    for piece in ["Once", " upon", " a", " time", ","] {
        let delta = format!(r#","index":0,"delta":{{"type":"text_delta","text":"{piece}"}}"#);
        expected += &event("content_block_delta", &delta);
    }
    expected += &event("content_block_stop", r#","index":0"#);
    let delta = r#","delta":{"stop_reason":"max_tokens","stop_sequence":null},"#;
    expected += &event("message_delta", &format!("{delta}{}", usage(5)));
    expected += &event("message_stop", "");
    assert_eq!(normalised(&answer, &events(&answer)[0].1["message"]["id"]), expected);
}

#[tokio::test]
async fn stop_sequences_are_named_and_the_stream_agrees() {
    let app = app();
    let body = |stream: bool| story(json!({"max_tokens": 60, "stop_sequences": ["."], "stream": stream}));
    let whole = ask_json(&app, MESSAGES, body(false)).await;
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("stop_sequence"), &json!(".")));
    let text = whole["content"][0]["text"].as_str().unwrap();
    assert!(text.starts_with("Once upon a time") && !text.contains('.'), "{text}");
    let events = events(&ask(&app, post(MESSAGES, body(true))).await);
    let streamed: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(streamed, text);
    let (_, end) = events.iter().find(|(name, _)| name == "message_delta").unwrap();
    assert_eq!((&end["delta"]["stop_sequence"], &end["usage"]), (&json!("."), &whole["usage"]));
}

#[tokio::test]
async fn an_answer_that_has_begun_goes_on() {
    let app = app();
    let messages = json!([
        {"role": "user", "content": "Tell me a story about a cat."}, {"role": "assistant", "content": "Once upon a"}
    ]);
    let answer = ask_json(&app, MESSAGES, story(json!({"messages": messages}))).await;
    assert!(answer["content"][0]["text"].as_str().unwrap().starts_with(" time,"), "{answer}");
}

#[tokio::test]
async fn a_system_prompt_may_come_in_blocks_and_is_counted() {
    let app = app();
    let blocks = json!([{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]);
    let with_text = story(json!({"system": "Be brief.\nBe kind."}));
    let with_blocks = story(json!({"system": blocks}));
    let (one, two) =
        (ask_json(&app, MESSAGES, with_text.clone()).await, ask_json(&app, MESSAGES, with_blocks).await);
    assert_eq!(one["content"], two["content"]);
    let n_input = |answer: &Value| {
        let count = |field: &str| answer["usage"][field].as_u64().unwrap();
        count("input_tokens") + count("cache_read_input_tokens")
    };
    assert_eq!(
        (n_input(&one), &one["usage"]["output_tokens"]),
        (n_input(&two), &two["usage"]["output_tokens"])
    );
    let mut counted = with_text;
    counted.as_object_mut().unwrap().remove("max_tokens");
    let count = ask_json(&app, COUNT, counted).await;
    assert_eq!(count, json!({"input_tokens": one["usage"]["input_tokens"]}));
    assert_eq!(ask_json(&app, COUNT, story(json!({}))).await, json!({"input_tokens": 16}));
}

#[tokio::test]
async fn a_full_context_is_no_full_answer() {
    let app = app();
    let body = story(json!({"model": TINY, "max_tokens": 100_000}));
    let answer = ask_json(&app, MESSAGES, body).await;
    let reason = answer["stop_reason"].as_str().unwrap();
    let (n_in, n_out) = (&answer["usage"]["input_tokens"], &answer["usage"]["output_tokens"]);
    let is_full = n_in.as_u64().unwrap() + n_out.as_u64().unwrap() >= 512;
    assert_eq!(reason, if is_full { "model_context_window_exceeded" } else { "end_turn" });
}

#[tokio::test]
async fn errors_have_anthropic_s_shape() {
    let app = app();
    let check = async |path: &str, body: Value, status: u16, kind: &str, text: &str| {
        let answer = ask(&app, post(path, &body)).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text);
        let error = answer.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)), "{error}");
        assert_eq!(error["request_id"], answer.headers["request-id"].to_str().unwrap());
        assert!(error["error"]["message"].as_str().unwrap().contains(text), "{body}: {error}");
    };
    let invalid = async |extra: Value, text: &str| {
        check(MESSAGES, story(extra), 400, "invalid_request_error", text).await;
    };
    check(MESSAGES, story(json!({"model": "claude"})), 404, "not_found_error", "model: claude").await;
    check(COUNT, story(json!({"model": "claude"})), 404, "not_found_error", "house, tiny").await;
    check(MESSAGES, json!({"model": HOUSE}), 400, "invalid_request_error", "missing field `messages`").await;
    check("/v1/messages/batches", json!({}), 404, "not_found_error", "no such route").await;
    invalid(json!({"max_tokens": null}), "max_tokens").await;
    invalid(json!({"messages": []}), "at least one message").await;
    invalid(json!({"temperature": -1}), "temperature is -1").await;
    invalid(json!({"stop_sequences": [""]}), "empty string").await;
    invalid(json!({"tool_choice": {"type": "any"}}), "there are no tools").await;
    let format = json!({"type": "json_schema", "schema": {"not": {}}});
    invalid(json!({"output_config": {"format": format}}), "keyword \"not\" at #/not").await;
    invalid(json!({"output_format": format}), "output_format.schema: unsupported").await;
    let tools = json!([{"name": "f", "input_schema": {"not": {}}, "strict": true}]);
    invalid(json!({"tools": tools}), "tools[0].input_schema: unsupported").await;
    let tools = json!([{"name": "f", "input_schema": {"type": "object"}}]);
    let named = json!({"type": "tool", "name": "g"});
    invalid(json!({"tools": tools, "tool_choice": named}), "\"g\" is not among").await;
    invalid(json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), "no tool \"bash_20250124\"").await;
    let image =
        json!([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}]);
    let seen = json!([{"role": "user", "content": image}]);
    invalid(json!({"messages": seen}), "messages[0].content[0].type: \"image\" cannot be read").await;
    for stream in [false, true] {
        let long = json!([{"role": "user", "content": "word ".repeat(600)}]);
        let extra = json!({"model": TINY, "messages": long, "stream": stream});
        invalid(extra, "tokens > 512 maximum").await;
    }
    let answer = get(&app, MESSAGES).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    assert_idle(&app, TINY).await;
}

#[tokio::test]
async fn what_has_no_effect_is_reported_and_in_strict_mode_refused() {
    let app = app();
    let text = json!([{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]);
    let extra = json!({
        "metadata": {"user_id": "u"}, "thinking": {"type": "enabled", "budget_tokens": 1024}, "betas": [],
        "service_tier": "auto", "messages": [{"role": "user", "content": text}]
    });
    let answer = ask(&app, post(MESSAGES, story(extra.clone()))).await;
    let expected = "messages[0].content[0].cache_control, thinking, metadata, betas";
    assert_eq!(answer.headers["x-mlxr-unsupported"], expected);
    let warnings = answer.json()["warnings"].clone();
    assert_eq!(warnings.as_array().unwrap().len(), 4);
    let mut streamed = story(extra.clone());
    streamed["stream"] = json!(true);
    let streamed = ask(&app, post(MESSAGES, streamed)).await;
    assert_eq!(events(&streamed)[0].1["message"]["warnings"], warnings);
    let limits = mlxr_server::Limits { strict: true, ..mlxr_server::Limits::default() };
    let strict = app_with(Default::default(), limits);
    let refused = ask(&strict, post(MESSAGES, story(extra))).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.json()["error"]["message"].as_str().unwrap().contains("cache_control is not honoured"));
    ask_json(&strict, MESSAGES, story(json!({"service_tier": "auto", "top_k": 5, "top_p": 0.9}))).await;
}
