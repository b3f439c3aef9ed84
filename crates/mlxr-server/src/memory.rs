//! What a model takes, and what there is.

use std::fmt;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{EmbedderLimits, EngineOptions};
use mlxr_models::{DecoderConfig, EncoderConfig, MlpConfig, ModelError, scratch_spec};
use mlxr_tensor::{Backend, DType, DeviceMemory, KvLayerSpec, KvSpec};

use crate::device::WeightBytes;
use crate::rehearsal::{self, Place};
use crate::split::{Room, Split};

/// Sequences of full length the KV arena holds when nobody says; shorter ones share the room.
const DEFAULT_FULL_SEQS: usize = 8;

/// The context when nobody says, unless the model's own is smaller.
const DEFAULT_CTX: u32 = 4096;

/// Bytes a model takes once loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub n_ctx: u32,
    pub weights_bytes: u64,
    /// The KV arena, allocated at once.
    pub kv_bytes: u64,
    /// Activations, logits and other scratch of steps, and of an image where the model reads any.
    pub step_bytes: u64,
    /// One KV block.
    pub block_bytes: u64,
    pub kv_dtype: DType,
    /// How that is divided between two devices, if so; what both need, such as a step's rows, is counted twice.
    pub split: Option<Split>,
}

impl MemoryPlan {
    /// Plans for a checkpoint: weights as the device has them, the arena as the engine lays it out, the rows of the widest
    /// step. Without a size for the arena it holds several full sequences, or as many as the device's room leaves beside the
    /// weights, but always one.
    ///
    /// # Errors
    /// The checkpoint's config makes no sense, or its heads do not fit the KV type.
    pub fn new(ckpt: &Checkpoint, options: &EngineOptions, room: &Room) -> Result<MemoryPlan, PlanError> {
        let config = DecoderConfig::for_checkpoint(ckpt)?;
        let n_ctx = match options.n_ctx {
            Some(n_ctx) => u32::try_from(n_ctx).unwrap_or(u32::MAX),
            None => config.n_ctx_train.min(DEFAULT_CTX),
        };
        if n_ctx > config.n_ctx_max {
            let (model, n_ctx_max) = (ckpt.path.display().to_string(), config.n_ctx_max);
            return Err(ModelError::ContextTooLong { model, n_ctx, n_ctx_max }.into());
        }
        let spec = KvSpec {
            n_blocks: 1,
            block_tokens: options.block_tokens,
            dtype: options.kv_dtype,
            layers: config.kv_layers(),
        };
        let block_bytes = spec.n_bytes().ok_or_else(|| kv_type_error(&config, options))? as u64;
        let seq_bytes = block_bytes.saturating_mul((n_ctx as usize).div_ceil(options.block_tokens) as u64);
        let weights_bytes = weights_bytes(ckpt, room.weight_bytes);
        let step_bytes = room.rehearsed_step_bytes(weights_bytes, |device| {
            let place = Place { first: None, last: device };
            Ok(rehearsal::of_decoder(place, ckpt, options, n_ctx)?.map(|taken| taken.last))
        });
        let step_bytes = step_bytes.unwrap_or_else(|| estimated_step_bytes(&config, options));
        let kv_bytes = options.kv_bytes.map_or_else(
            || {
                let left = room.device_bytes.saturating_sub(weights_bytes + step_bytes);
                seq_bytes.saturating_mul(full_seqs(options)).min(left).max(seq_bytes)
            },
            |bytes| bytes as u64,
        );
        let kv_dtype = options.kv_dtype;
        Ok(MemoryPlan { n_ctx, weights_bytes, kv_bytes, step_bytes, block_bytes, kv_dtype, split: None })
    }

