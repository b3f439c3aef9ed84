//! Clients that go away, and many at once.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use mlxr_engine::EngineOptions;
use mlxr_server::Limits;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{HOUSE, app_with, ask, assert_idle, get, post, send, until};

const PATH: &str = "/v1/chat/completions";

fn endless(stream: bool) -> Value {
    json!({
        "model": HOUSE, "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": 1500, "ignore_eos": true, "stream": stream, "n": 2,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_a_stream_cancels_its_request() {
    let app = app_with(EngineOptions::default(), Limits::default());
    let mut body = send(&app, post(PATH, endless(true))).await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"data: {"));
    drop(body);
    assert_idle(&app, HOUSE).await;
    let metrics = get(&app, "/metrics").await.text;
    assert!(metrics.contains(r#"mlxr_generations_total{model="house",outcome="cancelled"} 1"#), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_wait_for_a_whole_answer_cancels_its_request() {
    let app = app_with(EngineOptions::default(), Limits::default());
    let lease = app.models.acquire(HOUSE).await.unwrap();
    let asking = tokio::spawn({
        let app = app.clone();
        async move { send(&app, post(PATH, endless(false))).await }
    });
    until(|| lease.engine.stats().n_running == 2).await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_idle(&app, HOUSE).await;
    assert!(lease.engine.stats().n_generated < 1500, "it did not run to its end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_a_client_has_cancels_its_request() {
    let app = app_with(EngineOptions::default(), Limits::default());
    let messages = json!([{"role": "user", "content": "Tell me a long story."}]);
    // Anthropic's dialect cannot forbid the end, but a form can.
    let schema = json!({"type": "object", "properties": {"x": {"type": "string", "minLength": 5000}}, "required": ["x"]});
    let anthropic = json!({"format": {"type": "json_schema", "schema": schema}});
    for (path, extra) in [
        (PATH, json!({"messages": messages, "ignore_eos": true, "max_tokens": 1500})),
        ("/v1/completions", json!({"prompt": ["One", "Two"], "ignore_eos": true, "max_tokens": 1500})),
        ("/v1/responses", json!({"input": messages, "ignore_eos": true})),
        ("/v1/messages", json!({"messages": messages, "output_config": anthropic, "max_tokens": 1500})),
    ] {
        let mut body = json!({"model": HOUSE, "stream": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let mut body = send(&app, post(path, body)).await.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let first = String::from_utf8_lossy(&first).into_owned();
        let data = first.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        let id = [&data["id"], &data["response"]["id"], &data["message"]["id"]]
            .into_iter()
            .find_map(Value::as_str);
        let path = format!("/mlxr/v1/requests/{HOUSE}/{}", id.unwrap());
        let cancelled = ask(&app, Request::delete(path).body(Body::empty()).unwrap()).await;
        let n_cancelled = cancelled.json()["cancelled"].as_array().unwrap().len();
        assert_eq!(n_cancelled, extra["prompt"].as_array().map_or(1, Vec::len), "{}", cancelled.text);
        let rest = body.collect().await.unwrap().to_bytes();
        let rest = String::from_utf8_lossy(&rest);
        assert!(rest.contains("the request was cancelled") && !rest.contains("[DONE]"), "{rest}");
    }
    assert_idle(&app, HOUSE).await;
}

fn story(i: usize, stream: bool) -> Value {
    let animals = ["cat", "dog", "fox", "owl", "bear", "mouse", "duck", "frog"];
    let content = format!("Tell me about a {} and the number {i}.", animals[i % animals.len()]);
    let temperature = if i.is_multiple_of(2) { 0.0 } else { 0.9 };
    json!({
        "model": HOUSE, "messages": [{"role": "user", "content": content}], "max_tokens": 24,
        "temperature": temperature, "seed": i, "stream": stream,
    })
}

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_say_what_each_says_alone_while_others_leave() {
    let app = app_with(EngineOptions { max_seqs: 24, ..EngineOptions::default() }, Limits::default());
    let mut alone = Vec::new();
    for i in 0..32 {
        let answer = ask(&app, post(PATH, story(i, false))).await;
        assert_eq!(answer.status, StatusCode::OK);
        alone.push(answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned());
    }
    let mut streams = JoinSet::new();
    for i in 0..32 {
        let stayer = app.clone();
        streams.spawn(
            async move { Some((i, text_of(&ask(&stayer, post(PATH, story(i, true))).await.events()))) },
        );
        if i.is_multiple_of(2) {
            let leaver = app.clone();
            streams.spawn(async move {
                let mut body = send(&leaver, post(PATH, endless(true))).await.into_body();
                body.frame().await.unwrap().unwrap();
                None
            });
        }
    }
    while let Some(done) = streams.join_next().await {
        if let Some((i, text)) = done.unwrap() {
            assert_eq!(text, alone[i], "stream {i}");
        }
    }
    assert_idle(&app, HOUSE).await;
}
