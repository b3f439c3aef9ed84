//! Dot products of floats with 128-bit vectors.

use core::arch::aarch64::*;

use super::halves::{widened, widened_high};
use crate::kernels::TILE;
use crate::tiles::for_micro_tiles;

/// How eight stored elements become two vectors of f32.
trait Element {
    const BYTES: usize;
    /// The eight elements at `bytes`.
    ///
    /// # Safety
    /// They are there, and the CPU has NEON.
    unsafe fn load(bytes: *const u8) -> [float32x4_t; 2];
    /// One element.
    fn to_f32(bytes: &[u8]) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> [float32x4_t; 2] {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe {
            [vreinterpretq_f32_u8(vld1q_u8(bytes)), vreinterpretq_f32_u8(vld1q_u8(bytes.wrapping_add(16)))]
        }
    }
    #[inline(always)]
    fn to_f32(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> [float32x4_t; 2] {
        // SAFETY: by the caller's promise; byte loads need no alignment.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(bytes));
            [widened(vget_low_u16(halves)), widened_high(halves)]
        }
    }
    #[inline(always)]
    fn to_f32(bytes: &[u8]) -> f32 {
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> [float32x4_t; 2] {
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
    fn to_f32(bytes: &[u8]) -> f32 {
        half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_f32(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_f32(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_f16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_f16(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "neon")]
pub(crate) fn dot_bf16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_bf16(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "neon")]
fn micro_f32<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<F32, W, X>(w, x, out);
}

#[target_feature(enable = "neon")]
fn micro_f16<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<F16, W, X>(w, x, out);
}

#[target_feature(enable = "neon")]
fn micro_bf16<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<Bf16, W, X>(w, x, out);
}

/// `W` by `X` products: one accumulator each over whole vectors, then the ragged tail.
#[inline]
#[target_feature(enable = "neon")]
fn micro<E: Element, const W: usize, const X: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    let weights: &[&[u8]; W] = weights.try_into().expect("W rows");
    let xs: &[&[f32]; X] = xs.try_into().expect("X rows");
    let cols = xs[0].len();
    let is_whole = |row: &&[u8]| row.len() == cols * E::BYTES;
    assert!(weights.iter().all(is_whole) && xs.iter().all(|x| x.len() == cols), "rows of one length");
    let mut acc = [[vdupq_n_f32(0.0); W]; X];
    let whole = cols / 8 * 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: all rows have eight more elements.
        unsafe {
            let w = weights.map(|row| E::load(row.as_ptr().add(at * E::BYTES)));
            for (acc, x) in acc.iter_mut().zip(xs) {
                let x = x.as_ptr().add(at);
                let (x0, x1) = (vld1q_f32(x), vld1q_f32(x.add(4)));
                for (acc, w) in acc.iter_mut().zip(&w) {
                    *acc = vfmaq_f32(vfmaq_f32(*acc, w[0], x0), w[1], x1);
                }
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            let mut sum = vaddvq_f32(acc[i][j]);
            for at in whole..cols {
                sum = E::to_f32(&row[at * E::BYTES..]).mul_add(x[at], sum);
            }
            out[i * TILE + j] = sum;
        }
    }
}
