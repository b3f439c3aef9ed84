//! Products of weight rows in tile order with quantised activations.
//!
//! As in `avx2::tile` a weight row is a lane, so a group's integer sum needs no reduction and is exact; codes meet
//! several activation rows as they are unpacked, or many from a panel. A product is computed the same way whatever the
//! numbers of rows are, and as the x86-64 tables compute it.

use core::arch::aarch64::*;
use core::marker::PhantomData;
use core::ops::Range;

use super::dots::{Dots, Sdot};
use super::panel;
use super::rows::{FourRows, LANES, PARTS};
use crate::kernels::TILE_ROWS;
use crate::linear::codes::QuantRow;
use crate::linear::tile::{ActRows, TileScratch};
use crate::linear::tiled::{N_ROWS, Tiles};
use crate::tiles::each_line;

/// Activation rows that meet codes in registers at once.
pub(super) const MAX_BLOCK: usize = 4;

/// Activation rows up to which codes meet them as they are unpacked; more meet them from a panel.
const DIRECT_ROWS: usize = 8;

/// A format whose groups of columns have factors of their own.
pub(super) trait Layout {
    /// Bytes of a block's lines, and of the number beside them.
    const BLOCK_BYTES: usize;
    /// Groups of a block, and columns of a group: 16 or 32.
    const GROUPS: usize = 1;
    const GROUP: usize = 32;
    /// What codes are less than, as a power of two; nothing where that is 0.
    const ZERO: Option<i32> = None;
    /// Whether offsets are other than zero.
    const OFFSETS: bool = false;

    /// Codes of columns `8 * PAIR..8 * PAIR + 8` of a group, `PAIR` being 0 or 1, as `D` takes them, and of those sixteen
    /// columns on if a group has them.
    ///
    /// # Safety
    /// The CPU has what `D` needs, and the rows have the group.
    unsafe fn codes<D: Dots, const PAIR: usize>(rows: FourRows, group: usize) -> [[uint8x16_t; 2]; 2];

    /// The scale and the offset of a group.
    ///
    /// # Safety
    /// The CPU has NEON, and the rows have the group.
    unsafe fn factors(rows: FourRows, group: usize) -> (float32x4_t, float32x4_t);
}

/// Groups of codes of four rows, wherever they are; see [`Layout`].
pub(super) trait Groups: Copy {
    type Layout: Layout;
    /// What codes are still less than, as [`Layout::ZERO`].
    const ZERO: Option<i32>;

    /// # Safety
    /// As [`Layout::codes`]; where they were arranged before, that was for `D`.
    unsafe fn codes<D: Dots, const PAIR: usize>(self, group: usize) -> [[uint8x16_t; 2]; 2];

    /// # Safety
    /// As [`Layout::factors`].
    unsafe fn factors(self, group: usize) -> (float32x4_t, float32x4_t);
}

/// Groups as they are stored.
struct Stored<L>(FourRows, PhantomData<L>);

impl<L> Clone for Stored<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Stored<L> {}

impl<L: Layout> Groups for Stored<L> {
    type Layout = L;
    const ZERO: Option<i32> = L::ZERO;

    #[inline(always)]
    unsafe fn codes<D: Dots, const PAIR: usize>(self, group: usize) -> [[uint8x16_t; 2]; 2] {
        // SAFETY: passes the caller's promise on.
        unsafe { L::codes::<D, PAIR>(self.0, group) }
    }

    #[inline(always)]
    unsafe fn factors(self, group: usize) -> (float32x4_t, float32x4_t) {
        // SAFETY: passes the caller's promise on.
        unsafe { L::factors(self.0, group) }
    }
}

/// The integer products of group `group` with activations, codes less their zero, in the order of `D`. `negated` are the
/// sums of codes of activations, negated.
///
/// # Safety
/// The CPU has what `D` needs, and rows and activations have the group.
#[inline(always)]
unsafe fn sums<G: Groups, D: Dots, const X: usize>(
    rows: G,
    group: usize,
    acts: [*const u8; X],
    negated: [*const i32; X],
) -> [int32x4_t; X] {
    // SAFETY: passes the caller's promise on; bytes are loaded where the language asks for an alignment.
    unsafe {
        let mut sums = [vdupq_n_s32(0); X];
        if let Some(n) = G::ZERO {
            sums = D::begin(negated.map(|at| vshlq_s32(vdupq_n_s32(at.read_unaligned()), vdupq_n_s32(n))));
        }
        let is_long = G::Layout::GROUP == 32;
        let low_acts = D::load(acts);
        let high_acts = if is_long { D::load(acts.map(|x| x.wrapping_add(16))) } else { low_acts };
        let [low, high] = rows.codes::<D, 0>(group);
        D::step::<X, 0>(&mut sums, low, &low_acts);
        if is_long {
            D::step::<X, 0>(&mut sums, high, &high_acts);
        }
        let [low, high] = rows.codes::<D, 1>(group);
        D::step::<X, 1>(&mut sums, low, &low_acts);
        if is_long {
            D::step::<X, 1>(&mut sums, high, &high_acts);
        }
        sums
    }
}

