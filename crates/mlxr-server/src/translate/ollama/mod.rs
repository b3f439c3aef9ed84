//! Ollama's dialect.

pub mod chat;
pub mod create;
pub mod embed;
pub mod generate;
pub mod line;
pub mod models;
pub mod options;
mod time;

pub use time::rfc3339;

use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use mlxr_api::ollama::error::ErrorBody;
use mlxr_api::ollama::keep_alive::KeepAlive as WireKeepAlive;

use crate::model_manager::KeepAlive;
use crate::notices::Notices;
use crate::translate::openai::with_status;
use crate::{ServeError, ndjson};

/// An error as Ollama's clients read it.
pub fn error_response(error: &ServeError) -> Response {
    let mut response = with_status(error.status(), &error_body(error), &Notices::default());
    error.write_headers(response.headers_mut());
    response
}

/// The body of [`error_response`], also the last line of a stream that broke off.
pub fn error_body(error: &ServeError) -> ErrorBody {
    let error = match error {
        ServeError::ModelNotFound { model, known } => {
            format!("model '{model}' not found\nhint: the models here are {known}")
        }
        other => other.to_string(),
    };
    ErrorBody { error }
}

/// A streamed answer.
pub fn stream_response(body: axum::body::Body, notices: &Notices) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, ndjson::CONTENT_TYPE);
    notices.write_header(response.headers_mut());
    response
}

/// A wire keep-alive for the model manager.
pub fn keep_alive(wire: WireKeepAlive) -> KeepAlive {
    match wire {
        WireKeepAlive::For(time) => KeepAlive::For(time),
        WireKeepAlive::Forever => KeepAlive::Forever,
    }
}

/// Whether a request without a prompt asks for the model to go.
pub fn is_unload(keep_alive: Option<WireKeepAlive>) -> bool {
    keep_alive == Some(WireKeepAlive::For(std::time::Duration::ZERO))
}
