//! A service without a socket, and requests to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::Response;
use http_body_util::BodyExt;
use mlxr_engine::EngineOptions;
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_server::{App, Device, EngineSetup, KeepAlive, Limits, Memory, ModelSource, ModelSpec, Models};
use serde_json::{Value, json};
use tower::ServiceExt;

/// The bundled model.
pub const HOUSE: &str = "house";
/// Two layers and 512 tokens of context.
pub const TINY: &str = "tiny";
/// Encoders that make vectors or scores; two layers and 100 tokens of context.
pub const BERT: &str = "bert";
pub const RANKER: &str = "ranker";

pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

pub fn specs() -> Vec<ModelSpec> {
    let spec = |name: &str, path: &str| ModelSpec::new(name, ModelSource::Path(repository(path)));
    vec![spec(HOUSE, "models/mlxr-27m-q8_0.gguf"), spec(TINY, "golden/tiny/llama/hf")]
}

pub fn setup(options: EngineOptions) -> EngineSetup {
    let backend = CpuBackend::new(CpuOptions { n_threads: Some(2), isa: None }).unwrap();
    EngineSetup { device: Device::of(Arc::new(backend)), options }
}

pub fn models(options: EngineOptions, memory: Memory, keep_alive: KeepAlive) -> Arc<Models> {
    Models::new(specs(), setup(options), memory, keep_alive).unwrap()
}

/// A service that also has models which make vectors and scores, by their folders in `golden/embeddings`.
pub fn app_with_embedders(options: EngineOptions, limits: Limits) -> Arc<App> {
    let embedder = |(name, folder): (&str, &str)| {
        ModelSpec::new(name, ModelSource::Path(repository("golden/embeddings").join(folder)))
    };
    let embedders = [
        (BERT, "bert"),
        (RANKER, "bert_rank"),
        ("nomic", "nomic_bert"),
        ("modernbert", "modernbert"),
        ("modern-ranker", "modernbert_rank"),
        ("xlm", "xlm_roberta"),
        ("xlm-ranker", "xlm_roberta_rank"),
        ("qwen3", "qwen3"),
        ("gemma3", "gemma3"),
    ];
    let specs = specs().into_iter().chain(embedders.map(embedder)).collect();
    let models = Models::new(specs, setup(options), ROOMY, KeepAlive::Forever).unwrap();
    App::new(models, limits).unwrap()
}

pub const ROOMY: Memory = Memory { limit_bytes: 4 << 30 };

/// A service with other engine options.
pub fn app_with(options: EngineOptions, limits: Limits) -> Arc<App> {
    App::new(models(options, ROOMY, KeepAlive::Forever), limits).unwrap()
}

pub fn app() -> Arc<App> {
    app_with(EngineOptions::default(), Limits::default())
}

/// The tiny model behind a template that lets it think first; it never stops by itself.
pub fn thinker() -> (tempfile::TempDir, Arc<App>) {
    let dir = tempfile::tempdir().unwrap();
    let source = repository("golden/tiny/llama/hf");
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(source.join(file), dir.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(source.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["chat_template"] = json!(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\
         {% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\
         {% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
    );
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let spec = ModelSpec::new("thinker", ModelSource::Path(dir.path().to_owned()));
    let models = Models::new(vec![spec], setup(Default::default()), ROOMY, KeepAlive::Forever).unwrap();
    (dir, App::new(models, Limits::default()).unwrap())
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The data of every event, without the end mark.
    pub fn events(&self) -> Vec<Value> {
        let text = self.text.strip_suffix("data: [DONE]\n\n").expect("the stream ends as announced");
        let events = text.split_terminator("\n\n");
        events.map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

pub fn post(path: &str, body: impl ToString) -> Request<Body> {
    let request = Request::post(path).header("content-type", "application/json");
    request.body(Body::from(body.to_string())).unwrap()
}

/// The answer as it begins; its body is not read.
pub async fn send(app: &Arc<App>, request: Request<Body>) -> Response {
    app.router().oneshot(request).await.unwrap()
}

pub async fn ask(app: &Arc<App>, request: Request<Body>) -> Answer {
    let response = send(app, request).await;
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

pub async fn get(app: &Arc<App>, path: &str) -> Answer {
    ask(app, Request::get(path).body(Body::empty()).unwrap()).await
}

/// A POST that must succeed.
pub async fn ask_json(app: &Arc<App>, path: &str, body: Value) -> Value {
    let answer = ask(app, post(path, body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    answer.json()
}

/// Waits for something the engine's thread brings about.
pub async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("it never came about");
}

/// The model's arena is empty and its books balance.
pub async fn assert_idle(app: &Arc<App>, model: &str) {
    let lease = app.models.acquire(model).await.unwrap();
    until(|| lease.engine.stats().n_running + lease.engine.stats().n_waiting == 0).await;
    let blocks = lease.engine.stats().blocks;
    assert_eq!(blocks.n_free, blocks.n_blocks, "blocks leaked");
    assert_eq!(lease.engine.check_integrity().await.unwrap(), Ok(()));
}