/// Products of rows in tile order with `xs`: `out[x * TILE_ROWS + w]`. More than one activation row meets `D`.
///
/// # Safety
/// The CPU has the dot product extension and what `D` needs.
#[inline(always)]
pub(super) unsafe fn dot<L: Layout, D: Dots>(
    tiles: &Tiles<'_>,
    xs: &ActRows<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    let Some(first) = xs.rows.first() else { return };
    let n_groups = tiles.n_blocks * L::GROUPS;
    assert!(xs.rows.iter().all(|x| x.layout() == first.layout()), "rows of one shape");
    assert!(n_groups * L::GROUP <= first.cols(), "columns of weights and activations");
    assert!(
        tiles.n_blocks * L::BLOCK_BYTES * N_ROWS <= tiles.tile_bytes,
        "a tile of {} blocks",
        tiles.n_blocks
    );
    assert!(tiles.bytes.len() <= TILE_ROWS / N_ROWS * tiles.tile_bytes, "tiles of one call");
    if DIRECT_ROWS < xs.rows.len() {
        // SAFETY: the shapes were checked; passes the caller's promise on.
        unsafe { panel::dot::<L, D>(tiles, xs.rows, &mut scratch.panel, out) };
        return;
    }
    for (xs, out) in xs.rows.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
        for (t, rows) in FourRows::of(tiles).enumerate() {
            let out = &mut out[t * N_ROWS..];
            let parts = rows.map(|rows| Stored::<L>(rows, PhantomData));
            // SAFETY: the shapes were checked; passes the caller's promise on.
            unsafe {
                match xs.len() {
                    1 => meet::<_, Sdot, 1, PARTS>(&parts, 0..n_groups, xs, out),
                    2 => meet::<_, D, 2, PARTS>(&parts, 0..n_groups, xs, out),
                    _ => meet::<_, D, MAX_BLOCK, 2>(&parts, 0..n_groups, xs, out),
                }
            }
        }
    }
}

/// Adds the products of groups of a tile with up to `X` activation rows to `out[x * TILE_ROWS + w]`, which have those of the
/// groups before. The sums of `N` parts of the tile stay in registers.
///
/// # Safety
/// The CPU has what `D` needs, and the groups are there, of weights and of activations.
#[inline(always)]
pub(super) unsafe fn meet<G: Groups, D: Dots, const X: usize, const N: usize>(
    parts: &[G; PARTS],
    groups: Range<usize>,
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    const { assert!(N <= PARTS) };
    let (group_cols, layout) = (G::Layout::GROUP, xs[0].layout());
    // The last row stands in for those that are not there.
    let acts: [*const u8; X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)].bytes().as_ptr());
    let (scales_at, sums_at) = (layout.scales_at(), layout.sums_at(group_cols));
    let negated_at = layout.negated_at(group_cols);
    for (first, parts) in parts.as_chunks::<N>().0.iter().enumerate() {
        // SAFETY: by the caller's promise; a scale and sums of a group are read unaligned.
        unsafe {
            let mut acc = [[vdupq_n_f32(0.0); X]; N];
            if groups.start > 0 {
                for (part, acc) in acc.iter_mut().enumerate() {
                    load(acc, xs.len(), (first * N + part) * LANES, out);
                }
            }
            for group in groups.clone() {
                let float = |x: *const u8, at: usize| x.wrapping_add(at).cast::<f32>().read_unaligned();
                let here = acts.map(|x| x.wrapping_add(group_cols * group));
                let negated = acts.map(|x| x.wrapping_add(negated_at + 4 * group).cast());
                let x_scales = acts.map(|x| float(x, scales_at + 4 * (group * group_cols / 32)));
                each_line!(4, |PART| {
                    if PART < N {
                        let sums = D::by_row(sums::<G, D, X>(parts[PART], group, here, negated));
                        let (scale, offset) = parts[PART].factors(group);
                        for x in 0..X {
                            let factor = vmulq_n_f32(scale, x_scales[x]);
                            acc[PART][x] = vfmaq_f32(acc[PART][x], vcvtq_f32_s32(sums[x]), factor);
                            if G::Layout::OFFSETS {
                                let x_sum = float(acts[x], sums_at + 4 * group);
                                acc[PART][x] = vfmaq_n_f32(acc[PART][x], offset, x_sum);
                            }
                        }
                    }
                });
            }
            for (part, acc) in acc.iter().enumerate() {
                store(acc, xs.len(), (first * N + part) * LANES, out);
            }
        }
    }
}

/// Reads what [`store`] writes.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn load<const X: usize>(acc: &mut [float32x4_t; X], n: usize, at: usize, out: &[f32]) {
    for (acc, out) in acc.iter_mut().zip(out.chunks(TILE_ROWS)).take(n) {
        let out = &out[at..at + LANES];
        // SAFETY: four floats are in bounds.
        *acc = unsafe { vld1q_f32(out.as_ptr()) };
    }
}

/// Writes the products of four weight rows from row `at` on with the first `n` activation rows.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn store<const X: usize>(acc: &[float32x4_t; X], n: usize, at: usize, out: &mut [f32]) {
    for (acc, out) in acc.iter().zip(out.chunks_mut(TILE_ROWS)).take(n) {
        let out = &mut out[at..at + LANES];
        // SAFETY: four floats are in bounds.
        unsafe { vst1q_f32(out.as_mut_ptr(), *acc) };
    }
}
