//! Dot products with 128-bit vectors; integer ones through `sdot`.

use core::arch::aarch64::*;

use crate::kernels::TILE;
use crate::linear::codes::{ACT_GROUP, CodeKind, CodeRow, QuantRow};
use crate::tiles::for_micro_tiles;

/// How eight stored elements become two vectors of f32.
trait Element {
    const BYTES: usize;
    /// The eight elements at the start of `bytes`.
    fn load(bytes: &[u8]) -> [float32x4_t; 2];
    /// One element.
    fn to_f32(bytes: &[u8]) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load(bytes: &[u8]) -> [float32x4_t; 2] {
        let bytes = &bytes[..32];
        // SAFETY: 32 bytes are in bounds; byte loads need no alignment; NEON is part of the target's baseline.
        unsafe {
            [
                vreinterpretq_f32_u8(vld1q_u8(bytes.as_ptr())),
                vreinterpretq_f32_u8(vld1q_u8(bytes[16..].as_ptr())),
            ]
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
    fn load(bytes: &[u8]) -> [float32x4_t; 2] {
        let bytes = &bytes[..16];
        // SAFETY: 16 bytes are in bounds; byte loads need no alignment; NEON is part of the target's baseline.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(bytes.as_ptr()));
            [widen_f16(vmovl_u16(vget_low_u16(halves))), widen_f16(vmovl_u16(vget_high_u16(halves)))]
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
    fn load(bytes: &[u8]) -> [float32x4_t; 2] {
        let bytes = &bytes[..16];
        // SAFETY: 16 bytes are in bounds; byte loads need no alignment; NEON is part of the target's baseline.
        unsafe {
            let values = vreinterpretq_u16_u8(vld1q_u8(bytes.as_ptr()));
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

/// Four halves, zero-extended, as f32: the exponent is rebiased by a product, which also normalises subnormals.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(bits: uint32x4_t) -> float32x4_t {
    let magnitude = vshlq_n_u32::<13>(vandq_u32(bits, vdupq_n_u32(0x7fff)));
    let rebiased = vmulq_f32(vreinterpretq_f32_u32(magnitude), vreinterpretq_f32_u32(vdupq_n_u32(239 << 23)));
    let exponent = vandq_u32(bits, vdupq_n_u32(0x7c00));
    let special = vandq_u32(vceqq_u32(exponent, vdupq_n_u32(0x7c00)), vdupq_n_u32(0x7f80_0000));
    let sign = vshlq_n_u32::<16>(vandq_u32(bits, vdupq_n_u32(0x8000)));
    vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(vreinterpretq_u32_f32(rebiased), special), sign))
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
    let mut acc = [[vdupq_n_f32(0.0); W]; X];
    let whole = cols / 8 * 8;
    for at in (0..whole).step_by(8) {
        let mut w = [[vdupq_n_f32(0.0); 2]; W];
        for (vectors, row) in w.iter_mut().zip(weights) {
            *vectors = E::load(&row[at * E::BYTES..]);
        }
        for (acc, x) in acc.iter_mut().zip(xs) {
            let x = &x[at..at + 8];
            // SAFETY: eight floats are in bounds.
            let (x0, x1) = unsafe { (vld1q_f32(x.as_ptr()), vld1q_f32(x[4..].as_ptr())) };
            for (acc, w) in acc.iter_mut().zip(&w) {
                *acc = vfmaq_f32(vfmaq_f32(*acc, w[0], x0), w[1], x1);
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

#[target_feature(enable = "neon,dotprod")]
pub(crate) fn dot_codes(kind: CodeKind, weights: &[CodeRow<'_>], xs: &[QuantRow<'_>], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_codes(kind, w, x, &mut out[x0 * TILE + w0..]));
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn micro_codes<const W: usize, const X: usize>(
    kind: CodeKind,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    // `sdot` takes signed codes on both sides, so unsigned kinds (0..=127) need no path of their own.
    if kind.group == 32 {
        micro_groups::<W, X, 32>(kind.offsets, weights, xs, out);
    } else {
        micro_groups::<W, X, 16>(kind.offsets, weights, xs, out);
    }
}

/// One accumulator per product: the integer sums of each group of codes, scaled, lane by lane.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn micro_groups<const W: usize, const X: usize, const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    let weights: &[CodeRow<'_>; W] = weights.try_into().expect("W rows");
    let xs: &[QuantRow<'_>; X] = xs.try_into().expect("X rows");
    let zero = vdupq_n_s32(0);
    let mut acc = [[vdupq_n_f32(0.0); W]; X];
    let parts = xs.each_ref().map(|x| (x.codes(), x.scales()));
    for step in 0..xs[0].cols() / ACT_GROUP {
        let at = step * ACT_GROUP;
        for (j, row) in weights.iter().enumerate() {
            let w = load_codes(&row.codes[at..]);
            for (acc, (x_codes, x_scales)) in acc.iter_mut().zip(&parts) {
                let codes = load_codes(&x_codes[at..]);
                let x_scale = x_scales[step];
                let first = dot_4(zero, w[0], codes[0]);
                if GROUP == 32 {
                    let sums = vcvtq_f32_s32(dot_4(first, w[1], codes[1]));
                    acc[j] = vfmaq_n_f32(acc[j], sums, row.scales[step] * x_scale);
                } else {
                    let (first, second) = (vcvtq_f32_s32(first), vcvtq_f32_s32(dot_4(zero, w[1], codes[1])));
                    acc[j] = vfmaq_n_f32(acc[j], first, row.scales[2 * step] * x_scale);
                    acc[j] = vfmaq_n_f32(acc[j], second, row.scales[2 * step + 1] * x_scale);
                }
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            let mut sum = acc[i][j];
            if offsets {
                let sums = x.sums(GROUP);
                sum = add_offsets(sum, row.offsets, sums);
            }
            out[i * TILE + j] = vaddvq_f32(sum);
        }
    }
}

/// `sums + ` the products of four codes per lane. The intrinsic of `sdot` is not stable, the instruction is.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot_4(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut result = sums;
    // SAFETY: one register instruction without memory access, available by the function's target features.
    unsafe {
        core::arch::asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inlateout(vreg) result,
            in(vreg) a,
            in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    result
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_codes(codes: &[i8]) -> [int8x16_t; 2] {
    let codes = &codes[..32];
    // SAFETY: 32 bytes are in bounds.
    unsafe { [vld1q_s8(codes.as_ptr()), vld1q_s8(codes[16..].as_ptr())] }
}

/// `acc + offsets * sums`, both padded to whole vectors.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_offsets(mut acc: float32x4_t, offsets: &[f32], sums: &[f32]) -> float32x4_t {
    for (a, b) in offsets.as_chunks::<4>().0.iter().zip(sums.as_chunks::<4>().0) {
        // SAFETY: four floats each.
        let (a, b) = unsafe { (vld1q_f32(a.as_ptr()), vld1q_f32(b.as_ptr())) };
        acc = vfmaq_f32(acc, a, b);
    }
    acc
}
