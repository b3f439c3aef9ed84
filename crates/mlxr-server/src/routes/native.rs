//! Our own routes.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Uri};
use axum::response::Response;
use axum::routing::{delete, get, post};
use mlxr_api::native::cache::{
    CacheList, ClearAnswer, ClearedModel, ExplainRequest, IntegrityAnswer, IntegrityRequest,
};
use mlxr_api::native::config::ConfigChange;
use mlxr_api::native::kv::KvMaps;
use mlxr_api::native::models::{LoadAnswer, LoadRequest, PlanRequest, UnloadAnswer, UnloadRequest};
use mlxr_api::native::requests::{CancelAnswer, RequestList};
use mlxr_api::native::score::ScoreRequest;
use mlxr_api::native::shutdown::{ShutdownAnswer, ShutdownRequest};
use mlxr_api::native::stats::Version;
use mlxr_api::native::text::{DetokenizeRequest, TemplateRequest, TokenizeRequest};

use super::{blocking, read_body, translate};
use crate::app::App;
use crate::dialect::Dialect;
use crate::generation::Generation;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::stopping::Phase;
use crate::translate::native::kv::KvQuery;
use crate::translate::native::logs::{Form, LogQuery};
use crate::translate::native::{
    cache, config, kv, logs, metrics, models, score, template, text, unknown_fields,
};
use crate::translate::ollama::keep_alive;
use crate::translate::openai::json_response;
use crate::{ServeError, ndjson, sse};

type Answer = Result<Response, ServeError>;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/mlxr/v1/models", get(list_models))
        .route("/mlxr/v1/models/load", post(load))
        .route("/mlxr/v1/models/unload", post(unload))
        .route("/mlxr/v1/plan", post(plan))
        .route("/mlxr/v1/stats", get(stats))
        .route("/mlxr/v1/metrics", get(show_metrics))
        .route("/mlxr/v1/requests", get(list_requests))
        .route("/mlxr/v1/requests/{model}/{id}", delete(cancel))
        .route("/mlxr/v1/cache", get(show_cache).delete(clear_cache))
        .route("/mlxr/v1/cache/explain", post(explain))
        .route("/mlxr/v1/kv", get(show_kv))
        .route("/mlxr/v1/integrity", post(check_integrity))
        .route("/mlxr/v1/tokenize", post(tokenize))
        .route("/mlxr/v1/detokenize", post(detokenize))
        .route("/mlxr/v1/apply-template", post(apply_template))
        .route("/mlxr/v1/score", post(score_texts))
        .route("/mlxr/v1/logs", get(show_logs))
        .route("/mlxr/v1/config", get(show_config).patch(change_config))
        .route("/mlxr/v1/version", get(version))
        .route("/mlxr/v1/shutdown", post(shutdown))
}

fn or_error(answer: Answer) -> Response {
    answer.unwrap_or_else(|error| Dialect::Native.error(&error))
}

fn plain(value: &impl serde::Serialize) -> Response {
    json_response(value, &Notices::default())
}

async fn list_models(State(app): State<Arc<App>>) -> Response {
    plain(&models::list(&app.models))
}

async fn load(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_load(&app, request).await)
}

async fn answer_load(app: &App, request: Request) -> Answer {
    let asked = Instant::now();
    let wire = LoadRequest::parse(&read_body(request, &app.limits).await?)?;
    let notices = unknown_fields(&wire.unknown, app.limits.strict || wire.strict == Some(true))?;
    let name = app.models.resolve(&wire.model)?;
    let was_loaded = app.models.residences().iter().any(|residence| residence.model.name() == name);
    let hold = app.models.acquire_any(&name).await?;
    if let Some(stay) = wire.keep_alive {
        hold.set_keep_alive(keep_alive(stay));
    }
    // Who asks now is not one of those who use it.
    drop(hold);
    let model = models::model(&app.models, &name, &app.models.residences());
    let (load_s, warnings) = (asked.elapsed().as_secs_f64(), notices.warnings());
    Ok(json_response(&LoadAnswer { model, was_loaded, load_s, warnings }, &notices))
}

async fn unload(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_unload(&app, request).await)
}

async fn answer_unload(app: &App, request: Request) -> Answer {
    let wire = UnloadRequest::parse(&read_body(request, &app.limits).await?)?;
    let notices = unknown_fields(&wire.unknown, app.limits.strict || wire.strict == Some(true))?;
    let n_leases = app.models.unload(&wire.model, wire.force == Some(true)).await?;
    let answer = UnloadAnswer {
        model: app.models.resolve(&wire.model)?,
        was_loaded: n_leases.is_some(),
        n_cancelled: n_leases.unwrap_or(0),
        memory: models::memory(app.models.memory_use()),
        warnings: notices.warnings(),
    };
    Ok(json_response(&answer, &notices))
}

