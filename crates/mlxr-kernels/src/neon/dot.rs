//! Dot products of floats with 128-bit vectors.

use core::arch::aarch64::*;

use super::halves::{widened, widened_high};
use crate::dot::{Vectors, dot_kernels};
use crate::kernels::TILE;

dot_kernels! { Neon, "neon": dot_f32 F32, dot_f16 F16, dot_bf16 Bf16 }

struct Neon;

impl Vectors for Neon {
    type Eight = [float32x4_t; 2];
    type Sum = float32x4_t;
    const MOST_ROWS: usize = TILE;

    #[inline(always)]
    unsafe fn zero() -> float32x4_t {
        // SAFETY: by the caller's promise.
        unsafe { vdupq_n_f32(0.0) }
    }

    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> [float32x4_t; 2] {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe {
            [vreinterpretq_f32_u8(vld1q_u8(bytes)), vreinterpretq_f32_u8(vld1q_u8(bytes.wrapping_add(16)))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(bytes: *const u8) -> [float32x4_t; 2] {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(bytes));
            [widened(vget_low_u16(halves)), widened_high(halves)]
        }
    }

    #[inline(always)]
    unsafe fn load_bf16(bytes: *const u8) -> [float32x4_t; 2] {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe {
            let values = vreinterpretq_u16_u8(vld1q_u8(bytes));
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(values))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(values))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn add_products(sum: float32x4_t, a: [float32x4_t; 2], b: [float32x4_t; 2]) -> float32x4_t {
        // SAFETY: by the caller's promise.
        unsafe { vfmaq_f32(vfmaq_f32(sum, a[0], b[0]), a[1], b[1]) }
    }

    #[inline(always)]
    unsafe fn total(sum: float32x4_t) -> f32 {
        // SAFETY: by the caller's promise.
        unsafe { vaddvq_f32(sum) }
    }
}
