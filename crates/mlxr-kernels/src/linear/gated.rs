//! Gate and up of an MLP in bf16, joined before their results leave the core's cache.
//!
//! A part meets as many weight rows of gate as of up. Its sums are joined where they are, tile by tile, and rounded to
//! bf16 in the order in which the product that follows reads them, so neither of them is ever written as rows.

use std::ops::Range;

use mlxr_tensor::Gate;

use super::tiled::{N_ROWS, TiledMatrix};
use super::wide::{BLOCK_FLOATS, STEP_COLS, TILE_BYTES, WIDE_ROWS, WideActs, WideOut, WideRows};
use super::{Inputs, SCRATCH, Scratch, room, widened};
use crate::disjoint::Disjoint;
use crate::kernels::{DotWide, Kernels, Meeting, WideKernels};
use crate::pool::ThreadPool;
use crate::weight::Matrix;

/// Two matrices in tile order that one kernel reads.
pub(crate) struct GatedPair<'a> {
    gate: &'a TiledMatrix,
    up: &'a TiledMatrix,
    wide: &'a WideKernels,
    dot: DotWide,
}

impl<'a> GatedPair<'a> {
    /// Gate and up that `n_rows` activation rows meet in bf16 side by side; `None` where they do not.
    pub(crate) fn new(
        kernels: &'a Kernels,
        (gate, up): (&'a Matrix, &'a Matrix),
        n_rows: usize,
    ) -> Option<Self> {
        let Meeting::Wide(wide) = kernels.meeting(gate, n_rows) else { return None };
        let (format, n_out) = (gate.format(), gate.rows());
        // What is returned has no values but those in bf16, so all products are to take these.
        let suits = wide.unpacked.is_some() && up.format() == format && up.rows() == n_out;
        match (gate, up) {
            (Matrix::Tiled(gate), Matrix::Tiled(up)) if suits && n_out.is_multiple_of(STEP_COLS) => {
                Some(Self { gate, up, wide, dot: (wide.tiled)(format)? })
            }
            _ => None,
        }
    }
}

/// One op.
struct Pass<'a> {
    kernels: &'a Kernels,
    pair: &'a GatedPair<'a>,
    kind: Gate,
    acts: &'a WideActs,
    out: Disjoint<'a, u8>,
    out_stride: usize,
}

/// `gate(x) * up(x)` for all rows of `x`.
pub(crate) fn gated(
    kernels: &Kernels,
    pool: &ThreadPool,
    inputs: &Inputs<'_>,
    (pair, n_out, kind): (&GatedPair<'_>, usize, Gate),
) -> WideActs {
    let acts = inputs.act.coded().wide.get_or_init(|| widened(pair.wide, inputs, pool));
    let mut out = WideActs::new(inputs.n_rows(), n_out, inputs.memory());
    let out_stride = out.block_bytes().1;
    let pass = Pass { kernels, pair, kind, acts, out: Disjoint::new(out.bytes_mut()), out_stride };
    let size = part_rows(n_out, pool.n_threads());
    pool.share(n_out, size, |part| SCRATCH.with_borrow_mut(|scratch| pass.part(part, scratch)));
    out
}

/// Rows of each matrix in a part: few enough that every thread has some parts, and that both fit one call.
fn part_rows(n_out: usize, n_threads: usize) -> usize {
    const PARTS: usize = 4;
    let (mut size, least) = (WIDE_ROWS / 2, STEP_COLS);
    while least < size && n_out.div_ceil(size) < PARTS * n_threads {
        size /= 2;
    }
    size
}

impl Pass<'_> {
    fn part(&self, rows: Range<usize>, scratch: &mut Scratch) {
        let Scratch { tile: memory, products, tiles: [gates, ups], .. } = scratch;
        let (n_pairs, n_blocks) = (rows.len() / (2 * N_ROWS), self.acts.n_blocks());
        let products = room(products, 2 * n_pairs * n_blocks * BLOCK_FLOATS);
        let weights = [(self.pair.gate, gates), (self.pair.up, ups)]
            .map(|(matrix, room)| WideRows::Tiled(matrix.tiles(rows.clone(), room)));
        // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
        unsafe { (self.pair.dot)(&weights, self.acts, memory, &mut WideOut::sums(products)) };
        let (gates, ups) = products.as_chunks::<BLOCK_FLOATS>().0.split_at(n_pairs * n_blocks);
        let mut joined = [0f32; BLOCK_FLOATS];
        for block in 0..n_blocks {
            for pair in 0..n_pairs {
                let (gate, up) = (&gates[pair * n_blocks + block], &ups[pair * n_blocks + block]);
                self.kernels.gated(&mut joined, gate, up, self.kind);
                let at = block * self.out_stride + (rows.start / STEP_COLS + pair) * 2 * TILE_BYTES;
                // SAFETY: parts have columns of their own, so steps as well; the table is this CPU's.
                unsafe { (self.pair.wide.pack_sums)(&joined, self.out.slice(at..at + 2 * TILE_BYTES)) };
            }
        }
    }
}
