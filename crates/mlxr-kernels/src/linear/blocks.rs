//! Activations for weights in super-blocks: 8-bit codes with one scale per 256 columns.
//!
//! The scales inside a super-block are small integers, so a product over its 256 columns is one integer sum, the same
//! whatever adds it up and in which order; only then it becomes a float. Beside its codes a block keeps their sums,
//! which the minima, or the zero, of the weights multiply.

use std::sync::Arc;

use crate::acts::ActPool;
use crate::aligned::AlignedBytes;
use crate::linear::packed::{BLOCK_ROWS, PackedRows};

/// Columns of a block.
pub(crate) const BLOCK_COLS: usize = 256;

/// Where a block keeps the sums of 32 codes as 16-bit integers. Of each four numbers the two in the middle are exchanged:
/// so the bytes of a word, taken as two pairs, meet two words.
pub(crate) const SUMS32_AT: usize = BLOCK_COLS;

/// Where a block keeps the sums of sixteen codes, likewise.
pub(crate) const SUMS16_AT: usize = SUMS32_AT + 2 * (BLOCK_COLS / 32);

/// Where a block keeps its scale.
pub(crate) const SCALE_AT: usize = SUMS16_AT + 2 * (BLOCK_COLS / 16);

/// Bytes of a block: whole cache lines.
pub(crate) const BLOCK_BYTES: usize = 320;

/// Where number `i` of a block's sums is.
pub(crate) const fn place_of_sum(i: usize) -> usize {
    i / 4 * 4 + [0, 2, 1, 3][i % 4]
}

/// Quantised rows, block after block.
pub(crate) struct BlockActs {
    row_bytes: usize,
    memory: AlignedBytes,
}

impl BlockActs {
    /// Rows whose bytes all have to be written.
    pub(crate) fn new(n_rows: usize, cols: usize, pool: &ActPool) -> Self {
        let row_bytes = cols / BLOCK_COLS * BLOCK_BYTES;
        Self { row_bytes, memory: pool.take(n_rows * row_bytes) }
    }

    pub(crate) fn into_memory(self) -> AlignedBytes {
        self.memory
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The first `n` rows.
    pub(crate) fn rows_mut(&mut self, n: usize) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..n * self.row_bytes]
    }

    pub(crate) fn row(&self, row: usize) -> &[u8] {
        &self.memory.bytes()[row * self.row_bytes..(row + 1) * self.row_bytes]
    }
}

/// Rows to multiply, in order.
pub(crate) struct BlockRows<'a> {
    pub(crate) rows: &'a [&'a [u8]],
    /// The same rows once more, if there are as many as a table packs them from.
    pub(crate) packed: Option<&'a PackedRows>,
}

/// Bytes of 64 columns of sixteen packed rows: a tile.
pub(crate) const TILE_BYTES: usize = BLOCK_ROWS * 64;

/// Where a packed block keeps pairs of sums of 32 codes, a line of each pair of all rows; then of sixteen, and scales.
pub(crate) const PACKED_SUMS32_AT: usize = BLOCK_COLS / 64 * TILE_BYTES;
pub(crate) const PACKED_SUMS16_AT: usize = PACKED_SUMS32_AT + BLOCK_COLS / 64 * LINE;
pub(crate) const PACKED_SCALES_AT: usize = PACKED_SUMS16_AT + BLOCK_COLS / 32 * LINE;

/// Bytes of a block of sixteen packed rows.
pub(crate) const PACKED_BYTES: usize = PACKED_SCALES_AT + LINE;

/// Four bytes of each row.
const LINE: usize = 4 * BLOCK_ROWS;

/// Room for so many packed rows of `row_bytes`.
pub(crate) fn packed_room(n_rows: usize, row_bytes: usize, pool: &Arc<ActPool>) -> PackedRows {
    PackedRows::new(n_rows, row_bytes / BLOCK_BYTES, PACKED_BYTES, pool)
}

/// Puts up to sixteen rows in the order a tile unit reads them.
pub(crate) fn pack(rows: &[&[u8]], out: &mut [u8]) {
    for (x, row) in rows.iter().enumerate() {
        for (block, out) in row.chunks_exact(BLOCK_BYTES).zip(out.chunks_exact_mut(PACKED_BYTES)) {
            for (codes, tile) in block[..BLOCK_COLS].chunks_exact(64).zip(out.chunks_exact_mut(TILE_BYTES)) {
                tile[x * 64..(x + 1) * 64].copy_from_slice(codes);
            }
            // Both kinds of sums, then the scale, are words that follow each other.
            let words = block[SUMS32_AT..SCALE_AT + 4].chunks_exact(4);
            for (word, line) in words.zip(out[PACKED_SUMS32_AT..].chunks_exact_mut(LINE)) {
                line[4 * x..4 * x + 4].copy_from_slice(word);
            }
        }
    }
}
