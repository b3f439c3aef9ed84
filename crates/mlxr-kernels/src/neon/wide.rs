//! Products of plain floats in bf16 by `bfmmla`, which multiplies four columns of two activation rows with those of two
//! weight rows.
//!
//! Sums of eight by eight rows stay in registers while columns pass by, in their order, so a product depends on its rows
//! alone. It is not the same bits as what other kernels give. Codes stay codes: `smmla` does twice as many at once.

use core::arch::aarch64::*;
use core::arch::asm;

use mlxr_tensor::{DType, Format};

use super::halves::widened;
use super::{attend_bf16, peak};
use crate::aligned::{AlignedBytes, as_bytes};
use crate::kernels::{DotWide, WideKernels};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{
    BLOCK_FLOATS, BLOCK_ROWS, QUAD_COLS, QUAD_STRIDE, STEP_COLS, Sums, TILE_BYTES, TILE_FLOATS, WideActs,
    WideOut, WideRows,
};

/// Activation rows from which on rounding to bf16 pays.
const WIDE_FROM: usize = 32;

/// Bytes that two rows have of a step: their quads of columns in turn.
pub(super) const PAIR_BYTES: usize = 2 * LINE_BYTES;

/// Columns of a panel: two tiles stay in the first-level cache.
const PANEL_COLS: usize = 512;

/// Bytes that sixteen weight rows have in a panel.
pub(super) const PANEL_TILE: usize = PANEL_COLS / STEP_COLS * TILE_BYTES;

/// Pairs of rows whose sums are in registers at once, of activations and of weights.
const PAIRS: usize = 4;

pub(super) const KERNELS: WideKernels = WideKernels {
    from_rows: WIDE_FROM,
    tiled: |_| None,
    floats,
    unpacked: None,
    pack,
    pack_row,
    pack_sums,
    attend: attend_bf16::KERNELS,
    peak: peak::bf16,
};

fn floats(format: Format) -> Option<DotWide> {
    match format {
        Format::Plain(DType::F32) => Some(dot_f32),
        Format::Plain(DType::F16) => Some(dot_f16),
        Format::Plain(DType::BF16) => Some(dot_bf16),
        _ => None,
    }
}

#[target_feature(enable = "neon,bf16")]
fn dot_f32(weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>) {
    dot::<f32>(weights, xs, scratch, out);
}

#[target_feature(enable = "neon,bf16")]
fn dot_f16(weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>) {
    dot::<half::f16>(weights, xs, scratch, out);
}

#[target_feature(enable = "neon,bf16")]
fn dot_bf16(weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>) {
    dot::<half::bf16>(weights, xs, scratch, out);
}

/// `sums + ` the products of two rows of four with two others.
#[inline]
#[target_feature(enable = "neon,bf16")]
pub(super) fn multiply(mut sums: float32x4_t, a: uint16x8_t, b: uint16x8_t) -> float32x4_t {
    // SAFETY: one register instruction without memory access, available by the function's target features.
    unsafe {
        asm!(
            "bfmmla {0:v}.4s, {1:v}.8h, {2:v}.8h",
            inlateout(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Floats rounded to bf16, those of `first` before those of `second`.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn rounded(first: float32x4_t, second: float32x4_t) -> uint16x8_t {
    let values;
    // SAFETY: register instructions without memory access, available by the function's target features.
    unsafe {
        asm!(
            "bfcvtn {0:v}.4h, {1:v}.4s",
            "bfcvtn2 {0:v}.8h, {2:v}.4s",
            out(vreg) values,
            in(vreg) first,
            in(vreg) second,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    values
}

/// A plain float type.
pub(super) trait Element {
    const BYTES: usize;

    /// Four values at `first`, then four at `second`, as bf16.
    ///
    /// # Safety
    /// They are there, and the CPU has what the kernels are compiled for.
    unsafe fn load(first: *const u8, second: *const u8) -> uint16x8_t;
}

impl Element for f32 {
    const BYTES: usize = 4;

    #[inline]
    #[target_feature(enable = "neon,bf16")]
    unsafe fn load(first: *const u8, second: *const u8) -> uint16x8_t {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe { rounded(vreinterpretq_f32_u8(vld1q_u8(first)), vreinterpretq_f32_u8(vld1q_u8(second))) }
    }
}

impl Element for half::f16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "neon,bf16")]
    unsafe fn load(first: *const u8, second: *const u8) -> uint16x8_t {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe {
            let (first, second) = (vld1_u8(first), vld1_u8(second));
            rounded(widened(vreinterpret_u16_u8(first)), widened(vreinterpret_u16_u8(second)))
        }
    }
}

impl Element for half::bf16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "neon,bf16")]
    unsafe fn load(first: *const u8, second: *const u8) -> uint16x8_t {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe { vreinterpretq_u16_u8(vcombine_u8(vld1_u8(first), vld1_u8(second))) }
    }
}

