//! The body of every answer that is not a success, and the data of a stream's `error` event.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `{"type": "error", "error": {...}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = anthropic::ErrorBody)]
pub struct ErrorBody {
    /// `error`.
    pub r#type: String,
    pub error: ErrorDetail,
    /// The same as the header of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// What went wrong; clients look at `type`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = anthropic::ErrorDetail)]
pub struct ErrorDetail {
    pub r#type: String,
    pub message: String,
}

impl ErrorBody {
    pub fn new(kind: &str, message: String, request_id: Option<String>) -> ErrorBody {
        let error = ErrorDetail { r#type: kind.to_owned(), message };
        ErrorBody { r#type: "error".to_owned(), error, request_id }
    }
}
