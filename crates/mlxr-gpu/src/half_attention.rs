//! Attention of prompts on the device's matrix units, in f16 with sums in f32: where products may go that way, see
//! [`crate::half`].

use bytemuck::{Pod, Zeroable};
use mlxr_tensor::{
    Act, AttentionSpec, Backend, Batch, DType, HostTensor, KvLayerSpec, KvSpec, Reach, Span, TensorError,
};

use crate::attention::Attention;
use crate::backend::GpuBackend;
use crate::batch::BatchTables;
use crate::bindings::Bound;
use crate::half::TOLERANCE;
use crate::kernels::{AttendTiles, KvShape};
use crate::kv::{GpuKv, GpuKvLayer};
use crate::recorder::Grid;

/// Rows of a sequence from which its attention goes this way.
const MIN_ROWS: usize = 32;
/// Lines of a subgroup: rows times heads.
const LINES: usize = 16;
/// Tokens that a workgroup meets at a time.
const TILE: usize = 32;
/// Lanes of a subgroup that the kernel is made for.
const SUBGROUP: u32 = 32;
/// Subgroups of a workgroup: the more, the more lines share what is loaded.
const FEW_SUBGROUPS: usize = 4;
const MANY_SUBGROUPS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TileParams {
    n_tiles: u32,
    n_heads: u32,
    n_kv_heads: u32,
    window: u32,
    scale: f32,
    softcap: f32,
    sees_both: u32,
    has_sinks: u32,
}

/// Whether the kernel is made for such heads.
fn fits(shape: &KvShape) -> bool {
    shape.dtype == "f16" && matches!(shape.k_dim, 32 | 64 | 96 | 128) && matches!(shape.v_dim, 32 | 64 | 128)
}

/// Workgroup memory for a tile's keys and values, scores and weights.
fn workgroup_bytes(shape: &KvShape, n_subgroups: usize) -> usize {
    let tile = TILE * (shape.k_dim + shape.v_dim + 16) as usize * 2;
    tile + n_subgroups * LINES * (TILE + 8) * 6
}

fn is_long(span: &Span) -> bool {
    span.rows.len() >= MIN_ROWS
}

impl GpuBackend {
    /// Compares attention this way with that of the other kernels.
    pub(crate) fn half_attention_is_right(&self) -> Result<bool, TensorError> {
        const N_ROWS: usize = 3 * MIN_ROWS + 5;
        const BLOCK_TOKENS: usize = 16;
        let (n_heads, n_kv_heads, dim) = (8, 2, 64);
        if self.subgroup() != SUBGROUP {
            return Ok(false);
        }
        let layers = vec![KvLayerSpec { n_kv_heads, k_dim: dim, v_dim: dim }];
        let n_blocks = N_ROWS.div_ceil(BLOCK_TOKENS);
        let spec = KvSpec { n_blocks, block_tokens: BLOCK_TOKENS, dtype: DType::F16, layers };
        let mut kv = self.kv_cache(&spec)?;
        let mut batch = Batch::new();
        let table: Vec<u32> = (0..n_blocks as u32).rev().collect();
        batch.push(&[0; N_ROWS], 0, &table, BLOCK_TOKENS);
        let values = |heads: usize, seed: usize| {
            let n = N_ROWS * heads * dim;
            let values: Vec<f32> = (0..n).map(|i| ((i * 7919 + seed) % 1021) as f32 / 510.5 - 1.0).collect();
            self.act(N_ROWS, heads * dim, &values)
        };
        let (q, k, v) = (values(n_heads, 3), values(n_kv_heads, 5), values(n_kv_heads, 11));
        self.store_kv(&mut kv, 0, &k, &v, &batch);
        let plain = AttentionSpec {
            n_heads,
            // So that the largest score of a line grows by much on the way.
            scale: 2.0,
            reach: Reach::Causal,
            window: None,
            softcap: None,
            sinks: None,
        };
        let sinks = HostTensor::from_f32("sinks", &[n_heads], &[1.0, -1.0, 2.0, 0.5, 0.0, 3.0, -2.0, 1.5])?;
        let sinks = Some(self.upload(&sinks)?);
        let special =
            AttentionSpec { scale: 0.5, window: Some(40), softcap: Some(20.0), sinks, ..plain.clone() };
        let layer = &kv.handle::<GpuKv>().layers[0];
        let tables = self.tables(&batch)?;
        let n = N_ROWS * n_heads * dim;
        let theirs = self.take(n * 4)?;
        for spec in [plain, special] {
            let attention = Attention { q: &q, layer, batch: &batch, tables, spec: &spec, turn: None };
            let ours = self.new_halves(N_ROWS, n_heads * dim, |y| attention.run_tiles(self, y, true));
            attention.run(self, 0..N_ROWS, theirs.bound(), None)?;
            if !self.are_alike(self.floats(&ours), theirs.bound(), n)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether attention of any of a batch's rows goes this way.
    pub(crate) fn has_tiles(&self, layer: &GpuKvLayer, batch: &Batch) -> bool {
        let has_room = self.has_room(&layer.shape, FEW_SUBGROUPS);
        self.has_half_attention && fits(&layer.shape) && has_room && batch.spans.iter().any(is_long)
    }

    fn has_room(&self, shape: &KvShape, n_subgroups: usize) -> bool {
        workgroup_bytes(shape, n_subgroups) <= self.gpu().limits.max_compute_workgroup_storage_size as usize
    }

    /// Subgroups of a workgroup.
    fn n_subgroups(&self, shape: &KvShape) -> usize {
        // What many lanes load at a time are whole runs of this many elements.
        let divides = [shape.k_dim, shape.v_dim].iter().all(|dim| dim.is_multiple_of(64));
        if divides && self.has_room(shape, MANY_SUBGROUPS) { MANY_SUBGROUPS } else { FEW_SUBGROUPS }
    }

    /// Whether two results are the same but for roundings.
    pub(crate) fn are_alike(
        &self,
        ours: Bound<'_>,
        theirs: Bound<'_>,
        n: usize,
    ) -> Result<bool, TensorError> {
        let (ours, theirs) = (self.read_floats(ours, n)?, self.read_floats(theirs, n)?);
        let largest = theirs.iter().fold(0f32, |m, v| m.max(v.abs()));
        // Not a number is not close.
        Ok(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() <= TOLERANCE * largest))
    }
}

impl Attention<'_> {
    /// The result, `[rows, n_heads * v_dim]`: sequences with many rows this way, the others as [`Self::run`] does.
    pub(crate) fn in_tiles(&self, backend: &GpuBackend) -> Act {
        let spans = &self.batch.spans;
        let (rows, cols) = (self.q.rows(), self.spec.n_heads * self.layer.shape.v_dim as usize);
        if spans.iter().all(is_long) && backend.wants_halves(rows, cols) {
            return backend.new_halves(rows, cols, |y| self.run_tiles(backend, y, true));
        }
        backend.new_act(rows, cols, |y| self.run_tiles(backend, y, false))
    }

