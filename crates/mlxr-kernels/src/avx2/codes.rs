//! Dot products of rows unpacked to codes with quantised activations.

use core::arch::x86_64::*;

use super::dot::reduce;
use super::dots::Dots;
use crate::kernels::{TILE, TILE_ROWS};
use crate::linear::codes::{ACT_GROUP, CodeKind, CodeRow, QuantRow};
use crate::linear::tile::{ActRows, UnpackedTile};

/// Dot products of up to [`TILE`] unpacked rows with as many rows of activations: `out[x * stride + w]`.
///
/// # Safety
/// The CPU has what `D` needs.
#[inline(always)]
unsafe fn dot_codes<D: Dots>(
    kind: CodeKind,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
    stride: usize,
) {
    // SAFETY: passes the caller's promise on.
    unsafe {
        match (kind.signed, kind.group) {
            (false, 32) => pairs::<D, false, 32>(kind.offsets, weights, xs, out, stride),
            (false, _) => pairs::<D, false, 16>(kind.offsets, weights, xs, out, stride),
            (true, 32) => pairs::<D, true, 32>(kind.offsets, weights, xs, out, stride),
            (true, _) => pairs::<D, true, 16>(kind.offsets, weights, xs, out, stride),
        }
    }
}

/// Two weight rows by up to four activation rows at a time, whose sums stay in registers.
///
/// # Safety
/// The CPU has what `D` needs.
#[inline(always)]
unsafe fn pairs<D: Dots, const SIGNED: bool, const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
    stride: usize,
) {
    for (i, xs) in xs.chunks(4).enumerate() {
        for (j, weights) in weights.chunks(2).enumerate() {
            let out = &mut out[4 * i * stride + 2 * j..];
            // SAFETY: passes the caller's promise on.
            unsafe {
                match (weights.len(), xs.len()) {
                    (2, 1) => groups::<D, 2, 1, SIGNED, GROUP>(offsets, weights, xs, out, stride),
                    (2, 2) => groups::<D, 2, 2, SIGNED, GROUP>(offsets, weights, xs, out, stride),
                    (2, _) => groups::<D, 2, 4, SIGNED, GROUP>(offsets, weights, xs, out, stride),
                    (_, 1) => groups::<D, 1, 1, SIGNED, GROUP>(offsets, weights, xs, out, stride),
                    _ => groups::<D, 1, 4, SIGNED, GROUP>(offsets, weights, xs, out, stride),
                }
            }
        }
    }
}

/// One accumulator per product: the integer sums of 32 columns, scaled, lane by lane. The last activation row stands in
/// for those that are not there.
///
/// # Safety
/// The CPU has what `D` needs.
#[inline(always)]
unsafe fn groups<D: Dots, const W: usize, const X: usize, const SIGNED: bool, const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
    stride: usize,
) {
    let weights: &[CodeRow<'_>; W] = weights.try_into().expect("W rows");
    let parts: [_; X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)]).map(|x| (x.codes(), x.scales()));
    // SAFETY: by the caller's promise; loads check that what they read is there.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); W]; X];
        for step in 0..xs[0].cols() / ACT_GROUP {
            let at = step * ACT_GROUP;
            let w = weights.map(|row| load_codes(&row.codes[at..]));
            let w_scale = weights.map(|row| {
                if GROUP == 32 {
                    return _mm256_set1_ps(row.scales[step]);
                }
                let pair = &row.scales[2 * step..2 * step + 2];
                _mm256_set_m128(_mm_set1_ps(pair[1]), _mm_set1_ps(pair[0]))
            });
            for (acc, (x_codes, x_scales)) in acc.iter_mut().zip(&parts) {
                let codes = load_codes(&x_codes[at..]);
                let x_scale = _mm256_set1_ps(x_scales[step]);
                for ((acc, &w), &w_scale) in acc.iter_mut().zip(&w).zip(&w_scale) {
                    let sums = if SIGNED {
                        D::fours(_mm256_abs_epi8(w), _mm256_sign_epi8(codes, w))
                    } else {
                        D::fours(w, codes)
                    };
                    let scale = _mm256_mul_ps(w_scale, x_scale);
                    *acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums), *acc);
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
                out[i * stride + j] = reduce(sum);
            }
        }
    }
}

/// Products of rows unpacked to the common form with `xs`: `out[x * TILE_ROWS + w]`.
///
/// # Safety
/// The CPU has what `D` needs.
#[inline(always)]
pub(super) unsafe fn dot_unpacked<D: Dots>(
    kind: CodeKind,
    weights: &UnpackedTile<'_>,
    xs: &ActRows<'_>,
    out: &mut [f32],
) {
    for first in (0..weights.n_rows).step_by(TILE) {
        let rows: [CodeRow<'_>; TILE] =
            std::array::from_fn(|i| weights.panel.row((first + i).min(weights.n_rows - 1)));
        let rows = &rows[..TILE.min(weights.n_rows - first)];
        // SAFETY: passes the caller's promise on.
        unsafe { dot_codes::<D>(kind, rows, xs.rows, &mut out[first..], TILE_ROWS) };
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i8]) -> __m256i {
    let codes = &codes[..32];
    // SAFETY: 32 bytes are in bounds; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

/// `acc + offsets * sums`, both padded to whole vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_offsets(mut acc: __m256, offsets: &[f32], sums: &[f32]) -> __m256 {
    for (a, b) in offsets.as_chunks::<8>().0.iter().zip(sums.as_chunks::<8>().0) {
        // SAFETY: eight floats each; the loads need no alignment.
        let (a, b) = unsafe { (_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr())) };
        acc = _mm256_fmadd_ps(a, b, acc);
    }
    acc
}
