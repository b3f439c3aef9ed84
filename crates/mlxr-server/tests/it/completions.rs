//! `/v1/completions`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::harness::{HOUSE, app, ask, ask_json, post};

const PATH: &str = "/v1/completions";

fn request(prompt: Value, extra: Value) -> Value {
    let mut body = json!({"model": HOUSE, "prompt": prompt, "temperature": 0, "max_tokens": 6});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn text(answer: &Value, index: usize) -> &str {
    answer["choices"][index]["text"].as_str().unwrap()
}

#[tokio::test]
async fn texts_and_token_ids_continue_alike() {
    let app = app();
    let prompts = ["Once upon a time", "The dog"];
    let lease = app.models.acquire(HOUSE).await.unwrap();
    let ids = prompts.map(|text| lease.tokenizer.encode(text, Default::default()).unwrap());
    let both = ask_json(&app, PATH, request(json!(prompts), json!({}))).await;
    let both_ids = ask_json(&app, PATH, request(json!(ids), json!({}))).await;
    assert_eq!((&both["choices"], &both["usage"]), (&both_ids["choices"], &both_ids["usage"]));
    for i in 0..2 {
        let one = ask_json(&app, PATH, request(json!(prompts[i]), json!({}))).await;
        assert_eq!(text(&one, 0), text(&both, i));
        let one = ask_json(&app, PATH, request(json!(ids[i]), json!({}))).await;
        assert_eq!(text(&one, 0), text(&both, i));
        assert_eq!(both["choices"][i]["index"], i);
    }
    assert_eq!(both["object"], "text_completion");
    assert!(!text(&both, 0).is_empty());
    assert_ne!(text(&both, 0), text(&both, 1));
}

#[tokio::test]
async fn an_echo_comes_with_the_prompt_s_logprobs() {
    let app = app();
    let extra = json!({"echo": true, "logprobs": 2, "max_tokens": 3});
    let answer = ask_json(&app, PATH, request(json!("Once upon a time"), extra)).await;
    let plain = ask_json(&app, PATH, request(json!("Once upon a time"), json!({"max_tokens": 3}))).await;
    assert_eq!(text(&answer, 0), format!("Once upon a time{}", text(&plain, 0)));
    let logprobs = &answer["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let (tokens, values) = (list("tokens"), list("token_logprobs"));
    let n_prompt = answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(tokens.len(), n_prompt + 3);
    assert!(values[0].is_null() && values[1..].iter().all(|value| value.as_f64().unwrap() <= 0.0));
    let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(joined, text(&answer, 0));
    let mut offset = 0;
    for (token, found) in tokens.iter().zip(list("text_offset")) {
        assert_eq!(found, offset);
        offset += token.as_str().unwrap().chars().count();
    }
    // Generated greedily: the token is among the two likeliest, with the same value.
    let top = list("top_logprobs");
    assert_eq!(top[n_prompt][tokens[n_prompt].as_str().unwrap()], values[n_prompt]);
    assert_eq!(top[n_prompt].as_object().unwrap().len(), 2);

    // Scoring alone, as evaluation harnesses do.
    let extra = json!({"echo": true, "logprobs": 0, "max_tokens": 0});
    let scored = ask_json(&app, PATH, request(json!("Once upon a time"), extra)).await;
    assert_eq!(text(&scored, 0), "Once upon a time");
    let found = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().clone();
    assert_eq!(found, values[..n_prompt]);
    assert_eq!(scored["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn a_score_has_one_entry_more_also_when_the_model_ends_there() {
    let app = app();
    let lease = app.models.acquire(HOUSE).await.unwrap();
    let eog = lease.tokenizer.eog_ids()[0];
    // Nothing but the end can come.
    let extra = json!({"echo": true, "logprobs": 1, "max_tokens": 1, "logit_bias": {eog.to_string(): 100}});
    let scored = ask_json(&app, PATH, request(json!("Once upon a time"), extra)).await;
    let n_prompt = scored["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    let logprobs = &scored["choices"][0]["logprobs"];
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), n_prompt + 1);
    assert_eq!(scored["choices"][0]["finish_reason"], "stop");
    assert_eq!(text(&scored, 0), "Once upon a time");
}

#[tokio::test]
async fn a_streamed_completion_adds_up_to_the_whole_one() {
    let app = app();
    for extra in [
        json!({}),
        json!({"echo": true, "logprobs": 1}),
        json!({"n": 2, "temperature": 1, "seed": 3}),
        json!({"stop": ["the"], "max_tokens": 30, "logprobs": 0}),
    ] {
        let prompts = json!(["Once upon a time", "The dog"]);
        let whole = ask_json(&app, PATH, request(prompts.clone(), extra.clone())).await;
        let mut body = request(prompts, extra.clone());
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let mut events = ask(&app, post(PATH, body)).await.events();
        let last = events.pop().unwrap();
        assert_eq!((&last["usage"], &last["choices"]), (&whole["usage"], &json!([])));
        assert!(events.iter().all(|event| event["usage"].is_null()));
        for choice in whole["choices"].as_array().unwrap() {
            let mine =
                events.iter().map(|event| &event["choices"][0]).filter(|c| c["index"] == choice["index"]);
            let mine: Vec<_> = mine.collect();
            let text: String = mine.iter().map(|c| c["text"].as_str().unwrap()).collect();
            assert_eq!(choice["text"], text, "{extra}");
            assert_eq!(choice["finish_reason"], mine.last().unwrap()["finish_reason"]);
            if !choice["logprobs"].is_null() {
                for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
                    let joined = mine.iter().filter_map(|c| c["logprobs"][list].as_array()).flatten();
                    let joined: Vec<Value> = joined.cloned().collect();
                    assert_eq!(choice["logprobs"][list].as_array().unwrap(), &joined, "{list} {extra}");
                }
            }
        }
    }
}

#[tokio::test]
async fn the_best_of_several_comes_first() {
    let app = app();
    let extra = json!({"n": 1, "best_of": 4, "temperature": 1.5, "seed": 2, "logprobs": 0});
    let best = ask_json(&app, PATH, request(json!("The"), extra)).await;
    let extra = json!({"n": 4, "temperature": 1.5, "seed": 2, "logprobs": 0});
    let all = ask_json(&app, PATH, request(json!("The"), extra)).await;
    let mean = |choice: &Value| {
        let values = choice["logprobs"]["token_logprobs"].as_array().unwrap().clone();
        values.iter().map(|value| value.as_f64().unwrap()).sum::<f64>() / values.len() as f64
    };
    let choices = all["choices"].as_array().unwrap();
    let expected = choices.iter().max_by(|a, b| mean(a).total_cmp(&mean(b))).unwrap();
    assert_eq!(best["choices"][0]["text"], expected["text"]);
    assert_eq!(best["choices"].as_array().unwrap().len(), 1);
    let streamed = request(json!("The"), json!({"best_of": 2, "stream": true}));
    let refused = ask(&app, post(PATH, streamed)).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("best_of"))
    );
}

#[tokio::test]
async fn a_model_without_marks_for_it_refuses_to_fill_in() {
    let app = app();
    let refused = ask(&app, post(PATH, request(json!("a"), json!({"suffix": "b"})))).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("suffix"))
    );
}
