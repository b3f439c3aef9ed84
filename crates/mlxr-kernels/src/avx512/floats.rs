//! Products of plain floats in tile order: a weight row is a lane, so sums need no reduction.
//!
//! A product is one chain of fused multiply-adds in the order of columns, whatever the number of rows. Few activation
//! rows meet weights as they are widened, again for every eight rows while they are in the first-level cache; for many,
//! some columns are widened to a panel that stays there. Sums wait in the result meanwhile.

use core::arch::x86_64::*;

use half::{bf16, f16};
use mlxr_tensor::{DType, Format};

use super::tile::{load, store};
use crate::aligned::AlignedBytes;
use crate::kernels::{DotFloatTiles, FLOAT_ROWS};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{LINE_BYTES, N_ROWS, Tiles};

/// Tiles that share a load of activations.
const TILES: usize = 2;

/// Activation rows that share a load of weights at most.
const BLOCK: usize = 8;

/// Activation rows up to which weights are widened for every block of them.
const DIRECT_ROWS: usize = 32;

/// Columns that blocks of rows meet in turn, if there is more than one block.
const DIRECT_COLS: usize = 256;

/// Columns of a panel, and bytes that a tile takes in it.
const PANEL_COLS: usize = 128;
const PANEL_TILE: usize = PANEL_COLS * LINE_BYTES;

/// The kernel of a plain float type.
pub(crate) fn tiled(format: Format) -> Option<DotFloatTiles> {
    match format {
        Format::Plain(DType::F32) => Some(dot_f32),
        Format::Plain(DType::F16) => Some(dot_f16),
        Format::Plain(DType::BF16) => Some(dot_bf16),
        _ => None,
    }
}

/// Names the kernels.
macro_rules! kernels {
    ($($name:ident: $element:ty;)*) => {
        $(
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn $name(tiles: &Tiles<'_>, xs: &[&[f32]], scratch: &mut TileScratch, out: &mut [f32]) {
                dot::<$element>(tiles, xs, scratch, out);
            }
        )*
    };
}

kernels! {
    dot_f32: f32;
    dot_f16: f16;
    dot_bf16: bf16;
}

/// Two columns of sixteen rows, as the lines of a tile hold them.
pub(crate) trait Pair {
    const BYTES: usize;

    /// # Safety
    /// So many bytes are there, and the CPU has what the kernels are compiled for.
    unsafe fn columns(from: *const u8) -> [__m512; 2];
}

impl Pair for f32 {
    const BYTES: usize = 2 * LINE_BYTES;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(from: *const u8) -> [__m512; 2] {
        // SAFETY: in bounds by the caller's promise; the loads need no alignment.
        unsafe { [_mm512_loadu_ps(from.cast()), _mm512_loadu_ps(from.add(LINE_BYTES).cast())] }
    }
}

impl Pair for f16 {
    const BYTES: usize = LINE_BYTES;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(from: *const u8) -> [__m512; 2] {
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        let line = unsafe { _mm512_loadu_si512(from.cast()) };
        let (first, second) =
            (_mm512_cvtepi32_epi16(line), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(line)));
        [_mm512_cvtph_ps(first), _mm512_cvtph_ps(second)]
    }
}

impl Pair for bf16 {
    const BYTES: usize = LINE_BYTES;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn columns(from: *const u8) -> [__m512; 2] {
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        let line = unsafe { _mm512_loadu_si512(from.cast()) };
        let top = _mm512_and_si512(line, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(line)), _mm512_castsi512_ps(top)]
    }
}

/// Fills `out: [xs, FLOAT_ROWS]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn dot<P: Pair>(tiles: &Tiles<'_>, xs: &[&[f32]], scratch: &mut TileScratch, out: &mut [f32]) {
    let Some(first) = xs.first() else { return };
    let cols = first.len();
    assert!(xs.iter().all(|x| x.len() == cols) && cols.is_multiple_of(2), "rows of {cols} columns");
    assert!(cols / 2 * P::BYTES <= tiles.tile_bytes, "a tile of {cols} columns");
    assert!(tiles.bytes.len() / tiles.tile_bytes.max(1) * N_ROWS <= FLOAT_ROWS, "rows of one call");
    assert!(xs.len() * FLOAT_ROWS <= out.len(), "room for the products");
    if xs.len() <= DIRECT_ROWS {
        let step = if xs.len() <= BLOCK { cols } else { DIRECT_COLS };
        for (i, pair) in tiles.bytes.chunks(TILES * tiles.tile_bytes).enumerate() {
            for col in (0..cols).step_by(step.max(1)) {
                let (first, n_cols) = (col / 2 * P::BYTES, step.min(cols - col));
                let tiles = two(pair, tiles.tile_bytes).map(|tile| &tile[first..]);
                for (n, xs) in xs.chunks(BLOCK).enumerate() {
                    let part = Part { tiles, ahead: if n == 0 { pair.len() } else { 0 }, col, n_cols };
                    part.meet::<P>(xs, &mut out[n * BLOCK * FLOAT_ROWS + i * TILES * N_ROWS..]);
                }
            }
        }
        return;
    }
    if scratch.panel.bytes().len() < TILES * PANEL_TILE {
        scratch.panel = AlignedBytes::zeroed(TILES * PANEL_TILE).expect("memory for a panel");
    }
    for col in (0..cols).step_by(PANEL_COLS) {
        let n_cols = PANEL_COLS.min(cols - col);
        for (i, pair) in tiles.bytes.chunks(TILES * tiles.tile_bytes).enumerate() {
            let panel = &mut scratch.panel.bytes_mut()[..pair.len() / tiles.tile_bytes * PANEL_TILE];
            for (tile, panel) in pair.chunks_exact(tiles.tile_bytes).zip(panel.chunks_exact_mut(PANEL_TILE)) {
                widen::<P>(&tile[col / 2 * P::BYTES..][..n_cols / 2 * P::BYTES], panel);
            }
            let part = Part { tiles: two(panel, PANEL_TILE), ahead: 0, col, n_cols };
            for (xs, out) in xs.chunks(BLOCK).zip(out.chunks_mut(BLOCK * FLOAT_ROWS)) {
                part.meet::<f32>(xs, &mut out[i * TILES * N_ROWS..]);
            }
        }
    }
}

