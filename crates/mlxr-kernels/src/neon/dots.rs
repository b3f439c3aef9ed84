//! Products of bytes: codes of four weight rows, a row to a lane, with codes of activation rows.
//!
//! What is here and in the modules above it is compiled in line into functions that name their instruction set, once
//! for each [`Dots`]. The multiplications are assembly, since their intrinsics are not stable; the instructions are.

use core::arch::aarch64::*;
use core::arch::asm;

/// The instructions that multiply bytes, eight columns at a time. All give the same integers.
pub(super) trait Dots {
    /// Two lines that follow each other in the order [`Self::step`] takes them.
    ///
    /// # Safety
    /// The CPU has NEON.
    unsafe fn arranged(lines: [uint8x16_t; 2]) -> [uint8x16_t; 2];

    /// The next sixteen codes of each activation row as [`Self::step`] takes them.
    ///
    /// # Safety
    /// They are there, and the CPU has NEON.
    unsafe fn load<const X: usize>(acts: [*const u8; X]) -> [int8x16_t; X];

    /// Sums that begin with one number for each activation row.
    ///
    /// # Safety
    /// The CPU has NEON.
    unsafe fn begin<const X: usize>(sums: [int32x4_t; X]) -> [int32x4_t; X];

    /// Adds to `sums` the products of `codes`, arranged, with the first eight of sixteen columns of activations if `HALF`
    /// is 0, with the last if it is 1.
    ///
    /// # Safety
    /// The CPU has NEON and what the implementation names.
    unsafe fn step<const X: usize, const HALF: i32>(
        sums: &mut [int32x4_t; X],
        codes: [uint8x16_t; 2],
        acts: &[int8x16_t; X],
    );

    /// Adds `steps` times a factor for each row to `sums`.
    ///
    /// # Safety
    /// The CPU has NEON.
    unsafe fn fold<const X: usize>(sums: &mut [int32x4_t; X], steps: [int32x4_t; X], factor: int32x4_t);

    /// For each activation row the sums of the four weight rows.
    ///
    /// # Safety
    /// The CPU has NEON.
    unsafe fn by_row<const X: usize>(sums: [int32x4_t; X]) -> [int32x4_t; X];
}

/// `sums + ` the products of four codes per lane.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot_4(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one register instruction without memory access, available by the function's target features.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inlateout(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// As [`dot_4`], all lanes with lane `LANE` of `b`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_lane<const LANE: i32>(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as in `dot_4`.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
            inlateout(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// `sums + ` the products of two rows of eight codes with two others.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub(super) fn multiply(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as in `dot_4`.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inlateout(vreg) sums,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// `sdot`: four columns of four weight rows by those of one activation row.
pub(super) struct Sdot;

impl Dots for Sdot {
    #[inline(always)]
    unsafe fn arranged(lines: [uint8x16_t; 2]) -> [uint8x16_t; 2] {
        lines
    }

    #[inline(always)]
    unsafe fn load<const X: usize>(acts: [*const u8; X]) -> [int8x16_t; X] {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        acts.map(|x| unsafe { vld1q_s8(x.cast()) })
    }

    #[inline(always)]
    unsafe fn begin<const X: usize>(sums: [int32x4_t; X]) -> [int32x4_t; X] {
        sums
    }

    #[inline(always)]
    unsafe fn step<const X: usize, const HALF: i32>(
        sums: &mut [int32x4_t; X],
        codes: [uint8x16_t; 2],
        acts: &[int8x16_t; X],
    ) {
        // SAFETY: by the caller's promise.
        unsafe {
            let [first, second] = codes.map(|codes| vreinterpretq_s8_u8(codes));
            for (sum, &x) in sums.iter_mut().zip(acts) {
                *sum = match HALF {
                    0 => dot_lane::<1>(dot_lane::<0>(*sum, first, x), second, x),
                    _ => dot_lane::<3>(dot_lane::<2>(*sum, first, x), second, x),
                };
            }
        }
    }

    #[inline(always)]
    unsafe fn fold<const X: usize>(sums: &mut [int32x4_t; X], steps: [int32x4_t; X], factor: int32x4_t) {
        for (sum, steps) in sums.iter_mut().zip(steps) {
            // SAFETY: by the caller's promise.
            *sum = unsafe { vmlaq_s32(*sum, steps, factor) };
        }
    }

    #[inline(always)]
    unsafe fn by_row<const X: usize>(sums: [int32x4_t; X]) -> [int32x4_t; X] {
        sums
    }
}

/// `smmla`: eight columns of two weight rows by those of two activation rows. Activation rows come in pairs; of the sums
/// of a pair the first belong to the first two weight rows.
pub(super) struct Smmla;

impl Dots for Smmla {
    #[inline(always)]
    unsafe fn arranged(lines: [uint8x16_t; 2]) -> [uint8x16_t; 2] {
        // SAFETY: by the caller's promise.
        unsafe {
            let [first, second] = lines.map(|line| vreinterpretq_u32_u8(line));
            let (low, high) = (vzip1q_u32(first, second), vzip2q_u32(first, second));
            [vreinterpretq_u8_u32(low), vreinterpretq_u8_u32(high)]
        }
    }

    #[inline(always)]
    unsafe fn load<const X: usize>(acts: [*const u8; X]) -> [int8x16_t; X] {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe {
            let rows = acts.map(|x| vreinterpretq_s64_s8(vld1q_s8(x.cast())));
            std::array::from_fn(|i| {
                let (first, second) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
                let half = if i % 2 == 0 { vzip1q_s64(first, second) } else { vzip2q_s64(first, second) };
                vreinterpretq_s8_s64(half)
            })
        }
    }

    #[inline(always)]
    unsafe fn begin<const X: usize>(sums: [int32x4_t; X]) -> [int32x4_t; X] {
        // SAFETY: by the caller's promise.
        std::array::from_fn(|i| unsafe { vzip1q_s32(sums[i / 2 * 2], sums[i / 2 * 2 + 1]) })
    }

    #[inline(always)]
    unsafe fn step<const X: usize, const HALF: i32>(
        sums: &mut [int32x4_t; X],
        codes: [uint8x16_t; 2],
        acts: &[int8x16_t; X],
    ) {
        for (sums, acts) in sums.chunks_exact_mut(2).zip(acts.chunks_exact(2)) {
            for (sum, codes) in sums.iter_mut().zip(codes) {
                // SAFETY: by the caller's promise.
                *sum = unsafe { multiply(*sum, vreinterpretq_s8_u8(codes), acts[HALF as usize]) };
            }
        }
    }

    #[inline(always)]
    unsafe fn fold<const X: usize>(sums: &mut [int32x4_t; X], steps: [int32x4_t; X], factor: int32x4_t) {
        // SAFETY: by the caller's promise.
        unsafe {
            let factors = [vzip1q_s32(factor, factor), vzip2q_s32(factor, factor)];
            for (i, (sum, steps)) in sums.iter_mut().zip(steps).enumerate() {
                *sum = vmlaq_s32(*sum, steps, factors[i % 2]);
            }
        }
    }

    #[inline(always)]
    unsafe fn by_row<const X: usize>(sums: [int32x4_t; X]) -> [int32x4_t; X] {
        std::array::from_fn(|i| {
            let (first, second) = (sums[i / 2 * 2], sums[i / 2 * 2 + 1]);
            // SAFETY: by the caller's promise.
            unsafe { if i % 2 == 0 { vuzp1q_s32(first, second) } else { vuzp2q_s32(first, second) } }
        })
    }
}
