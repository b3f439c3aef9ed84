//! Queries meet keys and values sixteen positions at a time.
//!
//! A dot product has sixteen partial sums, lane `l` those of columns `l`, `l + 16` and so on, which are added lane `l` to
//! `l + 8`, then `l + 4`, `l + 2`, `l + 1`. Few queries take the keys as they are stored, a lane a column, and the sums of
//! sixteen keys are added across lanes together; for many the keys are turned first, a lane a key, and the partial sums
//! are vectors. Both do the same additions in the same order, so a result does not depend on the number of queries.

use core::arch::x86_64::*;

use mlxr_tensor::DType;

use super::dot::{Bf16, Element, F16, F32};
use super::rows::transposed;
use super::tile::{load, store};
use crate::aligned::{as_bytes, prefetch};
use crate::kernels::{AttendKernels, UNIT_TOKENS, UNITS_AHEAD, Units};

/// Queries up to which keys and values are used as they are stored.
const FEW: usize = 8;

/// Queries that share a load of keys or values.
const BLOCK: usize = 4;

/// Vectors of a value that are added up at once.
const SPAN: usize = 4;

/// Units whose values are turned into floats together, for many queries.
const FLOAT_UNITS: usize = 4;

pub(super) const KERNELS: AttendKernels = AttendKernels { scores, add_values };

/// Calls a kernel for the type of stored elements.
macro_rules! for_element {
    ($units:expr, $kernel:ident($($arg:expr),*)) => {
        match $units.dtype {
            DType::F16 => $kernel::<F16>($($arg),*),
            DType::BF16 => $kernel::<Bf16>($($arg),*),
            _ => $kernel::<F32>($($arg),*),
        }
    };
}

/// Dot products with queries: `out[query * n + key]`, `n` being sixteen for each unit.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn scores(keys: &Units<'_>, queries: &[&[f32]], scratch: &mut Vec<f32>, out: &mut [f32]) {
    assert!(queries.iter().all(|q| q.len() == keys.dim), "queries as wide as keys");
    assert_eq!(out.len(), queries.len() * keys.units.len() * UNIT_TOKENS, "a score for each query and key");
    keys.check();
    for_element!(keys, scores_of(keys, queries, scratch, out));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn scores_of<E: Element>(keys: &Units<'_>, queries: &[&[f32]], turned: &mut Vec<f32>, out: &mut [f32]) {
    let stride = keys.units.len() * UNIT_TOKENS;
    turned.resize(if queries.len() <= FEW { 0 } else { keys.dim * UNIT_TOKENS }, 0.0);
    for (u, unit) in keys.units.iter().enumerate() {
        keys.units.get(u + UNITS_AHEAD).inspect(|unit| prefetch(unit));
        turn::<E>(unit, turned);
        for (queries, out) in queries.chunks(BLOCK).zip(out.chunks_mut(BLOCK * stride)) {
            let (unit, out) = ((*unit, &turned[..]), (&mut out[u * UNIT_TOKENS..], stride));
            match *queries {
                [a, b, c, d] => block_scores::<E, 4>([a, b, c, d], unit, out),
                [a, b, c] => block_scores::<E, 3>([a, b, c], unit, out),
                [a, b] => block_scores::<E, 2>([a, b], unit, out),
                _ => block_scores::<E, 1>([queries[0]], unit, out),
            }
        }
    }
}

/// The scores of some queries with a unit, which is as stored or, if there is that, turned.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn block_scores<E: Element, const X: usize>(
    queries: [&[f32]; X],
    (stored, turned): (&[u8], &[f32]),
    (out, stride): (&mut [f32], usize),
) {
    let sums = if turned.is_empty() {
        stored_scores::<E, X>(queries, stored)
    } else {
        turned_scores(queries, turned)
    };
    for (x, sums) in sums.into_iter().enumerate() {
        store(&mut out[x * stride..], sums);
    }
}

