//! Anthropic's routes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use mlxr_api::anthropic::messages::{MessagesRequest, TokenCount};

use super::{cost, read_body, translate};
use crate::ServeError;
use crate::app::App;
use crate::dialect::Dialect;
use crate::generation::Generation;
use crate::stream;
use crate::translate::anthropic::{name_request, read};
use crate::translate::openai::{json_response, stream_response};

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/messages", post(messages)).route("/v1/messages/count_tokens", post(count_tokens))
}

fn or_error(answer: Result<Response, ServeError>) -> Response {
    match answer {
        Ok(mut response) => {
            name_request(response.headers_mut());
            response
        }
        Err(error) => Dialect::Anthropic.error(&error),
    }
}

async fn messages(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_messages(&app, request).await)
}

async fn answer_messages(app: &App, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = MessagesRequest::parse(&body)?;
    let lease = app.models.acquire(&wire.model).await?;
    let (strict, n_bytes) = (app.limits.strict, cost(body.len(), read::is_structured(&wire)));
    let (lease, task) =
        translate(n_bytes, move || read::read(&wire, &lease, strict).map(|task| (lease, task))).await?;
    let read::Task { request, answer, notices, is_stream } = task;
    let generation = Generation::start(lease, vec![request], &app.telemetry).await?;
    if is_stream {
        return Ok(stream_response(stream::body(generation, answer.stream()), &notices));
    }
    Ok(json_response(&answer.whole(generation).await?, &notices))
}

async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_count(&app, request).await)
}

async fn answer_count(app: &App, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = MessagesRequest::parse(&body)?;
    let lease = app.models.acquire(&wire.model).await?;
    let (strict, n_bytes) = (app.limits.strict, body.len());
    let asked = translate(n_bytes, move || read::ask(&wire, &lease, strict)).await?;
    Ok(json_response(&TokenCount { input_tokens: asked.prompt.n_tokens() }, &asked.notices))
}
