//! Products of 8-bit codes by `smmla`, which multiplies two weight rows with two activation rows at once.

use core::arch::aarch64::*;

use super::codes::{add_offsets, for_few_rows, load_codes};
use super::dots::multiply;
use crate::kernels::{TILE, TILE_ROWS};
use crate::linear::codes::{ACT_GROUP, CodeKind, CodeRow, QuantRow};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};

#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn dot_unpacked(
    kind: CodeKind,
    weights: &UnpackedTile<'_>,
    xs: &ActRows<'_>,
    _: &mut TileScratch,
    out: &mut [f32],
) {
    for_few_rows(weights, |first, weights| {
        for (xs, out) in xs.rows.chunks(TILE).zip(out[first..].chunks_mut(TILE * TILE_ROWS)) {
            if kind.group == 32 {
                by_pairs::<32>(kind.offsets, weights, xs, out);
            } else {
                by_pairs::<16>(kind.offsets, weights, xs, out);
            }
        }
    });
}

#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn by_pairs<const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    match (weights.len() > 2, xs.len() > 2) {
        (false, false) => micro::<1, 1, GROUP>(offsets, weights, xs, out),
        (false, true) => micro::<1, 2, GROUP>(offsets, weights, xs, out),
        (true, false) => micro::<2, 1, GROUP>(offsets, weights, xs, out),
        (true, true) => micro::<2, 2, GROUP>(offsets, weights, xs, out),
    }
}

/// `W` by `X` pairs of rows, the last row standing in for one that is not there. The whole sum of a group is an
/// integer, so a product is the same whatever rows are beside it.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn micro<const W: usize, const X: usize, const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    let of_pair = |pair: usize, n_rows: usize| [2 * pair, (2 * pair + 1).min(n_rows - 1)];
    let w_rows: [[&CodeRow<'_>; 2]; W] =
        std::array::from_fn(|pair| of_pair(pair, weights.len()).map(|i| &weights[i]));
    let x_rows: [[(&[i8], &[f32]); 2]; X] =
        std::array::from_fn(|pair| of_pair(pair, xs.len()).map(|i| (xs[i].codes(), xs[i].scales())));
    // Lanes: the first weight row with both activation rows, then the second.
    let mut acc = [[vdupq_n_f32(0.0); W]; X];
    for step in 0..xs[0].cols() / ACT_GROUP {
        let at = step * ACT_GROUP;
        let x_codes = x_rows.map(|[(first, _), (second, _)]| interleave(&first[at..], &second[at..]));
        let x_scales = x_rows.map(|[(_, first), (_, second)]| {
            vcombine_f32(pair(first[step], second[step]), pair(first[step], second[step]))
        });
        for (j, [first, second]) in w_rows.iter().enumerate() {
            let w = interleave(&first.codes[at..], &second.codes[at..]);
            let scales = |group: usize| {
                vcombine_f32(vdup_n_f32(first.scales[group]), vdup_n_f32(second.scales[group]))
            };
            for ((acc, x), x_scale) in acc.iter_mut().zip(&x_codes).zip(x_scales) {
                let low = multiply(multiply(vdupq_n_s32(0), w[0], x[0]), w[1], x[1]);
                if GROUP == 32 {
                    let sums = multiply(multiply(low, w[2], x[2]), w[3], x[3]);
                    acc[j] = add_scaled(acc[j], sums, vmulq_f32(scales(step), x_scale));
                } else {
                    let high = multiply(multiply(vdupq_n_s32(0), w[2], x[2]), w[3], x[3]);
                    acc[j] = add_scaled(acc[j], low, vmulq_f32(scales(2 * step), x_scale));
                    acc[j] = add_scaled(acc[j], high, vmulq_f32(scales(2 * step + 1), x_scale));
                }
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            let mut lanes = [0f32; 4];
            // SAFETY: four floats.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), acc[i / 2][j / 2]) };
            let mut sum = lanes[j % 2 * 2 + i % 2];
            if offsets {
                sum += vaddvq_f32(add_offsets(vdupq_n_f32(0.0), row.offsets, x.sums(GROUP)));
            }
            out[i * TILE_ROWS + j] = sum;
        }
    }
}

/// 32 columns of two rows, eight of the first and eight of the second in each vector.
#[inline]
#[target_feature(enable = "neon")]
fn interleave(first: &[i8], second: &[i8]) -> [int8x16_t; 4] {
    let (first, second) = (load_codes(first), load_codes(second));
    let zip = |i: usize| {
        let (a, b) = (vreinterpretq_s64_s8(first[i]), vreinterpretq_s64_s8(second[i]));
        (vreinterpretq_s8_s64(vzip1q_s64(a, b)), vreinterpretq_s8_s64(vzip2q_s64(a, b)))
    };
    let ((a, b), (c, d)) = (zip(0), zip(1));
    [a, b, c, d]
}

#[inline]
#[target_feature(enable = "neon")]
fn pair(first: f32, second: f32) -> float32x2_t {
    vset_lane_f32::<1>(second, vdup_n_f32(first))
}

#[inline]
#[target_feature(enable = "neon")]
fn add_scaled(acc: float32x4_t, sums: int32x4_t, scales: float32x4_t) -> float32x4_t {
    vfmaq_f32(acc, vcvtq_f32_s32(sums), scales)
}
