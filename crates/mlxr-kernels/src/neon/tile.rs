//! Products of weight rows in tile order with quantised activations.
//!
//! As in `avx2::tile` a weight row is a lane, so a group's integer sum needs no reduction and is exact; codes meet
//! several activation rows as they are unpacked. A product is computed the same way whatever the numbers of rows are,
//! and as the x86-64 tables compute it.

use core::arch::aarch64::*;

use super::dots::{Dots, Sdot};
use super::rows::{FourRows, LANES, PARTS, high_nibbles, low_nibbles};
use crate::kernels::TILE_ROWS;
use crate::linear::codes::QuantRow;
use crate::linear::tile::ActRows;
use crate::linear::tiled::{N_ROWS, Tiles};
use crate::tiles::each_line;

/// Activation rows that meet codes in registers at once.
pub(super) const MAX_BLOCK: usize = 4;

/// A format's blocks of 32 columns, each with a scale beside it.
pub(super) trait Layout {
    /// Bytes of a block.
    const BLOCK_BYTES: usize;

    /// The integer products of block `block`, codes less their zero, in the order of `D`. `negated` are the sums of codes
    /// of activations, negated.
    ///
    /// # Safety
    /// The CPU has what `D` needs, and the rows have the block.
    unsafe fn sums<D: Dots, const X: usize>(
        rows: FourRows,
        block: usize,
        acts: [*const u8; X],
        negated: [int32x4_t; X],
    ) -> [int32x4_t; X];
}

pub(super) struct Q4_0;

impl Layout for Q4_0 {
    const BLOCK_BYTES: usize = 18;

    #[inline(always)]
    unsafe fn sums<D: Dots, const X: usize>(
        rows: FourRows,
        block: usize,
        acts: [*const u8; X],
        negated: [int32x4_t; X],
    ) -> [int32x4_t; X] {
        // SAFETY: a block is 32 nibbles, whose zero is 8; passes the caller's promise on.
        unsafe {
            let mut sums = D::begin(negated.map(|negated| vshlq_n_s32::<3>(negated)));
            let [a, b, c, d] = rows.lines::<4>(4 * block);
            let (first, second) = (D::arranged([a, b]), D::arranged([c, d]));
            let x = D::load(acts);
            D::step::<X, 0>(&mut sums, first.map(|v| low_nibbles(v)), &x);
            D::step::<X, 1>(&mut sums, second.map(|v| low_nibbles(v)), &x);
            let x = D::load(acts.map(|x| x.wrapping_add(16)));
            D::step::<X, 0>(&mut sums, first.map(|v| high_nibbles(v)), &x);
            D::step::<X, 1>(&mut sums, second.map(|v| high_nibbles(v)), &x);
            sums
        }
    }
}

pub(super) struct Q8_0;

impl Layout for Q8_0 {
    const BLOCK_BYTES: usize = 34;

    #[inline(always)]
    unsafe fn sums<D: Dots, const X: usize>(
        rows: FourRows,
        block: usize,
        acts: [*const u8; X],
        _: [int32x4_t; X],
    ) -> [int32x4_t; X] {
        // SAFETY: a block is 32 signed codes; passes the caller's promise on.
        unsafe {
            let mut sums = [vdupq_n_s32(0); X];
            each_line!(2, |HALF| {
                let [a, b, c, d] = rows.lines::<4>(8 * block + 4 * HALF);
                let x = D::load(acts.map(|x| x.wrapping_add(16 * HALF)));
                D::step::<X, 0>(&mut sums, D::arranged([a, b]), &x);
                D::step::<X, 1>(&mut sums, D::arranged([c, d]), &x);
            });
            sums
        }
    }
}

/// Products of rows in tile order with `xs`: `out[x * TILE_ROWS + w]`. More than one activation row meets `D`.
///
/// # Safety
/// The CPU has the dot product extension and what `D` needs.
#[inline(always)]
pub(super) unsafe fn dot<L: Layout, D: Dots>(tiles: &Tiles<'_>, xs: &ActRows<'_>, out: &mut [f32]) {
    let Some(first) = xs.rows.first() else { return };
    assert!(xs.rows.iter().all(|x| x.layout() == first.layout()), "rows of one shape");
    assert!(tiles.n_blocks * 32 <= first.cols(), "columns of weights and activations");
    assert!(
        tiles.n_blocks * L::BLOCK_BYTES * N_ROWS <= tiles.tile_bytes,
        "a tile of {} blocks",
        tiles.n_blocks
    );
    assert!(tiles.bytes.len() <= TILE_ROWS / N_ROWS * tiles.tile_bytes, "tiles of one call");
    for (xs, out) in xs.rows.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
        // SAFETY: the shapes were checked; passes the caller's promise on.
        unsafe {
            match xs.len() {
                1 => some::<L, Sdot, 1, PARTS>(tiles, xs, out),
                2 => some::<L, D, 2, PARTS>(tiles, xs, out),
                _ => some::<L, D, MAX_BLOCK, 2>(tiles, xs, out),
            }
        }
    }
}

/// Up to `X` activation rows, `N` parts of a tile at a time, whose sums stay in registers.
///
/// # Safety
/// The CPU has what `D` needs, and tiles and rows have the same columns.
#[inline(always)]
unsafe fn some<L: Layout, D: Dots, const X: usize, const N: usize>(
    tiles: &Tiles<'_>,
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    // The last row stands in for those that are not there.
    let acts: [*const u8; X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)].bytes().as_ptr());
    let (scales_at, negated_at) = (xs[0].layout().scales_at(), xs[0].layout().negated_at(32));
    for (t, parts) in FourRows::of(tiles).enumerate() {
        for (first, parts) in parts.as_chunks::<N>().0.iter().enumerate() {
            // SAFETY: callers have what `D` needs; rows have the block, activations a scale and a sum for it, unaligned
            // where the language asks for more than bytes.
            unsafe {
                let mut acc = [[vdupq_n_f32(0.0); X]; N];
                for block in 0..tiles.n_blocks {
                    let acts_here = acts.map(|x| x.wrapping_add(32 * block));
                    let negated = acts.map(|x| vld1q_dup_s32(x.wrapping_add(negated_at + 4 * block).cast()));
                    let x_scales =
                        acts.map(|x| x.wrapping_add(scales_at + 4 * block).cast::<f32>().read_unaligned());
                    each_line!(4, |PART| {
                        if PART < N {
                            let sums = L::sums::<D, X>(parts[PART], block, acts_here, negated);
                            let (sums, scale) = (D::by_row(sums), parts[PART].half(block));
                            for x in 0..X {
                                let factor = vmulq_n_f32(scale, x_scales[x]);
                                acc[PART][x] = vfmaq_f32(acc[PART][x], vcvtq_f32_s32(sums[x]), factor);
                            }
                        }
                    });
                }
                for (part, acc) in acc.iter().enumerate() {
                    let at = t * N_ROWS + (first * N + part) * LANES;
                    store(acc, xs.len(), at, out);
                }
            }
        }
    }
}

/// Writes the products of four weight rows from row `at` on with the first `n` activation rows.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn store<const X: usize>(acc: &[float32x4_t; X], n: usize, at: usize, out: &mut [f32]) {
    for (acc, out) in acc.iter().zip(out.chunks_exact_mut(TILE_ROWS)).take(n) {
        let out = &mut out[at..at + LANES];
        // SAFETY: four floats are in bounds.
        unsafe { vst1q_f32(out.as_mut_ptr(), *acc) };
    }
}
