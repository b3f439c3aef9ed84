//! The operations a device offers, and the handles they work on.
//!
//! A model is written once against [`Backend`]. Handles are opaque: the CPU keeps slices behind them, a GPU keeps
//! buffers, and an op may be recorded rather than run. Only what is read back (such as [`Backend::read`]) waits for
//! results; a device that fails in between reports it there.
//!
//! Contract of every op:
//! - Row `r` of a result depends on row `r` of the inputs (and that row's sequence in the cache) alone, through a
//!   reduction order that does not depend on how many rows there are. A sequence's tokens are therefore the same
//!   alone or in any batch. The conformance suite checks this bit for bit.
//! - Shapes are the caller's duty: a mismatch is a bug and panics. Data never is.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::{Ahead, DType, Fed, Format, HostTensor, Ranked, TensorError};

/// A device: uploads weights, owns activations and KV blocks, runs the fused ops a decoder needs.
///
/// Activations are `[rows, cols]`, one row per token of the batch. Dropping an [`Act`] returns its buffer.
pub trait Backend: fmt::Debug + Send + Sync {
    /// Short name for messages: `cpu`, `metal`, `vulkan`.
    fn name(&self) -> &'static str;

    /// One line for people: the device and what of it is used, e.g. `AVX-512 + VNNI, 2 threads`.
    fn describe(&self) -> String;

    /// Calls `work` for every number below `n`, on as many threads as the backend has for it. For what is left to do on
    /// the host, such as sampling; numbers must not depend on each other.
    fn parallel(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(work);
    }

