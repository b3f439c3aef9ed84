//! K-quants: super-blocks of 256 elements in sub-blocks of 16 or 32, whose scales are themselves quantised.
//!
//! Q2_K, Q4_K and Q5_K are `d * scale * q - dmin * min` with unsigned parts; Q3_K and Q6_K are `d * scale * q` with
//! signed ones; Q8_K holds activations for dot products.

use super::f16_at;
use super::planes::unpack;

/// Offsets: `scales` 0 (16 bytes, scale low nibble, min high), `qs` 16 (2 bits, stride 32), `d` f16 80,
/// `dmin` f16 82.
pub fn decode_q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    let mut codes = [0; 256];
    unpack::<2, 32>(&block[16..80], &mut codes);
    for (j, (out, codes)) in sub_blocks::<16>(out, &codes).enumerate() {
        let scale = d * f32::from(block[j] & 15);
        let min = dmin * f32::from(block[j] >> 4);
        for (o, &q) in out.iter_mut().zip(codes) {
            *o = scale * f32::from(q) - min;
        }
    }
}

/// Offsets: `hmask` 0 (third bits, stride 32; clear means minus 4), `qs` 32 (2 bits, stride 32), `scales` 96
/// (16 of 6 bits, see [`q3_k_scales`]), `d` f16 108.
pub fn decode_q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    let (mut codes, mut high) = ([0; 256], [0; 256]);
    unpack::<2, 32>(&block[32..96], &mut codes);
    unpack::<1, 32>(&block[..32], &mut high);
    for (code, high) in codes.iter_mut().zip(&high) {
        *code |= high << 2;
    }
    let scales = q3_k_scales(&block[96..108]);
    for ((out, codes), scale) in sub_blocks::<16>(out, &codes).zip(scales) {
        let scale = d * f32::from(scale);
        for (o, &q) in out.iter_mut().zip(codes) {
            *o = scale * (f32::from(q) - 4.0);
        }
    }
}

/// Scales of Q3_K: low nibbles in bytes 0..8 (stride 8), high pairs of bits in bytes 8..12 (stride 4), less 32.
pub fn q3_k_scales(packed: &[u8]) -> [i8; 16] {
    let (mut low, mut high) = ([0; 16], [0; 16]);
    unpack::<4, 8>(&packed[..8], &mut low);
    unpack::<2, 4>(&packed[8..], &mut high);
    std::array::from_fn(|j| (low[j] | high[j] << 4).cast_signed() - 32)
}

/// Offsets: `d` f16 0, `dmin` f16 2, `scales` 4 (see [`scales_and_mins`]), `qs` 16 (4 bits, stride 32).
pub fn decode_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let mut codes = [0; 256];
    unpack::<4, 32>(&block[16..], &mut codes);
    decode_affine(block, &codes, out);
}

/// Offsets: `d` f16 0, `dmin` f16 2, `scales` 4 (see [`scales_and_mins`]), `qh` 16 (fifth bits, stride 32),
/// `qs` 48 (4 bits, stride 32).
pub fn decode_q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (mut codes, mut high) = ([0; 256], [0; 256]);
    unpack::<4, 32>(&block[48..], &mut codes);
    unpack::<1, 32>(&block[16..48], &mut high);
    for (code, high) in codes.iter_mut().zip(&high) {
        *code |= high << 4;
    }
    decode_affine(block, &codes, out);
}

fn decode_affine(block: &[u8], codes: &[u8; 256], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, mins) = scales_and_mins(&block[4..16]);
    for (j, (out, codes)) in sub_blocks::<32>(out, codes).enumerate() {
        let scale = d * f32::from(scales[j]);
        let min = dmin * f32::from(mins[j]);
        for (o, &q) in out.iter_mut().zip(codes) {
            *o = scale * f32::from(q) - min;
        }
    }
}

/// Eight scales and eight mins of 6 bits. Bytes 0..4 and 4..8 hold scales and mins 0..4 in their low 6 bits; bytes
/// 8..12 hold the low nibbles of scales (low) and mins (high) 4..8, whose top bits are bits 6..8 of bytes 0..8.
pub fn scales_and_mins(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = packed[j + 8] & 15 | packed[j] >> 6 << 4;
        mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// Offsets: `ql` 0 (low nibbles, stride 64), `qh` 128 (high pairs of bits, stride 32), `scales` i8 192, `d` f16 208.
pub fn decode_q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    let (mut codes, mut high) = ([0; 256], [0; 256]);
    unpack::<4, 64>(&block[..128], &mut codes);
    unpack::<2, 32>(&block[128..192], &mut high);
    for (code, high) in codes.iter_mut().zip(&high) {
        *code |= high << 4;
    }
    for (j, (out, codes)) in sub_blocks::<16>(out, &codes).enumerate() {
        let scale = d * f32::from(block[192 + j].cast_signed());
        for (o, &q) in out.iter_mut().zip(codes) {
            *o = scale * (f32::from(q) - 32.0);
        }
    }
}

/// Offsets: `d` f32 0, `qs` i8 4, `bsums` i16 260 (sums of 16 codes, for dot products).
pub fn decode_q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (o, &q) in out.iter_mut().zip(&block[4..260]) {
        *o = d * f32::from(q.cast_signed());
    }
}

fn sub_blocks<'a, const N: usize>(
    out: &'a mut [f32; 256],
    codes: &'a [u8; 256],
) -> impl Iterator<Item = (&'a mut [f32; N], &'a [u8; N])> {
    out.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0)
}
