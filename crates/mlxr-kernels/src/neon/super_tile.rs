//! Products of rows of super-blocks with quantised activations, see `linear::blocks`: integer sums of groups times their
//! scales are added up for a whole super-block, so all instruction sets give the same bits.

use core::arch::aarch64::*;

use super::dots::{Dots, Sdot};
use super::rows::{FourRows, LANES, PARTS, high_nibbles, low_nibbles, two_halves, with_bits};
use super::tile::{MAX_BLOCK, store};
use crate::kernels::TILE_ROWS;
use crate::linear::blocks::{
    BLOCK_BYTES, BLOCK_COLS, BlockRows, SCALE_AT, SUMS16_AT, SUMS32_AT, place_of_sum,
};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{N_ROWS, Tiles};
use crate::tiles::each_line;

/// What belongs to all columns of a super-block of four rows.
pub(super) struct Heads<const N: usize> {
    /// A number for each group, which its sum of codes is multiplied by.
    minima: [int16x4_t; N],
    d: float32x4_t,
    d_min: float32x4_t,
}

/// A format's super-blocks, with minima for `N` groups.
pub(super) trait SuperBlock<const N: usize> {
    /// Bytes of one.
    const BYTES: usize;
    /// Where a block of activations keeps the sums of groups.
    const SUMS_AT: usize;

    /// Adds the products of codes of super-block `block` with `acts`, times their scales, to `sums`, in the order of `D`.
    ///
    /// # Safety
    /// The CPU has what `D` needs, and the rows have the block.
    unsafe fn add<D: Dots, const X: usize>(
        rows: FourRows,
        block: usize,
        acts: [*const u8; X],
        sums: &mut [int32x4_t; X],
    ) -> Heads<N>;

    /// What the sums of codes times scales, and of minima times sums of codes, stand for.
    ///
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    unsafe fn value(s: int32x4_t, m: int32x4_t, heads: &Heads<N>) -> float32x4_t {
        // SAFETY: by the caller's promise.
        unsafe {
            let of_codes = vmulq_f32(vcvtq_f32_s32(s), heads.d);
            vfmsq_f32(of_codes, vcvtq_f32_s32(m), heads.d_min)
        }
    }
}

/// Byte `i` of each of four rows, as vector `i`.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn by_byte(words: uint8x16_t) -> [uint8x8_t; 2] {
    const ORDER: [u8; 16] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    // SAFETY: sixteen bytes; by the caller's promise.
    unsafe {
        let bytes = vqtbl1q_u8(words, vld1q_u8(ORDER.as_ptr()));
        [vget_low_u8(bytes), vget_high_u8(bytes)]
    }
}

/// The numbers of four rows, group by group, from two groups at a time.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn of_groups<const N: usize>(pairs: [int16x8_t; N]) -> [[int16x4_t; 2]; N] {
    // SAFETY: by the caller's promise.
    pairs.map(|pair| unsafe { [vget_low_s16(pair), vget_high_s16(pair)] })
}

/// The head of a super-block of Q4_K or Q5_K: factors, and scales and minima of groups.
struct KHead {
    scales: [[int16x4_t; 2]; 4],
    heads: Heads<8>,
}

impl KHead {
    /// From the 16-byte heads of the super-blocks.
    ///
    /// # Safety
    /// The CPU has NEON.
    #[inline(always)]
    unsafe fn new([factors, a, b, c]: [uint8x16_t; 4]) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let low_6 = |v| vandq_u8(v, vdupq_n_u8(63));
            // Four bits, and the top two of `v` above them.
            let with_top = |bits, v| vorrq_u8(bits, vshlq_n_u8::<4>(vshrq_n_u8::<6>(v)));
            let sixteen_bits = |low, high| {
                let ([a, b], [c, d]) = (by_byte(low), by_byte(high));
                of_groups([a, b, c, d].map(|pair| vreinterpretq_s16_u16(vmovl_u8(pair))))
            };
            let minima = sixteen_bits(low_6(b), with_top(high_nibbles(c), b));
            let (d, d_min) = two_halves(vreinterpretq_u32_u8(factors));
            Self {
                scales: sixteen_bits(low_6(a), with_top(low_nibbles(c), a)),
                heads: Heads { minima: std::array::from_fn(|i| minima[i / 2][i % 2]), d, d_min },
            }
        }
    }
}

/// Bytes shifted so that bit `FROM` becomes bit 4.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn moved<const FROM: usize>(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: by the caller's promise.
    unsafe {
        match FROM {
            0 => vshlq_n_u8::<4>(bytes),
            1 => vshlq_n_u8::<3>(bytes),
            2 => vshlq_n_u8::<2>(bytes),
            3 => vshlq_n_u8::<1>(bytes),
            5 => vshrq_n_u8::<1>(bytes),
            6 => vshrq_n_u8::<2>(bytes),
            7 => vshrq_n_u8::<3>(bytes),
            _ => bytes,
        }
    }
}

