//! [`Backend`] on a GPU.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::{NoUninit, Pod, Zeroable};
use mlxr_tensor::{
    Act, Activation, AttentionSpec, Backend, Batch, BlockCopy, DeviceMemory, Gate, HostTensor, KernelTime,
    KvCache, KvSpec, MAX_LARGEST, Rope, RopePairing, RouterSpec, Routing, TensorError, Weight,
};

use crate::batch::BatchTables;
use crate::bindings::Bound;
use crate::buffers::{Buffers, Pooled};
use crate::device::{AdapterChoice, AdapterInfo, BACKEND, Gpu, GpuError};
use crate::kernels::{
    Activate, Add, AddRmsNorm, Argmax, Combine, CopyWords, EmbedCodes, EmbedFloats, Gated, GatherRows,
    Largest, LayerNorm, RmsNorm, RmsNormInPlace, RotateHeads, Route, Scale, StoreKv, StoreKvQ8, activation,
    gate,
};
use crate::kv::GpuKv;
use crate::layout::Layout;
use crate::ops::{Attention, Inputs, Product};
use crate::pipelines::{Kernel, Pipelines};
use crate::recorder::{Dispatch, Grid, Recorder};
use crate::weight::{GpuWeight, Numbered, has_numbers};

/// Records ops for a GPU and runs them.
///
/// An op that fails (out of memory, a lost device) makes every later one do nothing; the next
/// [`Backend::read`] reports it.
pub struct GpuBackend {
    gpu: Gpu,
    buffers: Arc<Buffers>,
    pipelines: Pipelines,
    recorder: Mutex<Recorder>,
    /// Bound where a kernel has a place for something the call lacks.
    none: Numbered,
}

impl fmt::Debug for GpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuBackend({})", self.describe())
    }
}

/// What stands behind an activation.
struct GpuAct(Pooled);

/// What stands behind a routing.
struct GpuRouting {
    experts: Pooled,
    weights: Pooled,
}

impl Pooled {
    pub(crate) fn bound(&self) -> Bound<'_> {
        Bound { buffer: self.buffer(), id: self.id }
    }
}

/// An activation's buffer.
pub(crate) fn act(x: &Act) -> Bound<'_> {
    x.handle::<GpuAct>().0.bound()
}

impl GpuBackend {
    /// Opens the chosen adapter.
    ///
    /// # Errors
    /// [`GpuError`] when there is none that can be used.
    pub fn new(choice: AdapterChoice) -> Result<Self, GpuError> {
        let gpu = Gpu::new(choice)?;
        let buffers = Arc::<Buffers>::default();
        let none = Numbered::empty(&gpu, &buffers, "none", 16)
            .map_err(|e| GpuError::Device { name: gpu.info.name.clone(), reason: e.to_string() })?;
        Ok(Self { gpu, buffers, pipelines: Pipelines::new(), recorder: Mutex::default(), none })
    }