    /// Writes the result; in f16 only where all sequences have many rows.
    fn run_tiles(&self, backend: &GpuBackend, y: Bound<'_>, is_half: bool) -> Result<(), TensorError> {
        let (layer, spec) = (self.layer, self.spec);
        let group = spec.n_heads / layer.n_kv_heads;
        let n_heads = (1 << group.trailing_zeros()).min(LINES);
        let n_subgroups = backend.n_subgroups(&layer.shape);
        let n_queries = n_subgroups * LINES / n_heads;
        let mut tiles: Vec<[u32; 2]> = Vec::new();
        for span in &self.batch.spans {
            if !is_long(span) {
                self.run(backend, span.rows.clone(), y, None)?;
                continue;
            }
            let starts = span.rows.clone().step_by(n_queries);
            tiles.extend(starts.map(|first| [first, n_queries.min(span.rows.end - first)].map(|n| n as u32)));
        }
        let kernel = AttendTiles {
            heads: layer.shape,
            n_heads: n_heads as u32,
            n_queries: n_queries as u32,
            n_subgroups: n_subgroups as u32,
            tile: TILE as u32,
            is_half,
        };
        let params = TileParams {
            n_tiles: tiles.len() as u32,
            n_heads: spec.n_heads as u32,
            n_kv_heads: layer.n_kv_heads as u32,
            window: spec.window.unwrap_or(0),
            scale: spec.scale,
            softcap: spec.softcap.unwrap_or(0.0),
            sees_both: (spec.reach == Reach::Both).into(),
            has_sinks: spec.sinks.is_some().into(),
        };
        let BatchTables { rows, block_tables, .. } = self.tables;
        let table = self.tables.tiles(backend, n_queries, &tiles)?;
        let (keys, values) = (layer.keys.buffer.bound(), layer.values.buffer.bound());
        let sinks = self.sinks(backend)?;
        let bound = [
            rows.bound(),
            block_tables.bound(),
            table.bound(),
            backend.floats(self.q),
            keys,
            values,
            sinks,
            y,
        ];
        let grid = Grid { x: params.n_tiles, y: params.n_kv_heads, z: (group / n_heads) as u32 };
        backend.run(&kernel, &bound, &params, grid)
    }
}