    /// The memory that weights, KV blocks and activations lie in, where it is not the host's or the device has its own
    /// say on how much of that it takes. `None`: whatever the host has.
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }

    /// Bytes that ops have taken so far for activations and other scratch, and on a device with memory of its own
    /// ([`Self::memory`]) those of weights and KV blocks too, as the allocator counts them. `None` where nobody counts.
    fn allocated_bytes(&self) -> Option<u64> {
        None
    }

    /// A stand-in that takes none of this device's memory and computes nothing, but asks for memory as this one would and
    /// counts it ([`Self::allocated_bytes`]); what is read from it are zeros. Its handles are its own. `None` where there is
    /// none.
    fn rehearsal(&self) -> Option<Arc<dyn Backend>> {
        None
    }

    /// Says that nothing may be asked for in a while: memory that is only kept for what comes next is given back to the
    /// system, where it is the system's.
    fn rest(&self) {}

    /// Why the device computes no more, once something on it has failed: whatever it held is lost, and only a backend
    /// opened anew goes on. `None` for one that works, and for those that cannot fail as a whole.
    fn failure(&self) -> Option<String> {
        None
    }

    /// Measures from now on how long each kernel takes, which makes everything slower; what was measured before is
    /// forgotten.
    ///
    /// # Errors
    /// [`TensorError::NoProfile`] where that cannot be measured.
    fn start_profile(&self) -> Result<(), TensorError> {
        let reason = "only those of a GPU can\nhint: compute on one with --device gpu".to_owned();
        Err(TensorError::NoProfile { backend: self.name(), reason })
    }

    /// Measures no longer.
    fn stop_profile(&self) {}

    /// What the kernels have taken since [`Self::start_profile`], the longest first; nothing when none runs.
    fn kernel_times(&self) -> Vec<KernelTime> {
        Vec::new()
    }

    /// The same device as one that computes while the host goes on, if it does.
    fn ahead(&self) -> Option<&dyn Ahead> {
        None
    }

    // --- placement -----------------------------------------------------------------------------------------------

    /// Makes a matrix `[out, in]` or a vector `[n]` usable by the ops, in the format it has. May repack it once.
    ///
    /// # Errors
    /// [`TensorError::Unsupported`] for a format this device cannot compute with, [`TensorError::OutOfMemory`].
    fn upload(&self, tensor: &HostTensor) -> Result<Weight, TensorError>;

    /// Makes the matrices of all experts of one projection usable by [`Self::expert_linear`].
    ///
    /// # Errors
    /// As [`Self::upload`]; also when the experts differ in shape or format.
    fn upload_experts(&self, experts: &[HostTensor]) -> Result<Weight, TensorError>;

    /// An activation with the given values, row-major.
    fn act(&self, rows: usize, cols: usize, values: &[f32]) -> Act;

    /// Waits for `x` and copies it out, row-major.
    ///
    /// # Errors
    /// [`TensorError::DeviceLost`] when an op since the last read failed.
    fn read(&self, x: &Act) -> Result<Vec<f32>, TensorError>;

    /// As [`Self::read`], into memory that is there already: `out` holds the values and nothing else afterwards.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_into(&self, x: &Act, out: &mut Vec<f32>) -> Result<(), TensorError> {
        *out = self.read(x)?;
        Ok(())
    }

    /// An arena of KV blocks, contents undefined.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`], or [`TensorError::Quantise`] for a KV type this device does not store.
    fn kv_cache(&self, spec: &KvSpec) -> Result<KvCache, TensorError>;

    // --- rows in, rows out ---------------------------------------------------------------------------------------

    /// Rows `batch.tokens` of `table: [vocab, hidden]`, times `scale`; in the place of those that `batch.fed` names, rows of
    /// the tokens the device has (the values of tokens it does not have are undefined). Only a device that gave them gets
    /// such a batch.
    fn embed(&self, table: &Weight, batch: &Batch, scale: f32) -> Act;

    /// `x: [rows, in]` times the transpose of `w: [out, in]`, plus `bias: [out]`.
    fn linear(&self, x: &Act, w: &Weight, bias: Option<&Weight>) -> Act;

    /// Several linear layers on the same input (q/k/v, gate/up), so that the input is prepared once.
    fn linear_each(&self, x: &Act, layers: &[LinearLayer<'_>]) -> Vec<Act> {
        layers.iter().map(|&(w, bias)| self.linear(x, w, bias)).collect()
    }

    /// Rows `rows` of `x`, in that order.
    fn gather_rows(&self, x: &Act, rows: &[u32]) -> Act;

    /// Row `i` of `y` in the place of row `rows[i]` of `x`, for rows that are all different.
    fn scatter_rows(&self, x: &mut Act, rows: &[u32], y: &Act);

    /// An image `[n_channels * height, width]` cut into squares of `patch` by `patch` pixels, those of a line one after the
    /// other: `[n_patches, n_channels * patch * patch]`, each row as a convolution's weight has it, so that a convolution
    /// with this stride is a linear layer. What is left at the right and at the bottom is not looked at.
    fn patches(&self, image: &Act, n_channels: usize, patch: usize) -> Act;

    /// `x / sqrt(mean(x^2) + eps) * weight` for each row.
    fn rms_norm(&self, x: &Act, weight: &Weight, eps: f32) -> Act;

    /// `residual += scale * x`, then [`Self::rms_norm`] of `residual`: the step between two sublayers.
    fn add_rms_norm(&self, residual: &mut Act, x: &Act, scale: f32, weight: &Weight, eps: f32) -> Act {
        self.add(residual, x, scale);
        self.rms_norm(residual, weight, eps)
    }

    /// [`Self::add_rms_norm`] of a linear layer on `x`: from the end of a sublayer to the next.
    fn linear_add_rms_norm(
        &self,
        residual: &mut Act,
        (x, layer): (&Act, LinearLayer<'_>),
        scale: f32,
        norm: &Weight,
        eps: f32,
    ) -> Act {
        let y = self.linear(x, layer.0, layer.1);
        self.add_rms_norm(residual, &y, scale, norm, eps)
    }

    /// `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias` for each row.
    fn layer_norm(&self, x: &Act, weight: &Weight, bias: Option<&Weight>, eps: f32) -> Act;

    /// [`Self::rms_norm`] over each group of `weight.cols()` columns, in place: one norm per head.
    fn rms_norm_heads(&self, x: &mut Act, weight: &Weight, eps: f32);

    /// `x += scale * y`.
    fn add(&self, x: &mut Act, y: &Act, scale: f32);

    /// `x *= factor`.
    fn scale(&self, x: &mut Act, factor: f32);

    /// `x = cap * tanh(x / cap)`.
    fn softcap(&self, x: &mut Act, cap: f32);

    /// The gated MLP's middle: `activation(gate) * up`, see [`Gate`].
    fn gated(&self, gate: &Act, up: &Act, kind: Gate) -> Act;

    /// [`Self::gated`] of two linear layers on the same input.
    fn linear_gated(&self, x: &Act, gate: LinearLayer<'_>, up: LinearLayer<'_>, kind: Gate) -> Act {
        let both = self.linear_each(x, &[gate, up]);
        self.gated(&both[0], &both[1], kind)
    }

    /// An ungated MLP's middle: `x = activation(x)`, see [`Activation`].
    fn activate(&self, x: &mut Act, kind: Activation);

    // --- attention -----------------------------------------------------------------------------------------------

    /// Rotates each head of `x: [rows, n_heads * head_dim]` by its row's position, in place.
    fn rope(&self, x: &mut Act, head_dim: usize, rope: &Rope, batch: &Batch);

    /// Stores `k: [rows, n_kv_heads * k_dim]` and `v: [rows, n_kv_heads * v_dim]` at `batch.slots`.
    fn store_kv(&self, kv: &mut KvCache, layer_idx: usize, k: &Act, v: &Act, batch: &Batch);

    /// Rotates `q` and `k` as [`Self::rope`] does, then stores `k` and `v` as [`Self::store_kv`] does. `k` has no further
    /// use, so it need not be written.
    fn rope_and_store(
        &self,
        (q, mut k, v): (&mut Act, Act, &Act),
        rope: &Rope,
        kv: &mut KvCache,
        layer_idx: usize,
        batch: &Batch,
    ) {
        let head_dim = kv.spec().layers[layer_idx].k_dim;
        self.rope(q, head_dim, rope, batch);
        self.rope(&mut k, head_dim, rope, batch);
        self.store_kv(kv, layer_idx, &k, v, batch);
    }

    /// Attention of `q: [rows, n_heads * k_dim]` over what `spec` lets each row see of its sequence in the cache, whose
    /// keys and values are stored up to the end of the row's span. Returns `[rows, n_heads * v_dim]`.
    fn attention(&self, q: &Act, kv: &KvCache, layer_idx: usize, batch: &Batch, spec: &AttentionSpec) -> Act;

    /// [`Self::rope_and_store`], then [`Self::attention`].
    fn rotate_and_attend(
        &self,
        (mut q, k, v): (Act, Act, &Act),
        (rope, spec): (&Rope, &AttentionSpec),
        kv: &mut KvCache,
        layer_idx: usize,
        batch: &Batch,
    ) -> Act {
        self.rope_and_store((&mut q, k, v), rope, kv, layer_idx, batch);
        self.attention(&q, kv, layer_idx, batch, spec)
    }

    /// Copies whole blocks inside the arena, in order: copy-on-write.
    fn copy_blocks(&self, kv: &mut KvCache, copies: &[BlockCopy]);

    /// Waits, and copies whole blocks out of the arena, one after the other and all of the same length, laid out as this
    /// device likes it.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_blocks(&self, kv: &KvCache, blocks: &[u32]) -> Result<Vec<u8>, TensorError>;

    /// Gives blocks of the arena the contents that [`Self::read_blocks`] has copied out of as many of them.
    fn write_blocks(&self, kv: &mut KvCache, blocks: &[u32], bytes: &[u8]);

    // --- mixture of experts --------------------------------------------------------------------------------------

    /// Picks experts for each row of `logits: [rows, n_experts]`; equal logits go to the lower index.
    fn route(&self, logits: &Act, spec: &RouterSpec) -> Routing;

    /// The chosen experts' linear layers: result row `r * top_k + j` is `experts[routing[r][j]] * x` plus that expert's
    /// row of `bias: [n_experts, out]`. `x` has either one row per token or one per `(token, choice)`.
    fn expert_linear(&self, x: &Act, experts: &Weight, bias: Option<&Weight>, routing: &Routing) -> Act;

    /// Row `r` is the sum over `j` of `routing.weight[r][j] * x[r * top_k + j]`, `j` ascending.
    fn combine(&self, x: &Act, routing: &Routing) -> Act;

    // --- the end of a step ---------------------------------------------------------------------------------------

    /// Waits, and returns what [`argmax`](crate::argmax) finds in each row.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn argmax(&self, x: &Act) -> Result<Vec<Option<u32>>, TensorError>;

    /// Waits, and returns what [`largest`](crate::largest) finds in each row, for `n` from 1 to [`MAX_LARGEST`]; nothing
    /// in rows in which [`Self::argmax`] finds nothing.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn largest(&self, x: &Act, n: usize) -> Result<Vec<Vec<(u32, f32)>>, TensorError>;

    /// Waits, and returns what [`Ranked`] says of each row, with the values that [`Self::largest`] gives.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn ranked(&self, x: &Act, n: usize) -> Result<Vec<Ranked>, TensorError> {
        Ok(self.read(x)?.chunks_exact(x.cols()).map(|row| Ranked::of(row, n)).collect())
    }
}

