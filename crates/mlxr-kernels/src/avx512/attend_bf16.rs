//! Many queries meet keys and values in bf16, two by two tiles at a time by the units of [`super::wide`].
//!
//! Queries, keys, weights and values are rounded to bf16; products are added up in f32, columns, or positions, in their
//! order. Not the bits of the kernels for few queries.

use core::arch::x86_64::*;
use std::ops::Range;

use mlxr_tensor::DType;

use super::dot::{Bf16, Element, F16, F32};
use super::wide::{self, Floats, PANEL_TILE, Source, Sums, Unit, paired, store};
use crate::aligned::as_bytes_mut;
use crate::kernels::{AttendKernels, UNIT_TOKENS, Units, WIDE_COLS};
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{BLOCK_ROWS, STEP_COLS, TILE_BYTES, WideRows};

/// Columns of a pair of tiles.
const PAIR: usize = 2 * N_ROWS;

pub(crate) const fn kernels<U: Unit>() -> AttendKernels {
    AttendKernels { scores: scores::<U>, add_values: add_values::<U> }
}

/// As [`super::attend`]'s, rounded to bf16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn scores<U: Unit>(keys: &Units<'_>, queries: &[&[f32]], scratch: &mut Vec<f32>, out: &mut [f32]) {
    let stride = keys.units.len() * UNIT_TOKENS;
    assert!(queries.iter().all(|q| q.len() == keys.dim), "queries as wide as keys");
    assert_eq!(out.len(), queries.len() * stride, "a score for each query and key");
    keys.check();
    let row_bytes = keys.dim * keys.dtype.block_bytes();
    let n_steps = keys.dim.div_ceil(STEP_COLS);
    let (acts, panel) = rooms(scratch, queries.len(), n_steps);
    pack(queries.iter().copied(), acts, n_steps);
    // SAFETY: a unit's table is only used where the unit is there.
    unsafe { U::begin() };
    for (i, units) in keys.units.chunks(2).enumerate() {
        for (unit, tile) in units.iter().zip(panel.chunks_exact_mut(PANEL_TILE)) {
            let (rows, n_cols) = (WideRows::Floats { data: unit, row_bytes }, n_steps * STEP_COLS);
            // SAFETY: this function is compiled for the same features.
            unsafe {
                match keys.dtype {
                    DType::F16 => Floats::<half::f16>::fill(&rows, 0, 0, n_cols, tile),
                    DType::BF16 => Floats::<half::bf16>::fill(&rows, 0, 0, n_cols, tile),
                    _ => Floats::<f32>::fill(&rows, 0, 0, n_cols, tile),
                }
            }
        }
        let columns = i * PAIR..stride.min((i + 1) * PAIR);
        multiply::<U>(acts, panel, n_steps, (out, stride), columns, false);
    }
    // SAFETY: as above.
    unsafe { U::end() };
}

/// As [`super::attend`]'s, rounded to bf16.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn add_values<U: Unit>(values: &Units<'_>, weights: &[f32], scratch: &mut Vec<f32>, acc: &mut [f32]) {
    let stride = values.units.len() * UNIT_TOKENS;
    assert_eq!(weights.len() * values.dim, acc.len() * stride, "a weight for each query and value");
    assert!(stride <= WIDE_COLS, "positions of a panel");
    values.check();
    let n_steps = stride.div_ceil(STEP_COLS);
    let (acts, panel) = rooms(scratch, weights.len() / stride, n_steps);
    pack(weights.chunks_exact(stride), acts, n_steps);
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

/// Memory for packed rows, and for a panel of two tiles a step.
fn rooms(scratch: &mut Vec<f32>, n_rows: usize, n_steps: usize) -> (&mut [u8], &mut [u8]) {
    assert!(n_steps * STEP_COLS <= WIDE_COLS, "columns of a panel");
    let n_bytes = n_rows.div_ceil(BLOCK_ROWS) * n_steps * 2 * TILE_BYTES;
    scratch.resize((n_bytes + 2 * PANEL_TILE) / 4, 0.0);
    as_bytes_mut(scratch).split_at_mut(n_bytes)
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
    (out, stride): (&mut [f32], usize),
    columns: Range<usize>,
    add: bool,
) {
    let blocks = acts.chunks_exact(n_steps * 2 * TILE_BYTES).zip(out.chunks_mut(BLOCK_ROWS * stride));
    for (acts, out) in blocks {
        if out.len() == BLOCK_ROWS * stride && columns.len() == PAIR {
            let sums = Sums::in_rows(out[columns.start..].as_mut_ptr(), stride);
            // SAFETY: `n_steps` tiles of both kinds are in bounds, and 32 by 32 sums; the unit is set up.
            unsafe { U::two_by_two(acts, panel, n_steps, add.then_some(sums), sums) };
            continue;
        }
        let mut whole = [[0f32; PAIR]; BLOCK_ROWS];
        for (whole, row) in whole.iter_mut().zip(out.chunks_exact(stride)) {
            whole[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
        let sums = Sums::in_rows(whole.as_mut_ptr().cast(), PAIR);
        // SAFETY: as above.
        unsafe { U::two_by_two(acts, panel, n_steps, add.then_some(sums), sums) };
        for (whole, row) in whole.iter().zip(out.chunks_exact_mut(stride)) {
            row[columns.clone()].copy_from_slice(&whole[..columns.len()]);
        }
    }
}
