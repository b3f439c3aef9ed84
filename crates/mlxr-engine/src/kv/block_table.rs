//! Which blocks hold a sequence's tokens, in order.
//!
//! A fork shares all blocks of its parent up to the fork point, the partial last one included. Whoever first writes
//! into a shared partial block gets a copy of its own; full blocks are never written again and stay shared.
//!
//! With a prefix cache, full blocks that were computed can be found by their tokens and be the beginning of another
//! sequence's table. The same block computed twice is kept once.
//!
//! Invariant: a table of `n_tokens` has exactly `n_tokens.div_ceil(block_tokens)` blocks, of which the first
//! `n_cached` have entries in the cache, each following the one before. Tables that share a block share all before it.

use std::collections::BTreeMap;

use mlxr_tensor::BlockCopy;

use super::block_pool::{BlockPool, IntegrityError, PoolStats};
use super::map::{BlockInfo, BlockState, MAX_MAP_BLOCKS};
use super::prefix_cache::{CacheStats, PrefixCache, PrefixMatch, PrefixStop};
use crate::{BlockId, SeqId};

/// One sequence's blocks.
#[derive(Clone, Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    n_tokens: usize,
    /// Blocks at the beginning that are in the prefix cache.
    n_cached: usize,
    /// Its cached beginning was forgotten while it ran, so that nothing can follow it.
    is_detached: bool,
}

impl BlockTable {
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Tokens that have a slot.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

/// Not enough free blocks; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{n_needed} KV blocks needed, {n_free} free")]
pub struct OutOfBlocks {
    pub n_needed: usize,
    pub n_free: usize,
}

/// How much of the arena may be used or idle before idle blocks are given up, and down to how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictionLimits {
    pub above_percent: u8,
    pub down_to_percent: u8,
}

/// The tables of all sequences, the pool they draw from, and what of it can be found again.
#[derive(Debug)]
pub struct BlockTables {
    pool: BlockPool,
    block_tokens: usize,
    tables: BTreeMap<SeqId, BlockTable>,
    n_copies: u64,
    cache: Option<PrefixCache>,
    limits: EvictionLimits,
    n_lookups: u64,
    n_lookup_tokens: u64,
    n_hit_tokens: u64,
    /// The step that is being planned, and the last one in which each block was used; steps count from 1.
    step: u64,
    last_used: Vec<u64>,
}

impl BlockTables {
    pub fn new(n_blocks: usize, block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds tokens");
        Self {
            pool: BlockPool::new(n_blocks),
            block_tokens,
            tables: BTreeMap::new(),
            n_copies: 0,
            cache: None,
            limits: EvictionLimits { above_percent: 100, down_to_percent: 100 },
            n_lookups: 0,
            n_lookup_tokens: 0,
            n_hit_tokens: 0,
            step: 0,
            last_used: vec![0; n_blocks],
        }
    }

    /// The same with a prefix cache.
    pub fn with_cache(self, limits: EvictionLimits) -> Self {
        let cache = PrefixCache::new(self.pool.n_blocks(), self.block_tokens);
        Self { cache: Some(cache), limits, ..self }
    }

    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks no sequence uses: the free and the idle ones.
    pub fn n_free(&self) -> usize {
        self.stats().n_free
    }

    /// Tokens the whole arena holds.
    pub fn capacity_tokens(&self) -> usize {
        self.pool.n_blocks() * self.block_tokens
    }

    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// What the prefix cache holds and has done.
    pub fn cache_stats(&self) -> CacheStats {
        let Some(cache) = &self.cache else { return CacheStats::default() };
        CacheStats {
            is_on: true,
            n_lookups: self.n_lookups,
            n_lookup_tokens: self.n_lookup_tokens,
            n_hit_tokens: self.n_hit_tokens,
            n_blocks: cache.n_entries(),
            n_idle_blocks: cache.n_idle(),
            n_evictions: cache.n_evictions(),
            n_forgotten: cache.n_forgotten(),
        }
    }

