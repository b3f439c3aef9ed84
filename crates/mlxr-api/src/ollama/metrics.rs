//! Counts and times at the end of an answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Durations are nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::Metrics)]
pub struct Metrics {
    /// From the request's arrival to this line.
    pub total_duration: u64,
    /// What the model took to load.
    pub load_duration: u64,
    pub prompt_eval_count: usize,
    pub prompt_eval_duration: u64,
    pub eval_count: usize,
    pub eval_duration: u64,
}
