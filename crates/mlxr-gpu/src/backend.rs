//! [`Backend`] on a GPU.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytemuck::NoUninit;
use mlxr_tensor::{
    Act, Activation, Ahead, AttentionSpec, Backend, Batch, BlockCopy, DeviceMemory, Gate, HostTensor,
    KernelTime, KvCache, KvSpec, LinearLayer, Ranked, Rope, RopePairing, RouterSpec, Routing, TensorError,
    Weight,
};

use crate::acts::GpuAct;
use crate::attention::{MAX_JOINED, Unturned};
use crate::batch::BatchTables;
use crate::bindings::Bound;
use crate::buffers::{Buffers, Pooled};
use crate::device::{AdapterChoice, AdapterInfo, BACKEND, Gpu, GpuError};
use crate::experts::GpuRouting;
use crate::few::is_plain_half;
use crate::fused::{GatedProduct, NormedProduct};
use crate::half::padded_rows;
use crate::kernels::{
    Activate, Add, AddRmsNorm, Combine, CopyWords, EmbedCodes, EmbedFloats, Gated, LayerNorm, MoveRows,
    NormShape, Patches, RmsNorm, RmsNormInPlace, RotateAndStore, RotateHeads, Route, Scale, StoreKv,
    StoreKvScaled, activation, gate,
};
use crate::kv::GpuKv;
use crate::layout::{CODES_CHUNK, Layout};
use crate::mode::Mode;
use crate::ops::Product;
use crate::params::{EmbedParams, GatedParams, LayerNormParams, NormParams, ScaleParams};
use crate::pipeline_cache::PipelineCache;
use crate::pipelines::{Kernel, Pipelines};
use crate::recorder::{Dispatch, Grid, Recorder};
use crate::tuner::Tuner;
use crate::weight::{GpuWeight, Numbered};

/// Records ops for a GPU and runs them.
///
/// An op that fails (out of memory, a lost device) makes every later one do nothing; the next
/// [`Backend::read`] reports it.
pub struct GpuBackend {
    gpu: Arc<Gpu>,
    buffers: Arc<Buffers>,
    pipelines: Pipelines,
    recorder: Mutex<Recorder>,
    pub(crate) mode: Mode,
    /// What went wrong first since the last read, where that is no failure of the device.
    refused: Mutex<Option<TensorError>>,
    /// Whether products of many rows are computed in f16.
    pub(crate) has_half_products: bool,
    /// Whether those of few rows are, with weights in f16.
    pub(crate) has_few_products: bool,
    /// Whether those of few rows are, with weights in codes.
    pub(crate) has_few_codes: bool,
    /// Whether attention of many rows is.
    pub(crate) has_half_attention: bool,
    /// Knows divisions of products that are faster here than the usual ones.
    pub(crate) tuner: Option<Tuner>,
    /// Whether any weight meets activations in eight bits, so that ops write those as well.
    pub(crate) wants_codes: AtomicBool,
    /// Whether any weight is neither in f16 nor a vector.
    pub(crate) has_other_weights: AtomicBool,
    /// Whether there are experts, which do not meet activations in f16.
    pub(crate) has_experts: AtomicBool,
    /// Bound where a kernel has a place for something the call lacks.
    none: Numbered,
    /// Counts workgroups that are done, for the last of them to do more; zero between kernels.
    arrivals: Numbered,
}

impl fmt::Debug for GpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GpuBackend({})", self.describe())
    }
}

impl Pooled {
    pub(crate) fn bound(&self) -> Bound<'_> {
        Bound { buffer: self.buffer(), id: self.id, start: 0 }
    }
}

impl GpuBackend {
    /// Opens the chosen adapter.
    ///
    /// # Errors
    /// [`GpuError`] when there is none that can be used.
    pub fn new(choice: AdapterChoice) -> Result<Self, GpuError> {
        let gpu = Arc::new(Gpu::new(choice)?);
        let failed = |e: TensorError| GpuError::Device { name: gpu.info.name.clone(), reason: e.to_string() };
        Self::of(gpu.clone(), Buffers::default()).map_err(failed)
    }