/// Rounds rows, two by two, from column `start` on, and fills tiles with them, `n_pairs` pairs for each step of columns. Rows
/// and columns that are not there are zero.
#[inline]
#[target_feature(enable = "neon,bf16")]
pub(super) fn put_rows<E: Element>(rows: &[&[u8]], start: usize, n_pairs: usize, out: &mut [u8]) {
    let mut last = [[0u8; STEP_COLS * 4]; 2];
    for (step, out) in out.chunks_exact_mut(n_pairs * PAIR_BYTES).enumerate() {
        let from = (start + step * STEP_COLS) * E::BYTES;
        for (pair, out) in out.chunks_exact_mut(PAIR_BYTES).enumerate() {
            let [first, second] = &mut last;
            let columns = |i: usize, last: &mut [u8; STEP_COLS * 4]| {
                let row = rows.get(2 * pair + i).copied().unwrap_or(&[]);
                let row = &row[from.min(row.len())..];
                if row.len() < STEP_COLS * E::BYTES {
                    last[..row.len()].copy_from_slice(row);
                    last[row.len()..].fill(0);
                    return last.as_ptr();
                }
                row.as_ptr()
            };
            let (first, second) = (columns(0, first), columns(1, second));
            for (quad, out) in out.chunks_exact_mut(QUAD_STRIDE).enumerate() {
                let at = quad * QUAD_COLS * E::BYTES;
                // SAFETY: both have 32 values.
                store(out, unsafe { E::load(first.add(at), second.add(at)) });
            }
        }
    }
}

/// Puts the quads of two rows at the beginning of `out`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store(out: &mut [u8], quads: uint16x8_t) {
    let out = &mut out[..QUAD_STRIDE];
    // SAFETY: sixteen bytes are in bounds.
    unsafe { vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_u16(quads)) };
}

/// Rounds up to [`BLOCK_ROWS`] rows to bf16, and fills a block with them.
#[target_feature(enable = "neon,bf16")]
pub(super) fn pack(rows: &[&[f32]], block: &mut [u8]) {
    assert!(rows.len() <= BLOCK_ROWS, "rows of a block");
    let mut bytes: [&[u8]; BLOCK_ROWS] = [&[]; BLOCK_ROWS];
    bytes.iter_mut().zip(rows).for_each(|(bytes, row)| *bytes = as_bytes(row));
    put_rows::<f32>(&bytes[..rows.len()], 0, BLOCK_ROWS / 2, block);
}

/// Rounds a row to bf16, and puts it in steps of a block.
///
/// # Safety
/// There is room from `first` on for every [`STEP_COLS`] columns, [`BLOCK_ROWS`] lines after those before, and nobody else
/// reads or writes where the row has its quads.
#[target_feature(enable = "neon,bf16")]
pub(super) unsafe fn pack_row(row: &[f32], first: *mut u8) {
    for (step, values) in row.chunks_exact(STEP_COLS).enumerate() {
        for (two, values) in values.as_chunks::<{ 2 * QUAD_COLS }>().0.iter().enumerate() {
            // SAFETY: eight floats are in bounds; the rest is the caller's promise, and stores need no alignment.
            unsafe {
                let at = first.add(step * 2 * TILE_BYTES + 2 * two * QUAD_STRIDE);
                let quads = rounded(vld1q_f32(values.as_ptr()), vld1q_f32(values[QUAD_COLS..].as_ptr()));
                let quads = vreinterpretq_u8_u16(quads);
                vst1_u8(at, vget_low_u8(quads));
                vst1_u8(at.add(QUAD_STRIDE), vget_high_u8(quads));
            }
        }
    }
}

