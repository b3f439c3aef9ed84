//! Which models there are, which are in memory, and when they go.

use std::time::Duration;

use axum::http::StatusCode;
use mlxr_engine::{EmbedError, EngineOptions};
use mlxr_server::{App, KeepAlive, Limits, Memory, ModelSource, ModelSpec, Models};
use serde_json::json;

use crate::harness::{
    BERT, HOUSE, ROOMY, TINY, app, app_with_embedders, ask, ask_json, get, models, post, setup,
};

fn names(models: &Models) -> Vec<String> {
    models.resident().iter().map(|model| model.name.clone()).collect()
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let app = app();
    let list = get(&app, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, [HOUSE, TINY]);
    let shown = get(&app, "/v1/models/tiny").await.json();
    assert_eq!((&shown["id"], &shown["object"]), (&json!("tiny"), &json!("model")));
    assert_eq!(get(&app, "/v1/models/tiny:latest").await.json()["id"], "tiny");
    let missing = get(&app, "/v1/models/some/where").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.json()["error"]["code"], "model_not_found");
    assert!(app.models.resident().is_empty(), "a list loads nothing");
}

#[tokio::test]
async fn one_load_serves_everyone_who_waits_for_it() {
    let models = models(EngineOptions::default(), ROOMY, KeepAlive::Forever);
    let (a, b) = tokio::join!(models.acquire(TINY), models.acquire(TINY));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert!(std::ptr::eq(&*a, &*b));
    assert_eq!(names(&models), [TINY]);
}

#[tokio::test]
async fn an_idle_model_makes_room_and_a_busy_one_does_not() {
    let big = models(EngineOptions::default(), ROOMY, KeepAlive::Forever);
    let plan = |name: &'static str| {
        let big = big.clone();
        async move { big.acquire(name).await.unwrap().plan }
    };
    let (house, tiny) = (plan(HOUSE).await, plan(TINY).await);
    // Either fits, both do not.
    let limit_bytes = house.total_bytes() + tiny.total_bytes() / 2;
    let options = EngineOptions { kv_bytes: Some(house.kv_bytes as usize), ..EngineOptions::default() };
    let tight = models(options, Memory { limit_bytes }, KeepAlive::Forever);
    let lease = tight.acquire(HOUSE).await.unwrap();
    let refused = tight.acquire(TINY).await.unwrap_err();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = refused.to_string();
    assert!(text.contains("\"tiny\" does not fit") && text.contains(&limit_bytes.to_string()), "{text}");
    assert_eq!(names(&tight), [HOUSE]);
    drop(lease);
    tight.acquire(TINY).await.unwrap();
    assert_eq!(names(&tight), [TINY]);
}

#[tokio::test]
async fn a_model_goes_when_its_keep_alive_has_passed() {
    let keep_alive = KeepAlive::For(Duration::from_secs(3600));
    let models = models(EngineOptions::default(), ROOMY, keep_alive);
    let lease = models.acquire(TINY).await.unwrap();
    assert_eq!(models.unload_expired().await, None, "a busy model does not expire");
    assert!(models.set_keep_alive(TINY, KeepAlive::For(Duration::ZERO)));
    assert_eq!(models.unload_expired().await, None);
    assert_eq!(names(&models), [TINY]);
    let engine = lease.engine.clone();
    drop(lease);
    assert_eq!(models.unload_expired().await, None, "none is left to expire");
    assert!(names(&models).is_empty());
    // Its engine has ended and takes no more.
    let (send, _events) = mlxr_engine::event_channel();
    let request = mlxr_engine::Request::new(mlxr_engine::Prompt::Tokens(vec![5]));
    assert!(matches!(engine.submit(request, send).await, Err(mlxr_engine::EngineThreadError::Stopping)));
    drop(models.acquire(TINY).await.unwrap());
    assert!(models.unload_expired().await.is_some(), "the next one stays an hour");
    assert!(!models.set_keep_alive(HOUSE, KeepAlive::Forever), "it is not in memory");
}

