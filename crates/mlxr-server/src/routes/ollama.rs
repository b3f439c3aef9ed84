//! Ollama's routes.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use mlxr_api::ollama::chat::ChatRequest;
use mlxr_api::ollama::embed::{EmbedRequest, EmbeddingRequest};
use mlxr_api::ollama::generate::GenerateRequest;
use mlxr_api::ollama::keep_alive::KeepAlive as WireKeepAlive;
use mlxr_api::ollama::models::{ModelList, RunningModels, ShowRequest, Version};

use super::{blocking, cost, read_body, translate, vectors_cost};
use crate::ServeError;
use crate::app::App;
use crate::dialect::Dialect;
use crate::embedding::{self, Embedded};
use crate::generation::Generation;
use crate::model_list::ModelSpec;
use crate::model_manager::Lease;
use crate::notices::Notices;
use crate::stream;
use crate::translate::embeddings::{EmbedTask, FieldName};
use crate::translate::ollama::generate::Task;
use crate::translate::ollama::line::{Clock, Endpoint, without_prompt};
use crate::translate::ollama::models::Facts;
use crate::translate::ollama::{chat, embed as embeds, generate, is_unload, keep_alive, stream_response};
use crate::translate::openai::json_response;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        // Clients look here for somebody at home.
        .route("/", get(async || "mlxr is running"))
        .route("/api/generate", post(generate))
        .route("/api/chat", post(chat))
        .route("/api/embed", post(embed))
        .route("/api/embeddings", post(embed_older))
        .route("/api/tags", get(tags))
        .route("/api/show", post(show))
        .route("/api/ps", get(ps))
        .route("/api/version", get(version))
}

fn or_error(answer: Result<Response, ServeError>) -> Response {
    answer.unwrap_or_else(|error| Dialect::Ollama.error(&error))
}

async fn generate(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_generate(&app, request).await)
}

async fn answer_generate(app: &App, request: Request) -> Result<Response, ServeError> {
    let arrived = Instant::now();
    let body = read_body(request, &app.limits).await?;
    let wire = GenerateRequest::parse(&body)?;
    if generate::has_no_prompt(&wire) {
        let endpoint = Endpoint::Generate { context: None };
        return load_or_unload(app, &wire.model, wire.keep_alive, &endpoint).await;
    }
    let (lease, clock) = acquire(app, &wire.model, wire.keep_alive, arrived).await?;
    let (strict, n_bytes) = (app.limits.strict, cost(body.len(), generate::is_structured(&wire)));
    let (lease, task) =
        translate(n_bytes, move || generate::read(&wire, &lease, strict, clock).map(|task| (lease, task)))
            .await?;
    run(app, lease, task).await
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_chat(&app, request).await)
}

async fn answer_chat(app: &App, request: Request) -> Result<Response, ServeError> {
    let arrived = Instant::now();
    let body = read_body(request, &app.limits).await?;
    let wire = ChatRequest::parse(&body)?;
    if chat::has_no_messages(&wire) {
        return load_or_unload(app, &wire.model, wire.keep_alive, &Endpoint::Chat).await;
    }
    let (lease, clock) = acquire(app, &wire.model, wire.keep_alive, arrived).await?;
    let (strict, n_bytes) = (app.limits.strict, cost(body.len(), chat::is_structured(&wire)));
    let (lease, task) =
        translate(n_bytes, move || chat::read(&wire, &lease, strict, clock).map(|task| (lease, task)))
            .await?;
    run(app, lease, task).await
}

/// The model, and what it took to have it.
async fn acquire(
    app: &App,
    model: &str,
    stay: Option<WireKeepAlive>,
    arrived: Instant,
) -> Result<(Lease, Clock), ServeError> {
    let asked = Instant::now();
    let lease = app.models.acquire(model).await?;
    let load = asked.elapsed();
    if let Some(stay) = stay {
        lease.set_keep_alive(keep_alive(stay));
    }
    Ok((lease, Clock { arrived, load }))
}

async fn run(app: &App, lease: Lease, task: Task) -> Result<Response, ServeError> {
    let Task { request, answer, notices, is_stream } = task;
    let generation = Generation::start(lease, vec![request], &app.telemetry).await?;
    if is_stream {
        return Ok(stream_response(stream::body(generation, answer.stream()), &notices));
    }
    Ok(json_response(&answer.whole(generation).await?, &notices))
}

/// A request without a prompt loads the model, or with a keep-alive of 0 lets it go.
async fn load_or_unload(
    app: &App,
    model: &str,
    stay: Option<WireKeepAlive>,
    endpoint: &Endpoint,
) -> Result<Response, ServeError> {
    let reason = if is_unload(stay) {
        let name = app.models.resolve(model)?;
        app.models.set_keep_alive(&name, crate::KeepAlive::For(std::time::Duration::ZERO));
        app.models.unload_expired().await;
        "unload"
    } else {
        acquire(app, model, stay, Instant::now()).await?;
        "load"
    };
    Ok(json_response(&without_prompt(model, endpoint, reason), &Notices::default()))
}

