//! The arena's free list and reference counts.
//!
//! Invariant: a block without owners is either on the free list or idle in the prefix cache, one with owners neither.

use crate::{BlockId, SeqId};

/// Hands out blocks, counts their owners, and takes them back when the last owner lets go.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    free: Vec<BlockId>,
    /// Blocks that have owners, and those that have several.
    n_used: usize,
    n_shared: usize,
    peak_used: usize,
}

/// How full the arena is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    pub n_blocks: usize,
    /// Blocks no sequence uses: the free ones, and the idle ones of the prefix cache, which are given up when needed.
    pub n_free: usize,
    /// Blocks with more than one owner.
    pub n_shared: usize,
    /// The most blocks in use at one time so far.
    pub peak_used: usize,
}

/// The books do not balance: a bug, found before it corrupts somebody's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntegrityError {
    #[error("{block} is referenced by {n_owners} tables but counts {ref_count}")]
    RefCount { block: BlockId, n_owners: u32, ref_count: u32 },
    #[error("{block} is free or idle {n_listed} times but counts {ref_count} owners")]
    FreeList { block: BlockId, n_listed: u32, ref_count: u32 },
    #[error("{block} {what}")]
    Cache { block: BlockId, what: &'static str },
    #[error("{n_entries} blocks are cached, {n_listed} listed by hash, {n_idle} idle")]
    CacheCounts { n_entries: usize, n_listed: usize, n_idle: usize },
    #[error("{block} is beyond the arena of {n_blocks}")]
    OutOfArena { block: BlockId, n_blocks: usize },
    #[error("a table of {n_table_blocks} blocks of {block_tokens} holds {n_tokens} tokens")]
    TableLength { n_table_blocks: usize, block_tokens: usize, n_tokens: usize },
    #[error("{seq} waits but owns blocks")]
    WaitingOwnsBlocks { seq: SeqId },
    #[error("{n_tables} block tables for {n_running} running sequences")]
    Tables { n_tables: usize, n_running: usize },
}

impl BlockPool {
    /// A pool of `n_blocks` free blocks; the lowest ids go out first.
    ///
    /// # Panics
    /// When `n_blocks` exceeds `u32`, which no arena does.
    pub fn new(n_blocks: usize) -> Self {
        let n = u32::try_from(n_blocks).expect("block ids are u32");
        let free = (0..n).rev().map(BlockId).collect();
        Self { ref_counts: vec![0; n_blocks], free, n_used: 0, n_shared: 0, peak_used: 0 }
    }

    pub fn n_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks on the free list.
    pub fn n_free(&self) -> usize {
        self.free.len()
    }

    pub fn is_used(&self, block: BlockId) -> bool {
        self.ref_counts[block.0 as usize] > 0
    }

    /// A free block with one owner, or `None` when the list is empty.
    pub fn alloc(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.adopt(block);
        Some(block)
    }

