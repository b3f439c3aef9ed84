//! [`Backend`] on the CPU.

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use mlxr_tensor::{
    Act, Activation, AttentionSpec, Backend, Batch, BlockCopy, Gate, HostTensor, KvCache, KvSpec,
    LinearLayer, Ranked, Rope, RopePairing, RouterSpec, Routing, TensorError, Weight, argmax, largest,
};

use crate::acts::{ActPool, inputs, set_coded, values, values_mut};
use crate::attention::{Attention, Target};
use crate::disjoint::{Disjoint, for_each_row, split};
use crate::kernels::{Isa, Kernels, Meeting, Products, WideKernels};
use crate::kv::CpuKv;
use crate::linear::blocks::{BLOCK_COLS, BlockActs};
use crate::linear::codes::QuantRowMut;
use crate::linear::gated::{GatedPair, gated};
use crate::linear::wide::{BLOCK_ROWS, STEP_COLS, WideActs};
use crate::linear::{Coded, Output, Product, RowMap, matmul};
use crate::moe::{CpuRouting, combine, group_by_expert, route};
use crate::pool::ThreadPool;
use crate::room::Room;
use crate::rope::{Angles, angles};
use crate::weight::{CpuWeight, Matrix, check_format, vector};

/// How a [`CpuBackend`] is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads that compute; the physical cores available to this process when not given.
    pub n_threads: Option<usize>,
    /// The instruction set to use; the fastest this CPU has when not given.
    pub isa: Option<Isa>,
}

/// Computes on the CPU, synchronously, with the kernels of one instruction set.
pub struct CpuBackend {
    kernels: Kernels,
    pool: ThreadPool,
    acts: Arc<ActPool>,
    /// How many weights meet codes with a scale per group, and per super-block.
    n_met: [AtomicUsize; 2],
    room: Room,
}

impl fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuBackend({})", self.describe())
    }
}

impl CpuBackend {
    /// Starts the thread pool and picks the kernels.
    ///
    /// # Errors
    /// [`TensorError::DeviceLost`] when this CPU does not have the instruction set asked for.
    pub fn new(options: CpuOptions) -> Result<Self, TensorError> {
        let kernels = match options.isa {
            None => Kernels::best(),
            Some(isa) => Kernels::of(isa).ok_or_else(|| TensorError::DeviceLost {
                backend: "cpu",
                reason: format!("this CPU has no {}; it has {}", isa.name(), Kernels::names()),
            })?,
        };
        let pool = ThreadPool::new(options.n_threads.unwrap_or_else(ThreadPool::default_threads));
        let kernels = Kernels { wide: None, ..kernels };
        Ok(Self { kernels, pool, acts: Arc::default(), n_met: Default::default(), room: Room::default() })
    }

    /// Computes products of many rows in another way; a CPU that has no such way goes on as before.
    #[must_use]
    pub fn with_products(mut self, products: Products) -> Self {
        self.kernels.wide = match products {
            Products::Alike => None,
            Products::Bf16 => Kernels::of(self.kernels.isa()).and_then(|kernels| kernels.wide),
        };
        self
    }

    #[cfg(test)]
    pub(crate) fn with_kernels(mut self, kernels: Kernels) -> Self {
        self.kernels = kernels;
        self
    }