    pub(crate) fn of(gpu: Arc<Gpu>, buffers: Buffers) -> Result<Self, TensorError> {
        let buffers = Arc::new(buffers);
        let none = Numbered::empty(&gpu, &buffers, "none", 16)?;
        let arrivals = Numbered::new(&gpu, &buffers, "arrivals", &vec![0; 4 * MAX_JOINED])?;
        Ok(Self {
            gpu,
            buffers,
            pipelines: Pipelines::new(),
            recorder: Mutex::default(),
            mode: Mode::Computing,
            refused: Mutex::default(),
            has_half_products: false,
            has_few_products: false,
            has_few_codes: false,
            has_half_attention: false,
            tuner: None,
            wants_codes: AtomicBool::new(false),
            has_other_weights: AtomicBool::new(false),
            has_experts: AtomicBool::new(false),
            none,
            arrivals,
        })
    }

    /// Keeps what the driver makes of kernels in `folder`, from one run to the next.
    #[must_use]
    pub fn with_pipeline_cache(mut self, folder: &Path) -> Self {
        self.pipelines.keep_in(PipelineCache::open(&self.gpu, folder));
        self
    }

    /// Keeps what was compiled for the last step, if it was.
    pub(crate) fn keep_compiled(&self) {
        self.pipelines.save();
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

    /// Kernels that were asked for so far.
    #[cfg(test)]
    pub(crate) fn n_kernels(&self) -> usize {
        self.pipelines.len()
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    pub(crate) fn subgroup(&self) -> u32 {
        self.gpu.subgroup
    }

    pub(crate) fn none(&self) -> Bound<'_> {
        self.none.bound()
    }

    pub(crate) fn arrivals(&self) -> Bound<'_> {
        self.arrivals.bound()
    }

    /// A vector's values as f32.
    pub(crate) fn values<'a>(&self, weight: &'a Weight) -> Result<Bound<'a>, TensorError> {
        weight.handle::<GpuWeight>().values(&self.gpu, &self.buffers)
    }

    /// A vector's values, or what is bound in their place.
    pub(crate) fn values_or_none<'a>(&'a self, weight: Option<&'a Weight>) -> Result<Bound<'a>, TensorError> {
        weight.map_or_else(|| Ok(self.none()), |weight| self.values(weight))
    }

    /// Scratch of `n_bytes`.
    pub(crate) fn take(&self, n_bytes: usize) -> Result<Pooled, TensorError> {
        self.buffers.take(&self.gpu, n_bytes)
    }

    /// Scratch of `n_bytes` for a dispatch that waits for the one before in any case.
    pub(crate) fn take_behind(&self, n_bytes: usize) -> Result<Pooled, TensorError> {
        self.buffers.take_behind(&self.gpu, n_bytes)
    }

    /// Records one dispatch of a kernel.
    pub(crate) fn run<K: Kernel, P: NoUninit>(
        &self,
        kernel: &K,
        bound: &[Bound<'_>],
        params: &P,
        grid: Grid,
    ) -> Result<(), TensorError> {
        if self.mode == Mode::Rehearsing {
            return Ok(());
        }
        self.gpu.check()?;
        let pipeline = self.pipelines.get(&self.gpu, kernel).map_err(|e| self.gpu.lost(e))?;
        if !self.mode.runs() {
            return Ok(());
        }
        if self.mode == Mode::Comparing {
            pipeline.compiled().map_err(|e| self.gpu.lost(e))?;
        }
        let dispatch = Dispatch { pipeline: &pipeline, bound, immediates: bytemuck::bytes_of(params), grid };
        self.record().dispatch(&self.gpu, &self.buffers, &dispatch);
        Ok(())
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers in which form this weight's products want activations.
    fn note_layout(&self, weight: &GpuWeight) {
        if !weight.parts.is_empty() && !is_plain_half(weight) {
            self.has_other_weights.store(true, Ordering::Relaxed);
        }
        if matches!(weight.layout, Layout::Codes(_)) {
            self.wants_codes.store(true, Ordering::Relaxed);
        }
    }

    /// Scratch of `n_bytes`, or a stand-in for it on a device that has just failed.
    pub(crate) fn take_or_fail(&self, n_bytes: usize) -> Pooled {
        self.take(n_bytes).unwrap_or_else(|error| self.stand_in(error))
    }

    /// What takes the place of scratch that could not be had.
    fn stand_in(&self, error: TensorError) -> Pooled {
        self.note(Err(error));
        self.buffers.stand_in(self.none.buffer())
    }

    /// Keeps a failure for the next read.
    pub(crate) fn note(&self, result: Result<(), TensorError>) {
        let Err(error) = result else { return };
        if self.mode == Mode::Computing {
            self.gpu.fail(error);
        } else {
            self.refused().get_or_insert(error);
        }
    }

    pub(crate) fn refused(&self) -> MutexGuard<'_, Option<TensorError>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a kernel that has one lane per element.
    pub(crate) fn elementwise<K: Kernel, P: NoUninit>(
        &self,
        kernel: &K,
        bound: &[Bound<'_>],
        params: &P,
        n: usize,
    ) -> Result<(), TensorError> {
        self.run(kernel, bound, params, Grid::flat(n.div_ceil(256)))
    }

    /// Copies rows from `x` to `y`: those that `rows` names, or to those.
    fn move_rows(
        &self,
        kernel: MoveRows,
        [x, y]: [Bound<'_>; 2],
        rows: &[u32],
        cols: usize,
    ) -> Result<(), TensorError> {
        let table = self.buffers.take_with(&self.gpu, bytemuck::cast_slice(rows))?;
        let n = rows.len() * cols;
        self.elementwise(&kernel, &[x, table.bound(), y], &[n as u32, cols as u32], n)
    }

    pub(crate) fn tables<'a>(&self, batch: &'a Batch) -> Result<&'a BatchTables, TensorError> {
        let cached = batch.device_cache().get_or_init(|| {
            let made = BatchTables::new(&self.gpu, &self.buffers, batch);
            made.and_then(|tables| self.feed(batch, tables)).map_err(|error| self.note(Err(error)))
        });
        cached.as_ref().map_err(|()| self.gpu.lost("an earlier failure"))
    }

    /// The most lanes that a workgroup of one row takes: a power of two.
    pub(crate) fn max_lanes(&self) -> u32 {
        1 << self.gpu.limits.max_compute_invocations_per_workgroup.clamp(64, 1024).ilog2()
    }

    /// How a norm over `cols` columns is divided.
    pub(crate) fn norm_shape(&self, cols: usize) -> NormShape {
        let has_quads = cols.is_multiple_of(CODES_CHUNK);
        let n_items = if has_quads { cols / 4 } else { cols } as u32;
        let lanes = n_items.next_power_of_two().clamp(64, self.max_lanes());
        NormShape { lanes, subgroup: self.gpu.subgroup, has_quads, per_lane: n_items.div_ceil(lanes) }
    }
}

/// A linear layer on `x`.
fn product_of<'a>(x: &Act, (w, bias): LinearLayer<'a>) -> Product<'a> {
    assert_eq!(x.cols(), w.cols(), "columns of the input and of {w:?}");
    Product { weight: w.handle(), bias, routing: None, n_rows: x.rows() }
}