/// Rounds the sums of 32 rows with 32 columns, tile by tile, to bf16, and fills a step of a block with them.
#[target_feature(enable = "neon,bf16")]
pub(super) fn pack_sums(sums: &[f32; BLOCK_FLOATS], step: &mut [u8]) {
    for (pair, out) in step[..2 * TILE_BYTES].chunks_exact_mut(PAIR_BYTES).enumerate() {
        let at = pair / (N_ROWS / 2) * 2 * TILE_FLOATS + pair % (N_ROWS / 2) * 2 * N_ROWS;
        for (quad, out) in out.chunks_exact_mut(QUAD_STRIDE).enumerate() {
            const QUADS: usize = N_ROWS / QUAD_COLS;
            let at = at + quad / QUADS * TILE_FLOATS + quad % QUADS * QUAD_COLS;
            let (first, second) = (&sums[at..][..QUAD_COLS], &sums[at + N_ROWS..][..QUAD_COLS]);
            // SAFETY: four floats are in bounds.
            store(out, unsafe { rounded(vld1q_f32(first.as_ptr()), vld1q_f32(second.as_ptr())) });
        }
    }
}

/// Fills `out` as [`DotWide`] says.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn dot<E: Element>(
    weights: &[WideRows<'_>],
    xs: &WideActs,
    scratch: &mut TileScratch,
    out: &mut WideOut<'_>,
) {
    const PAIR: usize = 2 * PANEL_TILE;
    out.checked_tiles(weights, xs);
    let (n_cols, n_blocks) = (xs.n_steps() * STEP_COLS, xs.n_blocks());
    let rows: Vec<Vec<&[u8]>> = weights.iter().map(rows_of).collect();
    if scratch.panel.bytes().len() < PAIR {
        scratch.panel = AlignedBytes::zeroed(PAIR).expect("memory for a panel");
    }
    let panel = &mut scratch.panel.bytes_mut()[..PAIR];
    let (block_bytes, stride) = xs.block_bytes();
    for start in (0..n_cols).step_by(PANEL_COLS) {
        let n_steps = PANEL_COLS.min(n_cols - start) / STEP_COLS;
        let is_last = n_cols <= start + PANEL_COLS;
        for (pair, rows) in rows.iter().flat_map(|rows| rows.chunks(2 * N_ROWS)).enumerate() {
            for (rows, panel) in rows.chunks(N_ROWS).zip(panel.chunks_exact_mut(PANEL_TILE)) {
                put_rows::<E>(rows, start, N_ROWS / 2, &mut panel[..n_steps * TILE_BYTES]);
            }
            for block in 0..n_blocks {
                let acts = &xs.bytes()[block * stride..][..block_bytes];
                let acts = &acts[start / STEP_COLS * 2 * TILE_BYTES..][..n_steps * 2 * TILE_BYTES];
                let sums = &mut out.sums[(pair * n_blocks + block) * BLOCK_FLOATS..][..BLOCK_FLOATS];
                let sums = Sums::in_tiles(sums.as_mut_ptr());
                let rows = out.rows.filter(|_| block < out.n_whole).map(|(at, stride)| {
                    Sums::in_rows(at.wrapping_add(block * BLOCK_ROWS * stride + pair * 2 * N_ROWS), stride)
                });
                let from = if start > 0 { Some(sums) } else { rows.filter(|_| out.adds) };
                // SAFETY: there are sums for each block, and rows of the result for whole ones (`WideOut::with_rows`).
                unsafe { two_by_two(acts, panel, from, rows.filter(|_| is_last).unwrap_or(sums)) };
            }
        }
    }
}

/// The rows of a matrix of floats.
fn rows_of<'a>(weights: &WideRows<'a>) -> Vec<&'a [u8]> {
    let WideRows::Floats { data, row_bytes } = weights else { unreachable!("rows of floats") };
    data.chunks_exact(*row_bytes).collect()
}