    /// An activation whose rows `fill` writes. They are quantised at once, while they are in the cache, in the way that
    /// most products will want.
    fn filled(&self, rows: usize, cols: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Act {
        let mut out = self.acts.act(rows, cols);
        let [n_groups, n_blocks] = self.n_met.each_ref().map(|n| n.load(Ordering::Relaxed));
        let mut coded = Coded::default();
        if n_groups + n_blocks == 0 || self.wide(rows).is_some() {
            self.rows_in_place(&mut out, fill);
        } else if let Some(kernels) = self.kernels.blocks()
            && n_groups < n_blocks
            && cols.is_multiple_of(BLOCK_COLS)
        {
            let mut acts = BlockActs::new(rows, cols, &self.acts);
            let (row_bytes, bytes) = (acts.row_bytes(), Disjoint::new(acts.rows_mut(rows)));
            self.rows_in_place(&mut out, |i, row| {
                fill(i, row);
                // SAFETY: each row is handed out once; a table is only handed out where the CPU has its features.
                unsafe { (kernels.quantise)(row, bytes.row(i, row_bytes)) };
            });
            coded.blocks = acts.into();
        } else {
            let mut acts = self.acts.codes(rows, cols);
            let (layout, bytes) = (acts.layout(), Disjoint::new(acts.rows_mut(rows)));
            self.rows_in_place(&mut out, |i, row| {
                fill(i, row);
                // SAFETY: each row is handed out once.
                let bytes = unsafe { bytes.row(i, layout.row_bytes()) };
                self.kernels.quantise(row, QuantRowMut::new(layout, bytes));
            });
            coded.groups = acts.into();
        }
        set_coded(&mut out, coded);
        out
    }

    /// The kernels for so many rows, where they multiply all weights in bf16.
    fn wide(&self, rows: usize) -> Option<&WideKernels> {
        self.kernels.wide.as_ref().filter(|wide| wide.from_rows <= rows && wide.unpacked.is_some())
    }

    /// An activation in bf16 whose rows `fill` writes, for products alone: its values are as exact as these need them.
    fn packed(
        &self,
        wide: &WideKernels,
        (rows, cols): (usize, usize),
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Act {
        thread_local! { static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) }; }
        let mut acts = WideActs::new(rows, cols, &self.acts);
        let (n, stride) = acts.block_bytes();
        let (n_blocks, bytes) = (acts.n_blocks(), Disjoint::new(acts.bytes_mut()));
        self.pool.share(n_blocks, 1, |blocks| {
            ROWS.with_borrow_mut(|memory| {
                memory.resize(BLOCK_ROWS * cols, 0.0);
                for block in blocks {
                    let first = block * BLOCK_ROWS;
                    let values = &mut memory[..BLOCK_ROWS.min(rows - first) * cols];
                    values.chunks_exact_mut(cols).enumerate().for_each(|(i, row)| fill(first + i, row));
                    let values: Vec<&[f32]> = values.chunks_exact(cols).collect();
                    // SAFETY: each block is handed out once; a table is only handed out where the CPU has its features.
                    unsafe { (wide.pack)(&values, &mut bytes.row(block, stride)[..n]) };
                }
            });
        });
        self.acts.wide_act(rows, cols, acts)
    }

    fn matrix(&self, tensor: &HostTensor) -> Result<Matrix, TensorError> {
        let matrix = Matrix::new(tensor, &self.kernels, &self.pool, &self.room)?;
        match self.kernels.meeting(&matrix, 1) {
            Meeting::Codes => self.n_met[0].fetch_add(1, Ordering::Relaxed),
            Meeting::Blocks(..) => self.n_met[1].fetch_add(1, Ordering::Relaxed),
            Meeting::Floats | Meeting::Wide(_) => 0,
        };
        Ok(matrix)
    }

