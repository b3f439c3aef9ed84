//! OpenAI's responses: asked for, found again, gone on from.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{Extensions, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use mlxr_api::openai::responses::{DeletedResponse, InputTokenCount, ResponseRequest};

use super::{cost, read_body, translate};
use crate::ServeError;
use crate::app::App;
use crate::clients::Client;
use crate::dialect::Dialect;
use crate::generation::Generation;
use crate::notices::Notices;
use crate::response_store::Owner;
use crate::stream;
use crate::translate::openai::responses::{
    Asked, Keep, PageQuery, Task, check_retrieval, count, is_structured, read, resolve,
};
use crate::translate::openai::{json_response, stream_response};

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/responses", post(create))
        .route("/v1/responses/input_tokens", post(count_tokens))
        .route("/v1/responses/{id}", get(retrieve).delete(delete))
        .route("/v1/responses/{id}/cancel", post(cancel))
        .route("/v1/responses/{id}/input_items", get(list_items))
}

fn or_error(answer: Result<Response, ServeError>) -> Response {
    answer.unwrap_or_else(|error| Dialect::OpenAi.error(&error))
}

/// Whose responses the request may see.
fn owner(extensions: &Extensions) -> Owner {
    extensions.get::<Client>().and_then(Client::key)
}

async fn create(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer(&app, request).await)
}

async fn answer(app: &App, request: Request) -> Result<Response, ServeError> {
    let owner = owner(request.extensions());
    let body = read_body(request, &app.limits).await?;
    let asked = ask(app, &body, &owner)?;
    let lease = app.models.acquire(&asked.wire.model).await?;
    let (strict, n_bytes) = (app.limits.strict, cost(body.len(), is_structured(&asked)));
    let (lease, task) =
        translate(n_bytes, move || read(asked, &lease, strict).map(|task| (lease, task))).await?;
    let Task { request, mut answer, notices, is_stream, is_background, is_kept } = task;
    answer.keep = is_kept.then(|| Keep { store: app.responses.clone(), owner });
    let generation = Generation::start(lease, vec![request], &app.telemetry).await?;
    if is_stream {
        return Ok(stream_response(stream::body(generation, answer.stream()), &notices));
    }
    if is_background {
        return Ok(json_response(&answer.background(generation), &notices));
    }
    Ok(json_response(&answer.whole(generation).await?, &notices))
}

/// The request with what it refers to.
fn ask(app: &App, body: &[u8], owner: &Owner) -> Result<Asked, ServeError> {
    let mut wire = ResponseRequest::parse(body)?;
    let items = resolve(wire.take_items()?, &app.responses, owner)?;
    let previous = wire.previous_response_id.as_deref().map(|id| app.responses.previous(id, owner));
    Ok(Asked { previous: previous.transpose()?, wire, items })
}

async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_count(&app, request).await)
}

async fn answer_count(app: &App, request: Request) -> Result<Response, ServeError> {
    let owner = owner(request.extensions());
    let body = read_body(request, &app.limits).await?;
    let asked = ask(app, &body, &owner)?;
    let lease = app.models.acquire(&asked.wire.model).await?;
    let (strict, n_bytes) = (app.limits.strict, cost(body.len(), is_structured(&asked)));
    let (input_tokens, notices) = translate(n_bytes, move || count(asked, &lease, strict)).await?;
    Ok(json_response(&InputTokenCount { object: "response.input_tokens", input_tokens }, &notices))
}

async fn retrieve(State(app): State<Arc<App>>, Path(id): Path<String>, request: Request) -> Response {
    or_error(found(&app, &id, request.uri(), &owner(request.extensions())))
}

fn found(app: &App, id: &str, uri: &Uri, owner: &Owner) -> Result<Response, ServeError> {
    check_retrieval(uri)?;
    Ok(json_response(&app.responses.get(id, owner)?.response, &Notices::default()))
}

async fn delete(State(app): State<Arc<App>>, Path(id): Path<String>, request: Request) -> Response {
    let deleted = app.responses.delete(&id, &owner(request.extensions()));
    let answer = DeletedResponse { id, object: "response", deleted: true };
    or_error(deleted.map(|()| json_response(&answer, &Notices::default())))
}

async fn cancel(State(app): State<Arc<App>>, Path(id): Path<String>, request: Request) -> Response {
    let cancelled = app.responses.cancel(&id, &owner(request.extensions()));
    or_error(cancelled.map(|stored| json_response(&stored.response, &Notices::default())))
}

async fn list_items(State(app): State<Arc<App>>, Path(id): Path<String>, request: Request) -> Response {
    or_error(page(&app, &id, request.uri(), &owner(request.extensions())))
}

fn page(app: &App, id: &str, uri: &Uri, owner: &Owner) -> Result<Response, ServeError> {
    let query = PageQuery::read(uri)?;
    let stored = app.responses.get(id, owner)?;
    Ok(json_response(&query.of(&stored.input)?, &Notices::default()))
}
