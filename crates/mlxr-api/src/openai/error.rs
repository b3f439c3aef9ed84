//! The body of every answer that is not a success.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `{"error": {...}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ErrorBody)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

/// All four fields are always there; clients look at `type` and `code`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ErrorDetail)]
pub struct ErrorDetail {
    pub message: String,
    pub r#type: String,
    /// The field at fault.
    pub param: Option<String>,
    pub code: Option<String>,
}