/// Q4_K, or Q5_K with its `TOP` words of fifth bits.
pub(super) struct KBlock<const TOP: usize>;

pub(super) type Q4K = KBlock<0>;
pub(super) type Q5K = KBlock<8>;

impl<const TOP: usize> SuperBlock<8> for KBlock<TOP> {
    const BYTES: usize = 4 * (36 + TOP);
    const SUMS_AT: usize = SUMS32_AT;

    #[inline(always)]
    unsafe fn add<D: Dots, const X: usize>(
        rows: FourRows,
        block: usize,
        acts: [*const u8; X],
        sums: &mut [int32x4_t; X],
    ) -> Heads<8> {
        // SAFETY: a super-block is a head of four words, those of fifth bits, then four runs of eight, each of two groups.
        // Passes the caller's promise on.
        unsafe {
            let at = (36 + TOP) * block;
            let head = KHead::new(rows.lines::<4>(at));
            each_line!(4, |RUN| {
                let mut steps = [[vdupq_n_s32(0); X]; 2];
                each_line!(2, |HALF| {
                    let [a, b, c, d] = rows.lines::<4>(at + 4 + TOP + 8 * RUN + 4 * HALF);
                    let codes = [D::arranged([a, b]), D::arranged([c, d])];
                    let mut top = [[vdupq_n_u8(0); 2]; 2];
                    if TOP > 0 {
                        let [a, b, c, d] = rows.lines::<4>(at + 4 + 4 * HALF);
                        top = [D::arranged([a, b]), D::arranged([c, d])];
                    }
                    each_line!(2, |NIBBLE| {
                        const BIT: usize = 2 * RUN + NIBBLE;
                        let codes = |eight: usize| {
                            [0, 1].map(|i| {
                                let v = codes[eight][i];
                                let v = if NIBBLE == 0 { low_nibbles(v) } else { high_nibbles(v) };
                                if TOP > 0 { with_bits(v, moved::<BIT>(top[eight][i]), 16) } else { v }
                            })
                        };
                        let x = D::load(acts.map(|x| x.wrapping_add(64 * RUN + 32 * NIBBLE + 16 * HALF)));
                        D::step::<X, 0>(&mut steps[NIBBLE], codes(0), &x);
                        D::step::<X, 1>(&mut steps[NIBBLE], codes(1), &x);
                    });
                });
                for (steps, scale) in steps.into_iter().zip(head.scales[RUN]) {
                    D::fold(sums, steps, vmovl_s16(scale));
                }
            });
            head.heads
        }
    }
}

/// Its codes are less 32, which makes 32 times the scales minima, with the same factor.
pub(super) struct Q6K;

impl SuperBlock<16> for Q6K {
    const BYTES: usize = 210;
    const SUMS_AT: usize = SUMS16_AT;

    #[inline(always)]
    unsafe fn add<D: Dots, const X: usize>(
        rows: FourRows,
        block: usize,
        acts: [*const u8; X],
        sums: &mut [int32x4_t; X],
    ) -> Heads<16> {
        // SAFETY: a super-block is 52 words, 32 of low nibbles, sixteen of high bits, four of scales, and their factor.
        // Passes the caller's promise on.
        unsafe {
            let scales = rows
                .lines::<4>(52 * block + 48)
                .map(|four| of_groups(by_byte(four).map(|pair| vmovl_s8(vreinterpret_s8_u8(pair)))));
            // What shares bytes comes together: half by half, then sixteen of every 32 columns.
            each_line!(4, |I| {
                const HALF: usize = I / 2;
                const PART: usize = I % 2;
                let [a, b, c, d] = rows.lines::<4>(52 * block + 32 + 8 * HALF + 4 * PART);
                let top = [D::arranged([a, b]), D::arranged([c, d])];
                each_line!(2, |EIGHT| {
                    let [a, b, c, d] = rows.lines::<4>(52 * block + 16 * HALF + 8 * EIGHT + 4 * PART);
                    let bytes = [D::arranged([a, b]), D::arranged([c, d])];
                    each_line!(2, |NIBBLE| {
                        const RUN: usize = EIGHT + 2 * NIBBLE;
                        let codes = |eight: usize| {
                            [0, 1].map(|i| {
                                let v = bytes[eight][i];
                                let v = if NIBBLE == 0 { low_nibbles(v) } else { high_nibbles(v) };
                                with_bits(v, moved::<{ 2 * RUN }>(top[eight][i]), 48)
                            })
                        };
                        let mut steps = [vdupq_n_s32(0); X];
                        let x = D::load(acts.map(|x| x.wrapping_add(128 * HALF + 32 * RUN + 16 * PART)));
                        D::step::<X, 0>(&mut steps, codes(0), &x);
                        D::step::<X, 1>(&mut steps, codes(1), &x);
                        let scale = scales[2 * HALF + RUN / 2][RUN % 2][PART];
                        D::fold(sums, steps, vmovl_s16(scale));
                    });
                });
            });
            Heads {
                minima: std::array::from_fn(|i| scales[i / 4][i % 4 / 2][i % 2]),
                d: rows.half(block),
                d_min: vdupq_n_f32(0.0),
            }
        }
    }

