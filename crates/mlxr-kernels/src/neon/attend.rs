//! Sixteen floats in four registers, for [`crate::attend`].

use core::arch::aarch64::*;

use super::halves::{one_widened, widened, widened_high};
use super::rows::{high_nibbles, low_nibbles};
use crate::attend::{Vector, attend_kernels};

/// Lanes 0 to 3, then those that follow.
#[derive(Clone, Copy)]
pub(super) struct Quad([float32x4_t; 4]);

attend_kernels!(Quad, "neon");

/// Sixteen signed bytes.
#[inline(always)]
unsafe fn of_bytes(codes: int8x16_t) -> Quad {
    // SAFETY: callers are compiled for NEON.
    unsafe {
        let (low, high) = (vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes));
        let words = [
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high),
        ];
        Quad(words.map(|words| vcvtq_f32_s32(words)))
    }
}

/// The halves of two vectors.
#[inline(always)]
unsafe fn of_halves(halves: [uint16x8_t; 2]) -> Quad {
    let [a, b] = halves;
    // SAFETY: callers are compiled for NEON.
    unsafe { Quad([widened(vget_low_u16(a)), widened_high(a), widened(vget_low_u16(b)), widened_high(b)]) }
}

/// Sixteen two-byte numbers.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn load_halves(from: *const u8) -> [uint16x8_t; 2] {
    // SAFETY: by the caller's promise; byte loads need no alignment.
    [0, 16].map(|at| unsafe { vreinterpretq_u16_u8(vld1q_u8(from.add(at))) })
}

impl Vector for Quad {
    const HAS_MANY: bool = false;
    // A vector is several instructions, but so is finding out what to fetch.
    const FETCH_COLS: usize = 16;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: callers are compiled for NEON; so it is below.
        Self([unsafe { vdupq_n_f32(value) }; 4])
    }
    #[inline(always)]
    fn times(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(std::array::from_fn(|i| unsafe { vmulq_f32(self.0[i], other.0[i]) }))
    }
    #[inline(always)]
    fn madd(self, other: Self, sum: Self) -> Self {
        // SAFETY: as above.
        Self(std::array::from_fn(|i| unsafe { vfmaq_f32(sum.0[i], self.0[i], other.0[i]) }))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        Self(std::array::from_fn(|i| unsafe { vreinterpretq_f32_u8(vld1q_u8(from.add(4 * i).cast())) }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, four) in self.0.into_iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { vst1q_f32(to.add(4 * i), four) };
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        Self::splat(unsafe { one_widened(from.cast::<u16>().read_unaligned()) })
    }
    #[inline(always)]
    unsafe fn of_f16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { of_halves(load_halves(from)) }
    }
    #[inline(always)]
    unsafe fn of_bf16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let [a, b] = load_halves(from);
            let words = [
                vshll_n_u16::<16>(vget_low_u16(a)),
                vshll_high_n_u16::<16>(a),
                vshll_n_u16::<16>(vget_low_u16(b)),
                vshll_high_n_u16::<16>(b),
            ];
            Self(words.map(|words| vreinterpretq_f32_u32(words)))
        }
    }
    #[inline(always)]
    unsafe fn of_e4m3(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let codes = vld1q_s8(from.cast());
            // Moved into place, a code is an f16 with an exponent that is 8 lower.
            let halves = [vshll_n_s8::<7>(vget_low_s8(codes)), vshll_high_n_s8::<7>(codes)];
            let kept = vdupq_n_u16(0xbf80);
            let halves = halves.map(|halves| vandq_u16(vreinterpretq_u16_s16(halves), kept));
            of_halves(halves).times(Self::splat(256.0))
        }
    }
    #[inline(always)]
    unsafe fn of_i8(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { of_bytes(vld1q_s8(from.cast())) }
    }
    #[inline(always)]
    unsafe fn of_nibbles(from: *const u8, upper: bool) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let bytes = vld1q_u8(from);
            let codes = if upper { high_nibbles(bytes) } else { low_nibbles(bytes) };
            of_bytes(vsubq_s8(vreinterpretq_s8_u8(codes), vdupq_n_s8(8)))
        }
    }
}