async fn plan(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_plan(&app, request).await)
}

async fn answer_plan(app: &App, request: Request) -> Answer {
    let wire = PlanRequest::parse(&read_body(request, &app.limits).await?)?;
    let notices = unknown_fields(&wire.unknown, app.limits.strict || wire.strict == Some(true))?;
    let name = app.models.resolve(&wire.model)?;
    let options = models::plan_options(&wire, app.models.engine_options(&name)?)?;
    let planned = app.models.plan(&name, options, models::gpu_layers(&wire)?).await?;
    let use_now = app.models.memory_use();
    let answer = models::plan_answer(&name, &planned, &options, use_now, notices.warnings())?;
    Ok(json_response(&answer, &notices))
}

async fn stats(State(app): State<Arc<App>>) -> Response {
    plain(&models::stats(&app))
}

async fn show_metrics(State(app): State<Arc<App>>) -> Response {
    plain(&metrics::read(&app.telemetry.render(&app.models, app.started.elapsed())))
}

async fn list_requests(State(app): State<Arc<App>>) -> Response {
    let mut list = RequestList::default();
    for model in working(&app) {
        // One that stops has no requests to show.
        let found = model.engine.requests().await.unwrap_or_default();
        list.requests.extend(found.into_iter().map(|info| cache::running(&model.name, info)));
    }
    plain(&list)
}

/// The models in memory whose engines work.
fn working(app: &App) -> Vec<Arc<LoadedModel>> {
    let mut models = app.models.resident();
    models.retain(|model| model.engine.failure().is_none());
    models
}

async fn cancel(State(app): State<Arc<App>>, Path((model, id)): Path<(String, String)>) -> Response {
    or_error(answer_cancel(&app, &model, id).await)
}

/// `id` is the engine's number, or a label.
async fn answer_cancel(app: &App, model: &str, id: String) -> Answer {
    let model = app.models.resolve(model)?;
    let mut cancelled = Vec::new();
    for loaded in working(app).into_iter().filter(|loaded| loaded.name == model) {
        for info in loaded.engine.requests().await? {
            if info.label.as_deref() == Some(id.as_str()) || info.id.0.to_string() == id {
                loaded.engine.cancel(info.id)?;
                cancelled.push(info.id.0);
            }
        }
    }
    if cancelled.is_empty() {
        return Err(ServeError::NoSuchRequest { model, id });
    }
    tracing::info!(model, id, "requests cancelled");
    Ok(plain(&CancelAnswer { model, cancelled }))
}

async fn show_cache(State(app): State<Arc<App>>) -> Response {
    let block_tokens = app.models.block_tokens();
    let models = working(&app).iter().map(|model| cache::stats(model, block_tokens)).collect();
    plain(&CacheList { models })
}

async fn clear_cache(State(app): State<Arc<App>>) -> Response {
    or_error(answer_clear(&app).await)
}

async fn answer_clear(app: &App) -> Answer {
    let mut models = Vec::new();
    for model in working(app) {
        let n_blocks = model.engine.clear_cache().await?;
        models.push(ClearedModel { model: model.name.clone(), n_blocks });
    }
    Ok(plain(&ClearAnswer { models }))
}

async fn explain(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_explain(&app, request).await)
}

async fn answer_explain(app: &App, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    let wire = ExplainRequest::parse(&body)?;
    let lease = app.models.acquire(&wire.model).await?;
    let strict = app.limits.strict;
    let (lease, (prompt, notices)) =
        translate(body.len(), move || cache::prompt(&wire, &lease, strict).map(|read| (lease, read))).await?;
    let found = lease.engine.explain_prefix(prompt).await?;
    Ok(json_response(&cache::explained(&lease, found, notices.warnings()), &notices))
}

async fn show_kv(State(app): State<Arc<App>>, uri: Uri) -> Response {
    or_error(answer_kv(&app, &uri).await)
}

async fn answer_kv(app: &App, uri: &Uri) -> Answer {
    let query = KvQuery::read(uri)?;
    let only = query.model.as_deref().map(|name| app.models.resolve(name)).transpose()?;
    let mut models = Vec::new();
    for model in working(app).iter().filter(|model| only.as_ref().is_none_or(|only| model.name == *only)) {
        models.push(kv::map(model, &query).await?);
    }
    Ok(plain(&KvMaps { models }))
}

async fn check_integrity(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_integrity(&app, request).await)
}