    /// How far `tokens` are cached, and why no further.
    pub fn explain(&self, tokens: &[u32]) -> PrefixMatch {
        match &self.cache {
            Some(cache) => cache.explain(tokens),
            None => PrefixMatch { n_matched: 0, token_idx: 0, stop: PrefixStop::Off },
        }
    }

    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Cached blocks that `tokens` begin with and that sequences use, so that sharing them takes nothing.
    pub fn n_used_blocks_of(&self, tokens: &[u32]) -> usize {
        let Some(cache) = &self.cache else { return 0 };
        let (mut parent, mut n_used) = (None, 0);
        for block in tokens.chunks_exact(self.block_tokens) {
            parent = cache.find(parent, block);
            match parent {
                Some(found) if !cache.is_idle(found) => n_used += 1,
                // Whoever uses a block uses those before it.
                _ => break,
            }
        }
        n_used
    }

    /// Gives the sequence the cached blocks that continue what it has stored, up to the end of `tokens`, which are
    /// the sequence's from its first. Returns how many tokens that spares.
    pub fn reuse(&mut self, seq: SeqId, tokens: &[u32]) -> usize {
        let (Some(cache), Some(table)) = (&mut self.cache, self.tables.get_mut(&seq)) else { return 0 };
        if table.n_tokens == 0 {
            self.n_lookups += 1;
            self.n_lookup_tokens += tokens.len() as u64;
        }
        let stored = table.n_cached * self.block_tokens;
        if table.is_detached || table.n_tokens != stored || tokens.len() <= stored {
            return 0;
        }
        let mut n_reused = 0;
        for block in tokens[stored..].chunks_exact(self.block_tokens) {
            let Some(found) = cache.find(table.blocks.last().copied(), block) else { break };
            hold(&mut self.pool, cache, found);
            table.blocks.push(found);
            table.n_cached += 1;
            n_reused += self.block_tokens;
        }
        table.n_tokens += n_reused;
        self.n_hit_tokens += n_reused as u64;
        n_reused
    }

    /// Makes the blocks a sequence has filled findable. `tokens` are the sequence's from its first; what is stored of
    /// them must have been computed. Slots behind them, for tokens that are not known yet, are left alone.
    ///
    /// # Panics
    /// When the sequence has no table.
    pub fn register(&mut self, seq: SeqId, tokens: &[u32]) {
        let table = self.tables.get(&seq).expect("the sequence has a table");
        let Some(cache) = self.cache.as_mut().filter(|_| !table.is_detached) else { return };
        let n = self.block_tokens;
        let mut parent = table.n_cached.checked_sub(1).map(|i| table.blocks[i]);
        for i in table.n_cached..table.n_tokens.min(tokens.len()) / n {
            let (own, block) = (self.tables[&seq].blocks[i], &tokens[i * n..(i + 1) * n]);
            let found = cache.find(parent, block);
            let kept = found.unwrap_or(own);
            if found.is_none() {
                cache.insert(own, parent, block);
            }
            // Forks have it too: one that kept its own would go on to use what follows a block it does not use.
            let is_full = |table: &BlockTable| table.n_tokens >= (i + 1) * n && table.blocks[i] == own;
            for table in self.tables.values_mut().filter(|table| is_full(table)) {
                // Computed twice, bit for bit the same: one is enough.
                if kept != own {
                    hold(&mut self.pool, cache, kept);
                    table.blocks[i] = kept;
                    if self.pool.release(own) {
                        self.pool.free(own);
                    }
                }
                if !table.is_detached {
                    table.n_cached = table.n_cached.max(i + 1);
                }
            }
            parent = Some(kept);
        }
    }

    /// Gives up idle blocks when the arena is fuller than its limit.
    pub fn trim(&mut self) {
        let Some(cache) = &mut self.cache else { return };
        let n_blocks = self.pool.n_blocks();
        let share = |percent: u8| n_blocks * usize::from(percent) / 100;
        let n_taken = n_blocks - self.pool.n_free();
        if n_taken > share(self.limits.above_percent) {
            for _ in share(self.limits.down_to_percent)..n_taken {
                let Some(block) = cache.evict() else { break };
                self.pool.free(block);
            }
        }
    }

