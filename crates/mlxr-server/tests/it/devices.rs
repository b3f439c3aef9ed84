//! Models on more than one device, and a device that fails.

use std::sync::{Arc, Mutex};

use axum::http::StatusCode;
use http_body_util::BodyExt;
use mlxr_engine::EngineOptions;
use mlxr_gpu::{AdapterChoice, GpuBackend, GpuError};
use mlxr_server::{
    App, Device, DeviceError, EngineSetup, Fallback, KeepAlive, Limits, Memory, ModelList, Models,
};
use mlxr_tensor::Backend;
use serde_json::{Value, json};

use crate::harness::{HOUSE, ROOMY, TINY, ask, ask_json, get, post, send, setup, specs};

/// Models on a CPU with `limit_bytes` of memory, and on another one behind it.
fn two(limit_bytes: u64, fallback: Option<Memory>, shares_memory: bool) -> Arc<Models> {
    let options = EngineOptions::default();
    let list = ModelList::new(specs()).unwrap();
    let fallback = fallback.map(|memory| Fallback { device: setup(options).device, memory, shares_memory });
    let models = Models::with_list(list, setup(options), Memory { limit_bytes }, KeepAlive::Forever);
    Arc::new(models.with_fallback(fallback))
}

#[tokio::test]
async fn what_does_not_fit_goes_to_the_other_device_and_says_why() {
    let refused = two(1000, None, false).acquire(TINY).await.unwrap_err();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = refused.to_string();
    assert!(text.contains("\"tiny\" does not fit") && text.contains("0 of 1000 bytes of cpu, "), "{text}");

    let app = App::new(two(1000, Some(ROOMY), false), Limits::default()).unwrap();
    let answer =
        ask_json(&app, "/v1/completions", json!({"model": TINY, "prompt": "a", "max_tokens": 2})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    let listed = get(&app, "/mlxr/v1/models").await.json();
    let tiny = tiny(&app).await;
    let why = tiny["loaded"]["why_here"].as_str().unwrap();
    assert!(why.contains("does not fit") && why.contains("1000 bytes"), "{why}");
    assert!(tiny["loaded"]["device"].as_str().unwrap().starts_with("cpu, "), "{tiny}");
    assert_eq!(listed["memory"]["used_bytes"], 0, "the first device holds nothing: {listed}");

    let roomy = two(ROOMY.limit_bytes, Some(ROOMY), false);
    roomy.acquire(TINY).await.unwrap();
    assert_eq!(roomy.residences()[0].why_here, None);
}

#[tokio::test]
async fn devices_in_the_same_memory_are_counted_together() {
    let apart = two(ROOMY.limit_bytes, Some(ROOMY), false);
    let tiny = apart.acquire(TINY).await.unwrap().plan.total_bytes();
    let house = apart.acquire(HOUSE).await.unwrap().plan.total_bytes();
    assert!(tiny < house);
    // The small one has room on the first device; the large one would beside it on the second.
    let limit = Memory { limit_bytes: house + tiny / 2 };
    for (shares_memory, fits) in [(false, true), (true, false)] {
        let models = two(tiny, Some(limit), shares_memory);
        let lease = models.acquire(TINY).await.unwrap();
        let other = models.acquire(HOUSE).await;
        assert_eq!(other.as_ref().is_ok_and(|other| other.plan.total_bytes() == house), fits, "{other:?}");
        drop((lease, other));
    }
}

/// The tiny model as the server lists it.
async fn tiny(app: &Arc<App>) -> Value {
    let listed = get(app, "/mlxr/v1/models").await.json();
    let models = listed["models"].as_array().unwrap();
    models.iter().find(|model| model["name"] == TINY).unwrap().clone()
}

/// Every device a service has opened.
type Opened = Arc<Mutex<Vec<Arc<GpuBackend>>>>;

/// A service on a GPU or a software driver; tests on a machine without one pass.
fn on_gpu() -> Option<(Arc<App>, Opened)> {
    match GpuBackend::new(AdapterChoice::BestOrSoftware) {
        Err(error @ GpuError::None) => {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("skipped: no GPU and no software driver");
            return None;
        }
        result => drop(result.unwrap()),
    }
    let opened = Opened::default();
    let seen = opened.clone();
    let device = Device::new(move || {
        let gpu = GpuBackend::new(AdapterChoice::BestOrSoftware);
        let gpu = Arc::new(gpu.map_err(|error| DeviceError { reason: error.to_string() })?);
        seen.lock().unwrap().push(gpu.clone());
        Ok(gpu)
    });
    let setup = EngineSetup { device, options: EngineOptions::default() };
    let models = Models::new(specs(), setup, ROOMY, KeepAlive::Forever).unwrap();
    Some((App::new(models, Limits::default()).unwrap(), opened))
}

#[tokio::test]
async fn a_lost_device_ends_its_requests_and_the_next_one_starts_it_anew() {
    let Some((app, opened)) = on_gpu() else { return };
    let request = json!({"model": TINY, "prompt": "a", "max_tokens": 4, "temperature": 0});
    let before = ask_json(&app, "/v1/completions", request.clone()).await;
    assert!(!get(&app, "/metrics").await.text.contains("mlxr_kernel_seconds{"), "nobody asked for them");
    if opened.lock().unwrap()[0].start_profile().is_ok() {
        assert_eq!(ask_json(&app, "/v1/completions", request.clone()).await["choices"], before["choices"]);
        let metrics = get(&app, "/metrics").await.text;
        assert!(metrics.contains("mlxr_kernel_calls_total{kernel=\"attention\"}"), "{metrics}");
        assert!(metrics.contains("mlxr_kernel_seconds{kernel=\"argmax\"}"), "{metrics}");
    }
    let long = json!({
        "model": TINY, "prompt": "a", "max_tokens": 500, "temperature": 0, "stream": true, "ignore_eos": true
    });
    let mut body = send(&app, post("/v1/completions", long)).await.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"data: {\"id\""), "{first:?}");
    opened.lock().unwrap()[0].destroy();
    let rest = body.collect().await.unwrap().to_bytes();
    let rest = String::from_utf8(rest.to_vec()).unwrap();
    assert!(rest.contains("\"code\":\"device_lost\""), "{rest}");
    assert!(rest.contains("the device that computes failed"), "{rest}");

    assert_eq!(opened.lock().unwrap().len(), 1, "nothing is opened before it is needed");
    let listed = tiny(&app).await;
    assert!(listed["loaded"]["failure"].is_string(), "{listed}");
    let after = ask_json(&app, "/v1/completions", request.clone()).await;
    assert_eq!(after["choices"], before["choices"]);
    assert_eq!(opened.lock().unwrap().len(), 2);
    let listed = tiny(&app).await;
    assert!(listed["loaded"]["failure"].is_null(), "{listed}");

    // One that fails while nobody computes is found by the next request, whatever its dialect.
    opened.lock().unwrap()[1].destroy();
    let chat = json!({"model": TINY, "messages": [{"role": "user", "content": "a"}], "stream": false});
    let answers = [ask(&app, post("/api/chat", &chat)).await, ask(&app, post("/api/chat", &chat)).await];
    assert_eq!(answers[1].status, StatusCode::OK, "{}", answers[1].text);
    if answers[0].status != StatusCode::OK {
        assert_eq!(answers[0].status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(answers[0].json()["error"].as_str().unwrap().contains("the device that computes failed"));
    }
    assert_eq!(opened.lock().unwrap().len(), 3);
}
