//! Our own dialect.

pub mod cache;
pub mod config;
pub mod kv;
pub mod logs;
pub mod metrics;
pub mod models;
pub mod score;
pub mod template;
pub mod text;

use axum::http::Uri;
use axum::response::Response;
use mlxr_api::native::error::{ErrorBody, ErrorDetail};
use serde_json::{Map, Value};

use crate::ServeError;
use crate::keys::Denied;
use crate::notices::Notices;
use crate::translate::openai::with_status;

/// An error as our clients read it.
pub fn error_response(error: &ServeError) -> Response {
    let (code, hint) = (code(error).to_owned(), hint(error));
    let body = ErrorBody { error: ErrorDetail { code, message: message(error), hint } };
    let mut response = with_status(error.status(), &body, &Notices::default());
    error.write_headers(response.headers_mut());
    response
}

const fn code(error: &ServeError) -> &'static str {
    match error {
        ServeError::Invalid { .. } => "invalid_request",
        ServeError::NotHonoured { .. } => "unsupported_field",
        ServeError::ContextLength { .. } | ServeError::TextTooLong { .. } => "context_length_exceeded",
        ServeError::ModelNotFound { .. } => "model_not_found",
        ServeError::ModelBusy { .. } => "model_busy",
        ServeError::NoSuchRequest { .. } => "request_not_found",
        ServeError::NoSuchResponse { .. } => "response_not_found",
        ServeError::NoRoute { .. } => "unknown_url",
        ServeError::MethodNotAllowed { .. } => "method_not_allowed",
        ServeError::Denied(Denied::Scope { .. }) => "insufficient_scope",
        ServeError::Denied(_) => "invalid_api_key",
        ServeError::Forbidden { .. } => "forbidden",
        ServeError::RateLimited { .. } => "rate_limited",
        ServeError::BodyTooLarge { .. } => "request_too_large",
        ServeError::BodyTimeout => "request_timeout",
        ServeError::QueueFull { .. } => "queue_full",
        ServeError::OutOfMemory { .. } => "out_of_memory",
        ServeError::CannotCompute { .. } => "cannot_compute",
        ServeError::CannotLoad { .. } => "cannot_load",
        ServeError::DeviceLost { .. } => "device_lost",
        ServeError::DiskFull { .. } => "disk_full",
        ServeError::ShuttingDown => "shutting_down",
        ServeError::Cancelled => "cancelled",
        ServeError::Internal { .. } => "internal_error",
    }
}

/// What went wrong, with the field at fault in front where the reason does not name it.
fn message(error: &ServeError) -> String {
    match error {
        ServeError::Invalid { field: Some(field), reason } if !reason.contains(field.as_str()) => {
            format!("{field}: {reason}")
        }
        other => other.to_string(),
    }
}

fn hint(error: &ServeError) -> Option<String> {
    let hint = match error {
        ServeError::ModelBusy { .. } => "wait for them, or set \"force\" to cancel them",
        ServeError::NoSuchRequest { .. } => "GET /mlxr/v1/requests lists those that run",
        ServeError::NotHonoured { .. } => "leave the fields out, or \"strict\"",
        ServeError::NoRoute { .. } | ServeError::MethodNotAllowed { .. } => {
            "GET /openapi.json describes every route, /docs shows them"
        }
        ServeError::QueueFull { .. } | ServeError::RateLimited { .. } => {
            "try again after the seconds in Retry-After"
        }
        ServeError::OutOfMemory { .. } => "unload a model, or load this one with a smaller context",
        ServeError::CannotCompute { .. } => {
            "start the server with --device auto or cpu, or quantise the model"
        }
        ServeError::CannotLoad { .. } => {
            "`mlxr doctor MODEL` looks at the files; fetch or convert them again"
        }
        ServeError::DeviceLost { .. } => "try again; `mlxr doctor --gpu-selftest` checks the GPU",
        ServeError::Internal { .. } => "GET /mlxr/v1/logs?level=error has the cause",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Reports the fields nobody knows.
///
/// # Errors
/// In strict mode, when there are any.
pub fn unknown_fields(fields: &Map<String, Value>, strict: bool) -> Result<Notices, ServeError> {
    let mut notices = Notices::default();
    for field in fields.keys() {
        notices.add(field, "the field is unknown");
    }
    notices.enforce(strict)?;
    Ok(notices)
}

/// What stands behind `?`.
///
/// # Errors
/// It cannot be read.
fn query_pairs(uri: &Uri) -> Result<Vec<(String, String)>, ServeError> {
    let pairs = axum::extract::Query::try_from_uri(uri);
    let pairs = pairs.map_err(|error| ServeError::Invalid { field: None, reason: error.body_text() })?;
    Ok(pairs.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_field_once() {
        assert_eq!(message(&ServeError::invalid("n_ctx", "n_ctx is too small")), "n_ctx is too small");
        assert_eq!(message(&ServeError::invalid("n_ctx", "too small")), "n_ctx: too small");
        let broken = ServeError::Invalid { field: None, reason: "no JSON".to_owned() };
        assert_eq!(message(&broken), "no JSON");
    }
}