/// Scores with keys as stored: a key's columns are lanes until their sums are added.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn stored_scores<E: Element, const X: usize>(queries: [&[f32]; X], keys: &[u8]) -> [__m512; X] {
    let dim = queries[0].len();
    let key_bytes = dim * E::BYTES;
    let last = keys.len() / key_bytes - 1;
    // Quarter `k` of `fours[g]` belongs to key `g + 4 * k`, which is where adding across lanes leaves its sum.
    let mut fours = [[_mm512_setzero_ps(); X]; 4];
    for (g, fours) in fours.iter_mut().enumerate() {
        let rows: [&[u8]; 4] =
            core::array::from_fn(|k| &keys[(g + 4 * k).min(last) * key_bytes..][..key_bytes]);
        let mut sums = [[_mm512_setzero_ps(); 4]; X];
        for col in (0..dim).step_by(UNIT_TOKENS) {
            let mut columns = [_mm512_setzero_ps(); 4];
            for (column, row) in columns.iter_mut().zip(rows) {
                *column = E::load(&row[col * E::BYTES..]);
            }
            for (sums, query) in sums.iter_mut().zip(queries) {
                let query = load(&query[col..]);
                for (sum, &column) in sums.iter_mut().zip(&columns) {
                    *sum = _mm512_fmadd_ps(query, column, *sum);
                }
            }
        }
        for (four, [a, b, c, d]) in fours.iter_mut().zip(sums) {
            let (ab, cd) = (add_halves(a, b), add_halves(c, d));
            *four = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
        }
    }
    let mut scores = [_mm512_setzero_ps(); X];
    for (x, score) in scores.iter_mut().enumerate() {
        let (ab, cd) = (add_pairs(fours[0][x], fours[1][x]), add_pairs(fours[2][x], fours[3][x]));
        *score = _mm512_add_ps(_mm512_shuffle_ps::<0x88>(ab, cd), _mm512_shuffle_ps::<0xdd>(ab, cd));
    }
    scores
}

/// The lower half of each vector plus its upper half, side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_halves(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
}

/// In each quarter, the lower pair of each vector plus its upper pair, side by side.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_pairs(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b))
}

/// Keys as `[dim, 16]`, for which `turned` has room if they are wanted so.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn turn<E: Element>(keys: &[u8], turned: &mut [f32]) {
    let dim = turned.len() / UNIT_TOKENS;
    for (i, out) in turned.chunks_exact_mut(UNIT_TOKENS * UNIT_TOKENS).enumerate() {
        let mut rows = [_mm512_setzero_si512(); UNIT_TOKENS];
        for (row, key) in rows.iter_mut().zip(keys.chunks_exact(dim * E::BYTES)) {
            *row = _mm512_castps_si512(E::load(&key[i * UNIT_TOKENS * E::BYTES..]));
        }
        for (column, out) in transposed(rows).into_iter().zip(out.chunks_exact_mut(UNIT_TOKENS)) {
            store(out, _mm512_castsi512_ps(column));
        }
    }
}

/// Scores with turned keys: every lane is a key, every partial sum a vector.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn turned_scores<const X: usize>(queries: [&[f32]; X], keys: &[f32]) -> [__m512; X] {
    let dim = keys.len() / UNIT_TOKENS;
    assert!(queries.iter().all(|q| q.len() == dim), "queries as wide as keys");
    // The first of the two partial sums that are added first, in the order in which sums of sums follow.
    const ORDER: [usize; 8] = [0, 4, 2, 6, 1, 5, 3, 7];
    let mut waiting = [[_mm512_setzero_ps(); X]; 4];
    for (n, lane) in ORDER.into_iter().enumerate() {
        let (mut low, mut high) = ([_mm512_setzero_ps(); X], [_mm512_setzero_ps(); X]);
        for col in (lane..dim).step_by(UNIT_TOKENS) {
            let (a, b) = (load(&keys[col * UNIT_TOKENS..]), load(&keys[(col + 8) * UNIT_TOKENS..]));
            for x in 0..X {
                // SAFETY: queries are as wide as keys, of which the loads above found sixteen columns from `col - lane`.
                let (qa, qb) =
                    unsafe { (*queries[x].get_unchecked(col), *queries[x].get_unchecked(col + 8)) };
                low[x] = _mm512_fmadd_ps(_mm512_set1_ps(qa), a, low[x]);
                high[x] = _mm512_fmadd_ps(_mm512_set1_ps(qb), b, high[x]);
            }
        }
        for x in 0..X {
            let mut sum = _mm512_add_ps(low[x], high[x]);
            let mut level = 0;
            while n >> level & 1 == 1 {
                sum = _mm512_add_ps(waiting[level][x], sum);
                level += 1;
            }
            waiting[level][x] = sum;
        }
    }
    waiting[3]
}

