//! The body of every answer that is not a success, and the last line of a stream that broke off.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `{"error": "..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ErrorBody)]
pub struct ErrorBody {
    pub error: String,
}