/// A linear layer's weight `[out, in]` and bias `[out]`.
pub type LinearLayer<'a> = (&'a Weight, Option<&'a Weight>);

/// The memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    pub total_bytes: u64,
    /// What this program may take of it, beside other programs.
    pub usable_bytes: u64,
    /// Whether it is the host's memory.
    pub is_shared: bool,
}

/// What one kernel took, over all its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelTime {
    pub kernel: &'static str,
    pub n_calls: u64,
    pub time: Duration,
}

/// The most values of a row that [`Backend::largest`] gives.
pub const MAX_LARGEST: usize = 256;

/// What [`Backend::gated`] computes from `gate` (g) and `up` (u).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// `g * sigmoid(g) * u`
    Silu,
    /// `g * Phi(g) * u` with the exact normal distribution function.
    Gelu,
    /// `gelu(g) * u` by the tanh approximation.
    GeluTanh,
    /// gpt-oss: with `g` clamped above and `u` on both sides to `limit`, `g * sigmoid(alpha * g) * (u + 1)`.
    ClampedSwiglu { alpha: f32, limit: f32 },
}

/// What [`Backend::activate`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * Phi(x)` with the exact normal distribution function.
    Gelu,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// `x * sigmoid(1.702 x)`
    QuickGelu,
    /// `x * sigmoid(x)`
    Silu,
    Relu,
    Tanh,
}

