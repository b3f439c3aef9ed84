//! Activation rows as bf16 tiles, for units that multiply floats in tiles of sixteen rows by 32 columns.

use std::ops::Range;
use std::sync::Arc;

use crate::acts::{ActPool, Pooled};
use crate::aligned::as_bytes_mut;
use crate::disjoint::Disjoint;
use crate::kernels::WIDE_COLS;
use crate::linear::tile::UnpackedTile;
use crate::linear::tiled::{LINE_BYTES, N_ROWS, Tiles};

/// Activation rows that share a load of weights: two tiles. There are always so many; those too many are zero.
pub(crate) const BLOCK_ROWS: usize = 32;

/// Sums of a tile: sixteen rows by sixteen.
pub(crate) const TILE_FLOATS: usize = N_ROWS * N_ROWS;

/// Sums of a block of rows with two tiles of weights, four tiles one after the other.
pub(crate) const BLOCK_FLOATS: usize = 4 * TILE_FLOATS;

/// Where the sums of activation row `row` of `n_blocks` blocks with sixteen weight rows are: all blocks have theirs with
/// two tiles of weights before any has those with the next two.
pub(crate) fn sums_at(n_blocks: usize, row: usize, tile: usize) -> usize {
    let block = tile / 2 * n_blocks + row / BLOCK_ROWS;
    let of_block = row % BLOCK_ROWS / N_ROWS * 2 + tile % 2;
    block * BLOCK_FLOATS + of_block * TILE_FLOATS + row % N_ROWS * N_ROWS
}

/// Where products go: sums as [`sums_at`] says, unless they belong to one of the first `n_whole` blocks of rows and `rows`
/// says where the first of them is in the result, and how many floats apart its rows are.
pub(crate) struct WideOut<'a> {
    pub(crate) sums: &'a mut [f32],
    pub(crate) rows: Option<(*mut f32, usize)>,
    pub(crate) n_whole: usize,
    /// Whether they are added to what those rows of the result hold.
    pub(crate) adds: bool,
}

impl<'a> WideOut<'a> {
    /// Only sums.
    pub(crate) fn sums(sums: &'a mut [f32]) -> Self {
        Self { sums, rows: None, n_whole: 0, adds: false }
    }

    /// Whole blocks of `n_rows` rows of the result as well, set or added to.
    ///
    /// # Safety
    /// Up to the last of so many rows, each has room for the products of all weight rows, of which there is an even number
    /// of tiles; nobody else reads or writes there while the result lives.
    pub(crate) unsafe fn with_rows(
        sums: &'a mut [f32],
        rows: (*mut f32, usize),
        n_rows: usize,
        adds: bool,
    ) -> Self {
        Self { sums, rows: Some(rows), n_whole: n_rows / BLOCK_ROWS, adds }
    }
}

impl WideOut<'_> {
    /// Tiles of all weight rows that meet `xs`.
    ///
    /// # Panics
    /// When the sizes are not what [`crate::kernels::DotWide`] says, or there is no room for the products.
    pub(crate) fn checked_tiles(&self, weights: &[WideRows<'_>], xs: &WideActs) -> usize {
        let n_tiles = weights.iter().map(WideRows::n_tiles).sum::<usize>();
        let others = weights.split_last().map_or(weights, |(_, others)| others);
        assert!(others.iter().all(|w| w.n_tiles().is_multiple_of(2)), "matrices of whole pairs of tiles");
        assert!(n_tiles * N_ROWS <= WIDE_ROWS, "weight rows of one call");
        let n_floats = n_tiles.div_ceil(2) * xs.n_blocks() * BLOCK_FLOATS;
        assert!(n_floats <= self.sums.len(), "room for the products");
        let has_rows = n_tiles.is_multiple_of(2) && self.n_whole <= xs.n_blocks();
        assert!(self.rows.is_none() || has_rows, "rows of the result");
        n_tiles
    }
}

/// Bytes between blocks, whose columns would otherwise be powers of two apart and fall on each other in the cache.
const GAP_BYTES: usize = 12 << 10;

/// Columns of a tile.
pub(crate) const STEP_COLS: usize = 32;

/// Bytes of a tile.
pub(crate) const TILE_BYTES: usize = 1024;

/// Columns that AArch64's products take at once.
pub(crate) const QUAD_COLS: usize = 4;

