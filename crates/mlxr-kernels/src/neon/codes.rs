//! Dot products of rows unpacked to codes with quantised activations, by `sdot`.

use core::arch::aarch64::*;

use super::dots::dot_4;
use crate::kernels::{TILE, TILE_ROWS};
use crate::linear::codes::{ACT_GROUP, CodeKind, CodeRow, QuantRow};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
use crate::tiles::for_micro_tiles;

#[target_feature(enable = "neon,dotprod")]
pub(super) fn dot_unpacked(
    kind: CodeKind,
    weights: &UnpackedTile<'_>,
    xs: &ActRows<'_>,
    _: &mut TileScratch,
    out: &mut [f32],
) {
    for_few_rows(weights, |first, weights| {
        let (xs, out) = (xs.rows, &mut out[first..]);
        for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_codes(
            kind,
            w,
            x,
            &mut out[x0 * TILE_ROWS + w0..]
        ));
    });
}

/// Calls `multiply` with the number of the first of up to [`TILE`] rows, and the rows.
#[inline(always)]
pub(super) fn for_few_rows(weights: &UnpackedTile<'_>, mut multiply: impl FnMut(usize, &[CodeRow<'_>])) {
    for first in (0..weights.n_rows).step_by(TILE) {
        let rows: [CodeRow<'_>; TILE] =
            std::array::from_fn(|i| weights.panel.row((first + i).min(weights.n_rows - 1)));
        multiply(first, &rows[..TILE.min(weights.n_rows - first)]);
    }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn micro_codes<const W: usize, const X: usize>(
    kind: CodeKind,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    // `sdot` takes signed codes on both sides, so unsigned kinds (0..=127) need no path of their own.
    if kind.group == 32 {
        micro_groups::<W, X, 32>(kind.offsets, weights, xs, out);
    } else {
        micro_groups::<W, X, 16>(kind.offsets, weights, xs, out);
    }
}

/// One accumulator per product: the integer sums of each group of codes, scaled, lane by lane.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn micro_groups<const W: usize, const X: usize, const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    let weights: &[CodeRow<'_>; W] = weights.try_into().expect("W rows");
    let xs: &[QuantRow<'_>; X] = xs.try_into().expect("X rows");
    let zero = vdupq_n_s32(0);
    let mut acc = [[vdupq_n_f32(0.0); W]; X];
    let parts = xs.each_ref().map(|x| (x.codes(), x.scales()));
    for step in 0..xs[0].cols() / ACT_GROUP {
        let at = step * ACT_GROUP;
        for (j, row) in weights.iter().enumerate() {
            let w = load_codes(&row.codes[at..]);
            for (acc, (x_codes, x_scales)) in acc.iter_mut().zip(&parts) {
                let codes = load_codes(&x_codes[at..]);
                let x_scale = x_scales[step];
                let first = dot_4(zero, w[0], codes[0]);
                if GROUP == 32 {
                    let sums = vcvtq_f32_s32(dot_4(first, w[1], codes[1]));
                    acc[j] = vfmaq_n_f32(acc[j], sums, row.scales[step] * x_scale);
                } else {
                    let (first, second) = (vcvtq_f32_s32(first), vcvtq_f32_s32(dot_4(zero, w[1], codes[1])));
                    acc[j] = vfmaq_n_f32(acc[j], first, row.scales[2 * step] * x_scale);
                    acc[j] = vfmaq_n_f32(acc[j], second, row.scales[2 * step + 1] * x_scale);
                }
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            let mut sum = acc[i][j];
            if offsets {
                let sums = x.sums(GROUP);
                sum = add_offsets(sum, row.offsets, sums);
            }
            out[i * TILE_ROWS + j] = vaddvq_f32(sum);
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_codes(codes: &[i8]) -> [int8x16_t; 2] {
    let codes = &codes[..32];
    // SAFETY: 32 bytes are in bounds.
    unsafe { [vld1q_s8(codes.as_ptr()), vld1q_s8(codes[16..].as_ptr())] }
}

/// `acc + offsets * sums`, both padded to whole vectors.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_offsets(mut acc: float32x4_t, offsets: &[f32], sums: &[f32]) -> float32x4_t {
    for (a, b) in offsets.as_chunks::<4>().0.iter().zip(sums.as_chunks::<4>().0) {
        // SAFETY: four floats each.
        let (a, b) = unsafe { (vld1q_f32(a.as_ptr()), vld1q_f32(b.as_ptr())) };
        acc = vfmaq_f32(acc, a, b);
    }
    acc
}
