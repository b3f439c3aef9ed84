//! The routes, one file per dialect. They parse, submit and stream; what things mean is in `translate`.

mod anthropic;
mod docs;
mod health;
mod native;
mod ollama;
mod ollama_catalogue;
mod openai;
mod responses;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use bytes::Bytes;

use crate::app::App;
use crate::dialect::Dialect;
use crate::embedding::Embedded;
use crate::{Limits, ServeError};

/// Every route of the service.
pub fn all() -> Router<Arc<App>> {
    Router::new()
        .merge(health::routes())
        .merge(openai::routes())
        .merge(responses::routes())
        .merge(ollama::routes())
        .merge(ollama_catalogue::routes())
        .merge(anthropic::routes())
        .merge(native::routes())
        .merge(docs::routes())
        .fallback(no_route)
        .method_not_allowed_fallback(method_not_allowed)
}

async fn no_route(request: Request) -> Response {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    Dialect::of_path(&path).error(&ServeError::NoRoute { method, path })
}

async fn method_not_allowed(request: Request) -> Response {
    let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
    Dialect::of_path(&path).error(&ServeError::MethodNotAllowed { method, path })
}

/// The whole body, within the limits.
async fn read_body(request: Request, limits: &Limits) -> Result<Bytes, ServeError> {
    use axum::extract::FromRequest;
    use axum::extract::rejection::{BytesRejection, FailedToBufferBody};

    let max_bytes = limits.max_body_bytes;
    // What is announced need not come.
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|n_bytes: u64| n_bytes > max_bytes as u64) {
        return Err(ServeError::BodyTooLarge { max_bytes });
    }
    let whole = tokio::time::timeout(limits.body_deadline, Bytes::from_request(request, &()));
    whole.await.map_err(|_| ServeError::BodyTimeout)?.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)) => {
            ServeError::BodyTooLarge { max_bytes }
        }
        rejection if is_timeout(&rejection) => ServeError::BodyTimeout,
        rejection => ServeError::Invalid { field: None, reason: rejection.body_text() },
    })
}

fn is_timeout(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.into_iter().any(|cause| cause.is::<tower_http::timeout::TimeoutError>())
}

/// Bodies up to this size are translated where they arrive; templates and tokenizers take longer with larger ones, and
/// other connections must not wait for that.
const MAX_INLINE_BYTES: usize = 64 << 10;

/// What a body of `n_bytes` costs to translate: nobody knows beforehand how long a grammar takes to compile.
const fn cost(n_bytes: usize, is_structured: bool) -> usize {
    if is_structured { usize::MAX } else { n_bytes }
}

/// What vectors cost to write, as text.
fn vectors_cost(embedded: &Embedded) -> usize {
    const BYTES_PER_FLOAT: usize = 12;
    embedded.results.iter().map(|vector| vector.len() * BYTES_PER_FLOAT).sum()
}

/// Runs `work`, whose cost grows with a body of `n_bytes`.
async fn translate<T: Send + 'static>(
    n_bytes: usize,
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    if n_bytes <= MAX_INLINE_BYTES {
        return work();
    }
    blocking(work).await
}

/// Runs what takes long away from the threads that serve connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    tokio::task::spawn_blocking(work).await.map_err(ServeError::internal)?
}
