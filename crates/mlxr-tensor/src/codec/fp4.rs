//! 4-bit floats (E2M1) with a scale per group: GGML's MXFP4 and NVFP4 blocks.
//!
//! GGML keeps the element table doubled, so that it holds integers, and halves the scale instead.

use super::fp8;
use super::planes::{pack, unpack};

/// E2M1 values times two. Code 8 is minus zero in the specification; GGML reads plain zero.
pub const DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// E2M1 values.
pub const VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Offsets: `e` E8M0 0, `qs` 1 (32 codes in nibbles, stride 16).
pub fn decode_mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_e8m0(block[0]);
    let mut codes = [0; 32];
    unpack::<4, 16>(&block[1..], &mut codes);
    for (o, &q) in out.iter_mut().zip(&codes) {
        *o = d * DOUBLED[usize::from(q)];
    }
}

/// Offsets: `d` UE4M3 0..4 (one per 16 elements), `qs` 4 (64 codes in nibbles, stride 8).
pub fn decode_nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    let mut codes = [0; 64];
    unpack::<4, 8>(&block[4..], &mut codes);
    for (i, (o, &q)) in out.iter_mut().zip(&codes).enumerate() {
        *o = half_ue4m3(block[i / 16]) * DOUBLED[usize::from(q)];
    }
}

/// Half of `2^(code - 127)`; the two lowest codes are subnormal.
fn half_e8m0(code: u8) -> f32 {
    match code {
        0 | 1 => f32::from_bits(0x0020_0000 << code),
        _ => f32::from_bits(u32::from(code - 1) << 23),
    }
}

/// Half of an E4M3 number whose sign bit is ignored; the NaN code reads as 480, but 0x7f itself as zero.
pub fn half_ue4m3(code: u8) -> f32 {
    if code == 0x7f {
        return 0.0;
    }
    half::f16::from_bits(u16::from(code & 0x7f) << 7).to_f32() * 128.0
}

/// The exponent of the largest magnitude, so that it lands on 4 to 6 (or is clipped to 6 from below 8).
/// With `importance`, the neighbouring exponent is taken where it lowers the weighted error.
pub fn encode_mxfp4(x: &[f32; 32], importance: Option<&[f32; 32]>, out: &mut [u8; 17]) {
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let e = if amax > 0.0 { (amax.log2().floor() as i32 - 2 + 127).clamp(0, 254) as u8 } else { 0 };
    let scale = match importance {
        None => e,
        Some(w) => best_scale(e, 254, x, w, half_e8m0),
    };
    let mut codes = [0; 32];
    nearest_codes(x, half_e8m0(scale), &mut codes);
    out[0] = scale;
    pack::<4, 16>(&codes, &mut out[1..]);
}

/// A scale per 16 elements that maps the largest magnitude to 6; with `importance`, the neighbouring scale where
/// it lowers the weighted error.
pub fn encode_nvfp4(x: &[f32; 64], importance: Option<&[f32; 64]>, out: &mut [u8; 36]) {
    let mut codes = [0; 64];
    for (group, x) in x.as_chunks::<16>().0.iter().enumerate() {
        let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        let code = f32_to_ue4m3(amax / 6.0);
        let scale = match importance {
            None => code,
            Some(w) => best_scale(code, 0x7e, x, &w[group * 16..][..16], half_ue4m3),
        };
        out[group] = scale;
        nearest_codes(x, half_ue4m3(scale), &mut codes[group * 16..][..16]);
    }
    pack::<4, 8>(&codes, &mut out[4..]);
}

/// Rounds to nearest, ties away from zero (unlike [`fp8::f32_to_e4m3`]): GGML's rule for these scales.
fn f32_to_ue4m3(x: f32) -> u8 {
    let down = fp8::f32_to_e4m3(x);
    let middle = |code: u8| (fp8::e4m3_to_f32(code) + fp8::e4m3_to_f32(code + 1)) / 2.0;
    if down < 0x7e && x >= middle(down) { down + 1 } else { down }
}

fn best_scale(code: u8, max_code: u8, x: &[f32], w: &[f32], scale_of: impl Fn(u8) -> f32) -> u8 {
    let error = |code: u8| -> f32 {
        let d = scale_of(code);
        let term = |(v, w): (&f32, &f32)| w * (d * DOUBLED[nearest(*v, d)] - v).powi(2);
        x.iter().zip(w).map(term).sum()
    };
    let mut best = (code, error(code));
    for code in code.saturating_sub(1)..=code.saturating_add(1).min(max_code) {
        let candidate = error(code);
        if candidate < best.1 {
            best = (code, candidate);
        }
    }
    best.0
}

fn nearest_codes(x: &[f32], d: f32, codes: &mut [u8]) {
    for (code, &v) in codes.iter_mut().zip(x) {
        *code = nearest(v, d) as u8;
    }
}

/// The first code with the smallest distance.
pub fn nearest(v: f32, d: f32) -> usize {
    let mut best = (0, f32::INFINITY);
    for (i, level) in DOUBLED.iter().enumerate() {
        let distance = (d * level - v).abs();
        if distance < best.1 {
            best = (i, distance);
        }
    }
    best.0
}
