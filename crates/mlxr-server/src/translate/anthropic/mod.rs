//! Anthropic's dialect.

pub mod answer;
pub mod read;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;
use mlxr_api::anthropic::error::ErrorBody;

use crate::keys::Denied;
use crate::notices::Notices;
use crate::translate::openai::with_status;
use crate::{ServeError, ids};

/// Names the request in the server's answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("request-id");

/// Gives an answer a name of its own.
pub fn name_request(headers: &mut HeaderMap) -> String {
    let id = ids::unique("req_");
    // Hexadecimal digits are always a header's value.
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, value);
    }
    id
}

/// An error as Anthropic's clients read it.
pub fn error_response(error: &ServeError) -> Response {
    let mut headers = HeaderMap::new();
    let id = name_request(&mut headers);
    error.write_headers(&mut headers);
    let body = ErrorBody::new(kind(error), message(error), Some(id));
    let mut response = with_status(error.status(), &body, &Notices::default());
    response.headers_mut().extend(headers);
    response
}

/// The documented name of an error.
fn kind(error: &ServeError) -> &'static str {
    match error {
        ServeError::Invalid { .. }
        | ServeError::NotHonoured { .. }
        | ServeError::ContextLength { .. }
        | ServeError::TextTooLong { .. }
        | ServeError::ModelBusy { .. }
        | ServeError::MethodNotAllowed { .. }
        | ServeError::BodyTimeout => "invalid_request_error",
        ServeError::ModelNotFound { .. }
        | ServeError::NoSuchRequest { .. }
        | ServeError::NoSuchResponse { .. }
        | ServeError::NoRoute { .. } => "not_found_error",
        ServeError::Denied(Denied::Scope { .. }) | ServeError::Forbidden { .. } => "permission_error",
        ServeError::Denied(_) => "authentication_error",
        ServeError::BodyTooLarge { .. } => "request_too_large",
        ServeError::QueueFull { .. } | ServeError::RateLimited { .. } => "rate_limit_error",
        ServeError::OutOfMemory { .. }
        | ServeError::DeviceLost { .. }
        | ServeError::ShuttingDown
        | ServeError::Cancelled => "overloaded_error",
        ServeError::CannotCompute { .. }
        | ServeError::CannotLoad { .. }
        | ServeError::DiskFull { .. }
        | ServeError::Internal { .. } => "api_error",
    }
}

/// What went wrong, in the words Anthropic's clients look for.
fn message(error: &ServeError) -> String {
    match error {
        ServeError::ContextLength { n_prompt, n_ctx } => {
            format!("prompt is too long: {n_prompt} tokens > {n_ctx} maximum")
        }
        ServeError::ModelNotFound { model, known } => format!("model: {model}; the models here are {known}"),
        other => other.to_string(),
    }
}
