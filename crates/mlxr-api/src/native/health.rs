//! `GET /health`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether the server is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Health)]
pub struct Health {
    /// `ok`.
    pub status: String,
}
