//! Attention in splits of a sequence, which are the same bits in every batch.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{Act, AttentionSpec, Batch, Reach, Rope, RopePairing, TensorError};

use crate::backend::{GpuBackend, with_codes};
use crate::batch::BatchTables;
use crate::bindings::Bound;
use crate::buffers::Pooled;
use crate::kernels::{Attend, AttentionShape, MergeAttention};
use crate::kv::GpuKvLayer;
use crate::recorder::Grid;

/// Tokens of a split of attention, for rows that see few and many: more at a time read memory faster, but make fewer
/// workgroups. Splits start at multiples of it, so it may depend on nothing but what the row sees. A workgroup has as many
/// lanes.
const SHORT: usize = 128;
const LONG: usize = 256;
/// Tokens from which a row sees many: on an H200 short splits are 3 % of a step faster at 4,096, long ones at 8,192.
const MANY: usize = 5120;
/// Rows that end within so many tokens have one split, which needs no joining.
const SINGLE: usize = 256;
/// Workgroups up to which the last one of a row's joins its splits, and each rotates what it meets. Where there are more,
/// kernels of their own for that cost less than what it adds to each: on an H200, of 16 sequences, 128 workgroups were
/// faster and 2,048 slower.
pub(crate) const MAX_JOINED: usize = 1536;
/// Rounds in which a lane goes over its keys and values where contexts are short and workgroups few: there a kernel's code,
/// which others have driven out since the last layer, takes longer to read than to run. It is told when a kernel runs,
/// since a compiler that knows it makes no loop.
const ROUNDS: u32 = 2;
/// Scratch for the parts of attention; more rows go in several rounds.
const MAX_PART_BYTES: usize = 64 << 20;

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
    has_sinks: u32,
    n_rounds: u32,
    /// Rows that end before this are said to see nothing.
    single: u32,
}

/// The splits of rows that see so many tokens.
#[derive(Clone, Copy)]
struct Splits {
    n_tokens: usize,
    least_seen: usize,
    most_seen: usize,
}

/// Each row is served by one of these. A row that ends within its only split is said to see nothing.
const SPLITS: [Splits; 3] = [
    Splits { n_tokens: SINGLE, least_seen: 0, most_seen: 0 },
    Splits { n_tokens: SHORT, least_seen: 1, most_seen: MANY - 1 },
    Splits { n_tokens: LONG, least_seen: MANY, most_seen: u32::MAX as usize },
];

impl Splits {
    /// Whether rows have one.
    fn is_single(self) -> bool {
        self.most_seen == 0
    }

    /// Query heads that share a workgroup: fewer where a kernel is mostly latency, so that it has less to do and its code is
    /// shorter. On an H200 two are faster there than four, and than one.
    fn max_heads(self) -> usize {
        if self.is_single() { 2 } else { 8 }
    }
}

/// What is still to be done to the rows of a step before they attend.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) k: &'a Act,
    pub(crate) v: &'a Act,
    /// Cosines and sines of each row.
    pub(crate) angles: &'a Pooled,
    pub(crate) n_pairs: u32,
    pub(crate) is_interleaved: bool,
}