/// `acc += weights * values` for each query, position after position; weights are laid out as [`scores`] are.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_values(values: &Units<'_>, weights: &[f32], scratch: &mut Vec<f32>, acc: &mut [f32]) {
    let stride = values.units.len() * UNIT_TOKENS;
    assert_eq!(weights.len() * values.dim, acc.len() * stride, "a weight for each query and value");
    values.check();
    for_element!(values, add_values_of(values, weights, scratch, acc));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_values_of<E: Element>(values: &Units<'_>, weights: &[f32], floats: &mut Vec<f32>, acc: &mut [f32]) {
    let stride = values.units.len() * UNIT_TOKENS;
    if acc.len() <= FEW * values.dim {
        return add_units::<E>(values.units, (weights, stride), values.dim, acc);
    }
    for (n, units) in values.units.chunks(FLOAT_UNITS).enumerate() {
        floats.clear();
        let mut whole: [&[u8]; FLOAT_UNITS] = [&[]; FLOAT_UNITS];
        for unit in units {
            for stored in unit.chunks_exact(UNIT_TOKENS * E::BYTES) {
                let mut sixteen = [0f32; UNIT_TOKENS];
                store(&mut sixteen, E::load(stored));
                floats.extend_from_slice(&sixteen);
            }
        }
        let unit_bytes = UNIT_TOKENS * values.dim * F32::BYTES;
        whole.iter_mut().zip(as_bytes(floats).chunks(unit_bytes)).for_each(|(to, from)| *to = from);
        let weights = &weights[n * FLOAT_UNITS * UNIT_TOKENS..];
        add_units::<F32>(&whole[..units.len()], (weights, stride), values.dim, acc);
    }
}

/// As [`add_values`]; the weights of a query are `stride` apart from those of the next.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_units<E: Element>(units: &[&[u8]], (weights, stride): (&[f32], usize), dim: usize, acc: &mut [f32]) {
    for (i, acc) in acc.chunks_mut(BLOCK * dim).enumerate() {
        let weights = (&weights[i * BLOCK * stride..], stride);
        match acc.len() / dim {
            4 => add_block::<E, 4>(units, weights, dim, acc),
            3 => add_block::<E, 3>(units, weights, dim, acc),
            2 => add_block::<E, 2>(units, weights, dim, acc),
            _ => add_block::<E, 1>(units, weights, dim, acc),
        }
    }
}

/// As [`add_units`], for `X` queries.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_block<E: Element, const X: usize>(
    units: &[&[u8]],
    weights: (&[f32], usize),
    dim: usize,
    acc: &mut [f32],
) {
    let whole = dim / (SPAN * UNIT_TOKENS) * (SPAN * UNIT_TOKENS);
    for col in (0..whole).step_by(SPAN * UNIT_TOKENS) {
        add_columns::<E, X, SPAN>(units, weights, (col, dim), acc);
    }
    for col in (whole..dim).step_by(UNIT_TOKENS) {
        add_columns::<E, X, 1>(units, weights, (col, dim), acc);
    }
}

/// Adds `C` vectors of the weighted values from column `col` on to the accumulators of `X` queries.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_columns<E: Element, const X: usize, const C: usize>(
    units: &[&[u8]],
    (weights, stride): (&[f32], usize),
    (col, dim): (usize, usize),
    acc: &mut [f32],
) {
    let mut sums = [[_mm512_setzero_ps(); C]; X];
    for (x, sums) in sums.iter_mut().enumerate() {
        for (c, sum) in sums.iter_mut().enumerate() {
            *sum = load(&acc[x * dim + col + c * UNIT_TOKENS..]);
        }
    }
    for (u, unit) in units.iter().enumerate() {
        if col == 0 {
            units.get(u + UNITS_AHEAD).inspect(|unit| prefetch(unit));
        }
        let weights: [&[f32]; X] =
            core::array::from_fn(|x| &weights[x * stride + u * UNIT_TOKENS..][..UNIT_TOKENS]);
        for (key, value) in unit.chunks_exact(dim * E::BYTES).take(UNIT_TOKENS).enumerate() {
            let mut vectors = [_mm512_setzero_ps(); C];
            for (c, vector) in vectors.iter_mut().enumerate() {
                *vector = E::load(&value[(col + c * UNIT_TOKENS) * E::BYTES..]);
            }
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let weight = _mm512_set1_ps(weights[key]);
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = _mm512_fmadd_ps(weight, vector, *sum);
                }
            }
        }
    }
    for (x, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            store(&mut acc[x * dim + col + c * UNIT_TOKENS..], *sum);
        }
    }
}