    /// Calls `work` on every row of `x`.
    fn rows_in_place(&self, x: &mut Act, work: impl Fn(usize, &mut [f32]) + Sync) {
        let cols = x.cols();
        for_each_row(&self.pool, values_mut(x), cols, work);
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn describe(&self) -> String {
        let n = self.pool.n_threads();
        let products = if self.kernels.wide.is_some() { ", bf16 products" } else { "" };
        format!("{}{products}, {n} thread{}", self.kernels.isa().name(), if n == 1 { "" } else { "s" })
    }

    fn parallel(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        if n < 2 {
            (0..n).for_each(work);
        } else {
            self.pool.run(|part, n_parts| split(n, part, n_parts, 1).for_each(work));
        }
    }

    /// Activations and what they are turned into. Weights are in the order of the kernels or in the file's map, as there is
    /// room; the arena is what was asked for.
    fn allocated_bytes(&self) -> Option<u64> {
        Some(self.acts.allocated_bytes())
    }

    fn rehearsal(&self) -> Option<Arc<dyn Backend>> {
        let pool = ThreadPool::idle(self.pool.n_threads());
        let (n_met, room) = (Default::default(), Room::silent());
        Some(Arc::new(Self { kernels: self.kernels, pool, acts: ActPool::keeping_all().into(), n_met, room }))
    }

    fn rest(&self) {
        self.acts.clear();
    }

    fn upload(&self, tensor: &HostTensor) -> Result<Weight, TensorError> {
        check_format(tensor)?;
        let matrix = self.matrix(tensor)?;
        Ok(Weight::new(tensor.shape(), tensor.format(), CpuWeight::new(vec![matrix])))
    }

    fn upload_experts(&self, experts: &[HostTensor]) -> Result<Weight, TensorError> {
        let Some(first) = experts.first() else {
            return Err(TensorError::Unsupported {
                name: String::new(),
                backend: "cpu",
                reason: "a stack of no experts".to_owned(),
            });
        };
        check_format(first)?;
        let odd = experts.iter().find(|e| e.shape() != first.shape() || e.format() != first.format());
        if let Some(odd) = odd {
            let reason = format!("shape or format differs from {:?}", first.name());
            return Err(TensorError::Unsupported { name: odd.name().to_owned(), backend: "cpu", reason });
        }
        let shape: Vec<usize> = [experts.len()].iter().chain(first.shape()).copied().collect();
        let parts = experts.iter().map(|expert| self.matrix(expert));
        Ok(Weight::new(&shape, first.format(), CpuWeight::new(parts.collect::<Result<_, _>>()?)))
    }

    fn act(&self, rows: usize, cols: usize, source: &[f32]) -> Act {
        let mut act = self.acts.act(rows, cols);
        values_mut(&mut act).copy_from_slice(source);
        act
    }

    fn read(&self, x: &Act) -> Result<Vec<f32>, TensorError> {
        Ok(values(x).to_vec())
    }

    fn read_into(&self, x: &Act, out: &mut Vec<f32>) -> Result<(), TensorError> {
        out.clear();
        out.extend_from_slice(values(x));
        Ok(())
    }

    fn kv_cache(&self, spec: &KvSpec) -> Result<KvCache, TensorError> {
        Ok(KvCache::new(spec.clone(), CpuKv::new(spec, &self.kernels)?))
    }

    fn embed(&self, table: &Weight, batch: &Batch, scale: f32) -> Act {
        let matrix = table.handle::<CpuWeight>().matrix();
        let mut out = self.acts.act(batch.n_rows(), table.cols());
        self.rows_in_place(&mut out, |row, values| {
            matrix.dequantise_row(batch.tokens[row] as usize, values);
            if scale != 1.0 {
                self.kernels.scale(values, scale);
            }
        });
        out
    }

    fn linear(&self, x: &Act, w: &Weight, bias: Option<&Weight>) -> Act {
        self.linear_each(x, &[(w, bias)]).pop().expect("one layer, one result")
    }

    fn linear_each(&self, x: &Act, layers: &[LinearLayer<'_>]) -> Vec<Act> {
        let mut products = Vec::with_capacity(layers.len());
        let mut results = Vec::with_capacity(layers.len());
        for (result, &(w, bias)) in layers.iter().enumerate() {
            assert_eq!(x.cols(), w.cols(), "columns of the input and of {w:?}");
            let weight = w.handle::<CpuWeight>().matrix();
            let bias = bias.map(vector);
            assert!(bias.is_none_or(|b| b.len() == weight.rows()), "bias of {w:?}");
            results.push(self.acts.act(x.rows(), weight.rows()));
            products.push(Product { weight, bias, rows: RowMap::All(x.rows()), result });
        }
        let outputs: Vec<Output<'_>> = results
            .iter_mut()
            .map(|act| {
                let cols = act.cols();
                Output::new(values_mut(act), cols)
            })
            .collect();
        matmul(&self.kernels, &self.pool, &mut inputs(x), &products, &outputs);
        drop(outputs);
        results
    }

    fn gather_rows(&self, x: &Act, rows: &[u32]) -> Act {
        let mut out = self.acts.act(rows.len(), x.cols());
        let source = values(x);
        let cols = x.cols();
        self.rows_in_place(&mut out, |i, row| {
            let start = rows[i] as usize * cols;
            row.copy_from_slice(&source[start..start + cols]);
        });
        out
    }

    fn scatter_rows(&self, x: &mut Act, rows: &[u32], y: &Act) {
        assert_eq!((y.rows(), y.cols()), (rows.len(), x.cols()), "rows to be put into place");
        let (cols, source) = (x.cols(), values(y));
        for (&row, y) in rows.iter().zip(source.chunks_exact(cols.max(1))) {
            values_mut(x)[row as usize * cols..][..cols].copy_from_slice(y);
        }
    }

    fn patches(&self, image: &Act, n_channels: usize, patch: usize) -> Act {
        let (height, width) = (image.rows() / n_channels, image.cols());
        let n_across = width / patch;
        let source = values(image);
        let mut out = self.acts.act(height / patch * n_across, n_channels * patch * patch);
        self.rows_in_place(&mut out, |square, row| {
            let (first_line, first) = (square / n_across * patch, square % n_across * patch);
            for (i, pixels) in row.chunks_exact_mut(patch).enumerate() {
                let line = i / patch * height + first_line + i % patch;
                pixels.copy_from_slice(&source[line * width + first..][..patch]);
            }
        });
        out
    }

    fn rms_norm(&self, x: &Act, weight: &Weight, eps: f32) -> Act {
        let weight = vector(weight);
        assert_eq!(x.cols(), weight.len(), "columns of the input and of the norm");
        let source = values(x);
        self.filled(x.rows(), x.cols(), |i, row| {
            let x = &source[i * row.len()..(i + 1) * row.len()];
            self.kernels.norm(row, x, weight, self.norm_factor(x, eps));
        })
    }

    fn add_rms_norm(&self, residual: &mut Act, x: &Act, scale: f32, weight: &Weight, eps: f32) -> Act {
        let weight = vector(weight);
        assert_eq!((residual.rows(), residual.cols()), (x.rows(), x.cols()), "shapes of a sum");
        assert_eq!(x.cols(), weight.len(), "columns of the input and of the norm");
        let (added, sums) = (values(x), Disjoint::new(values_mut(residual)));
        let fill = |i: usize, row: &mut [f32]| {
            // SAFETY: each row is handed out once.
            let sum = unsafe { sums.row(i, row.len()) };
            self.kernels.add_scaled(sum, &added[i * row.len()..(i + 1) * row.len()], scale);
            self.kernels.norm(row, sum, weight, self.norm_factor(sum, eps));
        };
        match self.wide(x.rows()) {
            Some(wide) => self.packed(wide, (x.rows(), x.cols()), fill),
            None => self.filled(x.rows(), x.cols(), fill),
        }
    }

    fn linear_add_rms_norm(
        &self,
        residual: &mut Act,
        (x, layer): (&Act, LinearLayer<'_>),
        scale: f32,
        norm: &Weight,
        eps: f32,
    ) -> Act {
        let (w, bias) = layer;
        let wide = self.wide(x.rows()).filter(|_| bias.is_none() && scale == 1.0);
        let Some(wide) = wide else {
            return self.add_rms_norm(residual, &self.linear(x, w, bias), scale, norm, eps);
        };
        let weight = w.handle::<CpuWeight>().matrix();
        let (rows, cols) = (x.rows(), weight.rows());
        assert_eq!(x.cols(), w.cols(), "columns of the input and of {w:?}");
        assert_eq!((residual.rows(), residual.cols()), (rows, cols), "shapes of a sum");
        let product = Product { weight, bias: None, rows: RowMap::All(rows), result: 0 };
        let output = [Output::onto(values_mut(residual), cols)];
        matmul(&self.kernels, &self.pool, &mut inputs(x), &[product], &output);
        let (sums, norm) = (values(residual), vector(norm));
        assert_eq!(cols, norm.len(), "columns of the input and of the norm");
        self.packed(wide, (rows, cols), |i, row| {
            let sum = &sums[i * cols..(i + 1) * cols];
            self.kernels.norm(row, sum, norm, self.norm_factor(sum, eps));
        })
    }

    fn layer_norm(&self, x: &Act, weight: &Weight, bias: Option<&Weight>, eps: f32) -> Act {
        let (weight, bias) = (vector(weight), bias.map(vector));
        assert_eq!(x.cols(), weight.len(), "columns of the input and of the norm");
        assert!(bias.is_none_or(|b| b.len() == weight.len()), "weight and bias of the norm");
        let source = values(x);
        self.filled(x.rows(), x.cols(), |i, row| {
            let x = &source[i * row.len()..(i + 1) * row.len()];
            self.kernels.subtract(row, x, self.kernels.sum(x) / x.len() as f32);
            let factor = self.norm_factor(row, eps);
            self.kernels.norm_in_place(row, weight, factor);
            if let Some(bias) = bias {
                self.kernels.add_scaled(row, bias, 1.0);
            }
        })
    }

    fn rms_norm_heads(&self, x: &mut Act, weight: &Weight, eps: f32) {
        let weight = vector(weight);
        assert!(x.cols().is_multiple_of(weight.len()), "columns of the input and of the norm");
        self.rows_in_place(x, |_, row| {
            for head in row.chunks_exact_mut(weight.len()) {
                let factor = self.norm_factor(head, eps);
                self.kernels.norm_in_place(head, weight, factor);
            }
        });
    }

    fn add(&self, x: &mut Act, y: &Act, scale: f32) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        let y = values(y);
        self.rows_in_place(x, |i, row| {
            self.kernels.add_scaled(row, &y[i * row.len()..(i + 1) * row.len()], scale);
        });
    }

    fn scale(&self, x: &mut Act, factor: f32) {
        self.rows_in_place(x, |_, row| self.kernels.scale(row, factor));
    }

    fn softcap(&self, x: &mut Act, cap: f32) {
        self.rows_in_place(x, |_, row| self.kernels.softcap(row, cap));
    }

    fn gated(&self, gate: &Act, up: &Act, kind: Gate) -> Act {
        assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "shapes of gate and up");
        let (rows, cols) = (gate.rows(), gate.cols());
        let (gate, up) = (values(gate), values(up));
        self.filled(rows, cols, |i, row| {
            let range = i * row.len()..(i + 1) * row.len();
            self.kernels.gated(row, &gate[range.clone()], &up[range], kind);
        })
    }

    fn linear_gated(&self, x: &Act, gate: LinearLayer<'_>, up: LinearLayer<'_>, kind: Gate) -> Act {
        let [matrix, other] = [gate.0, up.0].map(|w| w.handle::<CpuWeight>().matrix());
        let has_bias = gate.1.is_some() || up.1.is_some();
        let pair = GatedPair::new(&self.kernels, (matrix, other), x.rows()).filter(|_| !has_bias);
        let Some(pair) = pair else {
            let both = self.linear_each(x, &[gate, up]);
            return self.gated(&both[0], &both[1], kind);
        };
        assert_eq!((x.cols(), x.cols()), (gate.0.cols(), up.0.cols()), "columns of gate and up");
        let (rows, cols) = (x.rows(), matrix.rows());
        let acts = gated(&self.kernels, &self.pool, &inputs(x), (&pair, cols, kind));
        self.acts.wide_act(rows, cols, acts)
    }

    fn activate(&self, x: &mut Act, kind: Activation) {
        self.rows_in_place(x, |_, row| self.kernels.activate(row, kind));
    }

    fn rope(&self, x: &mut Act, head_dim: usize, spec: &Rope, batch: &Batch) {
        assert!(spec.rotary_dim() <= head_dim, "{} rotated columns of {head_dim}", spec.rotary_dim());
        let angles = angles(spec, batch);
        self.rows_in_place(x, |row, values| {
            angles.rotate(&self.kernels, spec.pairing, row, head_dim, values);
        });
    }

    fn rope_and_store(
        &self,
        (q, mut k, v): (&mut Act, Act, &Act),
        rope: &Rope,
        kv: &mut KvCache,
        layer_idx: usize,
        batch: &Batch,
    ) {
        let head_dim = kv.spec().layers[layer_idx].k_dim;
        assert!(rope.rotary_dim() <= head_dim, "{} rotated columns of {head_dim}", rope.rotary_dim());
        let angles = angles(rope, batch);
        let (q_cols, k_cols, v_cols) = (q.cols(), k.cols(), v.cols());
        let (q, k, v) = (Disjoint::new(values_mut(q)), Disjoint::new(values_mut(&mut k)), values(v));
        let row_of = |row: usize| {
            // SAFETY: `store` asks for each row once.
            let (q, k) = unsafe { (q.row(row, q_cols), k.row(row, k_cols)) };
            angles.rotate(&self.kernels, rope.pairing, row, head_dim, q);
            angles.rotate(&self.kernels, rope.pairing, row, head_dim, k);
            (&*k, &v[row * v_cols..(row + 1) * v_cols])
        };
        kv.handle_mut::<CpuKv>().store(&self.kernels, &self.pool, layer_idx, row_of, batch);
    }

    fn store_kv(&self, kv: &mut KvCache, layer_idx: usize, k: &Act, v: &Act, batch: &Batch) {
        let (k_cols, v_cols) = (k.cols(), v.cols());
        let (k, v) = (values(k), values(v));
        let row_of =
            |row: usize| (&k[row * k_cols..(row + 1) * k_cols], &v[row * v_cols..(row + 1) * v_cols]);
        kv.handle_mut::<CpuKv>().store(&self.kernels, &self.pool, layer_idx, row_of, batch);
    }

    fn attention(&self, q: &Act, kv: &KvCache, layer_idx: usize, batch: &Batch, spec: &AttentionSpec) -> Act {
        self.attend((q, None), kv, layer_idx, batch, spec)
    }

    fn rotate_and_attend(
        &self,
        (mut q, mut k, v): (Act, Act, &Act),
        (rope, spec): (&Rope, &AttentionSpec),
        kv: &mut KvCache,
        layer_idx: usize,
        batch: &Batch,
    ) -> Act {
        if self.wide(q.rows()).is_none() {
            self.rope_and_store((&mut q, k, v), rope, kv, layer_idx, batch);
            return self.attention(&q, kv, layer_idx, batch, spec);
        }
        // Queries are rotated where they meet the keys, so that they are not written once more.
        let head_dim = kv.spec().layers[layer_idx].k_dim;
        assert!(rope.rotary_dim() <= head_dim, "{} rotated columns of {head_dim}", rope.rotary_dim());
        let angles = angles(rope, batch);
        let (k_cols, v_cols) = (k.cols(), v.cols());
        let (k, v) = (Disjoint::new(values_mut(&mut k)), values(v));
        let row_of = |row: usize| {
            // SAFETY: `store` asks for each row once.
            let k = unsafe { k.row(row, k_cols) };
            angles.rotate(&self.kernels, rope.pairing, row, head_dim, k);
            (&*k, &v[row * v_cols..(row + 1) * v_cols])
        };
        kv.handle_mut::<CpuKv>().store(&self.kernels, &self.pool, layer_idx, row_of, batch);
        self.attend((&q, Some((&angles, rope.pairing))), kv, layer_idx, batch, spec)
    }

    fn copy_blocks(&self, kv: &mut KvCache, copies: &[BlockCopy]) {
        kv.handle_mut::<CpuKv>().copy_blocks(copies);
    }

    fn read_blocks(&self, kv: &KvCache, blocks: &[u32]) -> Result<Vec<u8>, TensorError> {
        Ok(kv.handle::<CpuKv>().read_blocks(blocks))
    }

    fn write_blocks(&self, kv: &mut KvCache, blocks: &[u32], bytes: &[u8]) {
        kv.handle_mut::<CpuKv>().write_blocks(blocks, bytes);
    }

    fn route(&self, logits: &Act, spec: &RouterSpec) -> Routing {
        let routing = route(&self.kernels, values(logits), logits.cols(), spec);
        Routing::new(logits.rows(), spec.top_k, routing)
    }

    fn expert_linear(&self, x: &Act, experts: &Weight, bias: Option<&Weight>, routing: &Routing) -> Act {
        let parts = &experts.handle::<CpuWeight>().parts;
        let n_out = parts[0].rows();
        assert_eq!(x.cols(), experts.cols(), "columns of the input and of {experts:?}");
        let top_k = routing.top_k();
        let per_choice = x.rows() == routing.n_rows() * top_k;
        assert!(per_choice || x.rows() == routing.n_rows(), "rows of the input and of the routing");
        let input_row = |choice: usize| if per_choice { choice } else { choice / top_k };
        let groups = group_by_expert(routing.handle::<CpuRouting>(), parts.len(), input_row);
        let bias = bias.map(vector);
        let products: Vec<Product<'_>> = groups
            .iter()
            .map(|(expert, pairs)| Product {
                weight: &parts[*expert],
                bias: bias.map(|b| &b[expert * n_out..(expert + 1) * n_out]),
                rows: RowMap::Pairs(pairs),
                result: 0,
            })
            .collect();
        let mut out = self.acts.act(routing.n_rows() * top_k, n_out);
        let outputs = [Output::new(values_mut(&mut out), n_out)];
        matmul(&self.kernels, &self.pool, &mut inputs(x), &products, &outputs);
        out
    }

    fn combine(&self, x: &Act, routing: &Routing) -> Act {
        let mut out = self.acts.act(routing.n_rows(), x.cols());
        combine(&self.kernels, &self.pool, values(x), routing, values_mut(&mut out));
        out
    }

    fn argmax(&self, x: &Act) -> Result<Vec<Option<u32>>, TensorError> {
        Ok(self.each_row(x, argmax))
    }

    fn largest(&self, x: &Act, n: usize) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        Ok(self.each_row(x, |row| argmax(row).map_or_else(Vec::new, |_| largest(row, n))))
    }

