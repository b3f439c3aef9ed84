//! Which dialect a path belongs to, for answers that no handler of a dialect gives: unknown routes, refused access.

use axum::response::Response;

use crate::ServeError;
use crate::translate;

/// A family of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
}

impl Dialect {
    /// The dialect that clients of `path` speak.
    pub fn of_path(_path: &str) -> Dialect {
        Dialect::OpenAi
    }

    /// An error in the dialect's shape; what clients must not see goes to the log.
    pub fn error(self, error: &ServeError) -> Response {
        error.log();
        match self {
            Dialect::OpenAi => translate::openai::error_response(error),
        }
    }
}