    /// The first owner for a block that had none and is not on the free list.
    ///
    /// # Panics
    /// When the block has owners.
    pub fn adopt(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block.0 as usize];
        assert!(*count == 0, "{block} has owners");
        *count = 1;
        self.n_used += 1;
        self.peak_used = self.peak_used.max(self.n_used);
    }

    /// One more owner for `block`.
    ///
    /// # Panics
    /// When the block is free.
    pub fn share(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block.0 as usize];
        assert!(*count > 0, "{block} is free and cannot be shared");
        *count += 1;
        self.n_shared += usize::from(*count == 2);
    }

    /// One owner fewer. Returns whether it was the last; the block is to be freed then, or kept by the cache.
    ///
    /// # Panics
    /// When the block is free already.
    #[must_use]
    pub fn release(&mut self, block: BlockId) -> bool {
        let count = &mut self.ref_counts[block.0 as usize];
        assert!(*count > 0, "{block} is released twice");
        *count -= 1;
        self.n_shared -= usize::from(*count == 1);
        self.n_used -= usize::from(*count == 0);
        *count == 0
    }

    /// Puts a block without owners on the free list.
    ///
    /// # Panics
    /// When it has owners.
    pub fn free(&mut self, block: BlockId) {
        assert!(!self.is_used(block), "{block} has owners");
        self.free.push(block);
    }

    /// Whether a write to `block` would be seen by another owner.
    pub fn is_shared(&self, block: BlockId) -> bool {
        self.ref_counts[block.0 as usize] > 1
    }

    pub fn stats(&self) -> PoolStats {
        PoolStats {
            n_blocks: self.n_blocks(),
            n_free: self.n_blocks() - self.n_used,
            n_shared: self.n_shared,
            peak_used: self.peak_used,
        }
    }

    /// Compares the counts with who really owns what: `owned` yields a block once per owner, `idle` those the cache
    /// keeps for nobody.
    ///
    /// # Errors
    /// The first block whose books do not balance.
    pub fn check_integrity(
        &self,
        owned: impl Iterator<Item = BlockId>,
        idle: impl Iterator<Item = BlockId>,
    ) -> Result<(), IntegrityError> {
        let n_owners = self.tally(owned)?;
        let n_listed = self.tally(self.free.iter().copied().chain(idle))?;
        for (i, &ref_count) in self.ref_counts.iter().enumerate() {
            let block = BlockId(i as u32);
            if n_owners[i] != ref_count {
                return Err(IntegrityError::RefCount { block, n_owners: n_owners[i], ref_count });
            }
            if n_listed[i] != u32::from(ref_count == 0) {
                return Err(IntegrityError::FreeList { block, n_listed: n_listed[i], ref_count });
            }
        }
        Ok(())
    }

    fn tally(&self, blocks: impl Iterator<Item = BlockId>) -> Result<Vec<u32>, IntegrityError> {
        let mut counts = vec![0u32; self.n_blocks()];
        for block in blocks {
            let n_blocks = self.n_blocks();
            *counts.get_mut(block.0 as usize).ok_or(IntegrityError::OutOfArena { block, n_blocks })? += 1;
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_free_again_after_its_last_owner() {
        let mut pool = BlockPool::new(2);
        let a = pool.alloc().unwrap();
        let b = pool.alloc().unwrap();
        assert_eq!((a, b, pool.alloc()), (BlockId(0), BlockId(1), None));
        pool.share(a);
        assert_eq!(pool.stats(), PoolStats { n_blocks: 2, n_free: 0, n_shared: 1, peak_used: 2 });
        assert!(!pool.release(a));
        assert!(pool.release(a));
        pool.free(a);
        assert_eq!(pool.alloc(), Some(a));
        assert_eq!(pool.stats(), PoolStats { n_blocks: 2, n_free: 0, n_shared: 0, peak_used: 2 });
    }

    #[test]
    fn a_lost_owner_is_found() {
        let mut pool = BlockPool::new(2);
        let a = pool.alloc().unwrap();
        let check = |pool: &BlockPool, owned: &[BlockId], idle: &[BlockId]| {
            pool.check_integrity(owned.iter().copied(), idle.iter().copied())
        };
        assert_eq!(check(&pool, &[a], &[]), Ok(()));
        assert_eq!(
            check(&pool, &[], &[]),
            Err(IntegrityError::RefCount { block: a, n_owners: 0, ref_count: 1 })
        );
        assert_eq!(
            check(&pool, &[a, BlockId(7)], &[]),
            Err(IntegrityError::OutOfArena { block: BlockId(7), n_blocks: 2 })
        );
        // Nobody has it, and neither has the free list.
        assert!(pool.release(a));
        assert_eq!(check(&pool, &[], &[a]), Ok(()));
        assert_eq!(
            check(&pool, &[], &[]),
            Err(IntegrityError::FreeList { block: a, n_listed: 0, ref_count: 0 })
        );
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_double_release_is_a_bug() {
        let mut pool = BlockPool::new(1);
        let a = pool.alloc().unwrap();
        assert!(pool.release(a));
        let _ = pool.release(a);
    }
}
