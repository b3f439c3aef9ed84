//! IQ types: elements in groups of 8 (IQ3: 4) that share a codebook entry, and the non-linear 4-bit types.
//!
//! Signs are stored apart as one byte per 8 elements, bit n set for a minus; where only 7 bits are stored the eighth
//! follows from parity ([`even_signs`]).

use super::grids::{self, even_signs};
use super::planes::unpack;
use super::{f16_at, u16_at, u32_at};

/// Levels of IQ4_NL and IQ4_XS.
pub const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Shift of the IQ1 levels away from zero.
pub const IQ1_DELTA: f32 = 0.125;

fn put<const N: usize>(out: &mut [f32], scale: f32, point: &[i8; N], signs: u8) {
    for (i, (o, &level)) in out.iter_mut().zip(point).enumerate() {
        let value = scale * f32::from(level);
        *o = if signs >> i & 1 == 1 { -value } else { value };
    }
}

/// Offsets: `d` f16 0, then per 32 elements 8 bytes: 4 codebook indices and a word with 4 x 7 sign bits and a 4-bit
/// scale on top.
pub fn decode_iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (part, out) in block[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let word = u32_at(part, 4);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
        for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            put(out, scale, &grids::IQ2_XXS[usize::from(part[n])], even_signs(word >> (7 * n)));
        }
    }
}

/// Offsets: `d` f16 0, `qs` u16 2 (9 index bits, 7 sign bits), `scales` 66 (a nibble per 16 elements).
pub fn decode_iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = d * (0.5 + nibble(&block[66..], n / 2)) * 0.25;
        let q = u16_at(block, 2 + 2 * n);
        put(out, scale, &grids::IQ2_XS[usize::from(q & 511)], even_signs(u32::from(q >> 9)));
    }
}

/// Offsets: `d` f16 0, `qs` 2 (low index bits), `signs` 34, `qh` 66 (2 high index bits each), `scales` 74 (a nibble
/// per 16 elements).
pub fn decode_iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = d * (0.5 + nibble(&block[74..], n / 2)) * 0.25;
        let high = usize::from(block[66 + n / 4] >> (2 * (n % 4)) & 3);
        put(out, scale, &grids::IQ2_S[usize::from(block[2 + n]) | high << 8], block[34 + n]);
    }
}

/// Offsets: `d` f16 0, `qs` 2 (an index per 4 elements), `words` u32 66 (per 32 elements 4 x 7 sign bits and a 4-bit
/// scale on top).
pub fn decode_iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (n, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let word = u32_at(block, 66 + n / 8 * 4);
        let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
        let signs = even_signs(word >> (n % 8 / 2 * 7)) >> (n % 2 * 4);
        put(out, scale, &grids::IQ3_XXS[usize::from(block[2 + n])], signs);
    }
}

/// Offsets: `d` f16 0, `qs` 2 (low index bits per 4 elements), `qh` 66 (ninth index bits), `signs` 74, `scales` 106
/// (a nibble per 32 elements).
pub fn decode_iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (n, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let scale = d * (1.0 + 2.0 * nibble(&block[106..], n / 8));
        let high = usize::from(block[66 + n / 8] >> (n % 8) & 1);
        let signs = block[74 + n / 2] >> (n % 2 * 4);
        put(out, scale, &grids::IQ3_S[usize::from(block[2 + n]) | high << 8], signs);
    }
}

/// Offsets: `d` f16 0, `qs` 2 (low index bits per 8 elements), `qh` u16 34 (per 32 elements 4 x 3 high index bits,
/// a 3-bit scale, and on top the sign of the shift).
pub fn decode_iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let qh = u16_at(block, 34 + n / 4 * 2);
        let scale = d * f32::from(2 * (qh >> 12 & 7) + 1);
        let high = usize::from(qh >> (3 * (n % 4)) & 7);
        put_shifted(out, scale, usize::from(block[n + 2]) | high << 8, qh >> 15 == 1);
    }
}

/// Offsets: `qs` 0 (low index bits per 8 elements), `qh` 32 (nibbles: 3 high index bits and the sign of the shift),
/// `scales` u16 48 (per 64 elements 4 x 3 scale bits; the top nibbles together are the f16 `d`, low nibble first).
pub fn decode_iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let words: [u16; 4] = std::array::from_fn(|i| u16_at(block, 48 + 2 * i));
    let bits = (0..4).fold(0, |bits, i| bits | words[i] >> 12 << (4 * i));
    let d = half::f16::from_bits(bits).to_f32();
    for (n, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = d * f32::from(2 * (words[n / 8] >> (3 * (n / 2 % 4)) & 7) + 1);
        let qh = block[32 + n / 2] >> (4 * (n % 2));
        put_shifted(out, scale, usize::from(block[n]) | usize::from(qh & 7) << 8, qh >> 3 & 1 == 1);
    }
}

fn put_shifted(out: &mut [f32], scale: f32, index: usize, minus: bool) {
    let delta = if minus { -IQ1_DELTA } else { IQ1_DELTA };
    for (o, &level) in out.iter_mut().zip(&grids::IQ1[index]) {
        *o = scale * (f32::from(level) + delta);
    }
}

/// Offsets: `d` f16 0, `qs` 2 (nibbles, stride 16).
pub fn decode_iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_at(block, 0);
    let mut codes = [0; 32];
    unpack::<4, 16>(&block[2..], &mut codes);
    for (o, &q) in out.iter_mut().zip(&codes) {
        *o = d * f32::from(IQ4_LEVELS[usize::from(q)]);
    }
}

/// Offsets: `d` f16 0, `scales_h` u16 2 (2 high bits per 32 elements), `scales_l` 4 (nibbles), `qs` 8 (nibbles,
/// stride 16); scales are 6 bits less 32.
pub fn decode_iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let scales_h = u16_at(block, 2);
    let mut codes = [0; 256];
    unpack::<4, 16>(&block[8..], &mut codes);
    for (j, (out, codes)) in out.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<32>().0).enumerate()
    {
        let high = f32::from(scales_h >> (2 * j) & 3);
        let scale = d * (nibble(&block[4..], j) + 16.0 * high - 32.0);
        for (o, &q) in out.iter_mut().zip(codes) {
            *o = scale * f32::from(IQ4_LEVELS[usize::from(q)]);
        }
    }
}

/// Nibble `n`, low ones first.
fn nibble(bytes: &[u8], n: usize) -> f32 {
    f32::from(bytes[n / 2] >> (n % 2 * 4) & 15)
}
