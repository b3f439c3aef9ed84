//! Ops that take more than one dispatch or some thought: products and attention.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, AttentionSpec, Batch, Reach, TensorError, Weight};

use crate::backend::{GpuBackend, act, with_codes};
use crate::batch::BatchTables;
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::kernels::{
    Attend, AttendQ8, AttentionShape, MatvecCodes, MatvecFloats, MatvecShape, MergeAttention, PadRows,
};
use crate::kv::GpuKvLayer;
use crate::layout::{Codes, FLOATS_CHUNK, Floats, Layout};
use crate::recorder::Grid;
use crate::weight::{GpuWeight, Numbered, Part};

/// Tokens of a split of attention, for rows that see few and many: more at a time read memory faster, but make fewer
/// workgroups. Splits start at multiples of it, so it may depend on nothing but what the row sees.
const SPLITS: [usize; 2] = [128, 256];
/// Tokens from which a row sees many.
const MANY: usize = 4096;
/// Lanes of an attention workgroup.
const ATTENTION_LANES: u32 = 256;
/// Lanes of a workgroup that joins splits.
const MERGE_LANES: u32 = 256;
/// Query heads that share a workgroup.
const MAX_HEADS: usize = 8;
/// Scratch for the parts of attention; more rows go in several rounds.
const MAX_PART_BYTES: usize = 64 << 20;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct MatvecParams {
    n_chunks: u32,
    n_groups: u32,
    pub(crate) n_out: u32,
    n_rows: u32,
    y_stride: u32,
    y_start: u32,
    has_bias: u32,
    choices_per_row: u32,
    first_out: u32,
    group: u32,
}

/// A product: which rows of the result come from which rows of the input.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a GpuWeight,
    pub(crate) bias: Option<&'a Weight>,
    /// Expert of each row of the result, and rows of the result per row of the input.
    pub(crate) routing: Option<(&'a Pooled, usize)>,
    pub(crate) n_rows: usize,
}

impl Product<'_> {
    /// What the kernels are told of one part of the weight.
    pub(crate) fn params(&self, part: &Part) -> MatvecParams {
        let Product { weight, bias, routing, n_rows } = *self;
        MatvecParams {
            n_chunks: weight.cols.div_ceil(weight.layout.chunk()) as u32,
            n_groups: weight.layout.groups(weight.cols) as u32,
            n_out: if routing.is_some() { weight.n_out } else { part.n_rows } as u32,
            n_rows: n_rows as u32,
            y_stride: weight.n_out as u32,
            y_start: part.first_row as u32,
            has_bias: bias.is_some().into(),
            choices_per_row: routing.map_or(1, |(_, n)| n as u32),
            first_out: part.first_row as u32,
            group: weight.layout.group(weight.cols),
        }
    }
}

/// The input of a product, in the form in which its weight's layout meets it.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    Codes(Codes, [Bound<'a>; 2]),
    Floats(Floats, Bound<'a>),
}

/// One part of a product.
#[derive(Clone, Copy)]
pub(crate) struct Matvec<'a> {
    pub(crate) input: Input<'a>,
    pub(crate) product: &'a Product<'a>,
    pub(crate) params: MatvecParams,
    pub(crate) shape: MatvecShape,
}

/// Rows of x that a workgroup meets. What does not divide evenly is computed and thrown away.
pub(crate) fn row_tile(n_rows: usize) -> u32 {
    match n_rows {
        0..=1 => 1,
        2 => 2,
        3..=4 => 4,
        5..=8 => 8,
        _ => 16,
    }
}

impl GpuBackend {
    /// An activation with its rows filled up to whole chunks of floats.
    fn padded(&self, x: &Act) -> Result<Pooled, TensorError> {
        let (rows, cols) = (x.rows(), x.cols());
        let stride = cols.next_multiple_of(FLOATS_CHUNK);
        let n = rows * stride;
        let padded = self.take(n * 4)?;
        let params = [n as u32, cols as u32, stride as u32];
        self.run(&PadRows {}, &[act(x), padded.bound()], &params, Grid::flat(n.div_ceil(256)))?;
        Ok(padded)
    }