/// One or two tiles as two: the first again where there is no second.
fn two(tiles: &[u8], tile_bytes: usize) -> [&[u8]; TILES] {
    let (first, second) = tiles.split_at(tile_bytes);
    [first, if second.is_empty() { first } else { second }]
}

/// Some columns of a tile as floats.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn widen<P: Pair>(lines: &[u8], panel: &mut [u8]) {
    for (pair, out) in lines.chunks_exact(P::BYTES).zip(panel.chunks_exact_mut(f32::BYTES)) {
        // SAFETY: `BYTES` bytes are in bounds, and two vectors of room; the stores need no alignment.
        unsafe {
            let [first, second] = P::columns(pair.as_ptr());
            _mm512_storeu_ps(out.as_mut_ptr().cast(), first);
            _mm512_storeu_ps(out.as_mut_ptr().add(LINE_BYTES).cast(), second);
        }
    }
}

/// Some columns of two tiles.
struct Part<'a> {
    tiles: [&'a [u8]; TILES],
    /// How far behind are the bytes to fetch meanwhile, or 0: those of the tiles that follow.
    ahead: usize,
    /// The first column, before which sums wait in the result, and the number of columns.
    col: usize,
    n_cols: usize,
}

impl Part<'_> {
    /// Takes up to [`BLOCK`] activation rows; results are [`FLOAT_ROWS`] apart.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn meet<P: Pair>(&self, xs: &[&[f32]], out: &mut [f32]) {
        match xs.len() {
            1 => self.block::<P, 1>(xs, out),
            2 => self.block::<P, 2>(xs, out),
            3 | 4 => self.block::<P, 4>(xs, out),
            _ => self.block::<P, BLOCK>(xs, out),
        }
    }

    /// As [`Self::meet`], the last row standing in for those that are not there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn block<P: Pair, const X: usize>(&self, xs: &[&[f32]], out: &mut [f32]) {
        let columns = self.col..self.col + self.n_cols;
        let rows: [*const f32; X] =
            std::array::from_fn(|x| xs[x.min(xs.len() - 1)][columns.clone()].as_ptr());
        let n_pairs = self.n_cols / 2;
        let [first, second] = self.tiles.map(|tile| tile[..n_pairs * P::BYTES].as_ptr());
        let mut acc = [[_mm512_setzero_ps(); TILES]; X];
        if self.col > 0 {
            for (acc, out) in acc.iter_mut().zip(out.chunks(FLOAT_ROWS)) {
                *acc = [load(out), load(&out[N_ROWS..])];
            }
        }
        for pair in 0..n_pairs {
            // SAFETY: all rows and both tiles have the columns.
            unsafe {
                let tiles = [first.add(pair * P::BYTES), second.add(pair * P::BYTES)];
                if self.ahead > 0 {
                    for at in (self.ahead..self.ahead + P::BYTES).step_by(LINE_BYTES) {
                        _mm_prefetch::<_MM_HINT_T0>(tiles[0].wrapping_add(at).cast());
                        _mm_prefetch::<_MM_HINT_T0>(tiles[1].wrapping_add(at).cast());
                    }
                }
                let weights = [P::columns(tiles[0]), P::columns(tiles[1])];
                for (row, acc) in rows.iter().zip(&mut acc) {
                    for column in 0..2 {
                        let x = _mm512_set1_ps(*row.add(2 * pair + column));
                        for (acc, weights) in acc.iter_mut().zip(&weights) {
                            *acc = _mm512_fmadd_ps(weights[column], x, *acc);
                        }
                    }
                }
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_mut(FLOAT_ROWS)).take(xs.len()) {
            store(out, acc[0]);
            store(&mut out[N_ROWS..], acc[1]);
        }
    }
}
