//! Activations to 8-bit codes: one scale per 32 columns, the largest magnitude at 127.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::linear::blocks::{BLOCK_BYTES, BLOCK_COLS, SCALE_AT, SUMS16_AT, SUMS32_AT, place_of_sum};
use crate::linear::codes::{ACT_GROUP, QuantRowMut};

/// Added to a number of small magnitude, leaves it rounded to an integer, ties to even, in the lowest bits.
const ROUNDER: f32 = (3 << 22) as f32;

/// Fills a quantised row; a NaN becomes 0.
#[inline(always)]
pub(crate) fn quantise(x: &[f32], mut out: QuantRowMut<'_>) {
    let (groups, rest) = x.as_chunks::<ACT_GROUP>();
    for (g, group) in groups.iter().enumerate() {
        quantise_group(g, group, &mut out);
    }
    if !rest.is_empty() {
        // Padding is zero, and the codes of zeros are zeros.
        let mut group = [0f32; ACT_GROUP];
        group[..rest.len()].copy_from_slice(rest);
        quantise_group(groups.len(), &group, &mut out);
    }
}

/// Whole arrays and no early end, so that compilers use vectors throughout.
#[inline(always)]
fn quantise_group(g: usize, group: &[f32; ACT_GROUP], out: &mut QuantRowMut<'_>) {
    let largest = largest_magnitude(group);
    let scale = largest / 127.0;
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    let mut codes = [0; ACT_GROUP];
    codes.iter_mut().zip(group).for_each(|(c, &v)| *c = code(v * inverse));
    let target = &mut out.codes[g * ACT_GROUP..][..ACT_GROUP];
    target.iter_mut().zip(&codes).for_each(|(target, &code)| *target = code as i8);
    let (low, high) = codes.split_at(ACT_GROUP / 2);
    let sums = [low.iter().sum::<i32>(), high.iter().sum::<i32>()];
    out.scales[g] = scale;
    out.sums16[2 * g] = scale * sums[0] as f32;
    out.sums16[2 * g + 1] = scale * sums[1] as f32;
    out.sums32[g] = scale * (sums[0] + sums[1]) as f32;
    out.negated16[2 * g] = -sums[0];
    out.negated16[2 * g + 1] = -sums[1];
    out.negated32[g] = -sums[0] - sums[1];
}

/// Quantises whole blocks of 256 columns, see [`crate::linear::blocks`]; NaNs become 0.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn quantise_blocks(x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() / BLOCK_COLS * BLOCK_BYTES, out.len(), "a block for each 256 columns");
    for (x, out) in x.chunks_exact(BLOCK_COLS).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
        let groups = x.as_chunks::<ACT_GROUP>().0;
        let largest = groups.iter().map(largest_magnitude).fold(0f32, f32::max);
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        out[SUMS32_AT..].fill(0);
        for (g, group) in groups.iter().enumerate() {
            let mut codes = [0; ACT_GROUP];
            codes.iter_mut().zip(group).for_each(|(c, &v)| *c = code(v * inverse));
            let target = &mut out[g * ACT_GROUP..][..ACT_GROUP];
            target.iter_mut().zip(&codes).for_each(|(target, &code)| *target = code as u8);
            let (low, high) = codes.split_at(ACT_GROUP / 2);
            let sums = [low.iter().sum::<i32>(), high.iter().sum::<i32>()];
            let mut put = |at: usize, sum: i32| out[at..at + 2].copy_from_slice(&(sum as i16).to_le_bytes());
            put(SUMS32_AT + 2 * place_of_sum(g), sums[0] + sums[1]);
            put(SUMS16_AT + 2 * place_of_sum(2 * g), sums[0]);
            put(SUMS16_AT + 2 * place_of_sum(2 * g + 1), sums[1]);
        }
        out[SCALE_AT..SCALE_AT + 4].copy_from_slice(&(largest / 127.0).to_le_bytes());
    }
}

/// By halves: a chain of comparisons would wait for each. NaNs count as 0.
#[inline(always)]
fn largest_magnitude(group: &[f32; ACT_GROUP]) -> f32 {
    let mut lanes = [0f32; ACT_GROUP];
    for (m, v) in lanes.iter_mut().zip(group) {
        *m = if 0.0 < v.abs() { v.abs() } else { 0.0 };
    }
    let mut width = ACT_GROUP;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = if lanes[i] < lanes[i + width] { lanes[i + width] } else { lanes[i] };
        }
    }
    lanes[0]
}

/// The nearest code, ties to even: what `as i8` makes of the rounded value, in steps that exist for vectors.
#[inline(always)]
fn code(v: f32) -> i32 {
    let v = if v < -128.0 { -128.0 } else { v };
    let v = if 127.0 < v { 127.0 } else { v };
    let v = if v.is_nan() { 0.0 } else { v };
    (v + ROUNDER).to_bits() as i32 - ROUNDER.to_bits() as i32
}

#[cfg(test)]
mod tests {
    use super::code;

    #[test]
    fn codes_are_rounded_and_saturate() {
        let halves = (-520..=520).map(|i| i as f32 / 4.0);
        let near = halves.clone().flat_map(|v| [v.next_down(), v, v.next_up()]);
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-40, -0.0];
        for v in near.chain(special) {
            assert_eq!(code(v), i32::from(v.round_ties_even() as i8), "{v}");
        }
    }
}