    fn ranked(&self, x: &Act, n: usize) -> Result<Vec<Ranked>, TensorError> {
        Ok(self.each_row(x, |row| {
            let exp_sum = self.exp_sum(row) as f32;
            // Of a row that is no distribution the sum is no number.
            let largest = if exp_sum.is_nan() { Vec::new() } else { largest(row, n) };
            Ranked { largest, exp_sum }
        }))
    }
}

impl CpuBackend {
    /// [`Backend::attention`], of queries that may still have to be rotated.
    fn attend(
        &self,
        (q, rotation): (&Act, Option<(&Angles, RopePairing)>),
        kv: &KvCache,
        layer_idx: usize,
        batch: &Batch,
        spec: &AttentionSpec,
    ) -> Act {
        let layer = kv.handle::<CpuKv>().layer(layer_idx);
        let (rows, v_dim) = (q.rows(), layer.layout.v_dim);
        assert_eq!(q.cols(), spec.n_heads * layer.layout.k_dim, "columns of the queries");
        let op = Attention { kernels: &self.kernels, q: values(q), layer, batch, spec, rotation };
        let has_steps = (spec.n_heads / layer.layout.n_kv_heads * v_dim).is_multiple_of(STEP_COLS);
        if let Some(wide) = self.wide(rows).filter(|_| has_steps) {
            let mut acts = WideActs::new(rows, spec.n_heads * v_dim, &self.acts);
            op.run(&self.pool, Target::Wide(wide, acts.lines()));
            return self.acts.wide_act(rows, spec.n_heads * v_dim, acts);
        }
        let mut out = self.acts.act(rows, spec.n_heads * v_dim);
        op.run(&self.pool, Target::Rows(Disjoint::new(values_mut(&mut out))));
        out
    }
}