/// Attention of a batch over one layer of the cache.
pub(crate) struct Attention<'a> {
    pub(crate) q: &'a Act,
    pub(crate) layer: &'a GpuKvLayer,
    pub(crate) batch: &'a Batch,
    pub(crate) tables: &'a BatchTables,
    pub(crate) spec: &'a AttentionSpec,
    /// Where queries are not rotated, nor keys and values stored: only for steps of one row a sequence.
    pub(crate) turn: Option<Turn<'a>>,
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

    /// Tokens that a row sees, as the kernels count them.
    fn n_seen(&self, row: usize) -> usize {
        let (first, last) = self.reach(row);
        if last < SINGLE { 0 } else { last + 1 - first }
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
        for splits in SPLITS {
            let is_served = |row: &usize| (splits.least_seen..=splits.most_seen).contains(&self.n_seen(*row));
            let (first, last) = (rows.clone().find(is_served), rows.clone().rev().find(is_served));
            if let (Some(first), Some(last)) = (first, last) {
                self.run_splits(backend, first..last + 1, splits, y, codes)?;
            }
        }
        Ok(())
    }

    /// Writes the result of those of some rows that are served by such splits.
    fn run_splits(
        &self,
        backend: &GpuBackend,
        rows: Range<usize>,
        splits: Splits,
        y: Bound<'_>,
        codes: Option<[Bound<'_>; 2]>,
    ) -> Result<(), TensorError> {
        let (layer, spec) = (self.layer, self.spec);
        let v_dim = layer.shape.v_dim as usize;
        let group = spec.n_heads / layer.n_kv_heads;
        let (split, is_single) = (splits.n_tokens, splits.is_single());
        let n_heads =
            (1..=splits.max_heads().min(group)).rev().find(|n| group.is_multiple_of(*n)).unwrap_or(1);
        let shape = AttentionShape {
            n_heads: n_heads as u32,
            n_tiles: (spec.n_heads / n_heads) as u32,
            tiles_per_kv: (group / n_heads) as u32,
            split: split as u32,
            subgroup: backend.subgroup(),
            is_single,
            n_rounds: ROUNDS,
        };
        let sinks = self.sinks(backend)?;
        let mut first_row = rows.start;
        while first_row < rows.end {
            let (first_split, max_splits, n_rows) = self.round(first_row..rows.end, split);
            let n_parts = n_rows * spec.n_heads * max_splits;
            let scratch = if is_single {
                None
            } else {
                Some((backend.take_behind(n_parts * v_dim * 4)?, backend.take_behind(n_parts * 8)?))
            };
            // A single split is the result.
            let ends = scratch.as_ref().map_or([y, sinks], |(parts, stats)| [parts.bound(), stats.bound()]);
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
                least_seen: splits.least_seen as u32,
                most_seen: splits.most_seen as u32,
                has_sinks: spec.sinks.is_some().into(),
                n_rounds: ROUNDS,
                single: SINGLE as u32,
            };
            let (table, tables) = (self.tables.rows.bound(), self.tables.block_tables.bound());
            let (keys, values) = (layer.keys.buffer.bound(), layer.values.buffer.bound());
            let grid = Grid::tiles(n_rows * spec.n_heads / n_heads, max_splits);
            let mut bound = vec![table, tables, backend.floats(self.q), keys, values, ends[0], ends[1]];
            bound.extend(layer.scales.iter().flat_map(|(k, v)| [k.buffer.bound(), v.buffer.bound()]));
            if let Some(Turn { k, v, angles, .. }) = self.turn {
                bound.extend([angles.bound(), backend.floats(k), backend.floats(v)]);
            }
            let gpu = backend.gpu();
            let is_joining =
                !is_single && gpu.is_coherent() && gpu.binds_many() && n_parts / n_heads <= MAX_JOINED;
            if is_joining {
                bound.extend([backend.arrivals(), sinks, y]);
            }
            let is_last = is_single || is_joining;
            if is_last {
                bound = with_codes(&bound, codes);
            }
            let kernel = Attend {
                heads: layer.shape,
                shape,
                n_pairs: self.turn.map_or(0, |turn| turn.n_pairs),
                is_interleaved: self.turn.is_some_and(|turn| turn.is_interleaved),
                is_joining,
                is_quantising: is_last && codes.is_some(),
            };
            backend.run(&kernel, &bound, &params, grid)?;
            first_row += n_rows;
            if !is_last {
                let kernel = MergeAttention {
                    split: split as u32,
                    v_dim: layer.shape.v_dim,
                    n_heads: n_heads as u32,
                    is_quantising: codes.is_some(),
                };
                let bound = [table, ends[0], ends[1], sinks, y];
                let grid = Grid::flat(n_rows * spec.n_heads / n_heads);
                backend.run(&kernel, &with_codes(&bound, codes), &params, grid)?;
            }
        }
        Ok(())
    }
}

/// Keys and values of a step that are still to be rotated and stored.
#[derive(Clone, Copy)]
pub(crate) struct Unturned<'a> {
    pub(crate) k: &'a Act,
    pub(crate) v: &'a Act,
    pub(crate) rope: &'a Rope,
}

impl Unturned<'_> {
    /// Whether attention does it: where every sequence has one row, no workgroup needs what another one stores.
    pub(crate) fn is_fused(&self, backend: &GpuBackend, layer: &GpuKvLayer, batch: &Batch) -> bool {
        /// Elements of a head that workgroup memory has room for.
        const MAX_DIM: u32 = 256;
        let n_splits: usize = batch.positions.iter().map(|&at| at as usize / LONG + 1).sum();
        backend.gpu().binds_many()
            && layer.scales.is_none()
            && n_splits * layer.n_kv_heads <= MAX_JOINED
            && self.rope.inv_freq.len().is_multiple_of(8)
            && layer.shape.k_dim.max(layer.shape.v_dim) <= MAX_DIM
            && batch.spans.iter().all(|span| span.rows.len() == 1)
    }
}

impl GpuBackend {
    /// Attention of all rows of a batch.
    pub(crate) fn attend(
        &self,
        q: &Act,
        layer: &GpuKvLayer,
        batch: &Batch,
        spec: &AttentionSpec,
        unturned: Option<Unturned<'_>>,
    ) -> Act {
        assert_eq!(q.cols(), spec.n_heads * layer.shape.k_dim as usize, "columns of the queries");
        let v_dim = layer.shape.v_dim as usize;
        let (rows, cols) = (q.rows(), spec.n_heads * v_dim);
        // A failure shows below.
        if self.has_tiles(layer, batch)
            && let Ok(tables) = self.tables(batch)
        {
            return Attention { q, layer, batch, tables, spec, turn: None }.in_tiles(self);
        }
        let run = |y: Bound<'_>, codes: Option<[Bound<'_>; 2]>| {
            let tables = self.tables(batch)?;
            let angles =
                unturned.map(|Unturned { rope, .. }| tables.angles(self, rope, batch)).transpose()?;
            let turn = unturned.zip(angles.as_deref()).map(|(Unturned { k, v, rope }, angles)| Turn {
                k,
                v,
                angles,
                n_pairs: rope.inv_freq.len() as u32,
                is_interleaved: rope.pairing == RopePairing::Interleaved,
            });
            let attention = Attention { q, layer, batch, tables, spec, turn };
            attention.run(self, 0..rows, y, codes)
        };
        self.new_act_with_codes([rows, cols], v_dim, run)
    }
}
