//! Many queries meet keys and values in bf16 by [`super::wide`].
//!
//! Queries, keys, weights and values are rounded to bf16; products are added up in f32, columns, or positions, in their
//! order. Not the bits of the kernels for few queries.

use core::arch::aarch64::*;
use std::ops::Range;

use mlxr_tensor::DType;

use super::wide::{Element, PAIR_BYTES, PANEL_TILE, pack, pack_row, store, two_by_two};
use crate::kernels::{Seen, Softened, UNIT_TOKENS, Units, WIDE_COLS, WideAttend};
use crate::lanes::{self, bodies};
use crate::linear::tiled::N_ROWS;
use crate::linear::wide::{
    BLOCK_ROWS, QUAD_COLS, QUAD_STRIDE, STEP_COLS, TILE_BYTES, each_block, quads_at, rooms,
};

/// Columns of a pair of tiles.
const PAIR: usize = 2 * N_ROWS;

pub(super) const KERNELS: WideAttend = WideAttend { scores, add_softened };

#[target_feature(enable = "neon,bf16")]
fn scores(keys: &Units<'_>, queries: &[&[f32]], scratch: &mut Vec<f32>, out: &mut [f32]) {
    let stride = keys.units.len() * UNIT_TOKENS;
    keys.check_scores(queries, out);
    let n_steps = keys.dim.div_ceil(STEP_COLS);
    let (acts, panel) = rooms(scratch, queries.len(), n_steps, 2 * PANEL_TILE);
    let blocks = acts.chunks_exact_mut(n_steps * 2 * TILE_BYTES);
    queries.chunks(BLOCK_ROWS).zip(blocks).for_each(|(rows, block)| pack(rows, block));
    for (i, units) in keys.units.chunks(2).enumerate() {
        for (unit, tile) in units.iter().zip(panel.chunks_exact_mut(PANEL_TILE)) {
            let tile = &mut tile[..n_steps * TILE_BYTES];
            match keys.dtype {
                DType::F16 => put_keys::<half::f16>(unit, tile),
                DType::BF16 => put_keys::<half::bf16>(unit, tile),
                _ => put_keys::<f32>(unit, tile),
            }
        }
        let columns = i * PAIR..stride.min((i + 1) * PAIR);
        multiply((acts, n_steps), panel, (out, stride), columns, false);
    }
}

#[target_feature(enable = "neon,bf16")]
fn add_softened(values: &Units<'_>, seen: Seen<'_>, scratch: &mut Vec<f32>, state: Softened<'_>) {
    let stride = values.units.len() * UNIT_TOKENS;
    let n_queries = seen.checked_queries(values, &state);
    let n_steps = stride.div_ceil(STEP_COLS);
    let (acts, panel) = rooms(scratch, n_queries, n_steps, 2 * PANEL_TILE);
    let states = state.max.iter_mut().zip(state.sum);
    for (query, (scores, (max, sum))) in seen.scores.chunks_exact(stride).zip(states).enumerate() {
        let mut weights = [0f32; WIDE_COLS];
        let visible = (seen.visible)(query);
        if !visible.is_empty() {
            let weights = &mut weights[visible.clone()];
            weights.copy_from_slice(&scores[visible]);
            (*max, *sum) = bodies::soften::<lanes::Fused>(weights, seen.scale, None);
        }
        let line = &mut acts[quads_at(n_steps * 2 * TILE_BYTES, query, 0)..];
        // SAFETY: a block has the rows' steps from there on.
        unsafe { pack_row(&weights[..n_steps * STEP_COLS], line.as_mut_ptr()) };
    }
    let acc = state.acc;
    for first in (0..values.dim).step_by(PAIR) {
        let columns = first..values.dim.min(first + PAIR);
        for (col, tile) in columns.clone().step_by(N_ROWS).zip(panel.chunks_exact_mut(PANEL_TILE)) {
            let tile = &mut tile[..n_steps * TILE_BYTES];
            match values.dtype {
                DType::F16 => put_values::<half::f16>(values, col, tile),
                DType::BF16 => put_values::<half::bf16>(values, col, tile),
                _ => put_values::<f32>(values, col, tile),
            }
        }
        multiply((acts, n_steps), panel, (acc, values.dim), columns, true);
    }
}

/// Keys of a unit, whose columns have sixteen positions side by side.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn put_keys<E: Element>(unit: &[u8], tile: &mut [u8]) {
    let mut columns = unit.chunks_exact(UNIT_TOKENS * E::BYTES);
    put_turned::<E>(tile, |_| columns.next());
}

/// Sixteen columns of all values from `col` on as rows of positions.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn put_values<E: Element>(values: &Units<'_>, col: usize, tile: &mut [u8]) {
    let row_bytes = values.dim * E::BYTES;
    put_turned::<E>(tile, |position| {
        // The last step may lack a unit, and that some of its positions.
        let unit = values.units.get(position / UNIT_TOKENS)?;
        let row = unit.get(position % UNIT_TOKENS * row_bytes..)?.get(..row_bytes)?;
        Some(&row[col * E::BYTES..][..N_ROWS * E::BYTES])
    });
}

/// Fills a tile whose columns are given, sixteen values each, one after the other; those that are not there are zero.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn put_turned<'a, E: Element>(tile: &mut [u8], mut next: impl FnMut(usize) -> Option<&'a [u8]>) {
    const QUADS: usize = STEP_COLS / QUAD_COLS;
    let zeros = [0u8; N_ROWS * 4];
    for (step, out) in tile.chunks_exact_mut(TILE_BYTES).enumerate() {
        for quad in 0..QUADS {
            let mut columns = [&zeros[..N_ROWS * E::BYTES]; QUAD_COLS];
            for (i, column) in columns.iter_mut().enumerate() {
                *column = next(step * STEP_COLS + quad * QUAD_COLS + i).unwrap_or(column);
            }
            for (four, out) in out.chunks_exact_mut(2 * PAIR_BYTES).enumerate() {
                let at = four * QUAD_COLS * E::BYTES;
                let [a, b, c, d] = columns.map(|column| column[at..][..QUAD_COLS * E::BYTES].as_ptr());
                // SAFETY: four values of each are in bounds.
                let (ab, cd) = unsafe { (E::load(a, b), E::load(c, d)) };
                let [low, high] = by_columns(ab, cd);
                store(&mut out[quad * QUAD_STRIDE..], low);
                store(&mut out[PAIR_BYTES + quad * QUAD_STRIDE..], high);
            }
        }
    }
}

/// From four columns of two rows, and of the next two, the rows of two columns, and of the other two.
#[inline]
#[target_feature(enable = "neon")]
fn by_columns(ab: uint16x8_t, cd: uint16x8_t) -> [uint16x8_t; 2] {
    // Both rows' first column, then second, and so on: pairs for each column.
    let by_pair = |two: uint16x8_t| vreinterpretq_u32_u16(vzip1q_u16(two, vextq_u16::<4>(two, two)));
    let (ab, cd) = (by_pair(ab), by_pair(cd));
    [vreinterpretq_u16_u32(vzip1q_u32(ab, cd)), vreinterpretq_u16_u32(vzip2q_u32(ab, cd))]
}

/// Adds the products of all rows with a panel to these columns of `out`, rows of `stride`, or sets them.
#[inline]
#[target_feature(enable = "neon,bf16")]
fn multiply(acts: (&[u8], usize), panel: &[u8], out: (&mut [f32], usize), columns: Range<usize>, add: bool) {
    each_block(acts, out, columns, add, |acts, from, to| {
        // SAFETY: 32 by 32 sums are in bounds.
        unsafe { two_by_two(acts, panel, from, to) };
    });
}