/// Exponentials of a row that are added up in f32; more could be too far off.
const EXP_SUM_CHUNK: usize = 256;

impl CpuBackend {
    /// What `of` finds in each row, on all threads.
    fn each_row<T: Send + Sync>(&self, x: &Act, of: impl Fn(&[f32]) -> T + Sync) -> Vec<T> {
        let rows: Vec<&[f32]> = values(x).chunks_exact(x.cols().max(1)).collect();
        let found: Vec<OnceLock<T>> = rows.iter().map(|_| OnceLock::new()).collect();
        self.parallel(rows.len(), &|row| {
            found[row].get_or_init(|| of(rows[row]));
        });
        found.into_iter().map(|found| found.into_inner().expect("every row was looked at")).collect()
    }

    /// The sum of `exp(value - largest value)`.
    fn exp_sum(&self, row: &[f32]) -> f64 {
        let max = self.kernels.max(row);
        let mut buffer = [0f32; EXP_SUM_CHUNK];
        let sum_of = |chunk: &[f32]| {
            let values = &mut buffer[..chunk.len()];
            values.copy_from_slice(chunk);
            f64::from(self.kernels.exp_sum(values, max))
        };
        row.chunks(EXP_SUM_CHUNK).map(sum_of).sum()
    }

    /// `1 / sqrt(mean(x^2) + eps)`.
    fn norm_factor(&self, x: &[f32], eps: f32) -> f32 {
        1.0 / (self.kernels.sum_squares(x) / x.len() as f32 + eps).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use mlxr_tensor::DType;

    use super::*;
    use crate::room::Memory;

    /// Lines of a log.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no writer panicked").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What `work` returns, and what it wrote to the log.
    fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let result = tracing::subscriber::with_default(log, work);
        (result, String::from_utf8(lines.0.lock().expect("no writer panicked").clone()).expect("text"))
    }

