//! `GET /mlxr/v1/stats` and `GET /mlxr/v1/version`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::models::MemoryUse;

/// How steps are kept short for a target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Pace)]
pub struct Pace {
    /// The time between two tokens that 95 of 100 should not exceed.
    pub target_ms: f64,
    /// What 95 of 100 were at most, of the last steps that were judged; null before.
    pub p95_ms: Option<f64>,
    /// Rows of prompts beside sequences that generate.
    pub max_prompt_rows: usize,
    /// Sequences up to which new ones may start.
    pub max_seqs: usize,
}

/// What an engine has done and holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::EngineStats)]
pub struct EngineStats {
    pub model: String,
    /// Sequences in the queue.
    pub n_waiting: usize,
    /// Sequences in the batch.
    pub n_running: usize,
    pub n_steps: u64,
    /// Rows run, recomputed ones included.
    pub n_rows: u64,
    pub n_generated: u64,
    /// Sequences that lost their blocks and were computed again.
    pub n_preemptions: u64,
    pub n_block_copies: u64,
    pub n_blocks: usize,
    pub n_blocks_free: usize,
    /// Blocks with more than one owner.
    pub n_blocks_shared: usize,
    /// The most blocks in use at one time so far.
    pub n_blocks_used_peak: usize,
    pub n_ctx: usize,
    /// Null without a target.
    pub pace: Option<Pace>,
    /// Bytes the model was planned to take.
    pub memory_bytes: u64,
    pub n_leases: usize,
}

/// What an embedder has done and holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::EmbedderStats)]
pub struct EmbedderStats {
    pub model: String,
    /// Requests that have not got all their results.
    pub n_waiting: usize,
    pub n_batches: u64,
    pub n_texts: u64,
    pub n_tokens: u64,
    /// Tokens of one text at most.
    pub n_ctx: usize,
    /// Bytes the model was planned to take.
    pub memory_bytes: u64,
    pub n_leases: usize,
}

/// The whole server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Stats)]
pub struct Stats {
    pub version: String,
    pub uptime_s: f64,
    pub memory: MemoryUse,
    /// Bytes of the process in memory, mapped files that are cached included; null where the system does not say.
    pub process_bytes: Option<u64>,
    pub models: Vec<EngineStats>,
    /// The models in memory that have made vectors or scores, those that also generate included.
    pub embedders: Vec<EmbedderStats>,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Version)]
pub struct Version {
    pub version: String,
    /// Such as `linux`.
    pub os: String,
    /// Such as `x86_64`.
    pub arch: String,
    /// What computes.
    pub backend: String,
}
