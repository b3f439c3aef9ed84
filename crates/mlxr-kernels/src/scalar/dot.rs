//! Dot products in plain Rust.

use half::{bf16, f16};

use crate::kernels::TILE;
use crate::linear::codes::{ACT_GROUP, CodeKind, CodeRow, QuantRow};

/// Partial sums of one product.
const LANES: usize = 8;

pub(crate) fn dot_f32(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    tile::<4>(weights, xs, out, f32::from_le_bytes);
}

pub(crate) fn dot_f16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    tile::<2>(weights, xs, out, |b| f16::from_le_bytes(b).to_f32());
}

pub(crate) fn dot_bf16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    tile::<2>(weights, xs, out, |b| bf16::from_le_bytes(b).to_f32());
}

#[inline(always)]
fn tile<const N: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32], to_f32: impl Fn([u8; N]) -> f32) {
    for (w, weight) in weights.iter().enumerate() {
        let elements = weight.as_chunks::<N>().0;
        for (i, x) in xs.iter().enumerate() {
            let mut sums = [0f32; LANES];
            for (ws, xs) in elements.chunks(LANES).zip(x.chunks(LANES)) {
                for ((sum, &w), &x) in sums.iter_mut().zip(ws).zip(xs) {
                    *sum += to_f32(w) * x;
                }
            }
            out[i * TILE + w] = sums.iter().sum();
        }
    }
}

pub(crate) fn dot_codes(kind: CodeKind, weights: &[CodeRow<'_>], xs: &[QuantRow<'_>], out: &mut [f32]) {
    for (w, weight) in weights.iter().enumerate() {
        for (i, x) in xs.iter().enumerate() {
            out[i * TILE + w] = dot_row(kind, weight, x);
        }
    }
}

fn dot_row(kind: CodeKind, w: &CodeRow<'_>, x: &QuantRow<'_>) -> f32 {
    let mut sum = 0f32;
    let groups = w.codes.chunks_exact(kind.group).zip(x.codes().chunks_exact(kind.group));
    for (g, (ws, xs)) in groups.enumerate() {
        let dot: i32 = ws.iter().zip(xs).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        sum += w.scales[g] * x.scales()[g * kind.group / ACT_GROUP] * dot as f32;
    }
    if kind.offsets {
        let sums = x.sums(kind.group);
        sum += w.offsets.iter().zip(sums).map(|(a, b)| a * b).sum::<f32>();
    }
    sum
}
