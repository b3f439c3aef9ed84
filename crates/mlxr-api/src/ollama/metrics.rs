//! Counts and times at the end of an answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Durations are nanoseconds. All of them come with the last line, and none before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::Metrics)]
pub struct Metrics {
    /// From the request's arrival to this line.
    #[schema(required = false)]
    pub total_duration: u64,
    /// What the model took to load.
    #[schema(required = false)]
    pub load_duration: u64,
    #[schema(required = false)]
    pub prompt_eval_count: usize,
    #[schema(required = false)]
    pub prompt_eval_duration: u64,
    #[schema(required = false)]
    pub eval_count: usize,
    #[schema(required = false)]
    pub eval_duration: u64,
}