/// In which direction a row sees its sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Positions up to its own.
    #[default]
    Causal,
    /// All positions up to the end of its span, which should therefore hold the whole sequence.
    Both,
}

/// How query rows meet cached keys and values.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    pub n_heads: usize,
    /// Multiplies the dot products, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    pub reach: Reach,
    /// A row sees positions less than `window` away from its own only.
    pub window: Option<u32>,
    /// `cap * tanh(score / cap)` on the scaled scores.
    pub softcap: Option<f32>,
    /// `[n_heads]` logits that take part in the softmax but carry no value (gpt-oss).
    pub sinks: Option<Weight>,
}

/// How router logits become expert choices and weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterSpec {
    pub top_k: usize,
    /// Softmax over all experts, keeping the chosen probabilities as they are; otherwise over the chosen ones alone.
    pub softmax_over_all: bool,
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopePairing {
    /// `(i, i + rotary_dim / 2)`: Hugging Face and MLX files, most GGUF architectures.
    Half,
    /// `(2i, 2i + 1)`: GGUF files of architectures whose converter permutes the q and k rows.
    Interleaved,
}

/// Rotary position embedding, ready to apply: scaling methods have already shaped `inv_freq` and `magnitude`.
#[derive(Debug)]
pub struct Rope {
    pub pairing: RopePairing,
    /// One frequency per rotated pair, radians per position: `[rotary_dim / 2]`. The rest of the head is left alone.
    pub inv_freq: Vec<f32>,
    /// Factor on sine and cosine (YaRN's and LongRoPE's attention factor), 1 otherwise.
    pub magnitude: f32,
    cache: DeviceCache,
}

impl Rope {
    pub fn new(pairing: RopePairing, inv_freq: Vec<f32>, magnitude: f32) -> Self {
        Self { pairing, inv_freq, magnitude, cache: DeviceCache::default() }
    }

    pub fn rotary_dim(&self) -> usize {
        self.inv_freq.len() * 2
    }

