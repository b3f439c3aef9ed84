//! Quantised activation rows in the order a tile unit reads them: sixteen rows at a time, group by group.

use crate::aligned::AlignedBytes;
use crate::linear::codes::{ACT_GROUP, QuantRow};

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

/// Blocks of rows; rows that are not there are left zero.
pub(crate) struct PackedRows {
    n_rows: usize,
    /// Groups of a row, padding included.
    n_groups: usize,
    memory: AlignedBytes,
}

impl PackedRows {
    /// Room for rows of so many padded columns.
    pub(crate) fn zeroed(n_rows: usize, cols: usize) -> Self {
        let n_groups = cols / ACT_GROUP;
        let n_bytes = n_rows.div_ceil(BLOCK_ROWS) * n_groups * GROUP_BYTES;
        let memory = AlignedBytes::zeroed(n_bytes)
            .unwrap_or_else(|| panic!("out of memory: {n_bytes} bytes of packed activations"));
        Self { n_rows, n_groups, memory }
    }

    pub(crate) fn from_rows(rows: &[QuantRow<'_>]) -> Self {
        let mut packed = Self::zeroed(rows.len(), rows.first().map_or(0, QuantRow::cols));
        let n = packed.block_bytes();
        for (rows, block) in rows.chunks(BLOCK_ROWS).zip(packed.bytes_mut().chunks_exact_mut(n.max(1))) {
            pack_block(rows, block);
        }
        packed
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Padded columns.
    pub(crate) fn cols(&self) -> usize {
        self.n_groups * ACT_GROUP
    }

    /// Bytes of sixteen rows.
    pub(crate) fn block_bytes(&self) -> usize {
        self.n_groups * GROUP_BYTES
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// The blocks with the number of rows in each.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let blocks = self.memory.bytes().chunks_exact(self.block_bytes().max(1)).enumerate();
        blocks.map(|(i, block)| (BLOCK_ROWS.min(self.n_rows - i * BLOCK_ROWS), block))
    }
}

/// Fills a block with up to sixteen rows.
pub(crate) fn pack_block(rows: &[QuantRow<'_>], block: &mut [u8]) {
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
