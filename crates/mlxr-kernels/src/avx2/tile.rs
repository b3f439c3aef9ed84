//! Products of weight rows in tile order with quantised activations.
//!
//! As in `avx512::tile` a weight row is a lane, so a group's integer sum needs no reduction and is exact; codes meet up
//! to four activation rows as they are unpacked. A product is computed the same way whatever the numbers of rows are,
//! and as AVX-512 computes it.

use core::arch::x86_64::*;

use super::dots::{Dots, word};
use super::rows::{EightRows, LANES, bits};
use crate::kernels::TILE_ROWS;
use crate::linear::codes::QuantRow;
use crate::linear::tile::ActRows;
use crate::linear::tiled::{LINE_BYTES, N_ROWS, Tiles};
use crate::tiles::each_line;

/// Activation rows that meet codes in registers at once.
pub(super) const MAX_BLOCK: usize = 4;

pub(super) const LOW_NIBBLES: i32 = 0x0f0f_0f0f;

/// A format's blocks of 32 columns, each with a scale beside it.
pub(super) trait Layout {
    /// Bytes of a block.
    const BLOCK_BYTES: usize;

    /// The integer products of block `block`, codes less their zero. `negated` are the sums of codes of activations,
    /// negated.
    ///
    /// # Safety
    /// The CPU has what `D` needs, and the rows have the block.
    unsafe fn sums<D: Dots, const X: usize>(
        rows: EightRows,
        block: usize,
        acts: [*const u8; X],
        negated: [__m256i; X],
    ) -> [__m256i; X];
}

pub(super) struct Q4_0;

impl Layout for Q4_0 {
    const BLOCK_BYTES: usize = 18;

    #[inline(always)]
    unsafe fn sums<D: Dots, const X: usize>(
        rows: EightRows,
        block: usize,
        acts: [*const u8; X],
        negated: [__m256i; X],
    ) -> [__m256i; X] {
        // SAFETY: a block is 32 nibbles, whose zero is 8; passes the caller's promise on. Eight times two products of at
        // most 15 times 127 fit sixteen bits.
        unsafe {
            let mut steps = [_mm256_setzero_si256(); X];
            each_line!(4, |LINE| {
                let [bytes] = rows.lines::<1>(4 * block + LINE);
                let low = bits(bytes, 0, LOW_NIBBLES);
                let high = bits(bytes, 4, LOW_NIBBLES);
                for x in 0..X {
                    steps[x] = D::step::<{ 4 * LINE }>(steps[x], low, acts[x]);
                }
                for x in 0..X {
                    steps[x] = D::step::<{ 16 + 4 * LINE }>(steps[x], high, acts[x]);
                }
            });
            let mut sums = negated.map(|negated| _mm256_slli_epi32::<3>(negated));
            for (sum, steps) in sums.iter_mut().zip(steps) {
                let one = _mm256_set1_epi32(1);
                // What has 32 bits needs no factor of one.
                *sum = if D::IS_WIDE {
                    _mm256_add_epi32(*sum, steps)
                } else {
                    D::fold(*sum, steps, D::factor(one))
                };
            }
            sums
        }
    }
}

pub(super) struct Q8_0;

impl Layout for Q8_0 {
    const BLOCK_BYTES: usize = 34;

    #[inline(always)]
    unsafe fn sums<D: Dots, const X: usize>(
        rows: EightRows,
        block: usize,
        acts: [*const u8; X],
        negated: [__m256i; X],
    ) -> [__m256i; X] {
        // SAFETY: a block is 32 signed codes; passes the caller's promise on.
        unsafe {
            let mut sums = negated.map(|negated| match D::SIGNED_ZERO {
                Some(n) => _mm256_sll_epi32(negated, _mm_cvtsi32_si128(n)),
                None => _mm256_setzero_si256(),
            });
            each_line!(8, |LINE| {
                let [codes] = rows.lines::<1>(8 * block + LINE);
                for x in 0..X {
                    sums[x] = D::step_signed::<{ 4 * LINE }>(sums[x], codes, acts[x]);
                }
            });
            sums
        }
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
    let (scales_at, negated_at) = (xs[0].layout().scales_at(), xs[0].layout().negated_at(32));
    for (t, parts) in EightRows::of(tiles).enumerate() {
        let ahead = tiles.bytes.as_ptr().wrapping_add((t + 1) * tiles.tile_bytes);
        for_parts!(X, |these| {
            // SAFETY: callers have what `D` needs.
            let mut acc = unsafe { [[_mm256_setzero_ps(); X]; N] };
            for block in 0..tiles.n_blocks {
                fetch(ahead, these.start, block, L::BLOCK_BYTES);
                for (&rows, acc) in parts[these.clone()].iter().zip(&mut acc) {
                    // SAFETY: rows have the block, activations a scale and a sum for it.
                    unsafe {
                        let negated = acts.map(|x| word(x, negated_at + 4 * block));
                        let acts_here = acts.map(|x| x.wrapping_add(32 * block));
                        let sums = L::sums::<D, X>(rows, block, acts_here, negated);
                        let scale = rows.half(block);
                        for x in 0..X {
                            let x_scale = _mm256_castsi256_ps(word(acts[x], scales_at + 4 * block));
                            let factor = _mm256_mul_ps(scale, x_scale);
                            acc[x] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[x]), factor, acc[x]);
                        }
                    }
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
