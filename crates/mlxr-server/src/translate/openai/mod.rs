//! OpenAI's dialect.

pub mod chat;
mod chat_answer;
pub mod completions;
pub mod embeddings;
pub mod fill_in;
mod form;
pub mod logprobs;
pub mod prompt;
pub mod rerank;
pub mod responses;
mod sampling;
mod thinking;
pub mod tools;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use mlxr_api::openai::error::{ErrorBody, ErrorDetail};
use mlxr_api::openai::usage::Usage;
use mlxr_engine::FinishReason;
use serde::Serialize;

use crate::ServeError;
use crate::clients::RateLimit;
use crate::keys::Denied;
use crate::notices::Notices;
use crate::sse;

/// What answers say they come from.
const FINGERPRINT: &str = concat!("mlxr-", env!("CARGO_PKG_VERSION"));

/// What a request took.
fn usage(found: &mlxr_engine::Usage) -> Usage {
    Usage::new(found.n_prompt, found.n_completion).with_cached(found.n_cached)
}

/// An answer in one piece.
pub fn json_response(value: &impl Serialize, notices: &Notices) -> Response {
    with_status(StatusCode::OK, value, notices)
}

/// A body of JSON under any status.
pub fn with_status(status: StatusCode, value: &impl Serialize, notices: &Notices) -> Response {
    // Our own types always serialise.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    notices.write_header(headers);
    response
}

/// A streamed answer.
pub fn stream_response(body: Body, notices: &Notices) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, sse::CONTENT_TYPE);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    notices.write_header(headers);
    response
}

/// An error as OpenAI's clients read it.
pub fn error_response(error: &ServeError) -> Response {
    let mut response = with_status(error.status(), &error_body(error), &Notices::default());
    error.write_headers(response.headers_mut());
    response
}

/// The body of [`error_response`], also sent inside a stream that has begun.
fn error_body(error: &ServeError) -> ErrorBody {
    let request = "invalid_request_error";
    let (r#type, param, code) = match error {
        ServeError::Invalid { field, .. } => (request, field.clone(), None),
        ServeError::NotHonoured { field, .. } => (request, Some(field.clone()), Some("unsupported_field")),
        ServeError::ContextLength { .. } => (request, None, Some("context_length_exceeded")),
        ServeError::TextTooLong { field, .. } => {
            (request, Some(field.clone()), Some("context_length_exceeded"))
        }
        ServeError::ModelNotFound { .. } => (request, Some("model".to_owned()), Some("model_not_found")),
        ServeError::ModelBusy { .. } => (request, Some("model".to_owned()), Some("model_busy")),
        ServeError::NoSuchRequest { .. } => (request, None, Some("request_not_found")),
        ServeError::NoSuchResponse { field: None, .. } => (request, None, Some("response_not_found")),
        ServeError::NoSuchResponse { field: Some(field), .. } => {
            (request, Some((*field).to_owned()), Some("previous_response_not_found"))
        }
        ServeError::NoRoute { .. } => (request, None, Some("unknown_url")),
        ServeError::MethodNotAllowed { .. } => (request, None, Some("method_not_allowed")),
        ServeError::Denied(Denied::Scope { .. }) => ("permission_error", None, Some("insufficient_scope")),
        ServeError::Denied(_) => ("authentication_error", None, Some("invalid_api_key")),
        ServeError::RateLimited { what: RateLimit::Tokens, .. } => {
            ("tokens", None, Some("rate_limit_exceeded"))
        }
        ServeError::RateLimited { .. } => ("requests", None, Some("rate_limit_exceeded")),
        ServeError::Forbidden { .. } => ("permission_error", None, Some("forbidden")),
        ServeError::BodyTooLarge { .. } => (request, None, Some("request_too_large")),
        ServeError::BodyTimeout => (request, None, Some("request_timeout")),
        ServeError::QueueFull { .. } => ("rate_limit_error", None, Some("queue_full")),
        ServeError::OutOfMemory { .. } => ("server_error", Some("model".to_owned()), Some("out_of_memory")),
        ServeError::CannotCompute { .. } => {
            ("server_error", Some("model".to_owned()), Some("cannot_compute"))
        }
        ServeError::CannotLoad { .. } => ("server_error", Some("model".to_owned()), Some("cannot_load")),
        ServeError::DeviceLost { .. } => ("server_error", None, Some("device_lost")),
        ServeError::DiskFull { .. } => ("server_error", None, Some("disk_full")),
        ServeError::ShuttingDown => ("server_error", None, Some("shutting_down")),
        ServeError::Cancelled => ("server_error", None, Some("cancelled")),
        ServeError::Internal { .. } => ("server_error", None, Some("internal_error")),
    };
    let (r#type, code) = (r#type.to_owned(), code.map(str::to_owned));
    ErrorBody { error: ErrorDetail { message: error.to_string(), r#type, param, code } }
}

/// How a choice ended.
///
/// # Errors
/// When it did not end as clients expect: the model failed, or the server cancelled it.
pub fn finish_reason(reason: &FinishReason) -> Result<&'static str, ServeError> {
    match reason {
        FinishReason::Stop(_) => Ok("stop"),
        FinishReason::Length => Ok("length"),
        FinishReason::Loop => Ok("loop"),
        FinishReason::Cancelled => Err(ServeError::Cancelled),
        FinishReason::Error(cause) => Err(ServeError::Internal { cause: cause.clone() }),
        FinishReason::DeviceLost(reason) => Err(ServeError::DeviceLost { reason: reason.clone() }),
    }
}
