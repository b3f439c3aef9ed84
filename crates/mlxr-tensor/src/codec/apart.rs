//! Formats of Hugging Face files that keep f32 scales apart from the codes: scaled bytes and bitsandbytes' 4-bit tables.
//!
//! Paper of NF4: Dettmers et al., QLoRA (2023). An element is the code's value times its group's scale, in f32.

/// Quantiles of a normal distribution, the outermost at 1, zero among them.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// A subnormal and twelfths: the exponents do not count upwards.
pub const FP4: [f32; 16] = [
    0.0,
    0.005_208_333_5,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    0.0,
    -0.005_208_333_5,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// Two codes a byte, the first in the high half.
pub fn look_up(table: &[f32; 16], bytes: &[u8], out: &mut [f32]) {
    for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
        *pair = [byte >> 4, byte & 15].map(|code| table[usize::from(code)]);
    }
}

/// Multiplies every group of every row by its scale; the last group of a row may be short.
pub fn scale_rows(scales: &[u8], cols: usize, group_size: usize, out: &mut [f32]) {
    if cols == 0 {
        return;
    }
    let mut scales = scales.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    for row in out.chunks_exact_mut(cols) {
        for (group, scale) in row.chunks_mut(group_size).zip(&mut scales) {
            group.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_group_of_a_row_may_be_short() {
        let scales: Vec<u8> = [2.0f32, 3.0, 5.0, 7.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut out = [1.0; 6];
        scale_rows(&scales, 3, 2, &mut out);
        assert_eq!(out, [2.0, 2.0, 3.0, 5.0, 5.0, 7.0]);
    }

    #[test]
    fn the_first_code_lies_in_the_high_half() {
        let mut out = [0.0; 2];
        look_up(&NF4, &[0x0f], &mut out);
        assert_eq!(out, [-1.0, 1.0]);
    }
}