/// Rows whose quads of columns take turns in the lines of both, since AArch64's products take two rows at once.
pub(crate) const ROWS_TOGETHER: usize = if cfg!(target_arch = "aarch64") { 2 } else { 1 };

/// Bytes from a quad of a row to the next.
pub(crate) const QUAD_STRIDE: usize = ROWS_TOGETHER * QUAD_COLS * 2;

/// Weight rows met at once.
pub(crate) const WIDE_ROWS: usize = 256;

/// Weight rows, in the form the kernel was chosen for.
pub(crate) enum WideRows<'a> {
    /// Plain floats, a row after the other.
    Floats {
        data: &'a [u8],
        row_bytes: usize,
    },
    Tiled(Tiles<'a>),
    Unpacked(&'a UnpackedTile<'a>),
}

impl WideRows<'_> {
    /// Tiles of sixteen rows, the last perhaps not full.
    pub(crate) fn n_tiles(&self) -> usize {
        match self {
            WideRows::Floats { data, row_bytes } => (data.len() / (*row_bytes).max(1)).div_ceil(N_ROWS),
            WideRows::Tiled(tiles) => tiles.bytes.len() / tiles.tile_bytes.max(1),
            WideRows::Unpacked(tile) => tile.n_rows.div_ceil(N_ROWS),
        }
    }
}

/// Blocks of [`BLOCK_ROWS`] rows: for every [`STEP_COLS`] columns two tiles, each of sixteen rows of 64 bytes, or of so many
/// pairs of rows ([`ROWS_TOGETHER`]) with 128.
pub(crate) struct WideActs {
    n_rows: usize,
    n_steps: usize,
    memory: Pooled,
}

impl WideActs {
    /// Rows whose blocks all have to be packed.
    pub(crate) fn new(n_rows: usize, cols: usize, pool: &Arc<ActPool>) -> Self {
        let n_steps = cols.div_ceil(STEP_COLS);
        let n_bytes = n_rows.div_ceil(BLOCK_ROWS) * (n_steps * 2 * TILE_BYTES + GAP_BYTES);
        Self { n_rows, n_steps, memory: Pooled::new(n_bytes, pool) }
    }

    /// Groups of [`STEP_COLS`] columns.
    pub(crate) fn n_steps(&self) -> usize {
        self.n_steps
    }

    pub(crate) fn n_blocks(&self) -> usize {
        self.n_rows.div_ceil(BLOCK_ROWS)
    }

    /// Bytes of a block, and from one to the next.
    pub(crate) fn block_bytes(&self) -> (usize, usize) {
        let n = self.n_steps * 2 * TILE_BYTES;
        (n, n + GAP_BYTES)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.memory.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.bytes_mut()
    }

    /// The lines of all rows, to be put there one by one; rows that the last block has too many become zeros.
    pub(crate) fn lines(&mut self) -> WideLines<'_> {
        let (block_bytes, n_rows, n_steps) = (self.block_bytes().1, self.n_rows, self.n_steps);
        let lines = WideLines { block_bytes, bytes: Disjoint::new(self.bytes_mut()) };
        // Also what the last row shares with one that is not there.
        for row in n_rows / ROWS_TOGETHER * ROWS_TOGETHER..n_rows.next_multiple_of(BLOCK_ROWS) {
            for step in 0..n_steps {
                let at = line_at(block_bytes, row, step);
                // SAFETY: nobody else has a part.
                unsafe { lines.bytes.slice(at..at + LINE_BYTES) }.fill(0);
            }
        }
        lines
    }

    /// Reads rows of `cols` values back.
    pub(crate) fn unpack(&self, cols: usize, out: &mut [f32]) {
        for (row, out) in out.chunks_exact_mut(cols.max(1)).take(self.n_rows).enumerate() {
            for (step, out) in out.chunks_mut(STEP_COLS).enumerate() {
                let quads = self.bytes()[quads_at(self.block_bytes().1, row, step)..].chunks(QUAD_STRIDE);
                for (out, quad) in out.chunks_mut(QUAD_COLS).zip(quads) {
                    for (out, &bytes) in out.iter_mut().zip(quad.as_chunks::<2>().0) {
                        *out = half::bf16::from_le_bytes(bytes).to_f32();
                    }
                }
            }
        }
    }
}

