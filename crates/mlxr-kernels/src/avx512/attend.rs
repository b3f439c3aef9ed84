//! Queries meet sixteen keys: a key is a lane.
//!
//! Keys are turned once for all queries, so scores need no reduction and their softmax is a few vector operations.
//! Every query goes through the same operations whatever their number is.

use core::arch::x86_64::*;

use mlxr_tensor::DType;

use super::dot::{Bf16, Element, F16, F32};
use super::rows::transposed;
use super::tile::{load, store};
use crate::kernels::{Softmax, Unit, UnitScratch};
use crate::lanes::Fused;
use crate::lanes::math;

/// Keys of a unit.
const N_KEYS: usize = 16;

/// Queries that share a load of keys or values.
const BLOCK: usize = 4;

/// Vectors of a value that are added up at once.
const SPAN: usize = 4;

/// Adds a unit to the states of its queries.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn attend(unit: &Unit<'_>, scratch: &mut UnitScratch, state: &mut Softmax<'_>) {
    assert!(unit.n_keys <= N_KEYS && unit.k_dim.is_multiple_of(N_KEYS), "a unit of keys");
    assert!(unit.v_dim.is_multiple_of(N_KEYS), "whole vectors of values");
    assert!(unit.queries.iter().all(|q| q.len() == unit.k_dim), "queries as wide as keys");
    let n = unit.queries.len();
    assert!(unit.masks.len() == n && state.max.len() == n && state.sum.len() == n, "one state a query");
    assert_eq!(state.acc.len(), n * unit.v_dim, "one value a query");
    let UnitScratch { keys, values, weights } = scratch;
    keys.resize(unit.k_dim * N_KEYS, 0.0);
    values.resize(unit.v_dim * N_KEYS, 0.0);
    weights.resize(n * N_KEYS, 0.0);
    match unit.dtype {
        DType::F16 => unpack::<F16>(unit, keys, values),
        DType::BF16 => unpack::<Bf16>(unit, keys, values),
        _ => unpack::<F32>(unit, keys, values),
    }
    for (queries, weights) in unit.queries.chunks(BLOCK).zip(weights.chunks_mut(BLOCK * N_KEYS)) {
        match queries {
            [a, b, c, d] => scores(&[a, b, c, d], keys, weights),
            _ => {
                for (query, weights) in queries.iter().zip(weights.chunks_exact_mut(N_KEYS)) {
                    scores(&[query], keys, weights);
                }
            }
        }
    }
    for (i, weights) in weights.chunks_exact_mut(N_KEYS).enumerate() {
        let acc = &mut state.acc[i * unit.v_dim..(i + 1) * unit.v_dim];
        soften(unit, unit.masks[i], weights, (&mut state.max[i], &mut state.sum[i], acc));
    }
    let values = &values[..unit.n_keys * unit.v_dim];
    let blocks = state.acc.chunks_mut(BLOCK * unit.v_dim).zip(weights.chunks(BLOCK * N_KEYS));
    blocks.for_each(|(acc, weights)| add_values(acc, weights, values, unit.v_dim));
}

/// Keys as `[k_dim, 16]`, zeros where there are fewer, and values as `[n_keys, v_dim]`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn unpack<E: Element>(unit: &Unit<'_>, keys: &mut [f32], values: &mut [f32]) {
    for (i, out) in keys.chunks_exact_mut(N_KEYS * N_KEYS).enumerate() {
        let mut rows = [_mm512_setzero_si512(); N_KEYS];
        for (row, key) in rows.iter_mut().zip(unit.keys.chunks_exact(unit.k_dim * E::BYTES)) {
            *row = _mm512_castps_si512(E::load(&key[i * N_KEYS * E::BYTES..]));
        }
        for (column, out) in transposed(rows).into_iter().zip(out.chunks_exact_mut(N_KEYS)) {
            store(out, _mm512_castsi512_ps(column));
        }
    }
    let stored = unit.values.chunks_exact(N_KEYS * E::BYTES);
    stored.zip(values.chunks_exact_mut(N_KEYS)).for_each(|(stored, out)| store(out, E::load(stored)));
}

