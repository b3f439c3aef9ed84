//! What clients get when they ask for what cannot be had: status, code and the field at fault, and a server unharmed.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use mlxr_engine::EngineOptions;
use mlxr_server::Limits;
use serde_json::{Value, json};

use crate::harness::{HOUSE, TINY, app, app_with, ask, ask_json, assert_idle, get, post, send};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": TINY, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_request_that_cannot_be_served_says_which_field_and_why() {
    let app = app();
    let check = async |path: &str, body: String, field: Value, text: &str| {
        let answer = ask(&app, post(path, &body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        let error = answer.json()["error"].clone();
        assert_eq!(
            (&error["param"], &error["type"]),
            (&field, &json!("invalid_request_error")),
            "{body}: {error}"
        );
        assert!(error["message"].as_str().unwrap().contains(text), "{body}: {error}");
    };
    let bad_chat = async |extra: Value, field: &str, text: &str| {
        check(CHAT, chat(extra).to_string(), json!(field), text).await;
    };
    check(CHAT, "{\"model\": ".to_owned(), Value::Null, "EOF").await;
    check(CHAT, "{}".to_owned(), Value::Null, "missing field `model`").await;
    check(CHAT, "\u{1}".to_owned(), Value::Null, "line 1 column 1").await;
    bad_chat(json!({"messages": []}), "messages", "is empty").await;
    bad_chat(json!({"messages": [{"role": "user"}]}), "messages[0].content", "needs content").await;
    bad_chat(json!({"messages": "Hi"}), "messages", "expected a sequence").await;
    bad_chat(json!({"temperature": -1}), "temperature", "0 or more").await;
    bad_chat(json!({"temperature": "hot"}), "temperature", "invalid type").await;
    bad_chat(json!({"top_p": 0}), "top_p", "above 0").await;
    bad_chat(json!({"n": 0}), "n", "1 or more").await;
    bad_chat(json!({"n": 1000}), "n", "at most 32 sequences").await;
    bad_chat(json!({"max_tokens": 0}), "max_tokens", "1 or more").await;
    bad_chat(json!({"stop": [""]}), "stop", "empty string").await;
    bad_chat(json!({"stop": vec!["x"; 33]}), "stop", "at most 32").await;
    bad_chat(json!({"logit_bias": {"99999": 1}}), "logit_bias", "the vocabulary has 288").await;
    bad_chat(json!({"top_logprobs": 2}), "top_logprobs", "needs logprobs").await;
    bad_chat(json!({"logprobs": true, "top_logprobs": 101}), "logprobs", "at most 100").await;
    bad_chat(json!({"stream_options": {"include_usage": true}}), "stream_options", "needs stream").await;
    let tool = json!({"type": "function", "function": {"name": "f"}});
    bad_chat(json!({"tool_choice": "required"}), "tool_choice", "there are no tools").await;
    let named = json!({"type": "function", "function": {"name": "g"}});
    bad_chat(json!({"tools": [tool], "tool_choice": named}), "tool_choice", "\"g\" is not among").await;
    bad_chat(json!({"tools": [tool, tool]}), "tools[1].function.parameters", "two tools \"f\"").await;
    bad_chat(json!({"tools": [{"type": "custom", "function": {"name": "f"}}]}), "tools[0].type", "custom")
        .await;
    bad_chat(json!({"tools": [tool], "functions": [{"name": "f"}]}), "functions", "beside tools").await;
    let unsupported = json!({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}});
    let strict =
        json!({"type": "function", "function": {"name": "f", "strict": true, "parameters": unsupported}});
    let place = "\"uniqueItems\" at #/properties/a/uniqueItems";
    bad_chat(json!({"tools": [strict]}), "tools[0].function.parameters", place).await;
    let format = |schema: &Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}});
    let field = "response_format.json_schema.schema";
    bad_chat(format(&unsupported), field, place).await;
    bad_chat(format(&json!({"type": "wizard"})), field, "wizard").await;
    bad_chat(format(&json!({"type": "integer", "minimum": 3, "maximum": 2})), field, "schema").await;
    bad_chat(format(&Value::Null), field, "required").await;
    bad_chat(
        json!({"response_format": {"type": "regex", "pattern": "("}}),
        "response_format.pattern",
        "regex",
    )
    .await;
    bad_chat(json!({"response_format": {"type": "yaml"}}), "response_format.type", "unknown variant").await;
    bad_chat(json!({"reasoning_effort": "lots"}), "reasoning_effort", "none, minimal").await;
    bad_chat(json!({"modalities": ["audio"]}), "modalities", "text").await;
    let image = json!([{"type": "image_url", "image_url": {"url": "data:,"}}]);
    let field = "messages[0].content[0].type";
    bad_chat(json!({"messages": [{"role": "user", "content": image}]}), field, "reads only text").await;
    let complete = |extra: Value| {
        let mut body = json!({"model": TINY, "prompt": "a"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body.to_string()
    };
    check(COMPLETIONS, complete(json!({"prompt": []})), json!("prompt"), "empty").await;
    check(COMPLETIONS, complete(json!({"prompt": [[1], []]})), json!("prompt"), "empty").await;
    check(COMPLETIONS, complete(json!({"prompt": [288]})), json!("prompt"), "the vocabulary has 288").await;
    check(COMPLETIONS, complete(json!({"prompt": vec!["a"; 65]})), json!("prompt"), "at most 64").await;
    check(COMPLETIONS, complete(json!({"grammar": "root ="})), json!("grammar"), "line 1").await;
    check(COMPLETIONS, complete(json!({"n": 3, "best_of": 2})), json!("best_of"), "1 <= n <= best_of").await;
    assert_idle(&app, TINY).await;
    ask_json(&app, CHAT, chat(json!({}))).await;
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let app = app();
    let ids = vec![5; 600];
    for stream in [false, true] {
        let body = json!({"model": TINY, "prompt": ids, "stream": stream});
        let answer = ask(&app, post(COMPLETIONS, body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let error = &answer.json()["error"];
        assert_eq!(error["code"], "context_length_exceeded");
        let text = error["message"].as_str().unwrap();
        assert!(text.contains("maximum context length is 512 tokens") && text.contains("600"), "{text}");
    }
    let long = json!([{"role": "user", "content": "word ".repeat(600)}]);
    let answer = ask(&app, post(CHAT, chat(json!({"messages": long})))).await;
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
}

#[tokio::test]
async fn unknown_models_and_routes_are_not_found() {
    let app = app();
    let answer = ask(&app, post(CHAT, chat(json!({"model": "gpt-9"})))).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let error = &answer.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    assert!(error["message"].as_str().unwrap().contains("house, tiny"), "{error}");
    let answer = get(&app, "/v1/nothing").await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("unknown_url"))
    );
    let answer = get(&app, CHAT).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(answer.json()["error"]["code"], "method_not_allowed");
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let app = app_with(EngineOptions::default(), Limits { max_body_bytes: 1000, ..Limits::default() });
    let answer = ask(&app, post(CHAT, chat(json!({"user": "x".repeat(1000)})))).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "request_too_large");
    assert!(error["message"].as_str().unwrap().contains("1000 bytes"), "{error}");
    ask_json(&app, CHAT, chat(json!({}))).await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_arrive_is_given_up() {
    struct Never;

    impl futures_core::Stream for Never {
        type Item = Result<bytes::Bytes, std::convert::Infallible>;

        fn poll_next(
            self: std::pin::Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Self::Item>> {
            std::task::Poll::Pending
        }
    }

    let app = app_with(
        EngineOptions::default(),
        Limits { body_timeout: Duration::from_secs(5), ..Limits::default() },
    );
    let answer = ask(&app, Request::post(CHAT).body(Body::from_stream(Never)).unwrap()).await;
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(answer.json()["error"]["code"], "request_timeout");
}

#[tokio::test]
async fn a_full_queue_is_refused_at_once_with_a_time_to_come_back() {
    let options = EngineOptions { max_waiting: 1, max_seqs: 1, ..EngineOptions::default() };
    let app = app_with(options, Limits::default());
    let long = json!({"model": HOUSE, "prompt": "a", "max_tokens": 1500, "ignore_eos": true, "stream": true});
    let running = send(&app, post(COMPLETIONS, &long)).await;
    assert_eq!(running.status(), StatusCode::OK);
    let lease = app.models.acquire(HOUSE).await.unwrap();
    crate::harness::until(|| lease.engine.stats().n_running == 1).await;
    let waiting = send(&app, post(COMPLETIONS, &long)).await;
    assert_eq!(waiting.status(), StatusCode::OK, "its headers come when it is in the queue");
    for path_and_body in [(COMPLETIONS, long.clone()), (CHAT, chat(json!({"model": HOUSE})))] {
        let answer = ask(&app, post(path_and_body.0, path_and_body.1)).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(answer.headers["retry-after"], "1");
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], &error["type"]), (&json!("queue_full"), &json!("rate_limit_error")));
    }
    drop((running, waiting));
    assert_idle(&app, HOUSE).await;
}