    /// Plans for a model that makes vectors: weights as the device has them, scratch of one layer, what the largest batch takes.
    ///
    /// # Errors
    /// The checkpoint's config makes no sense.
    pub fn for_embedder(
        ckpt: &Checkpoint,
        options: &EngineOptions,
        limits: &EmbedderLimits,
        room: &Room,
    ) -> Result<MemoryPlan, PlanError> {
        let asked = options.n_ctx.map(|n_ctx| u32::try_from(n_ctx).unwrap_or(u32::MAX));
        let (n_ctx_max, layer, floats_per_row) = if ckpt.arch.encoder {
            let config = EncoderConfig::for_checkpoint(ckpt)?;
            (config.n_ctx, config.kv_layer(), 6 * config.hidden + 3 * config.intermediate)
        } else {
            let config = DecoderConfig::for_checkpoint(ckpt)?;
            (config.n_ctx_train.min(DEFAULT_CTX), config.kv_layer(), floats_per_row(&config))
        };
        // A context for all models is no reason to refuse one that has fewer positions.
        let n_ctx = if ckpt.arch.encoder {
            asked.map_or(n_ctx_max, |n| n.min(n_ctx_max))
        } else {
            asked.unwrap_or(n_ctx_max)
        };
        let weights_bytes = weights_bytes(ckpt, room.weight_bytes);
        let step_bytes = room.rehearsed_step_bytes(weights_bytes, |device| {
            rehearsal::of_embedder(device, ckpt, limits, n_ctx)
        });
        let scratch = scratch_plan(n_ctx, layer, options.block_tokens, limits);
        let step_bytes = step_bytes.unwrap_or_else(|| estimated_batch_bytes(n_ctx, floats_per_row, limits));
        Ok(MemoryPlan { weights_bytes, step_bytes, ..scratch })
    }

    /// What a generating model with contexts of `n_ctx` takes more once it makes vectors too; of two devices it is as much on
    /// each.
    ///
    /// # Errors
    /// The checkpoint's config makes no sense.
    pub(crate) fn for_embeddings_of(
        ckpt: &Checkpoint,
        n_ctx: u32,
        options: &EngineOptions,
        limits: &EmbedderLimits,
        place: Place<'_>,
    ) -> Result<MemoryPlan, PlanError> {
        let config = DecoderConfig::for_checkpoint(ckpt)?;
        let step_bytes = rehearsal::of_embeddings_of(place, ckpt, limits, n_ctx).ok().flatten();
        let step_bytes =
            step_bytes.unwrap_or_else(|| estimated_batch_bytes(n_ctx, floats_per_row(&config), limits));
        let scratch = scratch_plan(n_ctx, config.kv_layer(), options.block_tokens, limits);
        Ok(MemoryPlan { step_bytes, ..scratch })
    }

    pub const fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_bytes).saturating_add(self.step_bytes)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryPlan { n_ctx, weights_bytes, kv_bytes, step_bytes, .. } = self;
        let total = self.total_bytes();
        write!(
            f,
            "{total} bytes ({weights_bytes} of weights, {kv_bytes} of KV cache for contexts of {n_ctx}, \
             {step_bytes} per step)"
        )?;
        self.split.map_or(Ok(()), |split| write!(f, ": {split}"))
    }
}

/// Bytes of all weights on a device.
fn weights_bytes(ckpt: &Checkpoint, weight_bytes: WeightBytes) -> u64 {
    ckpt.tensors().map(|tensor| weight_bytes(tensor) as u64).sum()
}

/// Sequences of full length the arena holds where nobody sizes it and room is plenty.
pub(crate) fn full_seqs(options: &EngineOptions) -> u64 {
    DEFAULT_FULL_SEQS.min(options.max_seqs) as u64
}

pub(crate) fn kv_type_error(config: &DecoderConfig, options: &EngineOptions) -> PlanError {
    PlanError::KvType { dtype: options.kv_dtype, head_dim: config.kv_layer().k_dim }
}

/// One layer's scratch for an embedder's largest batch.
fn scratch_plan(n_ctx: u32, layer: KvLayerSpec, block_tokens: usize, limits: &EmbedderLimits) -> MemoryPlan {
    let slot_bytes = (layer.n_kv_heads * (layer.k_dim + layer.v_dim)) as u64 * 4;
    let spec =
        scratch_spec(layer, limits.max_batch_tokens.max(n_ctx as usize), limits.max_batch_texts.max(1));
    MemoryPlan {
        n_ctx,
        weights_bytes: 0,
        kv_bytes: spec.n_bytes().map_or(u64::MAX, |n_bytes| n_bytes as u64),
        step_bytes: 0,
        block_bytes: block_tokens as u64 * slot_bytes,
        kv_dtype: DType::F32,
        split: None,
    }
}