    #[inline(always)]
    unsafe fn value(s: int32x4_t, m: int32x4_t, heads: &Heads<16>) -> float32x4_t {
        // SAFETY: by the caller's promise.
        unsafe {
            let sum = vsubq_s32(s, vshlq_n_s32::<5>(m));
            vmulq_f32(vcvtq_f32_s32(sum), heads.d)
        }
    }
}

/// Products of rows of super-blocks with `xs`: `out[x * TILE_ROWS + w]`. More than one activation row meets `D`.
///
/// # Safety
/// The CPU has the dot product extension and what `D` needs.
#[inline(always)]
pub(super) unsafe fn dot<S: SuperBlock<N>, D: Dots, const N: usize>(
    tiles: &Tiles<'_>,
    xs: &BlockRows<'_>,
    _: &mut TileScratch,
    out: &mut [f32],
) {
    let n_bytes = tiles.n_blocks * BLOCK_BYTES;
    assert!(xs.rows.iter().all(|x| n_bytes <= x.len()), "columns of weights and activations");
    assert!(tiles.n_blocks * S::BYTES * N_ROWS <= tiles.tile_bytes, "a tile of {} blocks", tiles.n_blocks);
    assert!(tiles.bytes.len() <= TILE_ROWS / N_ROWS * tiles.tile_bytes, "tiles of one call");
    for (xs, out) in xs.rows.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
        // SAFETY: the shapes were checked; passes the caller's promise on.
        unsafe {
            match xs.len() {
                1 => some::<S, Sdot, N, 1>(tiles, xs, out),
                2 => some::<S, D, N, 2>(tiles, xs, out),
                _ => some::<S, D, N, MAX_BLOCK>(tiles, xs, out),
            }
        }
    }
}

/// Up to `X` activation rows.
///
/// # Safety
/// The CPU has what `D` needs, and tiles and rows have the same columns.
#[inline(always)]
unsafe fn some<S: SuperBlock<N>, D: Dots, const N: usize, const X: usize>(
    tiles: &Tiles<'_>,
    xs: &[&[u8]],
    out: &mut [f32],
) {
    // The last row stands in for those that are not there.
    let starts: [*const u8; X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)].as_ptr());
    for (t, parts) in FourRows::of(tiles).enumerate() {
        // SAFETY: callers have what `D` needs.
        let mut acc = unsafe { [[vdupq_n_f32(0.0); X]; PARTS] };
        for block in 0..tiles.n_blocks {
            let acts = starts.map(|x| x.wrapping_add(block * BLOCK_BYTES));
            for (&rows, acc) in parts.iter().zip(&mut acc) {
                // SAFETY: rows and activations have the block; the scale is read unaligned.
                unsafe {
                    let mut sums = [vdupq_n_s32(0); X];
                    let heads = S::add::<D, X>(rows, block, acts, &mut sums);
                    let sums = D::by_row(sums);
                    for x in 0..X {
                        let of_minima = minima::<N>(&heads, acts[x].wrapping_add(S::SUMS_AT));
                        let value = S::value(sums[x], of_minima, &heads);
                        let x_scale = acts[x].wrapping_add(SCALE_AT).cast::<f32>().read_unaligned();
                        acc[x] = vfmaq_n_f32(acc[x], value, x_scale);
                    }
                }
            }
        }
        for (part, acc) in acc.iter().enumerate() {
            // SAFETY: NEON, as above.
            unsafe { store(acc, xs.len(), t * N_ROWS + part * LANES, out) };
        }
    }
}

/// The sums of `N` groups' codes at `sums` times their minima.
///
/// # Safety
/// The sums are there, and the CPU has NEON.
#[inline(always)]
unsafe fn minima<const N: usize>(heads: &Heads<N>, sums: *const u8) -> int32x4_t {
    const { assert!(N <= BLOCK_COLS / 16 && N.is_multiple_of(8)) };
    // SAFETY: by the caller's promise; byte loads need no alignment.
    unsafe {
        let mut of_minima = vdupq_n_s32(0);
        each_line!(2, |EIGHT| {
            if 8 * EIGHT < N {
                let sums = vreinterpretq_s16_u8(vld1q_u8(sums.wrapping_add(16 * EIGHT)));
                each_line!(8, |I| {
                    const PLACE: i32 = place_of_sum(I) as i32;
                    of_minima = vmlal_laneq_s16::<PLACE>(of_minima, heads.minima[8 * EIGHT + I], sums);
                });
            }
        });
        of_minima
    }
}