#[tokio::test]
async fn a_model_that_makes_vectors_is_held_like_any_other() {
    let app = app_with_embedders(EngineOptions::default(), Limits::default());
    let lease = app.models.acquire_embedder(BERT).await.unwrap();
    assert_eq!((lease.name(), lease.embeddings().n_ctx()), (BERT, 100), "as sentence_bert_config.json says");
    let refused = app.models.acquire(BERT).await.unwrap_err();
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert!(refused.to_string().contains("embedding model"), "{refused}");
    lease.set_keep_alive(KeepAlive::For(Duration::ZERO));
    app.models.unload_expired().await;
    assert_eq!(app.models.loaded().len(), 1, "it is in use");
    let handle = lease.handle.clone();
    drop(lease);
    app.models.unload_expired().await;
    assert!(app.models.loaded().is_empty());
    assert_eq!(handle.run(Vec::new()).await, Err(EmbedError::Stopping));
    // One asked to generate is not even loaded.
    assert_eq!(app.models.acquire(BERT).await.unwrap_err().status(), StatusCode::BAD_REQUEST);
    assert!(app.models.loaded().is_empty());
}

#[tokio::test]
async fn a_generating_model_that_makes_vectors_too_is_planned_for() {
    let big = models(EngineOptions::default(), ROOMY, KeepAlive::Forever);
    let plan = big.acquire(TINY).await.unwrap().plan;
    let (without, with) = {
        let without = big.loaded()[0].total_bytes();
        let _lease = big.acquire_embedder(TINY).await.unwrap();
        (without, big.loaded()[0].total_bytes())
    };
    assert_eq!(without, plan.total_bytes());
    assert!(with > without);
    let options = EngineOptions { kv_bytes: Some(plan.kv_bytes as usize), ..EngineOptions::default() };
    let tight = models(options, Memory { limit_bytes: with - 1 }, KeepAlive::Forever);
    let lease = tight.acquire(TINY).await.unwrap();
    let refused = tight.acquire_embedder(TINY).await.unwrap_err();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(lease);
    let exact = models(options, Memory { limit_bytes: with }, KeepAlive::Forever);
    drop(exact.acquire(TINY).await.unwrap());
    exact.acquire_embedder(TINY).await.unwrap();
}

#[tokio::test]
async fn who_asks_for_a_broken_file_is_told_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken.gguf");
    std::fs::write(&path, b"GGUF\x03\0\0\0").unwrap();
    let spec = ModelSpec::new("broken", ModelSource::Path(path.clone()));
    let models =
        Models::new(vec![spec], setup(EngineOptions::default()), ROOMY, KeepAlive::default()).unwrap();
    let app = App::new(models, Limits::default()).unwrap();
    let answer = ask(&app, post("/v1/completions", json!({"model": "broken", "prompt": "a"}))).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    let error = &answer.json()["error"];
    assert_eq!((&error["code"], &error["param"]), (&json!("cannot_load"), &json!("model")));
    let message = error["message"].as_str().unwrap();
    assert!(message.starts_with(r#"cannot load "broken": "#) && message.contains("broken.gguf"), "{message}");
    let answer = ask(&app, post("/api/generate", json!({"model": "broken", "prompt": "a"}))).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]),
        (StatusCode::INTERNAL_SERVER_ERROR, &json!(message))
    );
}

#[tokio::test]
async fn health_and_metrics_answer() {
    let app = app();
    assert_eq!(get(&app, "/health").await.json()["status"], "ok");
    ask_json(
        &app,
        "/v1/completions",
        json!({"model": TINY, "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": true}),
    )
    .await;
    let answer = get(&app, "/metrics").await;
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        r#"mlxr_prompt_tokens_total{model="tiny"} 3"#,
        r#"mlxr_completion_tokens_total{model="tiny"} 4"#,
        r#"mlxr_generations_total{model="tiny",outcome="length"} 1"#,
        r#"mlxr_time_to_first_token_seconds_count{model="tiny"} 1"#,
        r#"mlxr_inter_token_latency_seconds_count{model="tiny"} 3"#,
        r#"mlxr_kv_blocks_used{model="tiny"} 0"#,
        r#"mlxr_engine_rows_total{model="tiny"} 6"#,
        r#"mlxr_http_responses_total{route="/v1/completions",status="200"} 1"#,
        "mlxr_models_loaded 1",
    ] {
        assert!(answer.text.lines().any(|found| found == line), "{line} is not in\n{}", answer.text);
    }
}