/// Why a model cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(
        "{dtype} cannot store this model's keys and values: heads of {head_dim} are no whole number of quant blocks \
         (choose another kv_type, such as f16)"
    )]
    KvType { dtype: DType, head_dim: usize },
}

/// Rows of the widest step: residual, normed input, attention and gate/up/product beside each other, in f32, and the
/// logits that are read back.
fn estimated_step_bytes(config: &DecoderConfig, options: &EngineOptions) -> u64 {
    let floats =
        options.max_batch_tokens * floats_per_row(config) + 2 * options.max_logit_rows * config.vocab;
    floats as u64 * 4
}

/// Rows of an embedder's largest batch.
fn estimated_batch_bytes(n_ctx: u32, floats_per_row: usize, limits: &EmbedderLimits) -> u64 {
    (limits.max_batch_tokens.max(n_ctx as usize) * floats_per_row) as u64 * 4
}

fn floats_per_row(config: &DecoderConfig) -> usize {
    let width = |mlp: &MlpConfig| match *mlp {
        MlpConfig::Dense { intermediate } => intermediate,
        MlpConfig::Experts { intermediate, router, .. } => intermediate * router.top_k,
    };
    let widest = config.layers.iter().map(|layer| width(&layer.mlp)).max().unwrap_or(0);
    6 * config.hidden + 3 * widest
}

/// The memory this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub limit_bytes: u64,
}

impl Memory {
    /// Of a device: nine tenths of what it has free for this program, or of the host's where it computes in that.
    pub fn of(backend: &dyn Backend) -> Memory {
        let Some(DeviceMemory { usable_bytes, is_shared, .. }) = backend.memory() else {
            return Memory::detect();
        };
        let limit_bytes = usable_bytes / 10 * 9;
        match is_shared {
            true => Memory { limit_bytes: limit_bytes.min(Memory::detect().limit_bytes) },
            false => Memory { limit_bytes },
        }
    }

    /// Nine tenths of the machine's memory, or of the container's if that is less.
    pub fn detect() -> Memory {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        let machine = system.total_memory();
        let container = system.cgroup_limits().map(|limits| limits.total_memory).filter(|&bytes| bytes > 0);
        Memory { limit_bytes: container.map_or(machine, |bytes| bytes.min(machine)) / 10 * 9 }
    }
}

/// Bytes of this process in memory; `None` where the system does not say.
pub fn process_bytes() -> Option<u64> {
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

    let (mut system, pid) = (System::new(), Pid::from_u32(std::process::id()));
    let what = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, what);
    system.process(pid).map(sysinfo::Process::memory)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use std::path::Path;

    use super::*;

    fn plan(options: &EngineOptions, room_bytes: u64) -> MemoryPlan {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny/llama/hf");
        MemoryPlan::new(&Checkpoint::open(&tiny).unwrap(), options, &Room::only(room_bytes)).unwrap()
    }

    #[test]
    fn the_arena_takes_what_the_room_leaves_but_holds_one_sequence() {
        let options = EngineOptions::default();
        // 2 layers of 2 KV heads of 16 elements, keys and values, in f16.
        let seq_bytes = 512 * 2 * 2 * (16 + 16) * 2;
        let roomy = plan(&options, u64::MAX);
        assert_eq!((roomy.n_ctx, roomy.kv_bytes), (512, 8 * seq_bytes));
        assert_eq!(plan(&options, 0).kv_bytes, seq_bytes);
        let base = roomy.weights_bytes + roomy.step_bytes;
        assert_eq!(plan(&options, base + 3 * seq_bytes).kv_bytes, 3 * seq_bytes);
        let fixed = EngineOptions { kv_bytes: Some(seq_bytes as usize), ..options };
        assert_eq!(plan(&fixed, u64::MAX).kv_bytes, seq_bytes);
        assert_eq!(plan(&EngineOptions { n_ctx: Some(64), ..options }, u64::MAX).n_ctx, 64);
        assert_eq!(roomy.block_bytes * 512 / options.block_tokens as u64, seq_bytes);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(Memory::detect().limit_bytes > 1 << 20);
        assert!(process_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
