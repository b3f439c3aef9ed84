//! Bodies that are no requests: every route that reads one refuses them in its dialect's words and stays well.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use mlxr_server::App;
use serde_json::{Value, json};

use crate::harness::{Answer, TINY, app, ask, ask_json, assert_idle, post};

/// How a dialect words an error.
#[derive(Clone, Copy, Debug)]
enum Shape {
    OpenAi,
    Ollama,
    Anthropic,
    Native,
}

impl Shape {
    /// The message of a refusal, whose other parts are as clients of the dialect expect them.
    fn message(self, answer: &Answer) -> String {
        let body = answer.json();
        let message = match self {
            Shape::OpenAi => {
                assert_eq!(body["error"]["type"], "invalid_request_error", "{body}");
                &body["error"]["message"]
            }
            Shape::Ollama => &body["error"],
            Shape::Anthropic => {
                assert_eq!(body["type"], "error", "{body}");
                assert_eq!(body["error"]["type"], "invalid_request_error", "{body}");
                &body["error"]["message"]
            }
            Shape::Native => {
                assert_eq!(body["error"]["code"], "invalid_request", "{body}");
                &body["error"]["message"]
            }
        };
        message.as_str().unwrap_or_else(|| panic!("no message: {body}")).to_owned()
    }
}

/// Routes that read a body, with a request each of them serves.
fn routes() -> Vec<(&'static str, Shape, Value)> {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let chat = json!({"model": TINY, "messages": messages, "max_tokens": 1});
    let few = json!({"num_predict": 1});
    vec![
        ("/v1/chat/completions", Shape::OpenAi, chat.clone()),
        ("/v1/completions", Shape::OpenAi, json!({"model": TINY, "prompt": "a", "max_tokens": 1})),
        (
            "/api/chat",
            Shape::Ollama,
            json!({"model": TINY, "messages": messages, "options": few, "stream": false}),
        ),
        (
            "/api/generate",
            Shape::Ollama,
            json!({"model": TINY, "prompt": "a", "options": few, "stream": false}),
        ),
        ("/v1/embeddings", Shape::OpenAi, json!({"model": TINY, "input": "a"})),
        ("/api/embed", Shape::Ollama, json!({"model": TINY, "input": "a"})),
        ("/api/embeddings", Shape::Ollama, json!({"model": TINY, "prompt": "a"})),
        ("/api/show", Shape::Ollama, json!({"model": TINY})),
        ("/v1/messages", Shape::Anthropic, chat),
        ("/v1/messages/count_tokens", Shape::Anthropic, json!({"model": TINY, "messages": messages})),
        ("/mlxr/v1/tokenize", Shape::Native, json!({"model": TINY, "text": "a"})),
        ("/mlxr/v1/detokenize", Shape::Native, json!({"model": TINY, "tokens": [5]})),
        ("/mlxr/v1/score", Shape::Native, json!({"model": TINY, "text": "a b"})),
        ("/mlxr/v1/plan", Shape::Native, json!({"model": TINY})),
        ("/mlxr/v1/models/load", Shape::Native, json!({"model": TINY})),
        ("/mlxr/v1/models/unload", Shape::Native, json!({"model": TINY, "force": true})),
    ]
}

async fn refused(app: &Arc<App>, path: &str, shape: Shape, body: impl Into<Body>, what: &str) -> String {
    let request = Request::post(path).header("content-type", "application/json").body(body.into()).unwrap();
    let answer = ask(app, request).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}, {what}: {}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/json", "{path}, {what}");
    let message = shape.message(&answer);
    assert!(!message.is_empty() && message.len() < 1000, "{path}, {what}: {message}");
    message
}

#[tokio::test]
async fn bodies_that_are_not_json_are_refused_with_the_place() {
    let app = app();
    for (path, shape, good) in routes() {
        let whole = good.to_string();
        let cut = whole[..whole.len() - 1].to_owned();
        let deep = format!(r#"{{"model": "{TINY}", "x": {}"#, "[".repeat(100_000));
        for (what, body) in [
            ("nothing", Vec::new()),
            ("cut short", cut.into_bytes()),
            ("two values", format!("{whole} {whole}").into_bytes()),
            ("no UTF-8", b"{\"model\": \"\xff\xfe\"}".to_vec()),
            ("half a surrogate pair", br#"{"model": "\ud800"}"#.to_vec()),
            ("zeros", vec![0; 64]),
            ("a form", b"model=tiny&prompt=a".to_vec()),
            ("endless depth", deep.into_bytes()),
            ("no such number", format!(r#"{{"model": "{TINY}", "x": 1e999999}}"#).into_bytes()),
        ] {
            let message = refused(&app, path, shape, body, what).await;
            assert!(message.contains("line 1"), "{path}, {what}: {message}");
        }
        for (what, body) in [("a list", "[]"), ("a number", "7"), ("null", "null"), ("a text", "\"hi\"")] {
            refused(&app, path, shape, body, what).await;
        }
        ask_json(&app, path, good).await;
    }
    assert_idle(&app, TINY).await;
}

#[tokio::test]
async fn values_of_the_wrong_type_are_refused_by_name() {
    let app = app();
    for (path, shape, good) in routes() {
        for (field, right) in good.as_object().unwrap() {
            for wrong in [json!(true), json!([[1.5]]), json!({"a": {}}), json!(-1)] {
                let is_right = wrong.is_boolean() && right.is_boolean();
                // These are told by the name of what is inside.
                let is_inside =
                    field == "prompt" && wrong.is_array() || field == "options" && wrong.is_object();
                if is_right || is_inside {
                    continue;
                }
                let mut body = good.clone();
                body[field] = wrong;
                let message = refused(&app, path, shape, body.to_string(), field).await;
                assert!(message.contains(field.as_str()), "{path}, {field}: {message}");
            }
            // What must be there is missed by its name; the rest may be left out.
            let mut body = good.clone();
            body.as_object_mut().unwrap().remove(field);
            let answer = ask(&app, post(path, &body)).await;
            if answer.status != StatusCode::OK {
                assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}, {field}: {}", answer.text);
                assert!(shape.message(&answer).contains(field.as_str()), "{path}, {field}: {}", answer.text);
            }
        }
        ask_json(&app, path, good).await;
    }
    assert_idle(&app, TINY).await;
}

#[tokio::test]
async fn ten_megabytes_of_prompt_are_refused_by_their_tokens() {
    let app = app();
    let check = async |path: &str, n_bytes: usize| {
        let (path, shape, mut body) = routes().into_iter().find(|(known, ..)| *known == path).unwrap();
        let text = json!("word ".repeat(n_bytes / 5));
        match body.get("prompt").is_some() {
            true => body["prompt"] = text,
            false => body["messages"][0]["content"] = text,
        }
        let message = refused(&app, path, shape, body.to_string(), "a long prompt").await;
        assert!(message.contains("512"), "{path}: {message}");
    };
    check("/v1/chat/completions", 10 << 20).await;
    // Counting tokens takes a while in a development build, so the others get less.
    for path in ["/v1/completions", "/api/chat", "/api/generate", "/v1/messages"] {
        check(path, 100_000).await;
    }
    assert_idle(&app, TINY).await;
}
