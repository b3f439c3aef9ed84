//! 8-bit floats of the OCP specifications: E4M3 (no infinities, NaN at 0x7f), E5M2 (IEEE-like) and the E8M0 scales
//! of the microscaling formats.

use half::f16;

use super::fit;

/// E4M3 has f16's layout with a shorter exponent: moved into place, its bias is 8 lower.
pub fn e4m3_to_f32(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    let bits = u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7;
    f16::from_bits(bits).to_f32() * 256.0
}

/// Rounds to nearest even and saturates at 448.
pub fn f32_to_e4m3(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let magnitude = x.abs().min(448.0);
    // The spacing of codes is 2^-9 below 2^-6 and an eighth of the power of two above.
    let exponent = (magnitude.to_bits() >> 23) as i32 - 127;
    let exponent = exponent.max(-6);
    let steps = fit::round(magnitude * exp2i(3 - exponent)) as i32;
    // `steps` counts 0..=16 eighths; reaching 16 carries into the exponent by itself.
    sign | (((exponent + 6) << 3) + steps) as u8
}

/// E5M2 is f16 without its low byte.
pub fn e5m2_to_f32(code: u8) -> f32 {
    f16::from_bits(u16::from(code) << 8).to_f32()
}

/// `2^(code - 127)`, with 2^-127 for code 0 and infinity for code 255 (the specification's NaN).
pub fn e8m0_to_f32(code: u8) -> f32 {
    if code == 0 { f32::from_bits(0x0040_0000) } else { f32::from_bits(u32::from(code) << 23) }
}

/// `2^n` for the exponents of normal numbers.
fn exp2i(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

pub fn decode_e4m3(code: &[u8; 1], out: &mut [f32; 1]) {
    out[0] = e4m3_to_f32(code[0]);
}

pub fn decode_e5m2(code: &[u8; 1], out: &mut [f32; 1]) {
    out[0] = e5m2_to_f32(code[0]);
}

pub fn encode_e4m3(x: &[f32; 1], out: &mut [u8; 1]) {
    out[0] = f32_to_e4m3(x[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_e4m3_code_survives_a_round_trip() {
        for code in (0..=255u8).filter(|c| c & 0x7f != 0x7f) {
            assert_eq!(f32_to_e4m3(e4m3_to_f32(code)), code);
        }
    }

    #[test]
    fn e4m3_rounds_ties_to_even_and_saturates() {
        assert_eq!(e4m3_to_f32(f32_to_e4m3(17.0)), 16.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(19.0)), 20.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(15.9)), 16.0);
        assert_eq!(e4m3_to_f32(f32_to_e4m3(-1e9)), -448.0);
    }
}