    /// Where a backend keeps what it derives from this value.
    pub fn device_cache(&self) -> &DeviceCache {
        &self.cache
    }
}

/// A place on a host value where the backend keeps its own form of it (an upload, a table).
#[derive(Default)]
pub struct DeviceCache(OnceLock<Box<dyn Any + Send + Sync>>);

impl DeviceCache {
    /// The cached form, made on first use.
    ///
    /// # Panics
    /// When two backends of different type share the value: a model on two devices gives each a copy.
    pub fn get_or_init<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> &T {
        self.0
            .get_or_init(|| Box::new(make()))
            .downcast_ref()
            .expect("one backend per value: the cached form has its type")
    }
}

/// A copy starts empty, so that another device can fill it.
impl Clone for DeviceCache {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for DeviceCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.get().is_some() { "filled" } else { "empty" })
    }
}

/// One step's rows, flattened over sequences: prefill chunks, decode rows and drafts look the same.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence, counted from 0.
    pub positions: Vec<u32>,
    /// Where each row's key and value go: `block id * block_tokens + offset`.
    pub slots: Vec<u32>,
    /// The sequences, in row order; together they cover all rows.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending.
    pub output_rows: Vec<u32>,
    /// Rows whose tokens are not known on the host.
    pub fed: Option<Fed>,
    /// Rows that are given in place of their tokens' embeddings.
    pub given: Vec<GivenRows>,
    cache: DeviceCache,
}

/// Rows of a [`Batch`] that are no tokens' embeddings, such as those of an image.
#[derive(Clone, Debug)]
pub struct GivenRows {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Rows as wide as the model, of which these are the ones from `first` on.
    pub values: Arc<[f32]>,
    pub first: usize,
}

/// The rows of one sequence in a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of the batch; their positions are consecutive and end the sequence as stored so far.
    pub rows: Range<usize>,
    /// The sequence's blocks in order, enough to cover its last row's position.
    pub block_table: Vec<u32>,
}

impl Batch {
    /// An empty batch; push sequences with [`Self::push`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `tokens` at positions from `start` of a sequence whose blocks are `block_table`.
    ///
    /// # Panics
    /// When the blocks do not cover the last position.
    pub fn push(&mut self, tokens: &[u32], start: u32, block_table: &[u32], block_tokens: usize) {
        let first_row = self.tokens.len();
        for (i, &token) in tokens.iter().enumerate() {
            let position = start as usize + i;
            let block = block_table[position / block_tokens] as usize;
            self.tokens.push(token);
            self.positions.push(position as u32);
            self.slots.push((block * block_tokens + position % block_tokens) as u32);
        }
        self.spans.push(Span { rows: first_row..self.tokens.len(), block_table: block_table.to_vec() });
    }

    /// Asks for the logits of the last pushed row.
    pub fn want_last(&mut self) {
        let last = self.tokens.len().checked_sub(1).expect("a row was pushed");
        self.output_rows.push(last as u32);
    }

    pub fn n_rows(&self) -> usize {
        self.tokens.len()
    }

    /// Where a backend keeps what it derives from this batch.
    pub fn device_cache(&self) -> &DeviceCache {
        &self.cache
    }
}

/// Size and type of a KV arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvSpec {
    pub n_blocks: usize,
    /// Tokens per block, 16 or 32.
    pub block_tokens: usize,
    /// One of [`Self::DTYPES`].
    pub dtype: DType,
    pub layers: Vec<KvLayerSpec>,
}

/// What one layer stores per token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayerSpec {
    pub n_kv_heads: usize,
    pub k_dim: usize,
    pub v_dim: usize,
}

impl KvSpec {
    /// Types that keys and values are stored in. Those in FP8 (E4M3) have no scale, and end at 448.
    pub const DTYPES: [DType; 6] =
        [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_0, DType::F8E4M3];
    /// Their names, for messages.
    pub const DTYPE_NAMES: &str = "f32, f16, bf16, q8_0, q4_0 or fp8";

    /// The cache type of that name, ignoring case; `fp8` is E4M3.
    pub fn dtype_named(name: &str) -> Option<DType> {
        if name.eq_ignore_ascii_case("fp8") {
            return Some(DType::F8E4M3);
        }
        name.parse().ok().filter(|dtype| Self::DTYPES.contains(dtype))
    }

