//! Many queries meet keys and values in bf16, two by two tiles at a time by the units of [`super::wide`].
//!
//! Queries, keys, weights and values are rounded to bf16; products are added up in f32, columns, or positions, in their
//! order. Not the bits of the kernels for few queries.

use core::arch::x86_64::*;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

use mlxr_tensor::DType;

use super::dot::{Bf16, Element, F16, F32};
use super::tile::load;
use super::wide::{self, PANEL_TILE, Unit, paired, store};
use crate::kernels::{Seen, Softened, UNIT_TOKENS, Units, WideAttend};
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{BLOCK_ROWS, STEP_COLS, TILE_BYTES, each_block, rooms};

/// Columns of a pair of tiles.
const PAIR: usize = 2 * N_ROWS;

pub(crate) const fn kernels<U: Unit>() -> WideAttend {
    WideAttend { scores: scores::<U>, add_softened: add_softened::<U> }
}

/// As [`super::attend`]'s, rounded to bf16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn scores<U: Unit>(keys: &Units<'_>, queries: &[&[f32]], scratch: &mut Vec<f32>, out: &mut [f32]) {
    let stride = keys.units.len() * UNIT_TOKENS;
    keys.check_scores(queries, out);
    let n_steps = keys.dim.div_ceil(STEP_COLS);
    let (acts, panel) = rooms(scratch, queries.len(), n_steps, 2 * PANEL_TILE);
    pack(queries.iter().copied(), acts, n_steps);
    // SAFETY: a unit's table is only used where the unit is there.
    unsafe { U::begin() };
    for (i, units) in keys.units.chunks(2).enumerate() {
        for (unit, tile) in units.iter().zip(panel.chunks_exact_mut(PANEL_TILE)) {
            match keys.dtype {
                DType::F16 => put_keys::<F16>(unit, tile),
                DType::BF16 => put_keys::<Bf16>(unit, tile),
                _ => put_keys::<F32>(unit, tile),
            }
        }
        let columns = i * PAIR..stride.min((i + 1) * PAIR);
        multiply::<U>(acts, panel, n_steps, (out, stride), columns, false);
    }
    // SAFETY: as above.
    unsafe { U::end() };
}

/// Weights are rounded to bf16 where they are made; their sum is that before rounding.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn add_softened<U: Unit>(values: &Units<'_>, seen: Seen<'_>, scratch: &mut Vec<f32>, state: Softened<'_>) {
    let stride = values.units.len() * UNIT_TOKENS;
    let n_queries = seen.checked_queries(values, &state);
    let n_steps = stride.div_ceil(STEP_COLS);
    let (acts, panel) = rooms(scratch, n_queries, n_steps, 2 * PANEL_TILE);
    let block_bytes = n_steps * 2 * TILE_BYTES;
    let states = state.max.iter_mut().zip(state.sum);
    for (query, (scores, (max, sum))) in seen.scores.chunks_exact(stride).zip(states).enumerate() {
        let line = query / BLOCK_ROWS * block_bytes + query % BLOCK_ROWS * LINE_BYTES;
        let visible = (seen.visible)(query);
        let found = soften(scores, visible.clone(), seen.scale, &mut acts[line..]);
        if !visible.is_empty() {
            (*max, *sum) = found;
        }
    }
    for row in n_queries..n_queries.next_multiple_of(BLOCK_ROWS) {
        let line = row / BLOCK_ROWS * block_bytes + row % BLOCK_ROWS * LINE_BYTES;
        acts[line..].chunks_mut(2 * TILE_BYTES).take(n_steps).for_each(|line| line[..LINE_BYTES].fill(0));
    }
    let acc = state.acc;
    // SAFETY: a unit's table is only used where the unit is there.
    unsafe { U::begin() };
    for first in (0..values.dim).step_by(PAIR) {
        let columns = first..values.dim.min(first + PAIR);
        for (col, tile) in columns.clone().step_by(N_ROWS).zip(panel.chunks_exact_mut(PANEL_TILE)) {
            match values.dtype {
                DType::F16 => put_values::<F16>(values, col, tile),
                DType::BF16 => put_values::<Bf16>(values, col, tile),
                _ => put_values::<F32>(values, col, tile),
            }
        }
        multiply::<U>(acts, panel, n_steps, (acc, values.dim), columns, true);
    }
    // SAFETY: as above.
    unsafe { U::end() };
}

