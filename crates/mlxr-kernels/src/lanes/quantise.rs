//! Activations to 8-bit codes: one scale per 32 columns, the largest magnitude at 127.

use crate::linear::codes::{ACT_GROUP, QuantRowMut};

/// Fills a quantised row; a NaN becomes 0.
#[inline(always)]
pub(crate) fn quantise(x: &[f32], out: QuantRowMut<'_>) {
    for (g, group) in x.chunks(ACT_GROUP).enumerate() {
        let largest = group.iter().fold(0f32, |m, v| if m < v.abs() { v.abs() } else { m });
        let scale = largest / 127.0;
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        let codes = &mut out.codes[g * ACT_GROUP..][..group.len()];
        for (code, &v) in codes.iter_mut().zip(group) {
            // The cast saturates, and takes NaN to 0.
            *code = (v * inverse).round_ties_even() as i8;
        }
        let halves = [&codes[..codes.len().min(16)], &codes[codes.len().min(16)..]];
        let sums = halves.map(|half| half.iter().map(|&c| i32::from(c)).sum::<i32>());
        out.scales[g] = scale;
        out.sums16[2 * g] = scale * sums[0] as f32;
        out.sums16[2 * g + 1] = scale * sums[1] as f32;
        out.sums32[g] = scale * (sums[0] + sums[1]) as f32;
        out.negated16[2 * g] = -sums[0];
        out.negated16[2 * g + 1] = -sums[1];
        out.negated32[g] = -sums[0] - sums[1];
    }
}
