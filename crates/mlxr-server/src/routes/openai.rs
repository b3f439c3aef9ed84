//! OpenAI's routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use mlxr_api::openai::chat::ChatCompletionRequest;
use mlxr_api::openai::completions::CompletionRequest;
use mlxr_api::openai::embeddings::EmbeddingRequest;
use mlxr_api::openai::models::{DeletedModel, Model, ModelList};
use mlxr_api::openai::rerank::RerankRequest;

use super::ollama_catalogue::remove;
use super::{blocking, cost, read_body, translate, vectors_cost};
use crate::ServeError;
use crate::app::App;
use crate::dialect::Dialect;
use crate::embedding;
use crate::generation::Generation;
use crate::stream;
use crate::translate::embeddings::EmbedTask;
use crate::translate::openai::{chat, completions, embeddings, json_response, rerank, stream_response};

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(complete))
        .route("/v1/embeddings", post(embed))
        // Cohere's clients add to /v1 or /v2, others to the root.
        .route("/v1/rerank", post(rank))
        .route("/v2/rerank", post(rank))
        .route("/rerank", post(rank))
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*id}", get(show_model).delete(delete_model))
}

async fn chat_completions(State(app): State<Arc<App>>, request: Request) -> Response {
    answer_chat(&app, request).await.unwrap_or_else(|error| Dialect::OpenAi.error(&error))
}

async fn answer_chat(app: &App, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let request = ChatCompletionRequest::parse(&body)?;
    let lease = app.models.acquire(&request.model).await?;
    let (strict, n_bytes) = (app.limits.strict, cost(body.len(), chat::is_structured(&request)));
    let (lease, task) =
        translate(n_bytes, move || chat::read(&request, &lease, strict).map(|task| (lease, task))).await?;
    let chat::Task { request, answer, notices, is_stream } = task;
    let generation = Generation::start(lease, vec![request], &app.telemetry).await?;
    if is_stream {
        return Ok(stream_response(stream::body(generation, answer.stream()), &notices));
    }
    Ok(json_response(&answer.whole(generation).await?, &notices))
}

async fn complete(State(app): State<Arc<App>>, request: Request) -> Response {
    answer_completion(&app, request).await.unwrap_or_else(|error| Dialect::OpenAi.error(&error))
}

async fn answer_completion(app: &App, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let request = CompletionRequest::parse(&body)?;
    let lease = app.models.acquire(&request.model).await?;
    let (strict, n_bytes) = (app.limits.strict, cost(body.len(), completions::is_structured(&request)));
    let (lease, task) =
        translate(n_bytes, move || completions::read(&request, &lease, strict).map(|task| (lease, task)))
            .await?;
    let completions::Task { requests, answer, notices, is_stream } = task;
    let generation = Generation::start(lease, requests, &app.telemetry).await?;
    if is_stream {
        return Ok(stream_response(stream::body(generation, answer.stream()), &notices));
    }
    Ok(json_response(&answer.whole(generation).await?, &notices))
}

async fn embed(State(app): State<Arc<App>>, request: Request) -> Response {
    answer_embed(&app, request).await.unwrap_or_else(|error| Dialect::OpenAi.error(&error))
}

async fn answer_embed(app: &App, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = EmbeddingRequest::parse(&body)?;
    let lease = app.models.acquire_embedder(&wire.model).await?;
    let strict = app.limits.strict;
    let (lease, task) =
        translate(body.len(), move || embeddings::read(&wire, &lease, strict).map(|task| (lease, task)))
            .await?;
    let EmbedTask { texts, answer, notices } = task;
    let embedded = embedding::run(&lease, texts, embeddings::field, &app.telemetry).await?;
    translate(vectors_cost(&embedded), move || Ok(json_response(&answer.whole(&embedded)?, &notices))).await
}

async fn rank(State(app): State<Arc<App>>, request: Request) -> Response {
    answer_rank(&app, request).await.unwrap_or_else(|error| Dialect::OpenAi.error(&error))
}

async fn answer_rank(app: &App, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = RerankRequest::parse(&body)?;
    let lease = app.models.acquire_embedder(&wire.model).await?;
    let strict = app.limits.strict;
    let (lease, task) =
        translate(body.len(), move || rerank::read(wire, &lease, strict).map(|task| (lease, task))).await?;
    let EmbedTask { texts, answer, notices } = task;
    let embedded = embedding::run(&lease, texts, rerank::field, &app.telemetry).await?;
    translate(body.len(), move || Ok(json_response(&answer.whole(&embedded)?, &notices))).await
}

async fn list_models(State(app): State<Arc<App>>) -> Response {
    let created_s = app.models.created_s;
    let models = app.models.names().into_iter().map(|name| Model::new(name, created_s)).collect();
    json_response(&ModelList::new(models), &Default::default())
}

async fn show_model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match app.models.resolve(&id) {
        Ok(name) => json_response(&Model::new(name, app.models.created_s), &Default::default()),
        Err(error) => Dialect::OpenAi.error(&error),
    }
}

async fn delete_model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Response {
    match blocking(move || remove(&app, &id)).await {
        Ok(name) => json_response(&DeletedModel::new(name.to_string()), &Default::default()),
        Err(error) => Dialect::OpenAi.error(&error),
    }
}