/// Puts `exp(score - largest)`, the scores being scaled, in the lines of a row, zeros for positions that are not visible.
/// Returns the largest score and the sum.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn soften(scores: &[f32], visible: Range<usize>, scale: f32, lines: &mut [u8]) -> (f32, f32) {
    // The visible lanes of a vector.
    let lanes = |vector: usize| -> __mmask16 {
        let below = |end: usize| (1u32 << end.saturating_sub(vector * N_ROWS).min(N_ROWS)) - 1;
        (below(visible.end) & !below(visible.start)) as __mmask16
    };
    let by = _mm512_set1_ps(scale);
    let mut most = [_mm512_set1_ps(f32::NEG_INFINITY); 2];
    for (i, scores) in scores.chunks_exact(N_ROWS).enumerate().take(visible.end.div_ceil(N_ROWS)) {
        let scaled = _mm512_mul_ps(load(scores), by);
        most[i % 2] = _mm512_mask_max_ps(most[i % 2], lanes(i), scaled, most[i % 2]);
    }
    let largest = _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));
    // In powers of two.
    let (by, from) = (scale * LOG2_E, largest * LOG2_E);
    let (by, from) = (_mm512_set1_ps(by), _mm512_set1_ps(from));
    let mut sums = [_mm512_setzero_ps(); 2];
    for (step, out) in lines.chunks_mut(2 * TILE_BYTES).take(scores.len().div_ceil(STEP_COLS)).enumerate() {
        let mut pair = [_mm512_setzero_ps(); 2];
        for (half, sum) in sums.iter_mut().enumerate() {
            let i = 2 * step + half;
            let lanes = lanes(i);
            if lanes != 0 {
                pair[half] = exp2(lanes, _mm512_fmsub_ps(load(&scores[i * N_ROWS..]), by, from));
                *sum = _mm512_add_ps(*sum, pair[half]);
            }
        }
        // SAFETY: plain bits on both sides.
        let line = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(pair[1], pair[0])) };
        store(out, line);
    }
    (largest, _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])))
}

/// `2^x` for some lanes, zero for the others: to a ten-thousandth, where a bf16 has a two-hundredth.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2(lanes: __mmask16, x: __m512) -> __m512 {
    // Beside the largest score's one this is nothing, and no denormal, which would take long; a NaN stays.
    let x = _mm512_max_ps(_mm512_set1_ps(-100.0), x);
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    let f = _mm512_sub_ps(x, n);
    // The first terms of the series of `e^(f ln 2)`, for `|f| <= 1/2`.
    let p = _mm512_fmadd_ps(f, _mm512_set1_ps(9.618_13e-3), _mm512_set1_ps(5.550_411e-2));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240_226_5));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(LN_2));
    let p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0));
    _mm512_maskz_scalef_ps(lanes, p, n)
}

/// Rounds rows, and puts them in blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack<'a>(rows: impl Iterator<Item = &'a [f32]>, acts: &mut [u8], n_steps: usize) {
    let mut rows = rows.peekable();
    for block in acts.chunks_exact_mut(n_steps * 2 * TILE_BYTES) {
        let (mut some, mut n): ([&[f32]; BLOCK_ROWS], usize) = ([&[]; BLOCK_ROWS], 0);
        while let Some(row) = rows.next_if(|_| n < BLOCK_ROWS) {
            (some[n], n) = (row, n + 1);
        }
        wide::pack(&some[..n], block);
    }
}

/// Lines of pairs of columns of a unit's keys.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn put_keys<E: Element>(unit: &[u8], tile: &mut [u8]) {
    let column_bytes = UNIT_TOKENS * E::BYTES;
    let n_lines = unit.len().div_ceil(column_bytes).next_multiple_of(STEP_COLS) / 2;
    let mut columns = unit.chunks_exact(column_bytes);
    for line in tile[..n_lines * LINE_BYTES].chunks_exact_mut(LINE_BYTES) {
        let mut pair = [_mm512_setzero_ps(); 2];
        for (vector, column) in pair.iter_mut().zip(&mut columns) {
            *vector = E::load(column);
        }
        store(line, paired(pair[0], pair[1]));
    }
}

/// Sixteen columns of all values from `col` on: lines of pairs of positions.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn put_values<E: Element>(values: &Units<'_>, col: usize, tile: &mut [u8]) {
    let row_bytes = values.dim * E::BYTES;
    // The last step may lack a unit.
    let n_units = values.units.len().next_multiple_of(2);
    let lines = tile[..n_units * UNIT_TOKENS / 2 * LINE_BYTES].chunks_exact_mut(LINE_BYTES);
    for (i, line) in lines.enumerate() {
        let unit = values.units.get(2 * i / UNIT_TOKENS).copied().unwrap_or(&[]);
        let at = |position: usize| {
            let row = unit.chunks_exact(row_bytes).nth(position % UNIT_TOKENS);
            row.map_or(_mm512_setzero_ps(), |row| E::load(&row[col * E::BYTES..]))
        };
        store(line, paired(at(2 * i), at(2 * i + 1)));
    }
}

/// Adds the products of all rows with a panel to these columns of `out`, rows of `stride`, or sets them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn multiply<U: Unit>(
    acts: &[u8],
    panel: &[u8],
    n_steps: usize,
    out: (&mut [f32], usize),
    columns: Range<usize>,
    add: bool,
) {
    each_block((acts, n_steps), out, columns, add, |acts, from, to| {
        // SAFETY: `n_steps` tiles of both kinds are in bounds, and 32 by 32 sums; the unit is set up.
        unsafe { U::two_by_two(acts, panel, n_steps, from, to) };
    });
}
