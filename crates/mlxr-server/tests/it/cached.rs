//! Cached tokens, as each dialect and the metrics report them.

use serde_json::{Value, json};

use crate::harness::{HOUSE, app, app_with, ask, ask_json, get, post};
use mlxr_engine::EngineOptions;
use mlxr_server::Limits;

fn body(extra: Value) -> Value {
    let content = "Tell me a long story about a cat that lived in a small house by the river. ".repeat(4);
    let mut body = json!({
        "model": HOUSE, "temperature": 0, "max_tokens": 4, "messages": [{"role": "user", "content": content}],
    });
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// What a repeated prompt of `n` tokens finds: whole blocks, and not its last token.
fn expected(n: &Value) -> u64 {
    let block_tokens = EngineOptions::default().block_tokens as u64;
    let n_cached = (n.as_u64().unwrap() - 1) / block_tokens * block_tokens;
    assert!(n_cached > 0);
    n_cached
}

#[tokio::test]
async fn openai_s_usage_counts_them_whole_and_streamed() {
    let app = app();
    let path = "/v1/chat/completions";
    let first = ask_json(&app, path, body(json!({}))).await;
    assert_eq!(first["usage"]["prompt_tokens_details"], json!({"cached_tokens": 0}));
    let second = ask_json(&app, path, body(json!({}))).await;
    let n_cached = expected(&first["usage"]["prompt_tokens"]);
    assert_eq!(second["usage"]["prompt_tokens_details"], json!({"cached_tokens": n_cached}));
    assert_eq!(second["usage"]["prompt_tokens"], first["usage"]["prompt_tokens"]);
    assert_eq!(second["choices"], first["choices"]);
    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = ask(&app, post(path, body(streamed))).await.events();
    assert_eq!(events.last().unwrap()["usage"], second["usage"]);
    let text = "a cat and a dog. ".repeat(9);
    let prompt = json!({"model": HOUSE, "max_tokens": 1, "prompt": [text, text]});
    ask_json(&app, "/v1/completions", prompt.clone()).await;
    let both = ask_json(&app, "/v1/completions", prompt).await;
    let of_one = json!(both["usage"]["prompt_tokens"].as_u64().unwrap() / 2);
    assert_eq!(both["usage"]["prompt_tokens_details"]["cached_tokens"], 2 * expected(&of_one));

    let metrics = get(&app, "/metrics").await.text;
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(value("mlxr_prefix_cache_hit_tokens_total") >= 2.0 * n_cached as f64);
    assert!(value("mlxr_prefix_cache_lookups_total") >= 7.0);
    assert!(value("mlxr_prefix_cache_idle_blocks") > 0.0);
}

#[tokio::test]
async fn anthropic_s_input_leaves_them_out() {
    let app = app();
    let first = ask_json(&app, "/v1/messages", body(json!({}))).await;
    let n_prompt = &first["usage"]["input_tokens"];
    assert_eq!(first["usage"]["cache_read_input_tokens"], 0);
    let second = ask_json(&app, "/v1/messages", body(json!({}))).await["usage"].clone();
    assert_eq!(second["cache_read_input_tokens"], expected(n_prompt));
    assert_eq!(second["input_tokens"], n_prompt.as_u64().unwrap() - expected(n_prompt));
    let streamed = ask(&app, post("/v1/messages", body(json!({"stream": true})))).await.text;
    let delta = streamed.lines().find(|line| line.contains(r#""type":"message_delta""#)).unwrap();
    let delta: Value = serde_json::from_str(delta.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(delta["usage"], second);
}

#[tokio::test]
async fn ollama_s_count_stays_the_whole_prompt() {
    let app = app();
    let request = body(json!({"stream": false, "options": {"temperature": 0, "num_predict": 4}}));
    let first = ask_json(&app, "/api/chat", request.clone()).await;
    let second = ask_json(&app, "/api/chat", request).await;
    assert_eq!(second["prompt_eval_count"], first["prompt_eval_count"]);
    assert_eq!(second["message"], first["message"]);
}

#[tokio::test]
async fn without_the_cache_there_are_none() {
    let options = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
    let app = app_with(options, Limits::default());
    for _ in 0..2 {
        let answer = ask_json(&app, "/v1/chat/completions", body(json!({}))).await;
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    }
}
