//! Products of weight rows in tile order with quantised activations.
//!
//! As in `avx512::tile` a weight row is a lane, so a group's integer sum needs no reduction and is exact; codes meet up
//! to four activation rows as they are unpacked. A product is computed the same way whatever the numbers of rows are,
//! and as AVX-512 computes it.

use core::arch::x86_64::*;

use super::codes;
use super::dots::{Dots, word};
use super::rows::{EightRows, LANES};
use crate::kernels::TILE_ROWS;
use crate::linear::codes::QuantRow;
use crate::linear::tile::{ActRows, TileScratch};
use crate::linear::tiled::{LINE_BYTES, N_ROWS, Tiles};
use crate::tiles::{each_group, each_line};

/// Activation rows that meet codes in registers at once.
pub(super) const MAX_BLOCK: usize = 4;

/// How many of the products of codes of a format's groups are added up in sixteen bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Codes {
    /// Unsigned, at most 15: those of 32 columns.
    Nibbles,
    /// Unsigned, at most 31: those of sixteen columns.
    FiveBits,
    /// Signed bytes, with [`Dots::step_signed`].
    Bytes,
}

/// A format whose groups of columns have factors of their own.
pub(super) trait Layout {
    /// Bytes of a block's lines, and of the number beside them.
    const BLOCK_BYTES: usize;
    /// Groups of a block, and columns of a group: 16 or 32.
    const GROUPS: usize = 1;
    const GROUP: usize = 32;
    const CODES: Codes;
    /// What unsigned codes are less than, as a power of two; nothing where that is 0.
    const ZERO: Option<u32> = None;
    /// Whether offsets are other than zero.
    const OFFSETS: bool = false;
    /// Activation rows up to which codes meet them as they are unpacked; more meet them from a panel.
    const DIRECT_ROWS: usize = 8;

    /// Codes of columns `4 * line..4 * line + 4` of a group, `line` being below 4, and of those sixteen columns on if a group
    /// has them.
    ///
    /// # Safety
    /// The CPU has AVX2, and the rows have the group.
    unsafe fn codes(rows: EightRows, group: usize, line: usize) -> [__m256i; 2];

    /// The scale and the offset of a group.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C, and the rows have the group.
    unsafe fn factors(rows: EightRows, group: usize) -> (__m256, __m256);
}

/// The integer products of group `group` with activations, codes less their zero. `negated` are the sums of codes of
/// activations, negated.
///
/// # Safety
/// The CPU has what `D` needs, and rows and activations have the group.
#[inline(always)]
unsafe fn sums<L: Layout, D: Dots, const X: usize>(
    rows: EightRows,
    group: usize,
    acts: [*const u8; X],
    negated: [__m256i; X],
) -> [__m256i; X] {
    let zero = if matches!(L::CODES, Codes::Bytes) { D::SIGNED_ZERO } else { L::ZERO.map(|n| n as i32) };
    // SAFETY: passes the caller's promise on. Eight times two products of at most 15 times 127 fit sixteen bits, and so do
    // four times two of at most 31 times 127.
    unsafe {
        let mut sums = [_mm256_setzero_si256(); X];
        if let Some(n) = zero {
            for (sum, negated) in sums.iter_mut().zip(negated) {
                *sum = _mm256_sll_epi32(negated, _mm_cvtsi32_si128(n));
            }
        }
        let mut steps = [_mm256_setzero_si256(); X];
        each_line!(4, |LINE| {
            let [low, high] = L::codes(rows, group, LINE);
            match L::CODES {
                Codes::Bytes => {
                    for x in 0..X {
                        sums[x] = D::step_signed::<{ 4 * LINE }>(sums[x], low, acts[x]);
                    }
                    if L::GROUP == 32 {
                        for x in 0..X {
                            sums[x] = D::step_signed::<{ 16 + 4 * LINE }>(sums[x], high, acts[x]);
                        }
                    }
                }
                Codes::Nibbles | Codes::FiveBits => {
                    for x in 0..X {
                        steps[x] = D::step::<{ 4 * LINE }>(steps[x], low, acts[x]);
                    }
                    if L::GROUP == 32 {
                        for x in 0..X {
                            steps[x] = D::step::<{ 16 + 4 * LINE }>(steps[x], high, acts[x]);
                        }
                    }
                    let is_full = matches!(L::CODES, Codes::FiveBits) && LINE == 1;
                    if LINE == 3 || is_full && !D::IS_WIDE {
                        for (sum, steps) in sums.iter_mut().zip(&mut steps) {
                            let steps = std::mem::replace(steps, _mm256_setzero_si256());
                            let one = _mm256_set1_epi32(1);
                            // What has 32 bits needs no factor of one.
                            *sum = if D::IS_WIDE {
                                _mm256_add_epi32(*sum, steps)
                            } else {
                                D::fold(*sum, steps, D::factor(one))
                            };
                        }
                    }
                }
            }
        });
        sums
    }
}