    fn backend(room: Room) -> CpuBackend {
        CpuBackend { room, ..CpuBackend::new(CpuOptions::default()).expect("a CPU") }
    }

    /// Uploads weights to a backend that has no memory for their copies and to another one: the former says so once, as
    /// `expected`, and gives the same results.
    fn check_short(short: &CpuBackend, expected: &str) {
        let (rows, cols) = (1024, 2048);
        let bytes: Vec<u8> = (0..rows * cols / 32)
            .flat_map(|i| [i as u8, 0x2c].into_iter().chain((0..32).map(move |j| (i + 7 * j) as u8)))
            .collect();
        let tensor = HostTensor::new("w", &[rows, cols], DType::Q8_0, bytes.into()).expect("a tensor");
        let roomy = backend(Room::of(|| None));
        let (weights, text) =
            logged(|| [short, short, &roomy].map(|backend| backend.upload(&tensor).expect("a weight")));

        let is_copy = |weight: &Weight| match weight.handle::<CpuWeight>().matrix() {
            Matrix::Tiled(matrix) => matrix.is_copy(),
            Matrix::Stored(_) => false,
        };
        let has_order = matches!(short.kernels.codes, crate::kernels::CodeKernels::Tiles { .. });
        assert_eq!(weights.each_ref().map(is_copy), [false, false, has_order]);
        let said = text.matches("too little memory to put weights in the order").count();
        assert_eq!(said, usize::from(has_order), "{text}");
        assert!(!has_order || text.contains(" WARN ") && text.contains(expected), "{text}");

        let source: Vec<f32> = (0..cols).map(|i| (i % 13) as f32 - 6.0).collect();
        let result = |backend: &CpuBackend, weight: &Weight| {
            let x = backend.act(1, cols, &source);
            backend.read(&backend.linear(&x, weight, None)).expect("numbers")
        };
        let expected = result(&roomy, &weights[2]);
        assert!(expected.iter().any(|value| *value != 0.0));
        assert_eq!(result(short, &weights[0]), expected);
    }

    #[test]
    fn where_memory_is_short_weights_stay_in_the_file_and_one_warning_says_so() {
        let short = || Some(Memory { total: 800 << 20, available: 101 << 20 });
        check_short(&backend(Room::of(short)), "available_mb=101 total_mb=800");
    }

    #[test]
    fn where_the_system_has_no_memory_weights_stay_in_the_file_and_one_warning_says_so() {
        check_short(&backend(Room::exhausted()), "needed_mb=2");
    }

    #[test]
    fn a_rehearsal_says_nothing_of_memory() {
        let rehearsal = Room::silent();
        let (copy, text) = logged(|| rehearsal.copy(usize::MAX));
        assert!(copy.is_none() && text.is_empty(), "{text}");
    }
}
