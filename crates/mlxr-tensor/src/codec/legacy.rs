//! The 32-element blocks of GGML's first generation, and Q1_0 (128 elements, one bit each).
//!
//! Type `_0` is `d * q` with signed q, type `_1` is `d * q + m`. Nibbles lie with stride 16: the low nibbles are
//! elements 0..16, the high ones 16..32. Fifth bits are a 32-bit stream.

use super::planes::{pack, unpack};
use super::{f16_at, fit};

/// Offsets: `d` f16 0, `qs` 2 (one bit per element: set is `+d`, clear is `-d`).
pub fn decode_q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = f16_at(block, 0);
    let mut codes = [0; 128];
    unpack::<1, 1>(&block[2..], &mut codes);
    for (o, &q) in out.iter_mut().zip(&codes) {
        *o = if q == 1 { d } else { -d };
    }
}

/// Offsets: `d` f16 0, `qs` 2.
pub fn decode_q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let mut codes = [0; 32];
    unpack::<4, 16>(&block[2..], &mut codes);
    for (o, &q) in out.iter_mut().zip(&codes) {
        *o = d * (f32::from(q) - 8.0);
    }
}

/// Offsets: `d` f16 0, `m` f16 2, `qs` 4.
pub fn decode_q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    let mut codes = [0; 32];
    unpack::<4, 16>(&block[4..], &mut codes);
    for (o, &q) in out.iter_mut().zip(&codes) {
        *o = d * f32::from(q) + m;
    }
}

/// Offsets: `d` f16 0, `qh` 2 (fifth bits), `qs` 6.
pub fn decode_q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (o, q) in out.iter_mut().zip(five_bit_codes(&block[2..])) {
        *o = d * (f32::from(q) - 16.0);
    }
}

/// Offsets: `d` f16 0, `m` f16 2, `qh` 4 (fifth bits), `qs` 8.
pub fn decode_q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (o, q) in out.iter_mut().zip(five_bit_codes(&block[4..])) {
        *o = d * f32::from(q) + m;
    }
}

/// Offsets: `d` f16 0, `qs` i8 2.
pub fn decode_q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (o, &q) in out.iter_mut().zip(&block[2..]) {
        *o = d * f32::from(q.cast_signed());
    }
}

/// Offsets: `d` f16 0, `s` f16 2 (`d` times the sum of the codes, for dot products), `qs` i8 4.
pub fn decode_q8_1(block: &[u8; 36], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    for (o, &q) in out.iter_mut().zip(&block[4..]) {
        *o = d * f32::from(q.cast_signed());
    }
}

/// The codes of Q5_0 and Q5_1: nibbles at byte 4, fifth bits at byte 0.
pub fn five_bit_codes(bytes: &[u8]) -> [u8; 32] {
    let (mut codes, mut high) = ([0; 32], [0; 32]);
    unpack::<1, 1>(&bytes[..4], &mut high);
    unpack::<4, 16>(&bytes[4..], &mut codes);
    for (code, high) in codes.iter_mut().zip(&high) {
        *code |= high << 4;
    }
    codes
}

fn put_five_bit_codes(codes: &[u8; 32], bytes: &mut [u8]) {
    pack::<1, 1>(&codes.map(|q| q >> 4), &mut bytes[..4]);
    pack::<4, 16>(&codes.map(|q| q & 15), &mut bytes[4..]);
}

/// The mean magnitude with the sign of every element.
pub fn encode_q1_0(x: &[f32; 128], importance: Option<&[f32; 128]>, out: &mut [u8; 18]) {
    let d = match importance {
        None => x.iter().map(|v| v.abs()).sum::<f32>() / 128.0,
        Some(importance) => {
            let w = fit::weights(importance);
            let sum = x.iter().zip(&w).map(|(v, w)| v.abs() * w).sum::<f32>();
            sum / w.iter().sum::<f32>()
        }
    };
    put_f16(out, 0, d);
    pack::<1, 1>(&x.map(|v| u8::from(v >= 0.0)), &mut out[2..]);
}

