//! Halves to floats and back, four at a time by instructions whose intrinsics are not stable in all versions of Rust that
//! build this.

use core::arch::aarch64::*;
use core::arch::asm;

use crate::scalar::halves;

/// Four halves as floats, exactly.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn widened(halves: uint16x4_t) -> float32x4_t {
    let floats;
    // SAFETY: one register instruction without memory access, of NEON.
    unsafe {
        asm!(
            "fcvtl {0:v}.4s, {1:v}.4h",
            out(vreg) floats,
            in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    floats
}

/// As [`widened`], the last four of eight.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn widened_high(halves: uint16x8_t) -> float32x4_t {
    let floats;
    // SAFETY: as in `widened`.
    unsafe {
        asm!(
            "fcvtl2 {0:v}.4s, {1:v}.8h",
            out(vreg) floats,
            in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    floats
}

/// A half as a float, exactly.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn one_widened(half: u16) -> f32 {
    let mut float = f32::from_bits(half.into());
    // SAFETY: as in `widened`.
    unsafe {
        asm!("fcvt {0:s}, {0:h}", inlateout(vreg) float, options(pure, nomem, nostack, preserves_flags));
    }
    float
}

/// Four floats as the halves nearest to them.
#[inline]
#[target_feature(enable = "neon")]
fn narrowed(floats: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: as in `widened`.
    unsafe {
        asm!(
            "fcvtn {0:v}.4h, {1:v}.4s",
            out(vreg) halves,
            in(vreg) floats,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    halves
}

#[target_feature(enable = "neon")]
pub(crate) fn widen(bytes: &[u8], out: &mut [f32]) {
    let bytes = &bytes[..out.len() * 2];
    let (whole, rest) = out.as_chunks_mut::<8>();
    let (halves, halves_rest) = bytes.as_chunks::<16>();
    for (out, halves) in whole.iter_mut().zip(halves) {
        // SAFETY: the arrays are sixteen bytes and eight floats.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(halves.as_ptr()));
            vst1q_f32(out.as_mut_ptr(), widened(vget_low_u16(halves)));
            vst1q_f32(out[4..].as_mut_ptr(), widened_high(halves));
        }
    }
    halves::widen(halves_rest, rest);
}

#[target_feature(enable = "neon")]
pub(crate) fn narrow(values: &[f32], out: &mut [u8]) {
    let out = &mut out[..values.len() * 2];
    let (whole, rest) = values.as_chunks::<4>();
    let (halves, halves_rest) = out.as_chunks_mut::<8>();
    for (out, values) in halves.iter_mut().zip(whole) {
        // SAFETY: the arrays are four floats and eight bytes.
        unsafe {
            let halves = narrowed(vld1q_f32(values.as_ptr()));
            vst1_u8(out.as_mut_ptr(), vreinterpret_u8_u16(halves));
        }
    }
    halves::narrow(rest, halves_rest);
}