/// Scores of `X` queries: `[X, 16]`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn scores<const X: usize>(queries: &[&[f32]; X], keys: &[f32], out: &mut [f32]) {
    let k_dim = keys.len() / N_KEYS;
    assert!(queries.iter().all(|q| q.len() == k_dim), "queries as wide as keys");
    // Two chains, because one would wait for each sum.
    let mut even = [_mm512_setzero_ps(); X];
    let mut odd = [_mm512_setzero_ps(); X];
    for (d, pair) in keys.chunks_exact(2 * N_KEYS).enumerate() {
        let (a, b) = (load(pair), load(&pair[N_KEYS..]));
        for x in 0..X {
            // SAFETY: a query has `k_dim` values, twice as many as there are pairs.
            let (qa, qb) =
                unsafe { (*queries[x].get_unchecked(2 * d), *queries[x].get_unchecked(2 * d + 1)) };
            even[x] = _mm512_fmadd_ps(_mm512_set1_ps(qa), a, even[x]);
            odd[x] = _mm512_fmadd_ps(_mm512_set1_ps(qb), b, odd[x]);
        }
    }
    for (x, out) in out.chunks_exact_mut(N_KEYS).take(X).enumerate() {
        store(out, _mm512_add_ps(even[x], odd[x]));
    }
}

/// Turns the scores of a query into weights, and scales its state down where a larger score came; keys outside `mask`
/// weigh nothing.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn soften(
    unit: &Unit<'_>,
    mask: u16,
    weights: &mut [f32],
    (max, sum, acc): (&mut f32, &mut f32, &mut [f32]),
) {
    if mask == 0 {
        store(weights, _mm512_setzero_ps());
        return;
    }
    let mut scores = [0f32; N_KEYS];
    store(&mut scores, _mm512_mul_ps(load(weights), _mm512_set1_ps(unit.scale)));
    if let Some(cap) = unit.softcap {
        scores.iter_mut().for_each(|v| *v = cap * math::tanh::<Fused>(*v / cap));
    }
    let largest = max.max(_mm512_mask_reduce_max_ps(mask, load(&scores)));
    if *max != f32::NEG_INFINITY && *max != largest {
        let shrink = math::exp::<Fused>(*max - largest);
        *sum *= shrink;
        acc.iter_mut().for_each(|v| *v *= shrink);
    }
    *max = largest;
    scores.iter_mut().for_each(|v| *v = math::exp::<Fused>(*v - largest));
    let kept = _mm512_maskz_mov_ps(mask, load(&scores));
    *sum += _mm512_reduce_add_ps(kept);
    store(weights, kept);
}

/// Adds the weighted values to the accumulators of up to [`BLOCK`] queries.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_values(acc: &mut [f32], weights: &[f32], values: &[f32], v_dim: usize) {
    let whole = v_dim / (SPAN * N_KEYS) * (SPAN * N_KEYS);
    for col in (0..whole).step_by(SPAN * N_KEYS) {
        if weights.len() == BLOCK * N_KEYS {
            add_columns::<BLOCK, SPAN>(acc, weights, values, (col, v_dim));
        } else {
            add_rows::<SPAN>(acc, weights, values, (col, v_dim));
        }
    }
    for col in (whole..v_dim).step_by(N_KEYS) {
        add_rows::<1>(acc, weights, values, (col, v_dim));
    }
}

/// [`add_columns`] one query after the other.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_rows<const C: usize>(acc: &mut [f32], weights: &[f32], values: &[f32], (col, v_dim): (usize, usize)) {
    for (acc, weights) in acc.chunks_exact_mut(v_dim).zip(weights.chunks_exact(N_KEYS)) {
        add_columns::<1, C>(acc, weights, values, (col, v_dim));
    }
}

/// Adds `C` vectors of the weighted values from column `col` on to the accumulators of `X` queries.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_columns<const X: usize, const C: usize>(
    acc: &mut [f32],
    weights: &[f32],
    values: &[f32],
    (col, v_dim): (usize, usize),
) {
    assert!(weights.len() == X * N_KEYS && values.len() <= N_KEYS * v_dim, "a weight for each value");
    let mut sums = [[_mm512_setzero_ps(); C]; X];
    for (x, sums) in sums.iter_mut().enumerate() {
        for (c, sum) in sums.iter_mut().enumerate() {
            *sum = load(&acc[x * v_dim + col + c * N_KEYS..]);
        }
    }
    for (key, value) in values.chunks_exact(v_dim).enumerate() {
        let mut vectors = [_mm512_setzero_ps(); C];
        for (c, vector) in vectors.iter_mut().enumerate() {
            *vector = load(&value[col + c * N_KEYS..]);
        }
        for (x, sums) in sums.iter_mut().enumerate() {
            // SAFETY: there are sixteen weights a query, and no more keys.
            let weight = _mm512_set1_ps(unsafe { *weights.get_unchecked(x * N_KEYS + key) });
            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                *sum = _mm512_fmadd_ps(weight, vector, *sum);
            }
        }
    }
    for (x, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            store(&mut acc[x * v_dim + col + c * N_KEYS..], *sum);
        }
    }
}
