//! The body of every answer that is not a success, and the last line of a stream that broke off.

use serde::{Deserialize, Serialize};

/// `{"error": "..."}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}
