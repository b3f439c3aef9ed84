//! What each block of the arena holds, as data for a picture.

use crate::{BlockId, RequestId, SeqId};

/// The most blocks of one answer.
pub const MAX_MAP_BLOCKS: usize = 65_536;

/// What a block is to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    Free,
    /// Sequences use it.
    Used,
    /// No sequence uses it, but its tokens can be found again.
    Idle,
}

impl BlockState {
    pub const fn name(self) -> &'static str {
        match self {
            BlockState::Free => "free",
            BlockState::Used => "used",
            BlockState::Idle => "idle",
        }
    }
}

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    pub block: BlockId,
    pub state: BlockState,
    /// Whether its tokens can be found by other sequences.
    pub is_cached: bool,
    /// Sequences that use it, and the first of them.
    pub n_seqs: usize,
    pub seq: Option<SeqId>,
    pub n_tokens: usize,
    /// Steps since a sequence used it; `None` when none ever has.
    pub idle_steps: Option<u64>,
}

/// Some blocks of an arena, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvMap {
    /// Blocks of the whole arena.
    pub n_blocks: usize,
    pub block_tokens: usize,
    pub blocks: Vec<BlockInfo>,
    /// The choices whose sequences the blocks name.
    pub seqs: Vec<SeqOwner>,
}

/// Whose a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeqOwner {
    pub seq: SeqId,
    pub request: RequestId,
    pub choice: u32,
}