    /// Says that another step begins.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// What `n` blocks from `first` on hold, at most [`MAX_MAP_BLOCKS`].
    pub fn map(&self, first: usize, n: usize) -> Vec<BlockInfo> {
        let n_blocks = self.pool.n_blocks();
        let range = first.min(n_blocks)..first.saturating_add(n.min(MAX_MAP_BLOCKS)).min(n_blocks);
        let mut blocks: Vec<BlockInfo> = range.clone().map(|i| self.block_info(BlockId(i as u32))).collect();
        for (&seq, table) in &self.tables {
            for (i, block) in table.blocks.iter().enumerate() {
                let Some(at) = (block.0 as usize).checked_sub(range.start).filter(|at| *at < blocks.len())
                else {
                    continue;
                };
                let info = &mut blocks[at];
                info.n_seqs += 1;
                info.seq.get_or_insert(seq);
                info.n_tokens =
                    info.n_tokens.max(self.block_tokens.min(table.n_tokens - i * self.block_tokens));
            }
        }
        blocks
    }

    /// What is known of a block without its sequences.
    fn block_info(&self, block: BlockId) -> BlockInfo {
        let is_cached = self.cache.as_ref().is_some_and(|cache| cache.contains(block));
        let last_used = self.last_used[block.0 as usize];
        let (state, idle_steps) = if self.pool.is_used(block) {
            (BlockState::Used, Some(0))
        } else {
            let state = if is_cached { BlockState::Idle } else { BlockState::Free };
            (state, (last_used > 0).then(|| self.step - last_used))
        };
        let n_tokens = if state == BlockState::Idle { self.block_tokens } else { 0 };
        BlockInfo { block, state, is_cached, n_seqs: 0, seq: None, n_tokens, idle_steps }
    }

    /// Forgets what is cached. Returns how many blocks that were.
    pub fn clear_cache(&mut self) -> usize {
        let Some(cache) = &mut self.cache else { return 0 };
        let n_entries = cache.n_entries();
        for block in cache.clear() {
            self.pool.free(block);
        }
        for table in self.tables.values_mut() {
            table.is_detached |= table.n_cached > 0;
            table.n_cached = 0;
        }
        n_entries
    }

    /// Sequences that have a table.
    pub fn n_tables(&self) -> usize {
        self.tables.len()
    }

    /// Blocks copied on write so far.
    pub fn n_copies(&self) -> u64 {
        self.n_copies
    }

    pub fn get(&self, seq: SeqId) -> Option<&BlockTable> {
        self.tables.get(&seq)
    }

    /// An empty table for a new sequence.
    ///
    /// # Panics
    /// When the sequence has one.
    pub fn insert(&mut self, seq: SeqId) {
        let previous = self.tables.insert(seq, BlockTable::default());
        assert!(previous.is_none(), "{seq} has a table");
    }

    /// Free blocks that [`Self::append`] of `n_tokens` takes.
    pub fn n_blocks_to_append(&self, seq: SeqId, n_tokens: usize) -> usize {
        let table = &self.tables[&seq];
        let n_new = (table.n_tokens + n_tokens).div_ceil(self.block_tokens) - table.blocks.len();
        n_new + usize::from(n_tokens > 0 && self.shared_tail(table).is_some())
    }

    /// Slots for `n_tokens` more tokens. Copies that must run before anything is written go to `copies`.
    ///
    /// # Errors
    /// [`OutOfBlocks`], with nothing changed.
    pub fn append(
        &mut self,
        seq: SeqId,
        n_tokens: usize,
        copies: &mut Vec<BlockCopy>,
    ) -> Result<(), OutOfBlocks> {
        let n_needed = self.n_blocks_to_append(seq, n_tokens);
        let n_free = self.n_free();
        if n_needed > n_free {
            return Err(OutOfBlocks { n_needed, n_free });
        }
        let shared_tail = self.shared_tail(&self.tables[&seq]);
        let table = self.tables.get_mut(&seq).expect("the sequence has a table");
        let (pool, cache) = (&mut self.pool, &mut self.cache);
        let mut alloc = || alloc(pool, cache).expect("enough free blocks were counted");
        let mut n_new = n_needed;
        if let Some(shared) = shared_tail.filter(|_| n_tokens > 0) {
            let own = alloc();
            *table.blocks.last_mut().expect("a shared tail is a block") = own;
            copies.push(BlockCopy { from: shared.0, to: own.0 });
            n_new -= 1;
        }
        table.blocks.extend((0..n_new).map(|_| alloc()));
        table.n_tokens += n_tokens;
        if let Some(shared) = shared_tail.filter(|_| n_tokens > 0) {
            self.let_go(shared);
            self.n_copies += 1;
        }
        Ok(())
    }