    /// An activation of whole chunks as a weight of some layout meets it.
    pub(crate) fn input<'a>(&self, x: &'a Act, layout: &Layout) -> Result<Input<'a>, TensorError> {
        Ok(match *layout {
            Layout::Codes(layout) => Input::Codes(layout, self.codes(x)?),
            Layout::Floats(layout) => Input::Floats(layout, act(x)),
        })
    }

    /// One product of `x` into `y`.
    pub(crate) fn product(&self, x: &Act, product: &Product<'_>, y: Bound<'_>) -> Result<(), TensorError> {
        let Product { weight, routing, n_rows, .. } = *product;
        let n_tile = if routing.is_some() { 1 } else { row_tile(n_rows) };
        let size = [weight.n_out, weight.cols.div_ceil(weight.layout.chunk())].map(|n| n as u32);
        let usual = MatvecShape::new(self.subgroup(), &weight.layout, size, n_tile, routing.is_some());
        let padded;
        let input = match weight.layout {
            Layout::Floats(layout) if !x.cols().is_multiple_of(FLOATS_CHUNK) => {
                padded = self.padded(x)?;
                Input::Floats(layout, padded.bound())
            }
            layout => self.input(x, &layout)?,
        };
        for part in &weight.parts {
            let planes = [&part.codes, &part.high, &part.scales];
            let matvec = Matvec { input, product, params: product.params(part), shape: usual };
            let shape = self.tuned(&matvec, planes)?;
            self.matvec(&Matvec { shape, ..matvec }, planes.map(Numbered::bound), y)?;
        }
        Ok(())
    }

    /// One dispatch of a product.
    pub(crate) fn matvec(
        &self,
        matvec: &Matvec<'_>,
        [codes, high, scales]: [Bound<'_>; 3],
        y: Bound<'_>,
    ) -> Result<(), TensorError> {
        let Matvec { input, product, params, shape } = *matvec;
        let n_groups = (params.n_out as usize).div_ceil((shape.n_sets * shape.n_out) as usize);
        let grid = Grid::tiles(n_groups, product.n_rows.div_ceil(shape.n_rows as usize));
        let bias = self.values_or_none(product.bias)?;
        let routing = product.routing.map_or(self.none(), |(experts, _)| experts.bound());
        match input {
            Input::Codes(layout, [x_codes, x_scales]) => {
                let bound = [codes, high, scales, x_codes, x_scales, bias, routing, y];
                self.run(&MatvecCodes { layout, shape }, &bound, &params, grid)
            }
            Input::Floats(layout, x) => {
                let bound = [codes, scales, x, bias, routing, y];
                self.run(&MatvecFloats { layout, shape }, &bound, &params, grid)
            }
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttentionParams {
    first_row: u32,
    n_rows: u32,
    n_heads: u32,
    n_kv_heads: u32,
    max_splits: u32,
    window: u32,
    scale: f32,
    softcap: f32,
    sees_both: u32,
    first_split: u32,
    /// Rows that see fewer or more are not served.
    least_seen: u32,
    most_seen: u32,
}

/// Attention of a batch over one layer of the cache.
pub(crate) struct Attention<'a> {
    pub(crate) q: &'a Act,
    pub(crate) layer: &'a GpuKvLayer,
    pub(crate) batch: &'a Batch,
    pub(crate) tables: &'a BatchTables,
    pub(crate) spec: &'a AttentionSpec,
}

impl Attention<'_> {
    /// First and last position that a row sees, as `reach.wgsl` has it.
    fn reach(&self, row: usize) -> (usize, usize) {
        let position = self.batch.positions[row] as usize;
        let mut last = if self.spec.reach == Reach::Both { self.tables.ends[row] as usize } else { position };
        let mut first = 0;
        if let Some(window) = self.spec.window {
            first = (position + 1).saturating_sub(window as usize);
            last = last.min(position + window as usize - 1);
        }
        (first, last)
    }

    /// Tokens that a row sees.
    fn n_seen(&self, row: usize) -> usize {
        let (first, last) = self.reach(row);
        last + 1 - first
    }

    /// The splits of so many tokens that rows from `rows.start` on need, for as many of them as fit in the scratch: first
    /// split, number of splits, number of rows.
    fn round(&self, rows: Range<usize>, split: usize) -> (usize, usize, usize) {
        let per_split = self.spec.n_heads * self.layer.shape.v_dim as usize * 4;
        let (mut first, mut end) = (usize::MAX, 0);
        for row in rows.clone() {
            let seen = self.reach(row);
            let with = (first.min(seen.0 / split), end.max(seen.1 / split + 1));
            let n_rows = row - rows.start + 1;
            if n_rows > 1 && n_rows * (with.1 - with.0) * per_split > MAX_PART_BYTES {
                return (first, end - first, n_rows - 1);
            }
            (first, end) = with;
        }
        (first, end - first, rows.len())
    }

    /// The sinks, or what is bound in their place.
    pub(crate) fn sinks<'a>(&'a self, backend: &'a GpuBackend) -> Result<Bound<'a>, TensorError> {
        backend.values_or_none(self.spec.sinks.as_ref())
    }

    /// Writes the result of some rows, `[rows, n_heads * v_dim]`, and its codes.
    pub(crate) fn run(
        &self,
        backend: &GpuBackend,
        rows: Range<usize>,
        y: Bound<'_>,
        codes: Option<[Bound<'_>; 2]>,
    ) -> Result<(), TensorError> {
        for (split, least_seen, most_seen) in [(SPLITS[0], 0, MANY - 1), (SPLITS[1], MANY, u32::MAX as usize)]
        {
            let is_served = |row: &usize| (least_seen..=most_seen).contains(&self.n_seen(*row));
            let (first, last) = (rows.clone().find(is_served), rows.clone().rev().find(is_served));
            if let (Some(first), Some(last)) = (first, last) {
                let seen = [least_seen, most_seen].map(|n| n as u32);
                self.run_split(backend, first..last + 1, (split, seen), y, codes)?;
            }
        }
        Ok(())
    }

    /// Writes the result of those of some rows that see at least and at most so many tokens, in splits.
    fn run_split(
        &self,
        backend: &GpuBackend,
        rows: Range<usize>,
        (split, [least_seen, most_seen]): (usize, [u32; 2]),
        y: Bound<'_>,
        codes: Option<[Bound<'_>; 2]>,
    ) -> Result<(), TensorError> {
        let (layer, spec) = (self.layer, self.spec);
        let v_dim = layer.shape.v_dim as usize;
        let group = spec.n_heads / layer.n_kv_heads;
        let n_heads = (1..=MAX_HEADS.min(group)).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1);
        let shape = AttentionShape {
            n_heads: n_heads as u32,
            split: split as u32,
            lanes: ATTENTION_LANES,
            n_subgroups: ATTENTION_LANES / backend.subgroup(),
        };
        let sinks = self.sinks(backend)?;
        let mut first_row = rows.start;
        while first_row < rows.end {
            let (first_split, max_splits, n_rows) = self.round(first_row..rows.end, split);
            let n_parts = n_rows * spec.n_heads * max_splits;
            let (parts, stats) = (backend.take(n_parts * v_dim * 4)?, backend.take(n_parts * 8)?);
            let params = AttentionParams {
                first_row: first_row as u32,
                n_rows: n_rows as u32,
                n_heads: spec.n_heads as u32,
                n_kv_heads: layer.n_kv_heads as u32,
                max_splits: max_splits as u32,
                window: spec.window.unwrap_or(0),
                scale: spec.scale,
                softcap: spec.softcap.unwrap_or(0.0),
                sees_both: (spec.reach == Reach::Both).into(),
                first_split: first_split as u32,
                least_seen,
                most_seen,
            };
            let (table, tables) = (self.tables.rows.bound(), self.tables.block_tables.bound());
            let (keys, values) = (layer.keys.buffer.bound(), layer.values.buffer.bound());
            let grid = Grid::tiles(n_rows * spec.n_heads / n_heads, max_splits);
            let bound = [table, tables, act(self.q), keys, values, parts.bound(), stats.bound()];
            match &layer.scales {
                None => backend.run(&Attend { heads: layer.shape, shape }, &bound, &params, grid)?,
                Some((k, v)) => {
                    let [a, b, c, d, e, f, g] = bound;
                    let bound = [a, b, c, d, e, f, g, k.buffer.bound(), v.buffer.bound()];
                    backend.run(&AttendQ8 { heads: layer.shape, shape }, &bound, &params, grid)?;
                }
            }
            let params = [
                first_row as u32,
                n_rows as u32,
                spec.n_heads as u32,
                max_splits as u32,
                params.window,
                params.sees_both,
                spec.sinks.is_some().into(),
                first_split as u32,
                least_seen,
                most_seen,
            ];
            let merge = MergeAttention {
                split: split as u32,
                v_dim: layer.shape.v_dim,
                lanes: MERGE_LANES,
                subgroup: backend.subgroup(),
                is_quantising: codes.is_some(),
            };
            let grid = Grid::flat(n_rows * spec.n_heads);
            let bound = [table, parts.bound(), stats.bound(), sinks, y];
            backend.run(&merge, &with_codes(&bound, codes), &params, grid)?;
            first_row += n_rows;
        }
        Ok(())
    }
}
