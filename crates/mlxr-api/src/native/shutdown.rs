//! `POST /mlxr/v1/shutdown`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::parsed;

/// Asks the server to end. Nobody new gets in; what runs may finish within the server's grace period.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = native::ShutdownRequest)]
pub struct ShutdownRequest {
    /// Cancel what runs, instead of letting it finish.
    pub force: Option<bool>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The server is about to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ShutdownAnswer)]
pub struct ShutdownAnswer {
    /// The server's process, for who is on the same machine.
    pub pid: u32,
    /// Sequences that run or wait.
    pub n_running: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

parsed!(ShutdownRequest);