/// Puts the sums of products of a block of activations with two tiles of weights, [`PANEL_TILE`] apart, and of `from` if
/// given, 32 by 32 of them.
///
/// # Safety
/// The CPU has BF16; sums are in bounds.
#[target_feature(enable = "neon,bf16")]
pub(super) unsafe fn two_by_two(acts: &[u8], panel: &[u8], from: Option<Sums>, to: Sums) {
    let n_steps = acts.len() / (2 * TILE_BYTES);
    assert!(PANEL_TILE + n_steps * TILE_BYTES <= panel.len(), "steps of a panel");
    for w in (0..2 * N_ROWS).step_by(2 * PAIRS) {
        for x in (0..BLOCK_ROWS).step_by(2 * PAIRS) {
            let of_weights = w / N_ROWS * PANEL_TILE + w % N_ROWS / 2 * PAIR_BYTES;
            // SAFETY: by the caller's promise; each step has two tiles of activations and two of weights.
            unsafe {
                let acts = acts.as_ptr().add(x / 2 * PAIR_BYTES);
                some_rows((acts, panel.as_ptr().add(of_weights)), n_steps, (x, w), from, to);
            }
        }
    }
}

/// As [`two_by_two`], for eight rows of activations from `x` on and eight of weights from `w` on.
///
/// # Safety
/// As there; the pointers are where these rows begin.
#[inline]
#[target_feature(enable = "neon,bf16")]
unsafe fn some_rows(
    (acts, weights): (*const u8, *const u8),
    n_steps: usize,
    (x, w): (usize, usize),
    from: Option<Sums>,
    to: Sums,
) {
    // SAFETY: by the caller's promise; no access needs alignment.
    unsafe {
        let mut acc = match from {
            Some(from) => load_sums(from, x, w),
            None => [[vdupq_n_f32(0.0); PAIRS]; PAIRS],
        };
        for step in 0..n_steps {
            let (acts, weights) = (acts.add(step * 2 * TILE_BYTES), weights.add(step * TILE_BYTES));
            for quad in 0..STEP_COLS / QUAD_COLS {
                let (acts, weights) =
                    (pairs(acts.add(quad * QUAD_STRIDE)), pairs(weights.add(quad * QUAD_STRIDE)));
                for (acc, x) in acc.iter_mut().zip(acts) {
                    for (acc, w) in acc.iter_mut().zip(weights) {
                        *acc = multiply(*acc, x, w);
                    }
                }
            }
        }
        for (i, acc) in acc.iter().enumerate() {
            for (j, &[first, second]) in acc.as_chunks::<2>().0.iter().enumerate() {
                let [even, odd] = turned(first, second);
                vst1q_f32(sums_of(to, x + 2 * i, w + 4 * j), even);
                vst1q_f32(sums_of(to, x + 2 * i + 1, w + 4 * j), odd);
            }
        }
    }
}

/// A quad of [`PAIRS`] pairs of rows.
///
/// # Safety
/// It is there.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn pairs(from: *const u8) -> [uint16x8_t; PAIRS] {
    let mut pairs = [vdupq_n_u16(0); PAIRS];
    for (i, pair) in pairs.iter_mut().enumerate() {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        *pair = vreinterpretq_u16_u8(unsafe { vld1q_u8(from.add(i * PAIR_BYTES)) });
    }
    pairs
}

/// Where the sums are of activation row `x` with weight row `w`, and what follows.
#[inline]
fn sums_of(sums: Sums, x: usize, w: usize) -> *mut f32 {
    let tile = x / N_ROWS * sums.low + w / N_ROWS * sums.right;
    sums.at.wrapping_add(tile + x % N_ROWS * sums.stride + w % N_ROWS)
}

/// Sums of eight by eight rows as [`multiply`] adds to them.
///
/// # Safety
/// They are in bounds.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_sums(from: Sums, x: usize, w: usize) -> [[float32x4_t; PAIRS]; PAIRS] {
    let mut acc = [[vdupq_n_f32(0.0); PAIRS]; PAIRS];
    for (i, acc) in acc.iter_mut().enumerate() {
        for (j, acc) in acc.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: by the caller's promise.
            *acc = unsafe {
                let even = vld1q_f32(sums_of(from, x + 2 * i, w + 4 * j));
                turned(even, vld1q_f32(sums_of(from, x + 2 * i + 1, w + 4 * j)))
            };
        }
    }
    acc
}

/// The first halves of both, and the last.
#[inline]
#[target_feature(enable = "neon")]
fn turned(a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
    let (a, b) = (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
    [vreinterpretq_f32_f64(vzip1q_f64(a, b)), vreinterpretq_f32_f64(vzip2q_f64(a, b))]
}
