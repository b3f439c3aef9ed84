//! What sequences have stored that lost their blocks: kept in host memory up to a bound, and put back when they go on.

use std::collections::BTreeMap;

use crate::{BlockId, SeqId};

/// Blocks whose contents leave the arena before a step writes to them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapOut {
    pub seq: SeqId,
    pub blocks: Vec<BlockId>,
}

/// Blocks that get the contents a sequence once had, from its block `first` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwapIn {
    pub seq: SeqId,
    pub first: usize,
    pub blocks: Vec<BlockId>,
}

/// How much is kept, and what has moved since the start, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverflowStats {
    pub max_blocks: usize,
    pub n_blocks: usize,
    pub n_out: u64,
    pub n_in: u64,
}

/// The books of what is kept; the contents are the engine's.
#[derive(Debug, Default)]
pub struct Overflow {
    /// Tokens and blocks of each sequence.
    kept: BTreeMap<SeqId, (usize, usize)>,
    stats: OverflowStats,
}

impl Overflow {
    /// One that keeps so many blocks at most.
    pub fn new(max_blocks: usize) -> Overflow {
        Overflow { kept: BTreeMap::new(), stats: OverflowStats { max_blocks, ..OverflowStats::default() } }
    }

    pub fn stats(&self) -> OverflowStats {
        self.stats
    }

    /// Takes in what a sequence has stored, if there is room for it.
    pub fn keep(&mut self, seq: SeqId, n_tokens: usize, blocks: &[BlockId]) -> Option<SwapOut> {
        if blocks.is_empty() || self.stats.n_blocks + blocks.len() > self.stats.max_blocks {
            return None;
        }
        let previous = self.kept.insert(seq, (n_tokens, blocks.len()));
        assert!(previous.is_none(), "{seq} is kept already");
        self.stats.n_blocks += blocks.len();
        self.stats.n_out += blocks.len() as u64;
        Some(SwapOut { seq, blocks: blocks.to_vec() })
    }

    /// Gives up what is kept of a sequence. Returns how many tokens that were.
    pub fn take(&mut self, seq: SeqId) -> Option<usize> {
        let (n_tokens, n_blocks) = self.kept.remove(&seq)?;
        self.stats.n_blocks -= n_blocks;
        Some(n_tokens)
    }

    /// Counts blocks that were put back.
    pub fn count_in(&mut self, n_blocks: usize) {
        self.stats.n_in += n_blocks as u64;
    }

    /// Gives up everything.
    pub fn clear(&mut self) {
        self.kept.clear();
        self.stats.n_blocks = 0;
    }
}
