//! Ternary blocks of 256: elements are -1, 0 or 1 times an f16.

use super::f16_at;
use super::legacy::{amax, put_f16, recip};
use super::planes::{pack, unpack};

/// Powers of three that move digit `n` of a byte to the top.
const POW3: [u8; 5] = [1, 3, 9, 27, 81];
/// Byte ranges of a TQ1_0 block with the digits each byte holds: 32 and 16 bytes of five, 4 bytes of four.
const TQ1_RUNS: [(usize, usize, usize); 3] = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];

/// Offsets: `qs` 0, `qh` 48, `d` f16 52. A byte holds base-3 digits as a fraction of 256, most significant first.
pub fn decode_tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = f16_at(block, 52);
    let mut outs = out.iter_mut();
    for (start, n_bytes, n_digits) in TQ1_RUNS {
        for pow in &POW3[..n_digits] {
            for (byte, o) in block[start..start + n_bytes].iter().zip(&mut outs) {
                let digit = (u16::from(byte.wrapping_mul(*pow)) * 3) >> 8;
                *o = d * (f32::from(digit) - 1.0);
            }
        }
    }
}

/// Offsets: `qs` 0 (2 bits, stride 32), `d` f16 64.
pub fn decode_tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_at(block, 64);
    let mut codes = [0; 256];
    unpack::<2, 32>(&block[..64], &mut codes);
    for (o, &q) in out.iter_mut().zip(&codes) {
        *o = d * (f32::from(q) - 1.0);
    }
}

pub fn encode_tq1_0(x: &[f32; 256], _importance: Option<&[f32; 256]>, out: &mut [u8; 54]) {
    let (codes, d) = ternary_codes(x);
    let mut first = 0;
    for (start, n_bytes, n_digits) in TQ1_RUNS {
        for (i, byte) in out[start..start + n_bytes].iter_mut().enumerate() {
            let digits = (0..n_digits).map(|n| u16::from(codes[first + n * n_bytes + i]));
            let number = digits.fold(0, |number, digit| number * 3 + digit);
            // Four digits are the high ones of five; 243 * 256 / 243 rounds up so that digits come back exactly.
            let number = if n_digits == 4 { number * 3 } else { number };
            *byte = (number * 256).div_ceil(243) as u8;
        }
        first += n_bytes * n_digits;
    }
    put_f16(out, 52, d);
}

pub fn encode_tq2_0(x: &[f32; 256], _importance: Option<&[f32; 256]>, out: &mut [u8; 66]) {
    let (codes, d) = ternary_codes(x);
    pack::<2, 32>(&codes, &mut out[..64]);
    put_f16(out, 64, d);
}

fn ternary_codes(x: &[f32; 256]) -> ([u8; 256], f32) {
    let d = amax(x);
    let inverse = recip(d);
    (x.map(|v| ((v * inverse).round() + 1.0) as u8), d)
}
