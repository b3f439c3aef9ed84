//! Which blocks hold a sequence's tokens, in order.
//!
//! A fork shares all blocks of its parent up to the fork point, the partial last one included. Whoever first writes
//! into a shared partial block gets a copy of its own; full blocks are never written again and stay shared.
//!
//! Invariant: a table of `n_tokens` has exactly `n_tokens.div_ceil(block_tokens)` blocks.

use std::collections::BTreeMap;

use mlxr_tensor::BlockCopy;

use super::block_pool::{BlockPool, IntegrityError, PoolStats};
use super::prefix_cache::{CacheStats, PrefixMatch, PrefixStop};
use crate::{BlockId, SeqId};

/// One sequence's blocks.
#[derive(Clone, Debug, Default)]
pub struct BlockTable {
    blocks: Vec<BlockId>,
    n_tokens: usize,
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

/// The tables of all sequences and the pool they draw from.
#[derive(Debug)]
pub struct BlockTables {
    pool: BlockPool,
    block_tokens: usize,
    tables: BTreeMap<SeqId, BlockTable>,
    n_copies: u64,
}

impl BlockTables {
    pub fn new(n_blocks: usize, block_tokens: usize) -> Self {
        assert!(block_tokens > 0, "a block holds tokens");
        Self { pool: BlockPool::new(n_blocks), block_tokens, tables: BTreeMap::new(), n_copies: 0 }
    }

    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    pub fn n_free(&self) -> usize {
        self.pool.n_free()
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
        CacheStats::default()
    }

    /// How far `tokens` are cached, and why no further.
    pub fn explain(&self, _tokens: &[u32]) -> PrefixMatch {
        PrefixMatch { n_matched: 0, token_idx: 0, stop: PrefixStop::Off }
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
        let n_free = self.pool.n_free();
        if n_needed > n_free {
            return Err(OutOfBlocks { n_needed, n_free });
        }
        let shared_tail = self.shared_tail(&self.tables[&seq]);
        let table = self.tables.get_mut(&seq).expect("the sequence has a table");
        let mut alloc = || self.pool.alloc().expect("enough free blocks were counted");
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
            self.pool.release(shared);
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
        let previous = self.tables.insert(child, BlockTable { blocks, n_tokens });
        assert!(previous.is_none(), "{child} has a table");
    }

    /// Forgets all tokens from `n_tokens` on (rejected drafts).
    ///
    /// # Panics
    /// When the sequence holds fewer tokens.
    pub fn truncate(&mut self, seq: SeqId, n_tokens: usize) {
        let table = self.tables.get_mut(&seq).expect("the sequence has a table");
        assert!(n_tokens <= table.n_tokens, "{seq} holds {} tokens, not {n_tokens}", table.n_tokens);
        for block in table.blocks.drain(n_tokens.div_ceil(self.block_tokens)..).rev() {
            self.pool.release(block);
        }
        table.n_tokens = n_tokens;
    }

    /// Drops the sequence's table and its hold on the blocks.
    ///
    /// # Panics
    /// When the sequence has no table.
    pub fn remove(&mut self, seq: SeqId) {
        let table = self.tables.remove(&seq).expect("the sequence has a table");
        for block in table.blocks.into_iter().rev() {
            self.pool.release(block);
        }
    }

    /// Every block is owned exactly as often as tables refer to it, and every table covers its tokens.
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
        self.pool.check_integrity(self.tables.values().flat_map(|table| table.blocks.iter().copied()))
    }

    /// The partial last block when others hold it too.
    fn shared_tail(&self, table: &BlockTable) -> Option<BlockId> {
        let is_partial = !table.n_tokens.is_multiple_of(self.block_tokens);
        table.blocks.last().copied().filter(|&block| is_partial && self.pool.is_shared(block))
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
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            4 => (any::<usize>(), 0usize..9).prop_map(|(seq, n)| Op::Append(seq, n)),
            2 => (any::<usize>(), any::<usize>()).prop_map(|(seq, at)| Op::Fork(seq, at)),
            1 => (any::<usize>(), any::<usize>()).prop_map(|(seq, at)| Op::Truncate(seq, at)),
            1 => any::<usize>().prop_map(Op::Remove),
        ];
        proptest::collection::vec(op, 1..60)
    }

    proptest! {
        #[test]
        fn every_sequence_reads_back_what_it_wrote(ops in ops(), block_tokens in 1usize..6) {
            let mut tables = BlockTables::new(24, block_tokens);
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
                                next_token += 1;
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
                    Op::Remove(_) => {}
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
