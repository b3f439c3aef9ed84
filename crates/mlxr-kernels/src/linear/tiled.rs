//! Matrices in tile order: sixteen rows side by side, a vector loading the same four bytes of each.
//!
//! Blocks of a row are cut in words of four bytes, and a line holds one word of all sixteen rows. The two-byte number
//! that some blocks have beside their words is kept behind the lines of the tile, which so begin on cache lines.
//! Nothing but the order of bytes changes, and any row can be read back as it was stored.

use std::ops::Range;

use mlxr_tensor::{DType, Format, HostTensor, TensorError, codec};

use crate::aligned::AlignedBytes;
use crate::disjoint::{Disjoint, row_grain};
use crate::pool::ThreadPool;

/// Rows of a tile.
pub(crate) const N_ROWS: usize = 16;

/// Bytes of a line: a word of each row.
pub(crate) const LINE_BYTES: usize = 4 * N_ROWS;

/// Bytes of the two-byte numbers of a block of each row.
pub(crate) const HALVES_BYTES: usize = 2 * N_ROWS;

/// Bytes of what counts as a block of plain floats: what is put in order at once.
const FLOAT_BLOCK_BYTES: usize = 16;

/// How a format's blocks are cut in words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockCut {
    dtype: DType,
    block_cols: usize,
    block_bytes: usize,
    /// Byte offset of a two-byte number beside the words: before or behind them.
    half_at: Option<usize>,
}

impl BlockCut {
    /// The cut of a format that has a tile order, if rows of `n_cols` columns are whole blocks.
    pub(crate) fn of(format: Format, n_cols: usize) -> Option<Self> {
        let Format::Plain(dtype) = format else { return None };
        let half_at = match dtype {
            DType::Q4_0 | DType::Q8_0 => Some(0),
            DType::Q6_K => Some(208),
            DType::Q4_K | DType::Q5_K | DType::F32 | DType::F16 | DType::BF16 => None,
            _ => return None,
        };
        let (block_cols, block_bytes) = match dtype.block_len() {
            1 => (FLOAT_BLOCK_BYTES / dtype.block_bytes(), FLOAT_BLOCK_BYTES),
            n => (n, dtype.block_bytes()),
        };
        n_cols.is_multiple_of(block_cols).then_some(Self { dtype, block_cols, block_bytes, half_at })
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    pub(crate) fn half_at(&self) -> Option<usize> {
        self.half_at
    }

    /// Byte offset of the first word.
    pub(crate) fn words_at(&self) -> usize {
        if self.half_at == Some(0) { 2 } else { 0 }
    }

    /// Words, and lines, of a block.
    pub(crate) fn n_words(&self) -> usize {
        self.block_bytes / 4
    }

    /// Bytes of the lines of a tile, and of a tile.
    fn tile_bytes(&self, n_blocks: usize) -> (usize, usize) {
        let lines = n_blocks * self.n_words() * LINE_BYTES;
        let halves = if self.half_at.is_some() { n_blocks * HALVES_BYTES } else { 0 };
        (lines, (lines + halves).next_multiple_of(LINE_BYTES))
    }
}

/// Puts sixteen rows, one after the other, in tile order: lines, then halves.
pub(crate) type PutInOrder = unsafe fn(BlockCut, rows: &[u8], lines: &mut [u8], halves: &mut [u8]);

/// [`PutInOrder`] by `transpose`, which makes of four words of each of four rows a word of each, four times.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn put_in_order(
    cut: BlockCut,
    rows: &[u8],
    lines: &mut [u8],
    halves: &mut [u8],
    transpose: impl Fn([&[u8; 16]; 4]) -> [[u8; 16]; 4],
) {
    let (stride, block_bytes) = (rows.len() / N_ROWS, cut.block_bytes());
    let n_blocks = stride / block_bytes;
    assert!(rows.len() == N_ROWS * n_blocks * block_bytes && cut.n_words().is_multiple_of(4), "whole blocks");
    let blocks = lines.chunks_exact_mut(cut.n_words() * LINE_BYTES).enumerate();
    for (block, lines) in blocks.take(n_blocks) {
        for (i, lines) in lines.chunks_exact_mut(4 * LINE_BYTES).enumerate() {
            let at = block * block_bytes + cut.words_at() + 16 * i;
            for four in 0..N_ROWS / 4 {
                let words = transpose(std::array::from_fn(|row| {
                    rows[(4 * four + row) * stride + at..].first_chunk().expect("four words")
                }));
                for (line, words) in lines.chunks_exact_mut(LINE_BYTES).zip(words) {
                    line[16 * four..16 * four + 16].copy_from_slice(&words);
                }
            }
        }
    }
    let Some(half_at) = cut.half_at() else { return };
    for (block, halves) in halves.chunks_exact_mut(HALVES_BYTES).take(n_blocks).enumerate() {
        for (half, row) in halves.chunks_exact_mut(2).zip(rows.chunks_exact(stride)) {
            half.copy_from_slice(&row[block * block_bytes + half_at..][..2]);
        }
    }
}