    /// Gives `child` the first `n_tokens` of `parent`, sharing every block.
    ///
    /// # Panics
    /// When `parent` holds fewer tokens or `child` has a table.
    pub fn fork(&mut self, parent: SeqId, child: SeqId, n_tokens: usize) {
        let table = &self.tables[&parent];
        assert!(n_tokens <= table.n_tokens, "{parent} holds {} tokens, not {n_tokens}", table.n_tokens);
        let blocks = table.blocks[..n_tokens.div_ceil(self.block_tokens)].to_vec();
        for &block in &blocks {
            self.pool.share(block);
        }
        let n_cached = table.n_cached.min(n_tokens / self.block_tokens);
        let child_table = BlockTable { blocks, n_tokens, n_cached, is_detached: table.is_detached };
        let previous = self.tables.insert(child, child_table);
        assert!(previous.is_none(), "{child} has a table");
    }

    /// Forgets all tokens from `n_tokens` on (rejected drafts).
    ///
    /// # Panics
    /// When the sequence holds fewer tokens.
    pub fn truncate(&mut self, seq: SeqId, n_tokens: usize) {
        let table = self.tables.get_mut(&seq).expect("the sequence has a table");
        assert!(n_tokens <= table.n_tokens, "{seq} holds {} tokens, not {n_tokens}", table.n_tokens);
        let dropped: Vec<BlockId> = table.blocks.drain(n_tokens.div_ceil(self.block_tokens)..).collect();
        table.n_tokens = n_tokens;
        table.n_cached = table.n_cached.min(n_tokens / self.block_tokens);
        for block in dropped.into_iter().rev() {
            self.let_go(block);
        }
    }

    /// Drops the sequence's table and its hold on the blocks.
    ///
    /// # Panics
    /// When the sequence has no table.
    pub fn remove(&mut self, seq: SeqId) {
        let table = self.tables.remove(&seq).expect("the sequence has a table");
        for block in table.blocks.into_iter().rev() {
            self.let_go(block);
        }
    }

    /// One owner fewer for `block`.
    fn let_go(&mut self, block: BlockId) {
        self.last_used[block.0 as usize] = self.step;
        if self.pool.release(block) && !self.cache.as_mut().is_some_and(|cache| cache.park(block)) {
            self.pool.free(block);
        }
    }

    /// Every block is owned exactly as often as tables refer to it, every table covers its tokens, and the cache has
    /// what tables say it has.
    ///
    /// # Errors
    /// The first thing that does not balance.
    pub fn check_integrity(&self) -> Result<(), IntegrityError> {
        for table in self.tables.values() {
            if table.blocks.len() != table.n_tokens.div_ceil(self.block_tokens) {
                return Err(IntegrityError::TableLength {
                    n_table_blocks: table.blocks.len(),
                    block_tokens: self.block_tokens,
                    n_tokens: table.n_tokens,
                });
            }
        }
        let owned = self.tables.values().flat_map(|table| table.blocks.iter().copied());
        let Some(cache) = &self.cache else { return self.pool.check_integrity(owned, std::iter::empty()) };
        let all = (0..self.pool.n_blocks() as u32).map(BlockId);
        self.pool.check_integrity(owned, all.filter(|&block| cache.is_idle(block)))?;
        for table in self.tables.values() {
            let cached = &table.blocks[..table.n_cached.min(table.blocks.len())];
            if let Some(&block) = cached.iter().find(|&&block| !cache.contains(block)) {
                return Err(IntegrityError::Cache { block, what: "should be cached and is not" });
            }
        }
        cache.check_integrity(|block| self.pool.is_used(block))
    }