async fn embed(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_embed(&app, request).await)
}

async fn answer_embed(app: &App, request: Request) -> Result<Response, ServeError> {
    let arrived = Instant::now();
    let body = read_body(request, &app.limits).await?;
    let wire = EmbedRequest::parse(&body)?;
    let (task, embedded) = run_texts(app, wire, body.len(), embeds::input, arrived).await?;
    let cost = vectors_cost(&embedded);
    translate(cost, move || Ok(json_response(&task.answer.whole(&embedded)?, &task.notices))).await
}

async fn embed_older(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_embed_older(&app, request).await)
}

async fn answer_embed_older(app: &App, request: Request) -> Result<Response, ServeError> {
    let arrived = Instant::now();
    let body = read_body(request, &app.limits).await?;
    let wire = embeds::of_older(EmbeddingRequest::parse(&body)?);
    let (task, embedded) = run_texts(app, wire, body.len(), embeds::prompt, arrived).await?;
    Ok(json_response(&task.answer.whole_older(&embedded)?, &task.notices))
}

/// The vectors of a request's texts; without texts the model is only loaded.
async fn run_texts(
    app: &App,
    wire: EmbedRequest,
    n_bytes: usize,
    field: FieldName,
    arrived: Instant,
) -> Result<(EmbedTask<embeds::Answer>, Embedded), ServeError> {
    let asked = Instant::now();
    let lease = app.models.acquire_embedder(&wire.model).await?;
    let clock = Clock { arrived, load: asked.elapsed() };
    if let Some(stay) = wire.keep_alive {
        lease.set_keep_alive(keep_alive(stay));
    }
    let strict = app.limits.strict;
    let read = move || embeds::read(&wire, field, &lease, strict, clock).map(|task| (lease, task));
    let (lease, mut task) = translate(n_bytes, read).await?;
    let texts = std::mem::take(&mut task.texts);
    if texts.is_empty() {
        return Ok((task, Embedded::default()));
    }
    let embedded = embedding::run(&lease, texts, field, &app.telemetry).await?;
    Ok((task, embedded))
}

async fn tags(State(app): State<Arc<App>>) -> Response {
    or_error(list(app).await)
}

async fn list(app: Arc<App>) -> Result<Response, ServeError> {
    let list = blocking(move || {
        let models = app.models.specs().into_iter().filter_map(|spec| {
            let facts = facts(&app, &spec)?;
            Some(facts.listed(&spec.name))
        });
        Ok(models.collect())
    });
    Ok(json_response(&ModelList { models: list.await? }, &Notices::default()))
}

/// What is known of a model for a list, where one with broken files must not hide the others.
fn facts(app: &App, spec: &ModelSpec) -> Option<Facts> {
    let facts = Facts::gather(spec, app.models.created_s);
    facts
        .inspect_err(|error| tracing::warn!(model = spec.name, cause = error.cause(), "left out of a list"))
        .ok()
}

async fn show(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_show(app, request).await)
}

async fn answer_show(app: Arc<App>, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = ShowRequest::parse(&body)?;
    let mut notices = Notices::default();
    for (is_said, name) in [
        (wire.system.is_some(), "system"),
        (wire.template.is_some(), "template"),
        (wire.options.is_some(), "options"),
    ] {
        if is_said {
            notices.add(name, "the model is shown as it is");
        }
    }
    for name in wire.unknown.keys() {
        notices.add(name, "there is no such field");
    }
    notices.enforce(app.limits.strict)?;
    let shown = blocking(move || {
        let spec = app.models.find(&wire.model)?;
        let facts = Facts::gather(&spec, app.models.created_s)?;
        facts.show(&spec.name, wire.verbose == Some(true))
    });
    Ok(json_response(&shown.await?, &notices))
}

async fn ps(State(app): State<Arc<App>>) -> Response {
    or_error(list_running(app).await)
}

async fn list_running(app: Arc<App>) -> Result<Response, ServeError> {
    let list = blocking(move || {
        let resident = app.models.resident_until().into_iter().map(|(model, spec, until)| {
            let facts = facts(&app, &spec)?;
            Some(facts.running(&model, until))
        });
        Ok(resident.flatten().collect())
    });
    Ok(json_response(&RunningModels { models: list.await? }, &Notices::default()))
}

async fn version() -> Response {
    json_response(&Version { version: env!("CARGO_PKG_VERSION").to_owned() }, &Notices::default())
}