/// `$body` for both parts of a tile at once where their sums fit the registers, else for one after the other; `N` is their
/// number.
macro_rules! for_parts {
    ($n_rows:expr, |$parts:ident| $body:block) => {
        if $n_rows <= 2 {
            const N: usize = $crate::avx2::rows::PARTS;
            let $parts = 0..N;
            $body
        } else {
            const N: usize = 1;
            for part in 0..$crate::avx2::rows::PARTS {
                let $parts = part..part + N;
                $body
            }
        }
    };
}
pub(super) use for_parts;

/// Products of rows in tile order with `xs`: `out[x * TILE_ROWS + w]`.
///
/// # Safety
/// The CPU has what `D` needs.
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
    if L::DIRECT_ROWS < xs.rows.len() {
        // SAFETY: the shapes were checked; passes the caller's promise on.
        unsafe { codes::dot_tiled::<L, D>(tiles, xs.rows, &mut scratch.panel, out) };
        return;
    }
    for (xs, out) in xs.rows.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
        // SAFETY: the shapes were checked; passes the caller's promise on.
        unsafe {
            match xs.len() {
                1 => some::<L, D, 1>(tiles, xs, out),
                2 => some::<L, D, 2>(tiles, xs, out),
                _ => some::<L, D, MAX_BLOCK>(tiles, xs, out),
            }
        }
    }
}

/// Up to `X` activation rows.
///
/// # Safety
/// The CPU has what `D` needs, and tiles and rows have the same columns.
#[inline(always)]
unsafe fn some<L: Layout, D: Dots, const X: usize>(tiles: &Tiles<'_>, xs: &[QuantRow<'_>], out: &mut [f32]) {
    // The last row stands in for those that are not there.
    let acts: [*const u8; X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)].bytes().as_ptr());
    let layout = xs[0].layout();
    let (scales_at, sums_at) = (layout.scales_at(), layout.sums_at(L::GROUP));
    let negated_at = layout.negated_at(L::GROUP);
    for (t, parts) in EightRows::of(tiles).enumerate() {
        let ahead = tiles.bytes.as_ptr().wrapping_add((t + 1) * tiles.tile_bytes);
        for_parts!(X, |these| {
            // SAFETY: callers have what `D` needs.
            let mut acc = unsafe { [[_mm256_setzero_ps(); X]; N] };
            for block in 0..tiles.n_blocks {
                fetch(ahead, these.start, block, L::BLOCK_BYTES);
                for (&rows, acc) in parts[these.clone()].iter().zip(&mut acc) {
                    // Where bits of a group are is a constant for each.
                    each_group!(L::GROUPS, |I| {
                        let group = block * L::GROUPS + I;
                        // SAFETY: rows have the group, activations a scale and sums for it.
                        unsafe {
                            let negated = acts.map(|x| word(x, negated_at + 4 * group));
                            let acts_here = acts.map(|x| x.wrapping_add(L::GROUP * group));
                            let sums = sums::<L, D, X>(rows, group, acts_here, negated);
                            let (scale, offset) = L::factors(rows, group);
                            for x in 0..X {
                                let x_scale = word(acts[x], scales_at + 4 * (group * L::GROUP / 32));
                                let factor = _mm256_mul_ps(scale, _mm256_castsi256_ps(x_scale));
                                acc[x] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[x]), factor, acc[x]);
                                if L::OFFSETS {
                                    let x_sum = _mm256_castsi256_ps(word(acts[x], sums_at + 4 * group));
                                    acc[x] = _mm256_fmadd_ps(offset, x_sum, acc[x]);
                                }
                            }
                        }
                    });
                }
            }
            for (part, acc) in these.zip(&acc) {
                for (acc, out) in acc.iter().zip(out.chunks_exact_mut(TILE_ROWS)).take(xs.len()) {
                    // SAFETY: callers have AVX.
                    unsafe { store(&mut out[t * N_ROWS + part * LANES..], *acc) };
                }
            }
        });
    }
}

/// Has the lines of block `block` of the next tile fetched, which are the next bytes, with the first part of this one.
#[inline(always)]
pub(super) fn fetch(ahead: *const u8, part: usize, block: usize, block_bytes: usize) {
    if part > 0 {
        return;
    }
    let n_bytes = block_bytes * N_ROWS;
    for line in (0..n_bytes).step_by(LINE_BYTES) {
        // SAFETY: a hint; any address may be given.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(block * n_bytes + line).cast()) };
    }
}

/// # Safety
/// The CPU has AVX.
#[inline(always)]
pub(super) unsafe fn store(out: &mut [f32], values: __m256) {
    let out = &mut out[..LANES];
    // SAFETY: eight floats are in bounds; the store needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
}