/// A matrix in tile order.
pub(crate) struct TiledMatrix {
    cut: BlockCut,
    n_rows: usize,
    n_cols: usize,
    n_blocks: usize,
    memory: AlignedBytes,
}

/// Whole tiles.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) n_blocks: usize,
    /// Bytes of a tile, and of its lines.
    pub(crate) tile_bytes: usize,
    pub(crate) line_bytes: usize,
}

impl TiledMatrix {
    /// Reads `tensor` once, all threads a share of it; rows that do not fill the last tile are zero.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`]
    pub(crate) fn new(
        tensor: &HostTensor,
        cut: BlockCut,
        put: PutInOrder,
        pool: &ThreadPool,
    ) -> Result<Self, TensorError> {
        let (n_rows, n_cols) = (tensor.rows(), tensor.cols());
        let n_blocks = n_cols / cut.block_cols;
        let row_bytes = n_blocks * cut.block_bytes();
        let (line_bytes, tile_bytes) = cut.tile_bytes(n_blocks);
        let n_tiles = n_rows.div_ceil(N_ROWS);
        let n_bytes = n_tiles * tile_bytes;
        let mut memory = AlignedBytes::kept(n_bytes).ok_or_else(|| TensorError::OutOfMemory {
            backend: "cpu",
            what: format!("tensor {:?}", tensor.name()),
            needed_bytes: n_bytes as u64,
        })?;
        let tiles = Disjoint::new(memory.bytes_mut());
        pool.share(n_tiles, row_grain(n_tiles, pool), |claimed| {
            let mut last = Vec::new();
            for tile in claimed {
                let stored = &tensor.data()[tile * N_ROWS * row_bytes..];
                let mut rows = &stored[..stored.len().min(N_ROWS * row_bytes)];
                if rows.len() < N_ROWS * row_bytes {
                    last.extend_from_slice(rows);
                    last.resize(N_ROWS * row_bytes, 0);
                    rows = &last;
                }
                // SAFETY: each tile is claimed once.
                let out = unsafe { tiles.row(tile, tile_bytes) };
                let (lines, halves) = out.split_at_mut(line_bytes);
                // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
                unsafe { put(cut, rows, lines, halves) };
            }
        });
        Ok(Self { cut, n_rows, n_cols, n_blocks, memory })
    }

    pub(crate) fn format(&self) -> Format {
        Format::Plain(self.cut.dtype)
    }

    pub(crate) fn rows(&self) -> usize {
        self.n_rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.n_cols
    }

    /// The tiles that hold rows `rows`, which begin with a tile.
    pub(crate) fn tiles(&self, rows: Range<usize>) -> Tiles<'_> {
        assert!(rows.start.is_multiple_of(N_ROWS) && rows.end <= self.n_rows, "tiles of {rows:?}");
        let (line_bytes, tile_bytes) = self.cut.tile_bytes(self.n_blocks);
        let bytes =
            &self.memory.bytes()[rows.start / N_ROWS * tile_bytes..rows.end.div_ceil(N_ROWS) * tile_bytes];
        Tiles { bytes, n_blocks: self.n_blocks, tile_bytes, line_bytes }
    }

    /// Row `row` as it was stored.
    fn stored_row(&self, row: usize) -> Vec<u8> {
        let first = row / N_ROWS * N_ROWS;
        let tile = self.tiles(first..(first + N_ROWS).min(self.n_rows));
        let (lines, halves) = tile.bytes.split_at(tile.line_bytes);
        let (cut, lane) = (self.cut, row - first);
        let mut out = vec![0; self.n_blocks * cut.block_bytes()];
        let blocks =
            lines.chunks_exact(cut.n_words() * LINE_BYTES).zip(out.chunks_exact_mut(cut.block_bytes()));
        for (i, (lines, block)) in blocks.enumerate() {
            let words = &mut block[cut.words_at()..];
            for (word, line) in words.chunks_exact_mut(4).zip(lines.chunks_exact(LINE_BYTES)) {
                word.copy_from_slice(&line[4 * lane..4 * lane + 4]);
            }
            if let Some(at) = cut.half_at {
                block[at..at + 2].copy_from_slice(&halves[i * HALVES_BYTES + 2 * lane..][..2]);
            }
        }
        out
    }

    /// Row `row` as numbers.
    pub(crate) fn dequantise_row(&self, row: usize, out: &mut [f32]) {
        codec::dequantise_row(self.cut.dtype, &self.stored_row(row), out).expect("the row is whole blocks");
    }
}
