//! Full blocks that may be found again by the tokens they hold.

/// What the prefix cache has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub is_on: bool,
    /// Times a sequence was looked for.
    pub n_lookups: u64,
    /// Tokens looked for.
    pub n_lookup_tokens: u64,
    /// Tokens found, which were not computed again.
    pub n_hit_tokens: u64,
    /// Blocks that can be found, in use or not.
    pub n_blocks: usize,
    /// Those of them that no sequence uses.
    pub n_idle_blocks: usize,
    /// Blocks given up for others or to keep some free.
    pub n_evictions: u64,
}

/// How far a text is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Tokens that would be reused: whole blocks.
    pub n_matched: usize,
    /// Where the comparison ended: the first token that differs, or the first that is not cached.
    pub token_idx: usize,
    pub stop: PrefixStop,
}

/// Why no more of a text is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixStop {
    /// The cache is switched off.
    Off,
    /// What is left does not fill a block, and only full blocks are cached.
    BlockNotFull { n_left: usize },
    /// The block is cached, but the last token of a prompt is always computed, for its logits.
    LastToken,
    /// Nothing cached begins like this.
    NeverSeen,
    /// It continues beyond what is cached.
    CachedTextEnds,
    /// The nearest cached block has another token, `cached`, at the place. Entries are numbered as they are cached.
    Diverges { entry: u64, cached: u32 },
    /// The block was cached and has been given up.
    Evicted,
}
