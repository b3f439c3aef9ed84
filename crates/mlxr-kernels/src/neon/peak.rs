//! Loops of nothing but multiplications, see [`crate::peak`].

use core::arch::aarch64::*;

use super::dots::{dot_4, multiply};
use super::wide;
use crate::peak::peak_loop;

peak_loop! { codes, "neon,dotprod", 32, (vdupq_n_s32(0), vdupq_n_s8(1)), |sum, x| dot_4(sum, x, x) }

peak_loop! { codes_i8mm, "neon,i8mm", 64, (vdupq_n_s32(0), vdupq_n_s8(1)), |sum, x| multiply(sum, x, x) }

peak_loop! { floats, "neon", 8, (vdupq_n_f32(0.0), vdupq_n_f32(1.0)), |sum, x| vfmaq_f32(sum, x, x) }

peak_loop! {
    bf16, "neon,bf16", 32, (vdupq_n_f32(0.0), vdupq_n_u16(0x3f80)), |sum, x| wide::multiply(sum, x, x)
}