pub fn encode_q4_0(x: &[f32; 32], importance: Option<&[f32; 32]>, out: &mut [u8; 18]) {
    let (d, codes) = signed_codes(x, importance, 8);
    put_f16(out, 0, d);
    pack::<4, 16>(&codes, &mut out[2..]);
}

pub fn encode_q4_1(x: &[f32; 32], importance: Option<&[f32; 32]>, out: &mut [u8; 20]) {
    let (d, m, codes) = unsigned_codes(x, importance, 15);
    put_f16(out, 0, d);
    put_f16(out, 2, m);
    pack::<4, 16>(&codes, &mut out[4..]);
}

pub fn encode_q5_0(x: &[f32; 32], importance: Option<&[f32; 32]>, out: &mut [u8; 22]) {
    let (d, codes) = signed_codes(x, importance, 16);
    put_f16(out, 0, d);
    put_five_bit_codes(&codes, &mut out[2..]);
}

pub fn encode_q5_1(x: &[f32; 32], importance: Option<&[f32; 32]>, out: &mut [u8; 24]) {
    let (d, m, codes) = unsigned_codes(x, importance, 31);
    put_f16(out, 0, d);
    put_f16(out, 2, m);
    put_five_bit_codes(&codes, &mut out[4..]);
}

pub fn encode_q8_0(x: &[f32; 32], _importance: Option<&[f32; 32]>, out: &mut [u8; 34]) {
    let (d, codes) = byte_codes(x);
    put_f16(out, 0, d);
    put_signed(&codes, &mut out[2..]);
}

pub fn encode_q8_1(x: &[f32; 32], _importance: Option<&[f32; 32]>, out: &mut [u8; 36]) {
    let (d, codes) = byte_codes(x);
    let sum: i32 = codes.iter().map(|&q| i32::from(q)).sum();
    put_f16(out, 0, d);
    put_f16(out, 2, d * sum as f32);
    put_signed(&codes, &mut out[4..]);
}

/// Codes `0..2 * half` around `half`. Without importance the element of largest magnitude gets code 0.
fn signed_codes(x: &[f32; 32], importance: Option<&[f32; 32]>, half: u8) -> (f32, [u8; 32]) {
    let d = match importance {
        None => fit::extreme(x) / -f32::from(half),
        Some(_) => {
            let w = fit::value_weights(x, importance, 32);
            let n = i16::from(half);
            fit::scale(x, &w, fit::candidates(x, -f32::from(half), 1.0), &fit::integer_levels(-n, n - 1))
        }
    };
    let inverse = recip(d);
    let round = |v: f32| ((v * inverse + (f32::from(half) + 0.5)) as u8).min(2 * half - 1);
    (d, x.map(round))
}

/// Codes `0..=n` above the minimum.
fn unsigned_codes(x: &[f32; 32], importance: Option<&[f32; 32]>, n: u8) -> (f32, f32, [u8; 32]) {
    if importance.is_some() {
        let w = fit::value_weights(x, importance, 32);
        let (d, m) = fit::affine(x, &w, n, fit::Minimum::Any);
        let mut codes = [0; 32];
        fit::affine_codes(x, n, (d, m), &mut codes);
        return (d, m, codes);
    }
    let (min, max) = min_max(x);
    let d = (max - min) / f32::from(n);
    let inverse = recip(d);
    (d, min, x.map(|v| (((v - min) * inverse + 0.5) as u8).min(n)))
}

fn byte_codes(x: &[f32; 32]) -> (f32, [i8; 32]) {
    let d = amax(x) / 127.0;
    let inverse = recip(d);
    (d, x.map(|v| (v * inverse).round() as i8))
}

fn put_signed(codes: &[i8], out: &mut [u8]) {
    for (byte, code) in out.iter_mut().zip(codes) {
        *byte = code.cast_unsigned();
    }
}

/// Writes an f16 at byte `offset` of a block.
pub fn put_f16(block: &mut [u8], offset: usize, value: f32) {
    block[offset..offset + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
}

/// Largest magnitude.
pub fn amax(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Smallest and largest element.
pub fn min_max(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), &v| (lo.min(v), hi.max(v)))
}

/// `1 / d`, or zero where that is not finite (the scale is then zero or too small for an f16 anyway).
pub fn recip(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}
