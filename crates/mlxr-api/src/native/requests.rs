//! `GET /mlxr/v1/requests` and `DELETE /mlxr/v1/requests/{model}/{id}`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A request that has not finished.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::RunningRequest)]
pub struct RunningRequest {
    pub model: String,
    /// The engine's number of it, among the requests of its model.
    pub id: u64,
    /// The name its client knows it by, such as `chatcmpl-...`; prompts of one request share it.
    pub label: Option<String>,
    /// `waiting`, `prefilling`, `decoding` or `paused`.
    pub state: String,
    pub priority: i32,
    /// Choices that are generated.
    pub n_choices: usize,
    pub n_prompt: usize,
    /// Prompt tokens that are read.
    pub n_done_prompt: usize,
    /// Those of them that came from the prefix cache.
    pub n_cached: usize,
    /// Tokens generated so far, over all choices.
    pub n_generated: usize,
    /// Seconds since it came.
    pub age_s: f64,
}

/// All requests, model by model and oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::RequestList)]
pub struct RequestList {
    pub requests: Vec<RunningRequest>,
}

/// What was cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::CancelAnswer)]
pub struct CancelAnswer {
    pub model: String,
    /// The engine's numbers.
    pub cancelled: Vec<u64>,
}
