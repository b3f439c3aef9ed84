//! Quantised activation rows in the order a tile unit reads them: sixteen rows at a time, group by group.

use std::sync::Arc;

use crate::acts::{ActPool, Pooled};
use crate::disjoint::{Disjoint, split};
use crate::linear::codes::{ACT_GROUP, QuantRow};
use crate::pool::ThreadPool;

/// Rows of a block.
pub(crate) const BLOCK_ROWS: usize = 16;

/// Bytes of a row's codes in a group.
pub(crate) const CODE_BYTES: usize = ACT_GROUP;

/// Where a group keeps the scales of its rows, after the codes.
pub(crate) const SCALES_AT: usize = BLOCK_ROWS * CODE_BYTES;

/// Where a group keeps the sums of 32 columns.
pub(crate) const SUMS32_AT: usize = SCALES_AT + LINE;

/// Where a group keeps the sums of its first sixteen columns; those of the others follow.
pub(crate) const SUMS16_AT: usize = SUMS32_AT + LINE;

/// Bytes of a group of 32 columns.
pub(crate) const GROUP_BYTES: usize = SUMS16_AT + 2 * LINE;

/// One float per row.
pub(crate) const LINE: usize = BLOCK_ROWS * 4;

/// Blocks of rows; rows that are not there are zero.
pub(crate) struct PackedRows {
    n_rows: usize,
    /// Groups of columns of a row, padding included.
    n_groups: usize,
    group_bytes: usize,
    memory: Pooled,
}

impl PackedRows {
    /// Room, to be filled, for rows of so many groups, each of which takes `group_bytes` for sixteen rows.
    pub(crate) fn new(n_rows: usize, n_groups: usize, group_bytes: usize, pool: &Arc<ActPool>) -> Self {
        let memory = Pooled::new(n_rows.div_ceil(BLOCK_ROWS) * n_groups * group_bytes, pool);
        Self { n_rows, n_groups, group_bytes, memory }
    }

    /// Has every block filled with its rows, of `rows`.
    #[must_use]
    pub(crate) fn filled<R>(mut self, rows: &[R], pack: impl Fn(&[R], &mut [u8])) -> Self {
        let n = self.block_bytes();
        for (rows, block) in rows.chunks(BLOCK_ROWS).zip(self.memory.bytes_mut().chunks_exact_mut(n.max(1))) {
            clear_unless_full(rows.len(), block);
            pack(rows, block);
        }
        self
    }

    /// As [`Self::filled`], by all threads.
    #[must_use]
    pub(crate) fn filled_by<R: Sync>(
        mut self,
        pool: &ThreadPool,
        rows: &[R],
        pack: impl Fn(&[R], &mut [u8]) + Sync,
    ) -> Self {
        let n = self.block_bytes();
        let bytes = Disjoint::new(self.memory.bytes_mut());
        pool.run(|part, n_parts| {
            for block in split(rows.len().div_ceil(BLOCK_ROWS), part, n_parts, 1) {
                let rows = &rows[block * BLOCK_ROWS..rows.len().min((block + 1) * BLOCK_ROWS)];
                // SAFETY: `split` gives each block to one part only.
                let block = unsafe { bytes.row(block, n) };
                clear_unless_full(rows.len(), block);
                pack(rows, block);
            }
        });
        self
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Groups of a row.
    pub(crate) fn n_groups(&self) -> usize {
        self.n_groups
    }

    /// Bytes of sixteen rows.
    pub(crate) fn block_bytes(&self) -> usize {
        self.n_groups * self.group_bytes
    }

    /// The blocks with the number of rows in each.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let blocks = self.memory.bytes().chunks_exact(self.block_bytes().max(1)).enumerate();
        blocks.map(|(i, block)| (BLOCK_ROWS.min(self.n_rows - i * BLOCK_ROWS), block))
    }
}

fn clear_unless_full(n_rows: usize, block: &mut [u8]) {
    if n_rows < BLOCK_ROWS {
        block.fill(0);
    }
}

/// Room for so many rows of padded columns.
pub(crate) fn packed_room(n_rows: usize, cols: usize, pool: &Arc<ActPool>) -> PackedRows {
    PackedRows::new(n_rows, cols / ACT_GROUP, GROUP_BYTES, pool)
}

/// Fills a block with up to sixteen rows.
pub(crate) fn pack(rows: &[QuantRow<'_>], block: &mut [u8]) {
    for (x, row) in rows.iter().enumerate() {
        let (scales, sums32, sums16) = (row.scales(), row.sums(32), row.sums(16));
        let codes = row.bytes()[..row.cols()].chunks_exact(CODE_BYTES);
        for (g, (group, codes)) in block.chunks_exact_mut(GROUP_BYTES).zip(codes).enumerate() {
            group[x * CODE_BYTES..(x + 1) * CODE_BYTES].copy_from_slice(codes);
            let mut put = |at: usize, value: f32| {
                group[at + 4 * x..at + 4 * x + 4].copy_from_slice(&value.to_ne_bytes());
            };
            put(SCALES_AT, scales[g]);
            put(SUMS32_AT, sums32[g]);
            put(SUMS16_AT, sums16[2 * g]);
            put(SUMS16_AT + LINE, sums16[2 * g + 1]);
        }
    }
}