/// Bindings with more behind them.
pub(crate) fn with<'a>(bound: &[Bound<'a>], more: impl IntoIterator<Item = Bound<'a>>) -> Vec<Bound<'a>> {
    bound.iter().copied().chain(more).collect()
}

/// Bindings with those of codes behind them.
pub(crate) fn with_codes<'a>(bound: &[Bound<'a>], codes: Option<[Bound<'a>; 2]>) -> Vec<Bound<'a>> {
    with(bound, codes.into_iter().flatten())
}

/// What stands for the column of a row that has none, in `argmax.wgsl` and `largest.wgsl`.
pub(crate) const NO_COLUMN: u32 = u32::MAX;

impl Backend for GpuBackend {
    fn name(&self) -> &'static str {
        self.gpu.info.api
    }

    fn describe(&self) -> String {
        let products = if self.has_half_products { ", f16 products" } else { "" };
        format!("{} ({}, {}){products}", self.gpu.info.name, self.gpu.info.api, self.gpu.info.driver)
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

    fn allocated_bytes(&self) -> Option<u64> {
        Some(self.buffers.allocated_bytes())
    }

    fn rehearsal(&self) -> Option<Arc<dyn Backend>> {
        let stand_in = Self::of(self.gpu.clone(), Buffers::counting(self.none.buffer())).ok()?;
        let [has_half_products, has_few_products] = [self.has_half_products, self.has_few_products];
        let has_few_codes = self.has_few_codes;
        let (mode, has_half_attention) = (Mode::Rehearsing, self.has_half_attention);
        Some(Arc::new(Self {
            mode,
            has_half_products,
            has_few_products,
            has_few_codes,
            has_half_attention,
            ..stand_in
        }))
    }

    fn ahead(&self) -> Option<&dyn Ahead> {
        (self.mode == Mode::Computing).then_some(self)
    }

    fn upload(&self, tensor: &HostTensor) -> Result<Weight, TensorError> {
        let weight = GpuWeight::new(&self.gpu, &self.buffers, tensor)?;
        self.note_layout(&weight);
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
        let weight = GpuWeight::stack(&self.gpu, &self.buffers, experts)?;
        self.has_experts.store(true, Ordering::Relaxed);
        self.note_layout(&weight);
        Ok(Weight::new(&shape, first.format(), weight))
    }

    fn act(&self, rows: usize, cols: usize, values: &[f32]) -> Act {
        assert_eq!(values.len(), rows * cols, "values of an activation");
        let values = self
            .buffers
            .take_with(&self.gpu, bytemuck::cast_slice(values))
            .unwrap_or_else(|error| self.stand_in(error));
        Act::new(rows, cols, GpuAct::of_floats(values))
    }

    fn read(&self, x: &Act) -> Result<Vec<f32>, TensorError> {
        self.read_floats(self.floats(x), x.rows() * x.cols())
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
                    group: weight.layout.group(weight.cols),
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

    fn linear_each(&self, x: &Act, layers: &[LinearLayer<'_>]) -> Vec<Act> {
        let each = layers.iter().map(|&layer| {
            let product = product_of(x, layer);
            let weight = product.weight;
            if self.is_half(&product) {
                let room = padded_rows(x.rows());
                return self.new_act_in(room, x.rows(), weight.n_out, |y| self.half_product(x, weight, y));
            }
            if self.is_few(&product) {
                return self.new_act(x.rows(), weight.n_out, |y| self.few_product(x, weight, y));
            }
            if self.is_few_codes(&product) {
                return self.new_act(x.rows(), weight.n_out, |y| self.few_codes_product(x, weight, y));
            }
            self.new_act(x.rows(), weight.n_out, |y| self.product(x, &product, y))
        });
        each.collect()
    }

    fn gather_rows(&self, x: &Act, rows: &[u32]) -> Act {
        self.new_act(rows.len(), x.cols(), |y| {
            self.move_rows(MoveRows { is_scattering: false }, [self.floats(x), y], rows, x.cols())
        })
    }

    fn scatter_rows(&self, x: &mut Act, rows: &[u32], y: &Act) {
        assert_eq!((y.rows(), y.cols()), (rows.len(), x.cols()), "rows to be put into place");
        let kernel = MoveRows { is_scattering: true };
        self.note(self.move_rows(kernel, [self.floats(y), self.floats_mut(x)], rows, y.cols()));
    }

    fn patches(&self, image: &Act, n_channels: usize, patch: usize) -> Act {
        let (height, width) = (image.rows() / n_channels, image.cols());
        let (n_down, n_across) = (height / patch, width / patch);
        let cols = n_channels * patch * patch;
        self.new_act(n_down * n_across, cols, |y| {
            let n = n_down * n_across * cols;
            let params = [n, cols, patch, n_across, height, width].map(|v| v as u32);
            self.elementwise(&Patches {}, &[self.floats(image), y], &params, n)
        })
    }

    fn rms_norm(&self, x: &Act, weight: &Weight, eps: f32) -> Act {
        assert_eq!(x.cols(), weight.cols(), "columns of the input and of the norm");
        self.new_act_with_fragments([x.rows(), x.cols()], |y, codes, fragments| {
            let shape = self.norm_shape(x.cols());
            let (is_quantising, has_fragments) = (codes.is_some(), fragments.is_some());
            let kernel =
                RmsNorm { kind: "out_of_place", is_half: false, is_quantising, has_fragments, shape };
            let params = NormParams::new(shape, x.rows(), x.cols(), eps, 0.0);
            let bound = with_codes(&[self.values(weight)?, y, self.floats(x)], codes);
            let bound = with(&bound, fragments);
            self.run(&kernel, &bound, &params, Grid::flat(x.rows()))
        })
    }

    fn add_rms_norm(&self, residual: &mut Act, x: &Act, scale: f32, weight: &Weight, eps: f32) -> Act {
        assert_eq!((x.rows(), x.cols()), (residual.rows(), residual.cols()), "shapes of a sum");
        let residual = self.floats_mut(residual);
        let (rows, cols, shape) = (x.rows(), x.cols(), self.norm_shape(x.cols()));
        let run = |y: Bound<'_>, codes: Option<[Bound<'_>; 2]>, fragments: Option<Bound<'_>>, is_half| {
            let (is_quantising, has_fragments) = (codes.is_some(), fragments.is_some());
            let kernel = AddRmsNorm { kind: "residual", is_half, is_quantising, has_fragments, shape };
            let params = NormParams::new(shape, rows, cols, eps, scale);
            let bound = with_codes(&[self.values(weight)?, y, self.floats(x), residual], codes);
            let bound = with(&bound, fragments);
            self.run(&kernel, &bound, &params, Grid::flat(rows))
        };
        if self.wants_halves(rows, cols) {
            return self.new_halves(rows, cols, |y| run(y, None, None, true));
        }
        self.new_act_with_fragments([rows, cols], |y, codes, fragments| run(y, codes, fragments, false))
    }

    fn linear_add_rms_norm(
        &self,
        residual: &mut Act,
        (x, layer): (&Act, LinearLayer<'_>),
        scale: f32,
        norm: &Weight,
        eps: f32,
    ) -> Act {
        let normed = NormedProduct { product: product_of(x, layer), scale, norm };
        if !normed.is_fused(self) {
            let y = self.linear(x, layer.0, layer.1);
            return self.add_rms_norm(residual, &y, scale, norm, eps);
        }
        assert_eq!((x.rows(), layer.0.shape()[0]), (residual.rows(), residual.cols()), "shapes of a sum");
        let (rows, cols) = (residual.rows(), residual.cols());
        let residual = self.floats_mut(residual);
        let squares = self.take_or_fail(rows * cols / CODES_CHUNK * 4);
        let mut y = self.new_act_with_codes([rows, cols], cols, |y, codes| {
            normed.run(self, x, [residual, squares.bound(), y], codes)
        });
        y.handle_mut::<GpuAct>().leave_unscaled(squares, eps);
        y
    }

    fn layer_norm(&self, x: &Act, weight: &Weight, bias: Option<&Weight>, eps: f32) -> Act {
        assert_eq!(x.cols(), weight.cols(), "columns of the input and of the norm");
        self.new_act(x.rows(), x.cols(), |y| {
            let lanes = if x.cols() >= 1024 { 256 } else { 64 };
            let bias_bound = self.values_or_none(bias)?;
            let (n_rows, cols) = (x.rows() as u32, x.cols() as u32);
            let params = LayerNormParams { n_rows, cols, eps, has_bias: bias.is_some().into() };
            let bound = [self.floats(x), self.values(weight)?, bias_bound, y];
            let kernel = LayerNorm { lanes, subgroup: self.gpu.subgroup };
            self.run(&kernel, &bound, &params, Grid::flat(x.rows()))
        })
    }

    fn rms_norm_heads(&self, x: &mut Act, weight: &Weight, eps: f32) {
        let cols = weight.cols();
        assert!(x.cols().is_multiple_of(cols), "columns of the input and of the norm");
        let shape = self.norm_shape(cols);
        let n_groups = x.rows() * x.cols() / cols;
        let params = NormParams::new(shape, n_groups, cols, eps, 0.0);
        let kernel = RmsNormInPlace {
            kind: "in_place",
            is_half: false,
            is_quantising: false,
            has_fragments: false,
            shape,
        };
        let run = |weight| self.run(&kernel, &[weight, self.floats_mut(x)], &params, Grid::flat(n_groups));
        self.note(self.values(weight).and_then(run));
    }

    fn add(&self, x: &mut Act, y: &Act, scale: f32) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        // Buffers are whole vectors of four; what is behind the end is nobody's.
        let n_quads = (x.rows() * x.cols()).div_ceil(4);
        let params = ScaleParams { n: n_quads as u32, factor: scale };
        self.note(self.elementwise(&Add {}, &[self.floats_mut(x), self.floats(y)], &params, n_quads));
    }

    fn scale(&self, x: &mut Act, factor: f32) {
        let n = x.rows() * x.cols();
        let params = ScaleParams { n: n as u32, factor };
        self.note(self.elementwise(&Scale { is_softcap: false }, &[self.floats_mut(x)], &params, n));
    }

    fn softcap(&self, x: &mut Act, cap: f32) {
        let n = x.rows() * x.cols();
        let params = ScaleParams { n: n as u32, factor: cap };
        self.note(self.elementwise(&Scale { is_softcap: true }, &[self.floats_mut(x)], &params, n));
    }

    fn gated(&self, gate_act: &Act, up: &Act, kind: Gate) -> Act {
        assert_eq!((gate_act.rows(), gate_act.cols()), (up.rows(), up.cols()), "shapes of gate and up");
        let n = up.rows() * up.cols();
        self.new_act_with_codes([up.rows(), up.cols()], up.cols(), |y, codes| {
            let (kind, alpha, limit) = gate(kind);
            let n_items = if codes.is_some() { n / 4 } else { n };
            let params = GatedParams { n: n_items as u32, alpha, limit };
            let kernel = Gated { kind, is_quantising: codes.is_some() };
            self.elementwise(
                &kernel,
                &with_codes(&[self.floats(gate_act), self.floats(up), y], codes),
                &params,
                n_items,
            )
        })
    }

    fn linear_gated(&self, x: &Act, gate: LinearLayer<'_>, up: LinearLayer<'_>, kind: Gate) -> Act {
        let both = GatedProduct { gate: product_of(x, gate), up: product_of(x, up), kind };
        if !both.is_fused(self) {
            let n_out = both.gate.weight.n_out;
            if both.is_half(self) {
                return self.new_halves(x.rows(), n_out, |y| both.run_half(self, x, y));
            }
            if both.is_few(self) {
                return self.new_halves(x.rows(), n_out, |y| both.run_few(self, x, y));
            }
            if both.is_few_codes(self) {
                return self.new_act_as_fragments(x.rows(), n_out, |y, fragments| {
                    both.run_few_codes(self, x, y, fragments)
                });
            }
            let both = self.linear_each(x, &[gate, up]);
            return self.gated(&both[0], &both[1], kind);
        }
        let n_out = both.gate.weight.n_out;
        self.new_act_with_codes([x.rows(), n_out], n_out, |y, codes| both.run(self, x, y, codes))
    }

    fn activate(&self, x: &mut Act, kind: Activation) {
        let n = x.rows() * x.cols();
        self.note(self.elementwise(
            &Activate { kind: activation(kind) },
            &[self.floats_mut(x)],
            &[n as u32],
            n,
        ));
    }

    fn rope(&self, x: &mut Act, head_dim: usize, rope: &Rope, batch: &Batch) {
        let n_pairs = rope.inv_freq.len();
        let n_heads = x.cols() / head_dim;
        let n = x.rows() * n_heads * n_pairs;
        let mut run = || {
            let angles = self.tables(batch)?.angles(self, rope, batch)?;
            let kernel = RotateHeads { is_interleaved: rope.pairing == RopePairing::Interleaved };
            let params = [n as u32, n_heads as u32, head_dim as u32, n_pairs as u32];
            self.elementwise(&kernel, &[angles.bound(), self.floats_mut(x)], &params, n)
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
            let bound = [
                rows,
                self.floats(k),
                self.floats(v),
                layer.keys.buffer.bound(),
                layer.values.buffer.bound(),
            ];
            let (heads, octets) = (layer.shape, octets as u32);
            let grid = Grid::flat(n.div_ceil(64));
            match &layer.scales {
                None => self.run(&StoreKv { heads, octets }, &bound, &params, grid),
                Some((k_scales, v_scales)) => {
                    let [a, b, c, d, e] = bound;
                    let bound = [a, b, c, d, e, k_scales.buffer.bound(), v_scales.buffer.bound()];
                    self.run(&StoreKvScaled { heads, octets }, &bound, &params, grid)
                }
            }
        };
        self.note(run());
    }

    fn rope_and_store(
        &self,
        (q, mut k, v): (&mut Act, Act, &Act),
        rope: &Rope,
        kv: &mut KvCache,
        layer_idx: usize,
        batch: &Batch,
    ) {
        let layer = &kv.handle::<GpuKv>().layers[layer_idx];
        let (heads, n_pairs) = (layer.shape, rope.inv_freq.len());
        if layer.scales.is_some() || !n_pairs.is_multiple_of(8) {
            let head_dim = heads.k_dim as usize;
            self.rope(q, head_dim, rope, batch);
            self.rope(&mut k, head_dim, rope, batch);
            return self.store_kv(kv, layer_idx, &k, v, batch);
        }
        let mut run = || {
            let tables = self.tables(batch)?;
            let angles = tables.angles(self, rope, batch)?;
            let is_interleaved = rope.pairing == RopePairing::Interleaved;
            let n_units = n_pairs / if is_interleaved { 4 } else { 8 };
            let (k_octets, v_octets) = (heads.k_dim as usize / 8, heads.v_dim as usize / 8);
            let n_heads = q.cols() / heads.k_dim as usize;
            let per_kv_head = n_units + (k_octets - n_pairs / 4) + v_octets;
            let n = batch.n_rows() * (n_heads * n_units + layer.n_kv_heads * per_kv_head);
            let params = [n as u32, n_heads as u32, layer.n_kv_heads as u32];
            let (keys, values) = (layer.keys.buffer.bound(), layer.values.buffer.bound());
            let bound = [
                tables.rows.bound(),
                angles.bound(),
                self.floats_mut(q),
                self.floats(&k),
                self.floats(v),
                keys,
                values,
            ];
            let kernel = RotateAndStore { heads, n_pairs: n_pairs as u32, is_interleaved };
            self.run(&kernel, &bound, &params, Grid::flat(n.div_ceil(64)))
        };
        self.note(run());
    }

    fn attention(&self, q: &Act, kv: &KvCache, layer_idx: usize, batch: &Batch, spec: &AttentionSpec) -> Act {
        let layer = &kv.handle::<GpuKv>().layers[layer_idx];
        self.attend(q, layer, batch, spec, None)
    }

    fn rotate_and_attend(
        &self,
        (mut q, k, v): (Act, Act, &Act),
        (rope, spec): (&Rope, &AttentionSpec),
        kv: &mut KvCache,
        layer_idx: usize,
        batch: &Batch,
    ) -> Act {
        let layer = &kv.handle::<GpuKv>().layers[layer_idx];
        let unturned = Unturned { k: &k, v, rope };
        if unturned.is_fused(self, layer, batch) {
            return self.attend(&q, layer, batch, spec, Some(unturned));
        }
        self.rope_and_store((&mut q, k, v), rope, kv, layer_idx, batch);
        self.attention(&q, kv, layer_idx, batch, spec)
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

    fn read_blocks(&self, kv: &KvCache, blocks: &[u32]) -> Result<Vec<u8>, TensorError> {
        self.copy_out(kv.handle(), blocks)
    }

    fn write_blocks(&self, kv: &mut KvCache, blocks: &[u32], bytes: &[u8]) {
        self.copy_in(kv.handle(), blocks, bytes);
    }

    fn route(&self, logits: &Act, spec: &RouterSpec) -> Routing {
        let (n_experts, n_choices) = (logits.cols(), logits.rows() * spec.top_k);
        assert!(spec.top_k <= n_experts, "{} of {n_experts} experts", spec.top_k);
        let take = || self.take_or_fail(n_choices * 4);
        let routing = GpuRouting::new(take(), take(), n_choices, n_experts);
        let params = [logits.rows() as u32, logits.cols() as u32, spec.top_k as u32];
        let bound = [self.floats(logits), routing.experts.bound(), routing.weights.bound()];
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
            let routing = Some((self.choices(routing.handle())?, per_row));
            let product = Product { weight, bias, routing, n_rows: n_choices };
            self.product(x, &product, y)
        })
    }

    fn combine(&self, x: &Act, routing: &Routing) -> Act {
        let n = routing.n_rows() * x.cols();
        self.new_act(routing.n_rows(), x.cols(), |y| {
            let params = [n as u32, x.cols() as u32, routing.top_k() as u32];
            let weights = routing.handle::<GpuRouting>().weights.bound();
            self.elementwise(&Combine {}, &[self.floats(x), weights, y], &params, n)
        })
    }

    fn argmax(&self, x: &Act) -> Result<Vec<Option<u32>>, TensorError> {
        self.best_of(x)
    }

    fn largest(&self, x: &Act, n: usize) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        self.largest_of(x, n)
    }

    fn ranked(&self, x: &Act, n: usize) -> Result<Vec<Ranked>, TensorError> {
        self.ranked_of(x, n)
    }
}
