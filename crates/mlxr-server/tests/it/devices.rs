//! Models on more than one device, and a device that fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::StatusCode;
use http_body_util::BodyExt;
use mlxr_engine::EngineOptions;
use mlxr_gpu::{AdapterChoice, GpuBackend, GpuError};
use mlxr_server::config::GpuLayers;
use mlxr_server::{
    App, Device, DeviceError, EngineSetup, Fallback, KeepAlive, Limits, Loaded, Memory, ModelList,
    ModelSource, ModelSpec, Models, Role,
};
use mlxr_tensor::{Backend, DType};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{
    Answer, HOUSE, ROOMY, TINY, ask, ask_json, get, post, repository, send, setup, specs, until,
};

/// A CPU behind another device, for whole models.
fn cpu(memory: Memory) -> Fallback {
    let device = setup(EngineOptions::default()).device;
    Fallback { device, memory, shares_memory: false, gpu_layers: GpuLayers::All, role: Role::Models }
}

/// Models on a device with `limit_bytes` of memory, and what is behind it.
fn models_on(device: Device, limit_bytes: u64, fallback: Option<Fallback>) -> Arc<Models> {
    let setup = EngineSetup { device, options: EngineOptions::default() };
    let list = ModelList::new(specs()).unwrap();
    let models = Models::with_list(list, setup, Memory { limit_bytes }, KeepAlive::Forever);
    Arc::new(models.with_fallback(fallback))
}

/// Models on a CPU with `limit_bytes` of memory, and on another one behind it.
fn two(limit_bytes: u64, fallback: Option<Memory>, shares_memory: bool) -> Arc<Models> {
    let fallback = fallback.map(|memory| Fallback { shares_memory, ..cpu(memory) });
    models_on(setup(EngineOptions::default()).device, limit_bytes, fallback)
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

/// What a greedy chat with the bundled model gives.
async fn chat(app: &Arc<App>) -> Value {
    let messages = json!([{"role": "user", "content": "What is 23 + 45?"}]);
    let request = json!({"model": HOUSE, "messages": messages, "max_tokens": 48, "temperature": 0});
    ask_json(app, "/v1/chat/completions", request).await["choices"].clone()
}

/// A model on two devices answers as on one, and every account of it adds up.
async fn check_split(device: Device) {
    let alone = two(ROOMY.limit_bytes, None, false);
    let alone = App::new(alone, Limits::default()).unwrap();
    let expected = chat(&alone).await;
    let plan = json!({"model": HOUSE, "gpu_layers": 2});
    let refused = ask(&alone, post("/mlxr/v1/plan", &plan)).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text.contains("the server computes on one device"), "{}", refused.text);

    let whole = models_on(device.clone(), ROOMY.limit_bytes, None).acquire(HOUSE).await.unwrap().plan;
    // Half of the weights have room beside half of one of eight sequences.
    let half = whole.step_bytes + whole.weights_bytes / 2 + whole.kv_bytes / 16;
    for (limit_bytes, gpu_layers) in [
        (half, GpuLayers::Auto),
        (ROOMY.limit_bytes, GpuLayers::Count(1)),
        (ROOMY.limit_bytes, GpuLayers::Count(7)),
    ] {
        let behind = Fallback { gpu_layers, role: Role::Layers, ..cpu(ROOMY) };
        let app = App::new(models_on(device.clone(), limit_bytes, Some(behind)), Limits::default()).unwrap();
        assert_eq!(chat(&app).await, expected, "{gpu_layers:?}");
        let listed = get(&app, "/mlxr/v1/models").await.json();
        let loaded = &named(&listed, HOUSE)["loaded"];
        let [gpu, cpu] = ["gpu", "cpu"].map(|part| &loaded["plan"]["split"][part]);
        let layers = [gpu, cpu].map(|share| share["n_layers"].as_u64().unwrap());
        assert_eq!(layers[0] + layers[1], 8);
        match gpu_layers {
            GpuLayers::Count(n) => assert_eq!(layers[0], n as u64),
            _ => assert!((1..8).contains(&layers[0])),
        }
        let places = loaded["device"].as_str().unwrap();
        assert!(layers.iter().all(|n| places.contains(&format!("({n} layers)"))), "{places}");
        let total = |share: &Value| share["total_bytes"].as_u64().unwrap();
        assert_eq!(total(&loaded["plan"]), total(gpu) + total(cpu));
        assert_eq!(listed["memory"]["used_bytes"], gpu["total_bytes"], "the CPU's share is not the GPU's");
        let planned = ask_json(&app, "/mlxr/v1/plan", json!({"model": HOUSE, "gpu_layers": 2})).await;
        assert_eq!(planned["plan"]["split"]["gpu"]["n_layers"], 2);
        let none = ask(&app, post("/mlxr/v1/plan", json!({"model": HOUSE, "gpu_layers": 0}))).await;
        assert_eq!(none.status, StatusCode::BAD_REQUEST);
        if gpu_layers != GpuLayers::Auto {
            // A vector of a divided model is made on both devices.
            let vector = ask_json(&app, "/v1/embeddings", json!({"model": HOUSE, "input": "a dragon"})).await;
            assert!(vector["data"][0]["embedding"][0].is_number(), "{vector}");
        }
    }
}