    /// The partial last block when a write to it would be seen by others: its owners, or who finds it in the cache.
    fn shared_tail(&self, table: &BlockTable) -> Option<BlockId> {
        let is_partial = !table.n_tokens.is_multiple_of(self.block_tokens);
        let is_cached = |block| self.cache.as_ref().is_some_and(|cache| cache.contains(block));
        let is_seen = |block: &BlockId| self.pool.is_shared(*block) || is_cached(*block);
        table.blocks.last().copied().filter(|block| is_partial && is_seen(block))
    }
}

/// A block to write to: a free one, or the idle one nobody has used for longest.
fn alloc(pool: &mut BlockPool, cache: &mut Option<PrefixCache>) -> Option<BlockId> {
    if pool.n_free() == 0
        && let Some(block) = cache.as_mut().and_then(PrefixCache::evict)
    {
        pool.free(block);
    }
    pool.alloc()
}

/// One owner more for a cached block.
fn hold(pool: &mut BlockPool, cache: &mut PrefixCache, block: BlockId) {
    if cache.unpark(block) {
        pool.adopt(block);
    } else {
        pool.share(block);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: SeqId = SeqId(0);
    const B: SeqId = SeqId(1);

    fn ids(tables: &BlockTables, seq: SeqId) -> Vec<u32> {
        tables.get(seq).unwrap().blocks().iter().map(|block| block.0).collect()
    }

    #[test]
    fn a_table_grows_by_whole_blocks() {
        let mut tables = BlockTables::new(4, 4);
        let mut copies = Vec::new();
        tables.insert(A);
        tables.append(A, 3, &mut copies).unwrap();
        tables.append(A, 1, &mut copies).unwrap();
        assert_eq!(ids(&tables, A), [0]);
        tables.append(A, 5, &mut copies).unwrap();
        assert_eq!(ids(&tables, A), [0, 1, 2]);
        assert_eq!(tables.append(A, 8, &mut copies), Err(OutOfBlocks { n_needed: 2, n_free: 1 }));
        assert_eq!(tables.get(A).unwrap().n_tokens(), 9);
        assert!(copies.is_empty());
    }

    #[test]
    fn the_first_writer_of_a_shared_partial_block_gets_the_copy() {
        let mut tables = BlockTables::new(4, 4);
        let mut copies = Vec::new();
        tables.insert(A);
        tables.append(A, 6, &mut copies).unwrap();
        tables.fork(A, B, 6);
        assert_eq!(tables.stats().n_shared, 2);
        tables.append(B, 1, &mut copies).unwrap();
        assert_eq!(copies, [BlockCopy { from: 1, to: 2 }]);
        tables.append(A, 1, &mut copies).unwrap();
        assert_eq!((ids(&tables, A), ids(&tables, B)), (vec![0, 1], vec![0, 2]));
        assert_eq!((copies.len(), tables.n_copies()), (1, 1));
    }

    #[test]
    fn a_map_says_who_uses_what() {
        let limits = EvictionLimits { above_percent: 100, down_to_percent: 100 };
        let mut tables = BlockTables::new(5, 4).with_cache(limits);
        let mut copies = Vec::new();
        tables.begin_step();
        for (seq, n_tokens) in [(A, 9), (B, 4)] {
            tables.insert(seq);
            tables.append(seq, n_tokens, &mut copies).unwrap();
        }
        tables.register(A, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        tables.fork(A, SeqId(2), 9);
        tables.remove(B);
        tables.begin_step();
        tables.truncate(A, 5);
        tables.truncate(SeqId(2), 4);
        let show = |blocks: Vec<BlockInfo>| -> Vec<String> {
            let show = |b: &BlockInfo| {
                let seq = b.seq.map_or(-1, |seq| seq.0 as i64);
                let cached = if b.is_cached { "+" } else { "" };
                format!("{}{cached} {}x{seq} {} {:?}", b.state.name(), b.n_seqs, b.n_tokens, b.idle_steps)
            };
            blocks.iter().map(show).collect()
        };
        let expected = [
            "used+ 2x0 4 Some(0)",
            "used+ 1x0 1 Some(0)",
            "free 0x-1 0 Some(0)",
            "free 0x-1 0 Some(1)",
            "free 0x-1 0 None",
        ];
        assert_eq!(show(tables.map(0, 9)), expected);
        assert_eq!(show(tables.map(3, 1)), expected[3..4]);
        assert_eq!(show(tables.map(9, usize::MAX)), Vec::<String>::new());
        tables.remove(A);
        assert_eq!(show(tables.map(1, 1)), ["idle+ 0x-1 4 Some(0)"]);
    }

    #[test]
    fn what_was_computed_twice_is_kept_once_for_forks_too() {
        let limits = EvictionLimits { above_percent: 100, down_to_percent: 100 };
        let mut tables = BlockTables::new(8, 2).with_cache(limits);
        let mut copies = Vec::new();
        let text = [1, 2, 3, 4, 5];
        for (seq, n_tokens) in [(A, 2), (B, 5)] {
            tables.insert(seq);
            tables.append(seq, n_tokens, &mut copies).unwrap();
        }
        tables.register(A, &text[..2]);
        let child = SeqId(2);
        tables.fork(B, child, 5);
        tables.register(child, &text);
        assert_eq!(ids(&tables, child), [0, 2, 3]);
        assert_eq!(ids(&tables, B), [0, 2, 3]);
        for seq in [A, child] {
            tables.remove(seq);
            assert_eq!(tables.check_integrity(), Ok(()));
        }
        assert_eq!((tables.n_used_blocks_of(&text), tables.n_free()), (2, 5));
    }

    #[test]
    fn a_fork_at_a_block_boundary_copies_nothing() {
        let mut tables = BlockTables::new(4, 4);
        let mut copies = Vec::new();
        tables.insert(A);
        tables.append(A, 7, &mut copies).unwrap();
        tables.fork(A, B, 4);
        tables.append(B, 1, &mut copies).unwrap();
        assert_eq!((ids(&tables, A), ids(&tables, B)), (vec![0, 1], vec![0, 2]));
        assert!(copies.is_empty());
    }

    #[test]
    fn truncation_returns_blocks_and_keeps_sharing_safe() {
        let mut tables = BlockTables::new(6, 4);
        let mut copies = Vec::new();
        tables.insert(A);
        tables.append(A, 8, &mut copies).unwrap();
        tables.fork(A, B, 8);
        tables.truncate(B, 5);
        tables.append(B, 1, &mut copies).unwrap();
        assert_eq!(copies, [BlockCopy { from: 1, to: 2 }]);
        tables.remove(A);
        tables.remove(B);
        assert_eq!(tables.n_free(), 6);
        assert_eq!(tables.check_integrity(), Ok(()));
    }

    /// A model of the arena's contents: every slot remembers the last token written to it.
    struct Contents {
        slots: Vec<u32>,
        block_tokens: usize,
    }

    impl Contents {
        fn copy(&mut self, copies: &[BlockCopy]) {
            for copy in copies {
                let (from, to) = (copy.from as usize, copy.to as usize);
                let n = self.block_tokens;
                self.slots.copy_within(from * n..(from + 1) * n, to * n);
            }
        }

        fn slot(&mut self, table: &BlockTable, position: usize) -> &mut u32 {
            let block = table.blocks()[position / self.block_tokens].0 as usize;
            &mut self.slots[block * self.block_tokens + position % self.block_tokens]
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Append(usize, usize),
        Fork(usize, usize),
        Truncate(usize, usize),
        Remove(usize),
        Register(usize),
        /// A new sequence that begins like another, as far as that is cached.
        Reuse(usize, usize),
        Trim,
        Clear,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => (any::<usize>(), 0usize..9).prop_map(|(seq, n)| Op::Append(seq, n)),
            2 => (any::<usize>(), any::<usize>()).prop_map(|(seq, at)| Op::Fork(seq, at)),
            1 => (any::<usize>(), any::<usize>()).prop_map(|(seq, at)| Op::Truncate(seq, at)),
            2 => any::<usize>().prop_map(Op::Remove),
            4 => any::<usize>().prop_map(Op::Register),
            3 => (any::<usize>(), any::<usize>()).prop_map(|(seq, at)| Op::Reuse(seq, at)),
            1 => Just(Op::Trim),
            1 => (0..4).prop_map(|n| if n == 0 { Op::Clear } else { Op::Trim }),
        ];
        proptest::collection::vec(op, 1..60)
    }

    proptest! {
        #[test]
        fn every_sequence_reads_back_what_it_wrote(
            ops in ops(),
            block_tokens in 1usize..6,
            n_tokens in prop_oneof![Just(2u32), Just(u32::MAX)],
        ) {
            let limits = EvictionLimits { above_percent: 90, down_to_percent: 70 };
            let mut tables = BlockTables::new(24, block_tokens).with_cache(limits);
            // Texts that are gone may be asked for again.
            let mut texts: Vec<Vec<u32>> = Vec::new();
            let mut contents = Contents { slots: vec![u32::MAX; 24 * block_tokens], block_tokens };
            let mut written: BTreeMap<SeqId, Vec<u32>> = BTreeMap::from([(A, Vec::new())]);
            tables.insert(A);
            let (mut next_seq, mut next_token) = (1u64, 0u32);
            for op in ops {
                let live: Vec<SeqId> = written.keys().copied().collect();
                let pick = |i: usize| live[i % live.len()];
                match op {
                    Op::Append(i, n) => {
                        let (seq, mut copies) = (pick(i), Vec::new());
                        if tables.append(seq, n, &mut copies).is_ok() {
                            contents.copy(&copies);
                            for _ in 0..n {
                                let history = written.get_mut(&seq).unwrap();
                                *contents.slot(tables.get(seq).unwrap(), history.len()) = next_token;
                                history.push(next_token);
                                next_token = (next_token + 1) % n_tokens;
                            }
                        } else {
                            prop_assert!(copies.is_empty());
                        }
                    }
                    Op::Fork(i, at) => {
                        let (parent, child) = (pick(i), SeqId(next_seq));
                        let at = at % (written[&parent].len() + 1);
                        tables.fork(parent, child, at);
                        let prefix = written[&parent][..at].to_vec();
                        written.insert(child, prefix);
                        next_seq += 1;
                    }
                    Op::Truncate(i, at) => {
                        let seq = pick(i);
                        let at = at % (written[&seq].len() + 1);
                        tables.truncate(seq, at);
                        written.get_mut(&seq).unwrap().truncate(at);
                    }
                    Op::Remove(i) if live.len() > 1 => {
                        tables.remove(pick(i));
                        written.remove(&pick(i));
                    }
                    Op::Remove(_) | Op::Reuse(..) if live.len() > 8 => {}
                    Op::Remove(_) => {}
                    Op::Register(i) => {
                        let seq = pick(i);
                        tables.register(seq, &written[&seq]);
                        texts.push(written[&seq].clone());
                    }
                    Op::Reuse(i, at) => {
                        let Some(text) = texts.get(i % texts.len().max(1)) else { continue };
                        let (seq, text) = (SeqId(next_seq), &text[..at % (text.len() + 1)]);
                        let n_used = tables.n_used_blocks_of(text);
                        let (n_free, explained) = (tables.n_free(), tables.explain(text));
                        tables.insert(seq);
                        let n_reused = tables.reuse(seq, text);
                        let n_last = usize::from(explained.stop == PrefixStop::LastToken) * block_tokens;
                        prop_assert_eq!(n_reused, explained.n_matched + n_last);
                        prop_assert_eq!(n_free - tables.n_free(), n_reused / block_tokens - n_used);
                        written.insert(seq, text[..n_reused].to_vec());
                        next_seq += 1;
                    }
                    Op::Trim => tables.trim(),
                    Op::Clear => {
                        tables.clear_cache();
                        prop_assert_eq!(tables.cache_stats().n_blocks, 0);
                    }
                }
                prop_assert_eq!(tables.check_integrity(), Ok(()));
                for (&seq, history) in &written {
                    let table = tables.get(seq).unwrap();
                    for (position, &token) in history.iter().enumerate() {
                        prop_assert_eq!(*contents.slot(table, position), token);
                    }
                }
            }
        }
    }
}