    /// Bytes one token takes over all layers, or `None` when a head does not fit the type's quant blocks.
    pub fn bytes_per_token(&self) -> Option<usize> {
        self.layers.iter().try_fold(0usize, |sum, layer| {
            let per_head = self.dtype.bytes_for(layer.k_dim)? + self.dtype.bytes_for(layer.v_dim)?;
            sum.checked_add(layer.n_kv_heads.checked_mul(per_head)?)
        })
    }

    /// Bytes of the whole arena, or `None` when it cannot be laid out.
    pub fn n_bytes(&self) -> Option<usize> {
        self.bytes_per_token()?.checked_mul(self.block_tokens)?.checked_mul(self.n_blocks)
    }
}

/// One block copy of [`Backend::copy_blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: u32,
    pub to: u32,
}

/// A matrix, vector or stack of experts on a device; cloning shares it.
#[derive(Clone)]
pub struct Weight {
    shape: Vec<usize>,
    format: Format,
    handle: Arc<dyn Any + Send + Sync>,
}

impl Weight {
    /// Wraps a backend's own form of a weight.
    pub fn new(shape: &[usize], format: Format, handle: impl Any + Send + Sync) -> Self {
        Self { shape: shape.to_vec(), format, handle: Arc::new(handle) }
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Length of the innermost dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The backend's own form.
    ///
    /// # Panics
    /// When the weight belongs to another backend.
    pub fn handle<T: Any>(&self) -> &T {
        self.handle.downcast_ref().expect("weight belongs to this backend")
    }
}

impl fmt::Debug for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Weight({:?}, {})", self.shape, self.format.name())
    }
}

macro_rules! owned_handle {
    ($name:ident, $what:literal) => {
        impl $name {
            /// The backend's own form.
            ///
            /// # Panics
            #[doc = concat!("When the ", $what, " belongs to another backend.")]
            pub fn handle<T: Any>(&self) -> &T {
                self.handle.downcast_ref().expect(concat!($what, " belongs to this backend"))
            }

            /// The backend's own form, to write.
            ///
            /// # Panics
            #[doc = concat!("When the ", $what, " belongs to another backend.")]
            pub fn handle_mut<T: Any>(&mut self) -> &mut T {
                self.handle.downcast_mut().expect(concat!($what, " belongs to this backend"))
            }
        }
    };
}

/// A pooled activation `[rows, cols]`.
pub struct Act {
    rows: usize,
    cols: usize,
    handle: Box<dyn Any + Send + Sync>,
}

impl Act {
    /// Wraps a backend's own buffer.
    pub fn new(rows: usize, cols: usize, handle: impl Any + Send + Sync) -> Self {
        Self { rows, cols, handle: Box::new(handle) }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }
}

owned_handle!(Act, "activation");

impl fmt::Debug for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Act[{}, {}]", self.rows, self.cols)
    }
}

/// The expert choices of a batch: `top_k` per row.
pub struct Routing {
    n_rows: usize,
    top_k: usize,
    handle: Box<dyn Any + Send + Sync>,
}

impl Routing {
    /// Wraps a backend's own form.
    pub fn new(n_rows: usize, top_k: usize, handle: impl Any + Send + Sync) -> Self {
        Self { n_rows, top_k, handle: Box::new(handle) }
    }

    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub fn top_k(&self) -> usize {
        self.top_k
    }
}

owned_handle!(Routing, "routing");

/// An arena of KV blocks on a device.
pub struct KvCache {
    spec: KvSpec,
    handle: Box<dyn Any + Send + Sync>,
}

impl KvCache {
    /// Wraps a backend's own arena.
    pub fn new(spec: KvSpec, handle: impl Any + Send + Sync) -> Self {
        Self { spec, handle: Box::new(handle) }
    }

    pub fn spec(&self) -> &KvSpec {
        &self.spec
    }
}

owned_handle!(KvCache, "KV cache");

impl fmt::Debug for KvCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvCache({} blocks of {}, {})", self.spec.n_blocks, self.spec.block_tokens, self.spec.dtype)
    }
}