/// Notes the most that a backend has allocated: what nobody needs for a while it gives back.
struct Watch {
    at_first: u64,
    most: Arc<AtomicU64>,
}

impl Watch {
    fn new(backend: &Arc<dyn Backend>) -> Watch {
        let at_first = backend.allocated_bytes().unwrap();
        let most = Arc::new(AtomicU64::new(at_first));
        let (backend, noted) = (Arc::downgrade(backend), Arc::downgrade(&most));
        std::thread::spawn(move || {
            while let (Some(backend), Some(noted)) = (backend.upgrade(), noted.upgrade()) {
                noted.fetch_max(backend.allocated_bytes().unwrap(), Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        Watch { at_first, most }
    }

    fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed) - self.at_first
    }
}

/// Completions of several lengths, four at a time.
async fn complete(app: &Arc<App>) {
    for (i, lens) in [[1, 90, 33, 60], [3, 17, 64, 5], [100, 2, 50, 31]].into_iter().enumerate() {
        let mut asking = JoinSet::new();
        for n in lens {
            let body = json!({"model": HOUSE, "prompt": vec![7 + i; n], "max_tokens": 9, "ignore_eos": true, "temperature": 0.9, "seed": n});
            let app = app.clone();
            asking.spawn(async move { ask_json(&app, "/v1/completions", body).await });
        }
        asking.join_all().await;
    }
}

/// What is planned for a model is what the device's allocator has given out once it has worked for a while.
async fn check_plan(device: Device) {
    let options = EngineOptions {
        n_ctx: Some(128),
        max_batch_tokens: 64,
        max_logit_rows: 8,
        max_seqs: 4,
        ..EngineOptions::default()
    };
    let backend = device.backend().unwrap();
    let watch = Watch::new(&backend);
    let setup = EngineSetup { device, options };
    let models = Models::new(specs(), setup, ROOMY, KeepAlive::Forever).unwrap();
    let app = App::new(models, Limits::default()).unwrap();
    let plan = app.models.acquire(HOUSE).await.unwrap().plan;
    complete(&app).await;
    let taken = watch.most();
    // A device with memory of its own counts all that lies there.
    let planned = if backend.memory().is_some() { plan.total_bytes() } else { plan.step_bytes };
    assert!(taken <= planned, "{taken} bytes taken, {planned} planned");
    assert!(taken * 3 >= planned * 2, "{taken} bytes taken, {planned} planned");
}

/// Vectors of short texts, and of many that are longer than the context.
async fn make_vectors(app: &Arc<App>, model: &str) {
    for texts in [vec![1, 90, 33, 60], vec![400; 30], vec![3; 100]] {
        let texts: Vec<String> = texts.into_iter().map(|n| "cat sat ".repeat(n)).collect();
        let body = json!({"model": model, "input": texts, "truncate": true});
        ask_json(app, "/api/embed", body).await;
    }
}

/// What is planned for models that make vectors, and for one that does so besides, each on a device of its own.
async fn check_embedders_plan(open: impl Fn() -> Option<Device>) {
    for name in ["bert", "modernbert", "qwen3", TINY] {
        let Some(device) = open() else { return };
        let backend = device.backend().unwrap();
        let watch = Watch::new(&backend);
        let options = EngineOptions { n_ctx: Some(128), ..EngineOptions::default() };
        let path = repository("golden/embeddings").join(name);
        let specs = specs().into_iter().chain([ModelSpec::new(name, ModelSource::Path(path))]);
        let specs = specs.filter(|spec| spec.name == name).take(1).collect();
        let models = Models::new(specs, EngineSetup { device, options }, ROOMY, KeepAlive::Forever).unwrap();
        let app = App::new(models, Limits::default()).unwrap();
        make_vectors(&app, name).await;
        let taken = watch.most();
        let model = app.models.loaded().remove(0);
        let plan = match &model {
            Loaded::Generator(model) => model.embeddings_plan,
            Loaded::Embedder(model) => model.plan,
        };
        let has_own_memory = backend.memory().is_some();
        let planned = if has_own_memory { model.total_bytes() } else { plan.step_bytes };
        assert!(taken <= planned, "{name}: {taken} bytes taken, {planned} planned: {plan}");
        assert!(taken * 2 >= planned, "{name}: {taken} bytes taken, {planned} planned: {plan}");
    }
}

/// What is planned for a model on two devices is what each of them takes.
async fn check_split_plan(device: Device) {
    let options = EngineOptions {
        n_ctx: Some(128),
        max_batch_tokens: 64,
        max_logit_rows: 8,
        max_seqs: 4,
        ..EngineOptions::default()
    };
    let gpu = device.backend().unwrap();
    let behind = Fallback { gpu_layers: GpuLayers::Count(3), role: Role::Layers, ..cpu(ROOMY) };
    let cpu = behind.device.backend().unwrap();
    let watches = [&gpu, &cpu].map(Watch::new);
    let models = Models::with_list(
        ModelList::new(specs()).unwrap(),
        EngineSetup { device, options },
        ROOMY,
        KeepAlive::Forever,
    );
    let app = App::new(Arc::new(models.with_fallback(Some(behind))), Limits::default()).unwrap();
    let plan = app.models.acquire(HOUSE).await.unwrap().plan;
    complete(&app).await;
    let split = plan.split.unwrap();
    for (backend, share, watch) in [(&gpu, split.gpu, &watches[0]), (&cpu, split.cpu, &watches[1])] {
        let taken = watch.most();
        let planned = if backend.memory().is_some() { share.total_bytes() } else { share.step_bytes };
        let name = backend.name();
        assert!(taken <= planned, "{name}: {taken} bytes taken, {planned} planned: {plan}");
        assert!(taken * 3 >= planned * 2, "{name}: {taken} bytes taken, {planned} planned: {plan}");
    }
    assert!(
        plan.to_string().contains(&format!("{} per step), 5 on the CPU", split.gpu.step_bytes)),
        "{plan}"
    );
}

#[tokio::test]
async fn a_plan_is_what_the_cpu_takes() {
    check_plan(setup(EngineOptions::default()).device).await;
}

#[tokio::test]
async fn a_plan_is_what_a_gpu_takes() {
    let Some(gpu) = gpu() else { return };
    check_plan(Device::of(gpu)).await;
}

#[tokio::test]
async fn a_plan_for_vectors_is_what_the_cpu_takes() {
    check_embedders_plan(|| Some(setup(EngineOptions::default()).device)).await;
}

#[tokio::test]
async fn a_plan_for_vectors_is_what_a_gpu_takes() {
    check_embedders_plan(|| Some(Device::of(gpu()?))).await;
}

#[tokio::test]
async fn a_plan_for_two_devices_is_what_each_takes() {
    let Some(gpu) = gpu() else { return };
    check_split_plan(Device::of(gpu)).await;
}

#[tokio::test]
async fn layers_without_room_on_one_device_are_computed_on_the_other() {
    check_split(setup(EngineOptions::default()).device).await;
}

#[tokio::test]
async fn a_gpu_and_the_cpu_compute_a_model_together() {
    let Some(gpu) = gpu() else { return };
    check_split(Device::of(gpu)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_values_without_room_on_a_gpu_go_to_host_memory_and_come_back() {
    let Some(gpu) = gpu() else { return };
    // One context of 128 tokens, for four of 103.
    let options = EngineOptions {
        n_ctx: Some(128),
        kv_bytes: Some(128 * 2 * 2 * (16 + 16) * 2),
        host_kv_bytes: 1 << 20,
        prefix_cache: false,
        ..EngineOptions::default()
    };
    let setup = EngineSetup { device: Device::of(gpu), options };
    let app =
        App::new(Models::new(specs(), setup, ROOMY, KeepAlive::Forever).unwrap(), Limits::default()).unwrap();
    let request = |i: usize| json!({"model": TINY, "prompt": [i, 6, 7], "max_tokens": 100, "ignore_eos": true, "temperature": 0.9, "seed": i});
    let mut asking = JoinSet::new();
    for i in 0..4 {
        let app = app.clone();
        asking.spawn(async move { (i, ask_json(&app, "/v1/completions", request(i)).await) });
    }
    while let Some(answer) = asking.join_next().await {
        let (i, answer) = answer.unwrap();
        let alone = ask_json(&app, "/v1/completions", request(i)).await;
        assert_eq!(answer["choices"], alone["choices"], "{i}");
    }
    let metrics = get(&app, "/metrics").await.text;
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name) && line.contains(TINY));
        line.unwrap_or_else(|| panic!("no {name}: {metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    let n_out = value("mlxr_kv_blocks_swapped_out_total{");
    assert!(n_out > 0.0 && value("mlxr_kv_blocks_swapped_in_total{") == n_out, "{metrics}");
    assert_eq!(value("mlxr_kv_host_blocks{"), 0.0);
}

#[tokio::test]
async fn a_seed_chooses_from_what_a_gpu_gives_what_it_chooses_from_all_logits() {
    let Some((app, opened)) = on_gpu() else { return };
    app.models.acquire(TINY).await.unwrap();
    let is_profiled = opened.lock().unwrap()[0].start_profile().is_ok();
    for (top_p, min_p) in [(0.8, 0.0), (0.95, 0.02), (1.0, 0.1), (1.0, 0.0)] {
        let ask = |logprobs: Option<u32>| {
            let request = json!({
                "model": TINY, "prompt": "a", "max_tokens": 24, "seed": 11, "temperature": 0.9, "top_k": 0,
                "top_p": top_p, "min_p": min_p, "ignore_eos": false, "logprobs": logprobs,
            });
            let app = app.clone();
            async move { ask_json(&app, "/v1/completions", request).await["choices"][0]["text"].clone() }
        };
        // Who wants log-probabilities has all logits read.
        assert_eq!(ask(None).await, ask(Some(1)).await, "{top_p} {min_p}");
    }
    let metrics = get(&app, "/metrics").await.text;
    assert!(!is_profiled || metrics.contains("mlxr_kernel_calls_total{kernel=\"exp_sum\"}"), "{metrics}");
}

#[tokio::test]
async fn a_model_without_room_for_one_layer_is_refused_or_goes_to_the_cpu() {
    for (role, goes) in [(Role::Layers, false), (Role::Models, true)] {
        let behind = Fallback { gpu_layers: GpuLayers::Auto, role, ..cpu(ROOMY) };
        let models = models_on(setup(EngineOptions::default()).device, 1000, Some(behind));
        let lease = models.acquire(HOUSE).await;
        assert_eq!(lease.is_ok(), goes, "{lease:?}");
        assert_eq!(models.residences().first().is_some_and(|found| found.why_here.is_some()), goes);
    }
}

/// A device that is lost while `body` is answered: what the client gets.
async fn lose(app: &Arc<App>, opened: &Opened, path: &str, body: &Value) -> Answer {
    let lease = app.models.acquire(HOUSE).await.unwrap();
    let before = lease.engine.stats().n_generated;
    let asking = tokio::spawn({
        let (app, request) = (app.clone(), post(path, body));
        async move { ask(&app, request).await }
    });
    until(|| lease.engine.stats().n_generated > before).await;
    let latest = opened.lock().unwrap().last().unwrap().clone();
    latest.destroy();
    asking.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dialect_tells_its_clients_that_the_device_was_lost() {
    let Some((app, opened)) = on_gpu() else { return };
    let messages = json!([{"role": "user", "content": "Tell me a long story."}]);
    // What no answer can end before.
    let schema = json!({"type": "object", "properties": {"x": {"type": "string", "minLength": 5000}}, "required": ["x"]});
    let form = json!({"format": {"type": "json_schema", "schema": schema}});
    let asked = [
        ("/v1/chat/completions", json!({"messages": messages, "ignore_eos": true, "max_tokens": 1500})),
        ("/v1/responses", json!({"input": messages, "ignore_eos": true})),
        ("/api/chat", json!({"messages": messages, "format": schema})),
        ("/api/generate", json!({"prompt": "Tell me a long story.", "format": schema})),
        ("/v1/messages", json!({"messages": messages, "output_config": form, "max_tokens": 1500})),
    ];
    for (n_lost, (path, body)) in asked.iter().enumerate() {
        for stream in [false, true] {
            let mut body = body.clone();
            body["model"] = json!(HOUSE);
            body["stream"] = json!(stream);
            let answer = lose(&app, &opened, path, &body).await;
            let case = format!("{path}, stream {stream}: {}", answer.text);
            assert!(answer.text.contains("the device that computes failed"), "{case}");
            assert!(answer.text.contains("the next request starts it anew"), "{case}");
            if stream {
                let last = answer.text.trim_end().lines().rfind(|line| !line.ends_with("[DONE]")).unwrap();
                let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).unwrap();
                check_lost(path, &last, &case);
            } else {
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{case}");
                assert_eq!(answer.headers["retry-after"], "1", "{case}");
                check_lost(path, &answer.json(), &case);
            }
            assert_eq!(opened.lock().unwrap().len(), 2 * n_lost + usize::from(stream) + 1, "{case}");
        }
    }
}

/// The error as each dialect words it.
fn check_lost(path: &str, error: &Value, case: &str) {
    match path {
        "/api/chat" | "/api/generate" => assert!(error["error"].is_string(), "{case}"),
        "/v1/messages" => {
            assert_eq!(
                (&error["type"], &error["error"]["type"]),
                (&json!("error"), &json!("overloaded_error")),
                "{case}"
            );
        }
        "/v1/responses" if error["type"] == "response.failed" => {
            // The most exact of the codes this dialect has.
            assert_eq!(error["response"]["error"]["code"], "server_error", "{case}");
        }
        _ => assert_eq!(error["error"]["code"], "device_lost", "{case}"),
    }
}

#[tokio::test]
async fn keys_and_values_that_a_type_cannot_hold_are_refused_with_the_next_step() {
    let options = EngineOptions { kv_dtype: DType::Q8_0, ..EngineOptions::default() };
    let mut devices = vec![setup(options).device];
    devices.extend(gpu().map(|gpu| Device::of(gpu)));
    for device in devices {
        let setup = EngineSetup { device, options };
        let models = Models::new(specs(), setup, ROOMY, KeepAlive::Forever).unwrap();
        let app = App::new(models, Limits::default()).unwrap();
        for (path, prompt) in
            [("/v1/completions", "prompt"), ("/api/generate", "prompt"), ("/v1/messages", "messages")]
        {
            let mut request = json!({"model": TINY, "max_tokens": 2});
            request[prompt] = match prompt {
                "messages" => json!([{"role": "user", "content": "a"}]),
                _ => json!("a"),
            };
            let answer = ask(&app, post(path, request)).await;
            let case = format!("{path}: {}", answer.text);
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{case}");
            assert!(answer.text.contains("cannot be computed here: Q8_0 cannot store"), "{case}");
            assert!(answer.text.contains("heads of 16") && answer.text.contains("kv_type"), "{case}");
        }
        // Heads of a whole number of quant blocks are stored.
        let request = json!({"model": HOUSE, "prompt": "a", "max_tokens": 2});
        ask_json(&app, "/v1/completions", request).await;
    }
}

/// A model as the server lists it.
fn named(listed: &Value, name: &str) -> Value {
    let models = listed["models"].as_array().unwrap();
    models.iter().find(|model| model["name"] == name).unwrap().clone()
}

/// The tiny model as the server lists it.
async fn tiny(app: &Arc<App>) -> Value {
    named(&get(app, "/mlxr/v1/models").await.json(), TINY)
}

/// Every device a service has opened.
type Opened = Arc<Mutex<Vec<Arc<GpuBackend>>>>;

/// A GPU or a software driver; tests on a machine without one pass.
fn gpu() -> Option<Arc<GpuBackend>> {
    match GpuBackend::new(AdapterChoice::BestOrSoftware) {
        Err(error @ GpuError::None) => {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("skipped: no GPU and no software driver");
            None
        }
        result => Some(Arc::new(result.unwrap())),
    }
}

/// A service on a GPU or a software driver.
fn on_gpu() -> Option<(Arc<App>, Opened)> {
    gpu()?;
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

async fn n_argmax_calls(app: &Arc<App>) -> f64 {
    let metrics = get(app, "/metrics").await.text;
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("mlxr_kernel_calls_total{kernel=\"argmax\"} "));
    line.unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_lost_device_ends_its_requests_and_the_next_one_starts_it_anew() {
    let Some((app, opened)) = on_gpu() else { return };
    let request = json!({"model": TINY, "prompt": "a", "max_tokens": 4, "temperature": 0});
    let before = ask_json(&app, "/v1/completions", request.clone()).await;
    assert!(
        !get(&app, "/metrics").await.text.contains("mlxr_kernel_microseconds_total{"),
        "nobody asked for them"
    );
    let is_timed = opened.lock().unwrap()[0].start_profile().is_ok();
    if is_timed {
        assert_eq!(ask_json(&app, "/v1/completions", request.clone()).await["choices"], before["choices"]);
        let metrics = get(&app, "/metrics").await.text;
        assert!(metrics.contains("mlxr_kernel_calls_total{kernel=\"attention\"}"), "{metrics}");
        assert!(metrics.contains("mlxr_kernel_microseconds_total{kernel=\"argmax\"}"), "{metrics}");
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
    if is_timed {
        // Counters go on where those of the lost device ended.
        opened.lock().unwrap()[1].start_profile().unwrap();
        let n_before = n_argmax_calls(&app).await;
        ask_json(&app, "/v1/completions", request.clone()).await;
        assert!(n_argmax_calls(&app).await > n_before);
    }

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