async fn answer_integrity(app: &App, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    // Nothing said is every model.
    let wire = IntegrityRequest::parse(if body.is_empty() { b"{}" } else { &body })?;
    let notices = unknown_fields(&wire.unknown, app.limits.strict || wire.strict == Some(true))?;
    let only = wire.model.as_deref().map(|name| app.models.resolve(name)).transpose()?;
    let mut models = Vec::new();
    for model in working(app).iter().filter(|model| only.as_ref().is_none_or(|only| model.name == *only)) {
        models.push(cache::integrity(model).await?);
    }
    let is_ok = models.iter().all(|model| model.is_ok);
    Ok(json_response(&IntegrityAnswer { is_ok, models, warnings: notices.warnings() }, &notices))
}

async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_tokenize(&app, request).await)
}

async fn answer_tokenize(app: &App, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    let wire = TokenizeRequest::parse(&body)?;
    let hold = app.models.acquire_any(&wire.model).await?;
    let strict = app.limits.strict;
    let (answer, notices) = translate(body.len(), move || text::tokenize(&wire, &hold.model, strict)).await?;
    Ok(json_response(&answer, &notices))
}

async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_detokenize(&app, request).await)
}

async fn answer_detokenize(app: &App, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    let wire = DetokenizeRequest::parse(&body)?;
    let hold = app.models.acquire_any(&wire.model).await?;
    let strict = app.limits.strict;
    let (answer, notices) =
        translate(body.len(), move || text::detokenize(&wire, &hold.model, strict)).await?;
    Ok(json_response(&answer, &notices))
}

async fn apply_template(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_template(&app, request).await)
}

async fn answer_template(app: &App, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    let wire = TemplateRequest::parse(&body)?;
    let lease = app.models.acquire(&wire.model).await?;
    let strict = app.limits.strict;
    let (answer, notices) = translate(body.len(), move || template::apply(&wire, &lease, strict)).await?;
    Ok(json_response(&answer, &notices))
}

async fn score_texts(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_score(&app, request).await)
}

async fn answer_score(app: &App, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    let wire = ScoreRequest::parse(&body)?;
    let lease = app.models.acquire(&wire.model).await?;
    let strict = app.limits.strict;
    let (lease, task) =
        translate(body.len(), move || score::read(&wire, &lease, strict).map(|task| (lease, task))).await?;
    let score::Task { requests, answer, notices } = task;
    let generation = Generation::start(lease, requests, &app.telemetry).await?;
    Ok(json_response(&answer.whole(generation).await?, &notices))
}

async fn show_logs(State(app): State<Arc<App>>, headers: HeaderMap, uri: Uri) -> Response {
    or_error(answer_logs(&app, &headers, &uri))
}

fn answer_logs(app: &Arc<App>, headers: &HeaderMap, uri: &Uri) -> Answer {
    let query = LogQuery::read(uri)?;
    if !query.follow {
        return Ok(plain(&logs::lines(&app.logs, &query)));
    }
    let accepts = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (form, content_type) = match accepts.contains("text/event-stream") {
        true => (Form::Events, sse::CONTENT_TYPE),
        false => (Form::Lines, ndjson::CONTENT_TYPE),
    };
    let body = logs::follow(app.clone(), query, form);
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

async fn show_config(State(app): State<Arc<App>>) -> Response {
    plain(&app.config)
}

async fn change_config(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_config(app, request).await)
}

async fn answer_config(app: Arc<App>, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    let wire = ConfigChange::parse(&body)?;
    let change = move || config::change(&wire, &app.config, app.config_path.as_deref(), app.limits.strict);
    let (answer, notices) = blocking(change).await?;
    Ok(json_response(&answer, &notices))
}

async fn version(State(app): State<Arc<App>>) -> Response {
    plain(&Version {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        backend: app.models.backend_name(),
    })
}

async fn shutdown(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_shutdown(&app, request).await)
}

async fn answer_shutdown(app: &App, request: Request) -> Answer {
    let body = read_body(request, &app.limits).await?;
    // Nothing said is no force.
    let wire = ShutdownRequest::parse(if body.is_empty() { b"{}" } else { &body })?;
    let notices = unknown_fields(&wire.unknown, app.limits.strict || wire.strict == Some(true))?;
    let stats = app.models.resident().into_iter().map(|model| model.engine.stats());
    let n_running = stats.map(|stats| stats.n_running + stats.n_waiting).sum();
    tracing::info!(force = wire.force == Some(true), n_running, "told to end by a client");
    app.stopper.enter(if wire.force == Some(true) { Phase::Cancelling } else { Phase::Finishing });
    let answer = ShutdownAnswer { pid: std::process::id(), n_running, warnings: notices.warnings() };
    Ok(json_response(&answer, &notices))
}
