//! Which dialect a path belongs to, for answers that no handler of a dialect gives: unknown routes, refused access.

use axum::response::Response;

use crate::ServeError;
use crate::translate;

/// A family of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    Ollama,
    Anthropic,
    /// Our own, and the routes that belong to no client.
    Native,
}

impl Dialect {
    /// The dialect that clients of `path` speak.
    pub fn of_path(path: &str) -> Dialect {
        let is_below =
            |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if is_below("/mlxr") || ["/health", "/metrics", "/openapi.json", "/docs"].contains(&path) {
            Dialect::Native
        } else if is_below("/api") {
            Dialect::Ollama
        } else if is_below("/v1/messages") {
            Dialect::Anthropic
        } else {
            Dialect::OpenAi
        }
    }

    /// An error in the dialect's shape; what clients must not see goes to the log.
    pub fn error(self, error: &ServeError) -> Response {
        error.log();
        match self {
            Dialect::OpenAi => translate::openai::error_response(error),
            Dialect::Ollama => translate::ollama::error_response(error),
            Dialect::Anthropic => translate::anthropic::error_response(error),
            Dialect::Native => translate::native::error_response(error),
        }
    }
}