/// Where a line begins that has columns of a step: those of a row, or of the rows that share it.
fn line_at(block_bytes: usize, row: usize, step: usize) -> usize {
    row / BLOCK_ROWS * block_bytes + step * 2 * TILE_BYTES + row % BLOCK_ROWS * LINE_BYTES
}

/// Where the columns of a step of a row begin.
pub(crate) fn quads_at(block_bytes: usize, row: usize, step: usize) -> usize {
    let first = row / ROWS_TOGETHER * ROWS_TOGETHER;
    line_at(block_bytes, first, step) + (row - first) * QUAD_COLS * 2
}

/// [`WideActs`] that threads put rows into.
pub(crate) struct WideLines<'a> {
    block_bytes: usize,
    bytes: Disjoint<'a, u8>,
}

impl WideLines<'_> {
    /// Where some columns of a row begin, whole steps; those of the next step are two tiles on. Writing there is subject to
    /// what [`Disjoint::slice`] asks for.
    pub(crate) fn at(&self, row: usize, columns: Range<usize>) -> *mut u8 {
        const LAST_QUAD: usize = (STEP_COLS / QUAD_COLS - 1) * QUAD_STRIDE;
        let at = |step: usize| quads_at(self.block_bytes, row, step);
        let last = at(columns.end / STEP_COLS - 1) + LAST_QUAD;
        self.bytes.at(at(columns.start / STEP_COLS)..last + QUAD_COLS * 2)
    }
}

/// Where two by two tiles of sums are, and how many floats apart: rows of a tile, tiles of the same activations, and of the
/// same weights.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) at: *mut f32,
    pub(crate) stride: usize,
    pub(crate) right: usize,
    pub(crate) low: usize,
}

impl Sums {
    /// In 32 rows.
    pub(crate) fn in_rows(at: *mut f32, stride: usize) -> Self {
        Self { at, stride, right: N_ROWS, low: N_ROWS * stride }
    }

    /// Tile by tile.
    pub(crate) fn in_tiles(at: *mut f32) -> Self {
        Self { at, stride: N_ROWS, right: TILE_FLOATS, low: 2 * TILE_FLOATS }
    }
}

/// Has each block of `n_steps` steps meet two tiles of weights: `meet` is told what its sums begin with and where they go,
/// which is these columns of `out`, rows of `stride`, or room for whole tiles where there are fewer rows or columns.
#[inline(always)]
pub(crate) fn each_block(
    (acts, n_steps): (&[u8], usize),
    (out, stride): (&mut [f32], usize),
    columns: Range<usize>,
    add: bool,
    mut meet: impl FnMut(&[u8], Option<Sums>, Sums),
) {
    const PAIR: usize = 2 * N_ROWS;
    let blocks = acts.chunks_exact(n_steps * 2 * TILE_BYTES).zip(out.chunks_mut(BLOCK_ROWS * stride));
    for (acts, out) in blocks {
        if out.len() == BLOCK_ROWS * stride && columns.len() == PAIR {
            let sums = Sums::in_rows(out[columns.start..].as_mut_ptr(), stride);
            meet(acts, add.then_some(sums), sums);
            continue;
        }
        let mut whole = [[0f32; PAIR]; BLOCK_ROWS];
        for (whole, row) in whole.iter_mut().zip(out.chunks_exact(stride)) {
            whole[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
        let sums = Sums::in_rows(whole.as_mut_ptr().cast(), PAIR);
        meet(acts, add.then_some(sums), sums);
        for (whole, row) in whole.iter().zip(out.chunks_exact_mut(stride)) {
            row[columns.clone()].copy_from_slice(&whole[..columns.len()]);
        }
    }
}

/// Memory for so many rows in blocks, and for a panel of `panel_bytes`.
pub(crate) fn rooms(
    scratch: &mut Vec<f32>,
    n_rows: usize,
    n_steps: usize,
    panel_bytes: usize,
) -> (&mut [u8], &mut [u8]) {
    assert!(n_steps * STEP_COLS <= WIDE_COLS, "columns of a panel");
    let n_bytes = n_rows.div_ceil(BLOCK_ROWS) * n_steps * 2 * TILE_BYTES;
    scratch.resize((n_bytes + panel_bytes) / 4, 0.0);
    as_bytes_mut(scratch).split_at_mut(n_bytes)
}
