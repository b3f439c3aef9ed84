//! `GET /mlxr/v1/kv`: what the KV blocks hold, as data for a picture.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The arenas of the models in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::KvMaps)]
pub struct KvMaps {
    pub models: Vec<KvMap>,
}

/// Some blocks of the arena of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::KvMap)]
pub struct KvMap {
    pub model: String,
    /// Blocks of the whole arena.
    pub n_blocks: usize,
    /// Tokens a block has room for.
    pub block_tokens: usize,
    /// Bytes a block takes; a block's place in the arena is its number times this.
    pub block_bytes: u64,
    /// By number, from `first` on.
    pub blocks: Vec<KvBlock>,
    /// Whose the sequences are that the blocks name.
    pub seqs: Vec<KvSeq>,
}

/// One block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::KvBlock)]
pub struct KvBlock {
    pub block: u32,
    pub state: KvState,
    /// Whether its tokens can be found by other sequences.
    pub is_cached: bool,
    /// Sequences that use it.
    pub n_seqs: usize,
    /// The first of them.
    pub seq: Option<u64>,
    /// Tokens it holds.
    pub n_tokens: usize,
    /// Steps since a sequence used it; null when none ever has.
    pub idle_steps: Option<u64>,
}

/// What a block is to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = native::KvState)]
pub enum KvState {
    Free,
    /// Sequences use it.
    Used,
    /// No sequence uses it, but its tokens can be found again.
    Idle,
}

/// Whose a sequence is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::KvSeq)]
pub struct KvSeq {
    pub seq: u64,
    /// The engine's number of its request.
    pub request: u64,
    /// Which of the request's choices it is.
    pub choice: u32,
}