    /// The adapter this runs on.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.gpu.info
    }

    /// Takes the device away from itself, as a driver does that resets or removes it: what runs fails, and so does
    /// everything later.
    pub fn destroy(&self) {
        self.gpu.device.destroy();
    }

    pub(crate) fn subgroup(&self) -> u32 {
        self.gpu.subgroup
    }

    pub(crate) fn none(&self) -> Bound<'_> {
        self.none.bound()
    }

    /// A vector's values as f32.
    pub(crate) fn values<'a>(&self, weight: &'a Weight) -> Result<Bound<'a>, TensorError> {
        weight.handle::<GpuWeight>().values(&self.gpu, &self.buffers)
    }

    /// Scratch of `n_bytes`.
    pub(crate) fn take(&self, n_bytes: usize) -> Result<Pooled, TensorError> {
        self.buffers.take(&self.gpu, n_bytes)
    }

    /// Records one dispatch of a kernel.
    pub(crate) fn run<K: Kernel, P: NoUninit>(
        &self,
        kernel: &K,
        bound: &[Bound<'_>],
        params: &P,
        grid: Grid,
    ) -> Result<(), TensorError> {
        self.gpu.check()?;
        let pipeline = self.pipelines.get(&self.gpu, kernel).map_err(|e| self.gpu.lost(e))?;
        let dispatch = Dispatch { pipeline: &pipeline, bound, immediates: bytemuck::bytes_of(params), grid };
        self.record().dispatch(&self.gpu, &self.buffers, &dispatch);
        Ok(())
    }

    fn record(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An activation that `fill` writes. A failure shows at the next read.
    fn new_act(
        &self,
        rows: usize,
        cols: usize,
        fill: impl FnOnce(Bound<'_>) -> Result<(), TensorError>,
    ) -> Act {
        let buffer = self.take(rows * cols * 4).unwrap_or_else(|error| {
            self.gpu.fail(error);
            self.buffers.stand_in(self.none.buffer())
        });
        let filled = fill(buffer.bound());
        self.note(filled);
        Act::new(rows, cols, GpuAct(buffer))
    }

    /// Keeps a failure for the next read.
    fn note(&self, result: Result<(), TensorError>) {
        if let Err(error) = result {
            self.gpu.fail(error);
        }
    }

    /// Records a kernel that has one lane per element.
    fn elementwise<K: Kernel, P: NoUninit>(
        &self,
        kernel: &K,
        bound: &[Bound<'_>],
        params: &P,
        n: usize,
    ) -> Result<(), TensorError> {
        self.run(kernel, bound, params, Grid::flat(n.div_ceil(256)))
    }

    fn tables<'a>(&self, batch: &'a Batch) -> Result<&'a BatchTables, TensorError> {
        let cached = batch.device_cache().get_or_init(|| {
            BatchTables::new(&self.gpu, &self.buffers, batch).map_err(|error| self.gpu.fail(error))
        });
        cached.as_ref().map_err(|()| self.gpu.lost("an earlier failure"))
    }

    /// Lanes of a norm over `cols` columns.
    fn norm_lanes(&self, cols: usize) -> (u32, u32) {
        let lanes = if cols >= 1024 { 256 } else { 64 };
        (lanes, lanes / self.gpu.subgroup)
    }
}

/// What stands for the column of a row that has none, in `argmax.wgsl` and `largest.wgsl`.
const NO_COLUMN: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormParams {
    n_groups: u32,
    cols: u32,
    eps: f32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LayerNormParams {
    n_rows: u32,
    cols: u32,
    eps: f32,
    has_bias: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScaleParams {
    n: u32,
    factor: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GatedParams {
    n: u32,
    alpha: f32,
    limit: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedParams {
    n: u32,
    n_chunks: u32,
    n_groups: u32,
    group: u32,
    cols: u32,
    scale: f32,
    first_out: u32,
    n_out: u32,
}

impl Backend for GpuBackend {
    fn name(&self) -> &'static str {
        self.gpu.info.api
    }

    fn describe(&self) -> String {
        format!("{} ({}, {})", self.gpu.info.name, self.gpu.info.api, self.gpu.info.driver)
    }

    fn failure(&self) -> Option<String> {
        self.gpu.failure()
    }

    fn start_profile(&self) -> Result<(), TensorError> {
        self.gpu.check()?;
        self.record().start_profile(&self.gpu, &self.buffers)
    }

    fn stop_profile(&self) {
        self.record().stop_profile(&self.gpu, &self.buffers);
    }

    fn kernel_times(&self) -> Vec<KernelTime> {
        self.record().kernel_times()
    }

    fn memory(&self) -> Option<DeviceMemory> {
        self.gpu.info.memory
    }

    fn upload(&self, tensor: &HostTensor) -> Result<Weight, TensorError> {
        if !has_numbers(tensor.format()) {
            return Err(TensorError::Unsupported {
                name: tensor.name().to_owned(),
                backend: BACKEND,
                reason: format!("type {} cannot be converted to numbers", tensor.format().name()),
            });
        }
        let weight = GpuWeight::new(&self.gpu, &self.buffers, tensor)?;
        Ok(Weight::new(tensor.shape(), tensor.format(), weight))
    }

    fn upload_experts(&self, experts: &[HostTensor]) -> Result<Weight, TensorError> {
        let unsupported = |name: &str, reason: String| TensorError::Unsupported {
            name: name.to_owned(),
            backend: BACKEND,
            reason,
        };
        let first = experts.first().ok_or_else(|| unsupported("", "a stack of no experts".to_owned()))?;
        let odd = experts.iter().find(|e| e.shape() != first.shape() || e.format() != first.format());
        if let Some(odd) = odd {
            let reason = format!("shape or format differs from {:?}", first.name());
            return Err(unsupported(odd.name(), reason));
        }
        let shape: Vec<usize> = [experts.len()].iter().chain(first.shape()).copied().collect();
        Ok(Weight::new(&shape, first.format(), GpuWeight::stack(&self.gpu, &self.buffers, experts)?))
    }

    fn act(&self, rows: usize, cols: usize, values: &[f32]) -> Act {
        assert_eq!(values.len(), rows * cols, "values of an activation");
        let buffer =
            self.buffers.take_with(&self.gpu, bytemuck::cast_slice(values)).unwrap_or_else(|error| {
                self.gpu.fail(error);
                self.buffers.stand_in(self.none.buffer())
            });
        Act::new(rows, cols, GpuAct(buffer))
    }

    fn read(&self, x: &Act) -> Result<Vec<f32>, TensorError> {
        self.gpu.check()?;
        let n_bytes = x.rows() * x.cols() * 4;
        let bytes = self.record().read(&self.gpu, &self.buffers, act(x).buffer, n_bytes)?;
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<KvCache, TensorError> {
        Ok(KvCache::new(spec.clone(), GpuKv::new(&self.gpu, &self.buffers, spec)?))
    }

    fn embed(&self, table: &Weight, batch: &Batch, scale: f32) -> Act {
        let weight = table.handle::<GpuWeight>();
        self.new_act(batch.n_rows(), weight.cols, |y| {
            let tokens = self.tables(batch)?.tokens.bound();
            let n_chunks = weight.cols.div_ceil(weight.layout.chunk());
            let n = batch.n_rows() * n_chunks;
            for part in &weight.parts {
                let params = EmbedParams {
                    n: n as u32,
                    n_chunks: n_chunks as u32,
                    n_groups: weight.layout.groups(weight.cols) as u32,
                    group: match weight.layout {
                        Layout::Floats(floats) => floats.group.unwrap_or(weight.cols as u32),
                        Layout::Codes(codes) => codes.group,
                    },
                    cols: weight.cols as u32,
                    scale,
                    first_out: part.first_row as u32,
                    n_out: part.n_rows as u32,
                };
                let (codes, high, scales) = (part.codes.bound(), part.high.bound(), part.scales.bound());
                let grid = Grid::flat(n.div_ceil(64));
                match weight.layout {
                    Layout::Codes(layout) => {
                        let kernel = EmbedCodes { layout };
                        self.run(&kernel, &[codes, high, scales, tokens, y], &params, grid)?;
                    }
                    Layout::Floats(layout) => {
                        let kernel = EmbedFloats { layout };
                        self.run(&kernel, &[codes, scales, self.none(), tokens, y], &params, grid)?;
                    }
                }
            }
            Ok(())
        })
    }

    fn linear(&self, x: &Act, w: &Weight, bias: Option<&Weight>) -> Act {
        self.linear_each(x, &[(w, bias)]).pop().expect("one layer, one result")
    }

    fn linear_each(&self, x: &Act, layers: &[(&Weight, Option<&Weight>)]) -> Vec<Act> {
        let mut inputs = Inputs::new(x);
        let each = layers.iter().map(|&(w, bias)| {
            assert_eq!(x.cols(), w.cols(), "columns of the input and of {w:?}");
            let weight = w.handle::<GpuWeight>();
            self.new_act(x.rows(), weight.n_out, |y| {
                let product = Product { weight, bias, routing: None, n_rows: x.rows() };
                self.product(&mut inputs, &product, y)
            })
        });
        each.collect()
    }

    fn gather_rows(&self, x: &Act, rows: &[u32]) -> Act {
        self.new_act(rows.len(), x.cols(), |y| {
            let table = self.buffers.take_with(&self.gpu, bytemuck::cast_slice(rows))?;
            let n = rows.len() * x.cols();
            self.elementwise(&GatherRows {}, &[act(x), table.bound(), y], &[n as u32, x.cols() as u32], n)
        })
    }

    fn rms_norm(&self, x: &Act, weight: &Weight, eps: f32) -> Act {
        assert_eq!(x.cols(), weight.cols(), "columns of the input and of the norm");
        self.new_act(x.rows(), x.cols(), |y| {
            let (lanes, n_subgroups) = self.norm_lanes(x.cols());
            let kernel = RmsNorm { kind: "out_of_place", lanes, n_subgroups };
            let params = NormParams { n_groups: x.rows() as u32, cols: x.cols() as u32, eps, scale: 0.0 };
            self.run(&kernel, &[self.values(weight)?, y, act(x)], &params, Grid::flat(x.rows()))
        })
    }

    fn add_rms_norm(&self, residual: &mut Act, x: &Act, scale: f32, weight: &Weight, eps: f32) -> Act {
        assert_eq!((x.rows(), x.cols()), (residual.rows(), residual.cols()), "shapes of a sum");
        self.new_act(x.rows(), x.cols(), |y| {
            let (lanes, n_subgroups) = self.norm_lanes(x.cols());
            let kernel = AddRmsNorm { kind: "residual", lanes, n_subgroups };
            let params = NormParams { n_groups: x.rows() as u32, cols: x.cols() as u32, eps, scale };
            let bound = [self.values(weight)?, y, act(x), act(residual)];
            self.run(&kernel, &bound, &params, Grid::flat(x.rows()))
        })
    }

    fn layer_norm(&self, x: &Act, weight: &Weight, bias: Option<&Weight>, eps: f32) -> Act {
        assert_eq!(x.cols(), weight.cols(), "columns of the input and of the norm");
        self.new_act(x.rows(), x.cols(), |y| {
            let (lanes, n_subgroups) = self.norm_lanes(x.cols());
            let bias_bound = match bias {
                Some(bias) => self.values(bias)?,
                None => self.none(),
            };
            let (n_rows, cols) = (x.rows() as u32, x.cols() as u32);
            let params = LayerNormParams { n_rows, cols, eps, has_bias: bias.is_some().into() };
            let bound = [act(x), self.values(weight)?, bias_bound, y];
            self.run(&LayerNorm { lanes, n_subgroups }, &bound, &params, Grid::flat(x.rows()))
        })
    }

    fn rms_norm_heads(&self, x: &mut Act, weight: &Weight, eps: f32) {
        let cols = weight.cols();
        assert!(x.cols().is_multiple_of(cols), "columns of the input and of the norm");
        let (lanes, n_subgroups) = self.norm_lanes(cols);
        let n_groups = x.rows() * x.cols() / cols;
        let params = NormParams { n_groups: n_groups as u32, cols: cols as u32, eps, scale: 0.0 };
        let kernel = RmsNormInPlace { kind: "in_place", lanes, n_subgroups };
        let run = |weight| self.run(&kernel, &[weight, act(x)], &params, Grid::flat(n_groups));
        self.note(self.values(weight).and_then(run));
    }

    fn add(&self, x: &mut Act, y: &Act, scale: f32) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        // Buffers are whole vectors of four; what is behind the end is nobody's.
        let n_quads = (x.rows() * x.cols()).div_ceil(4);
        let params = ScaleParams { n: n_quads as u32, factor: scale };
        self.note(self.elementwise(&Add {}, &[act(x), act(y)], &params, n_quads));
    }

    fn scale(&self, x: &mut Act, factor: f32) {
        let n = x.rows() * x.cols();
        let params = ScaleParams { n: n as u32, factor };
        self.note(self.elementwise(&Scale { is_softcap: false }, &[act(x)], &params, n));
    }

    fn softcap(&self, x: &mut Act, cap: f32) {
        let n = x.rows() * x.cols();
        let params = ScaleParams { n: n as u32, factor: cap };
        self.note(self.elementwise(&Scale { is_softcap: true }, &[act(x)], &params, n));
    }

    fn gated(&self, gate_act: &Act, up: &Act, kind: Gate) -> Act {
        assert_eq!((gate_act.rows(), gate_act.cols()), (up.rows(), up.cols()), "shapes of gate and up");
        let n = up.rows() * up.cols();
        self.new_act(up.rows(), up.cols(), |y| {
            let (kind, alpha, limit) = gate(kind);
            let params = GatedParams { n: n as u32, alpha, limit };
            self.elementwise(&Gated { kind }, &[act(gate_act), act(up), y], &params, n)
        })
    }

    fn activate(&self, x: &mut Act, kind: Activation) {
        let n = x.rows() * x.cols();
        self.note(self.elementwise(&Activate { kind: activation(kind) }, &[act(x)], &[n as u32], n));
    }

    fn rope(&self, x: &mut Act, head_dim: usize, rope: &Rope, batch: &Batch) {
        let n_pairs = rope.inv_freq.len();
        let n_heads = x.cols() / head_dim;
        let n = x.rows() * n_heads * n_pairs;
        let run = || {
            let angles = self.tables(batch)?.angles(&self.gpu, &self.buffers, rope, batch)?;
            let kernel = RotateHeads { is_interleaved: rope.pairing == RopePairing::Interleaved };
            let params = [n as u32, n_heads as u32, head_dim as u32, n_pairs as u32];
            self.elementwise(&kernel, &[angles.bound(), act(x)], &params, n)
        };
        self.note(run());
    }

    fn store_kv(&self, kv: &mut KvCache, layer_idx: usize, k: &Act, v: &Act, batch: &Batch) {
        let layer = &kv.handle::<GpuKv>().layers[layer_idx];
        let run = || {
            let rows = self.tables(batch)?.rows.bound();
            let octets = if layer.scales.is_some() { 4 } else { 1 };
            let runs = (layer.shape.k_dim + layer.shape.v_dim) as usize / (8 * octets);
            let n = batch.n_rows() * layer.n_kv_heads * runs;
            let params = [n as u32, layer.n_kv_heads as u32];
            let bound = [rows, act(k), act(v), layer.keys.buffer.bound(), layer.values.buffer.bound()];
            let (heads, octets) = (layer.shape, octets as u32);
            let grid = Grid::flat(n.div_ceil(64));
            match &layer.scales {
                None => self.run(&StoreKv { heads, octets }, &bound, &params, grid),
                Some((k_scales, v_scales)) => {
                    let [a, b, c, d, e] = bound;
                    let bound = [a, b, c, d, e, k_scales.buffer.bound(), v_scales.buffer.bound()];
                    self.run(&StoreKvQ8 { heads, octets }, &bound, &params, grid)
                }
            }
        };
        self.note(run());
    }

    fn attention(&self, q: &Act, kv: &KvCache, layer_idx: usize, batch: &Batch, spec: &AttentionSpec) -> Act {
        let layer = &kv.handle::<GpuKv>().layers[layer_idx];
        assert_eq!(q.cols(), spec.n_heads * layer.shape.k_dim as usize, "columns of the queries");
        self.new_act(q.rows(), spec.n_heads * layer.shape.v_dim as usize, |y| {
            let tables = self.tables(batch)?;
            Attention { q, layer, batch, tables, spec }.run(self, y)
        })
    }

    fn copy_blocks(&self, kv: &mut KvCache, copies: &[BlockCopy]) {
        let run = || {
            for copy in copies {
                for region in kv.handle::<GpuKv>().layers.iter().flat_map(|layer| layer.regions()) {
                    let n = region.block_words;
                    let word = |block: u32| block * n as u32;
                    let params = [n as u32, word(copy.from), word(copy.to)];
                    self.elementwise(&CopyWords {}, &[region.buffer.bound()], &params, n)?;
                }
            }
            Ok(())
        };
        self.note(run());
    }

    fn route(&self, logits: &Act, spec: &RouterSpec) -> Routing {
        let n_choices = logits.rows() * spec.top_k;
        let take = || match self.take(n_choices * 4) {
            Ok(buffer) => buffer,
            Err(error) => {
                self.gpu.fail(error);
                self.buffers.stand_in(self.none.buffer())
            }
        };
        let routing = GpuRouting { experts: take(), weights: take() };
        let params = [logits.rows() as u32, logits.cols() as u32, spec.top_k as u32];
        let bound = [act(logits), routing.experts.bound(), routing.weights.bound()];
        let kernel = Route { softmax_over_all: spec.softmax_over_all };
        self.note(self.run(&kernel, &bound, &params, Grid::flat(logits.rows())));
        Routing::new(logits.rows(), spec.top_k, routing)
    }

    fn expert_linear(&self, x: &Act, experts: &Weight, bias: Option<&Weight>, routing: &Routing) -> Act {
        assert_eq!(x.cols(), experts.cols(), "columns of the input and of {experts:?}");
        let n_choices = routing.n_rows() * routing.top_k();
        let per_row = if x.rows() == n_choices { 1 } else { routing.top_k() };
        assert_eq!(x.rows() * per_row, n_choices, "rows of the input and of the routing");
        let weight = experts.handle::<GpuWeight>();
        self.new_act(n_choices, weight.n_out, |y| {
            let routing = Some((&routing.handle::<GpuRouting>().experts, per_row));
            let product = Product { weight, bias, routing, n_rows: n_choices };
            self.product(&mut Inputs::new(x), &product, y)
        })
    }

    fn combine(&self, x: &Act, routing: &Routing) -> Act {
        let n = routing.n_rows() * x.cols();
        self.new_act(routing.n_rows(), x.cols(), |y| {
            let params = [n as u32, x.cols() as u32, routing.top_k() as u32];
            let weights = routing.handle::<GpuRouting>().weights.bound();
            self.elementwise(&Combine {}, &[act(x), weights, y], &params, n)
        })
    }

    fn argmax(&self, x: &Act) -> Result<Vec<Option<u32>>, TensorError> {
        self.gpu.check()?;
        let found = self.take(x.rows() * 4)?;
        let params = [x.rows() as u32, x.cols() as u32];
        self.run(&Argmax {}, &[act(x), found.bound()], &params, Grid::flat(x.rows()))?;
        let bytes = self.record().read(&self.gpu, &self.buffers, found.buffer(), x.rows() * 4)?;
        let columns: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        Ok(columns.into_iter().map(|column| (column != NO_COLUMN).then_some(column)).collect())
    }

    fn largest(&self, x: &Act, n: usize) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        assert!((1..=MAX_LARGEST).contains(&n), "{n} values of a row");
        self.gpu.check()?;
        let n = n.min(x.cols());
        let n_bytes = x.rows() * n * 8;
        let found = self.take(n_bytes)?;
        let params = [x.rows() as u32, x.cols() as u32, n as u32];
        self.run(&Largest {}, &[act(x), found.bound()], &params, Grid::flat(x.rows()))?;
        let bytes = self.record().read(&self.gpu, &self.buffers, found.buffer(), n_bytes)?;
        let pairs: Vec<[u32; 2]> = bytemuck::pod_collect_to_vec(&bytes);
        let of_row = |row: &[[u32; 2]]| -> Vec<(u32, f32)> {
            if row[0][0] == NO_COLUMN {
                return Vec::new();
            }
            let mut row: Vec<(u32, f32)> =
                row.iter().map(|&[column, bits]| (column, f32::from_bits(bits))).collect();
            row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            row
        };
        Ok(pairs.chunks_exact(n).map(of_row).collect())
    }
}
