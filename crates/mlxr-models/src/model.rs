//! A model that is ready to run.

use std::sync::Arc;

use mlxr_checkpoint::{Checkpoint, CheckpointFormat};
use mlxr_tensor::{Act, Backend, Batch, DType, KvSpec, TensorError};

use crate::ModelError;
use crate::config::{DecoderConfig, MlpConfig};
use crate::decoder::{Cx, Decoder, KvLayers};
use crate::families;
use crate::fields::Fields;
use crate::placement::{ModelKv, Placement};
use crate::rope::RopeFactors;
use crate::vision::{VisionConfig, VisionTower};
use crate::weights::Loader;

/// How to open a model.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelOptions {
    /// Longest sequence the model will be asked for; `None` is the trained length.
    ///
    /// Rotary embeddings whose frequencies depend on the length (LongRoPE's short and long factors, dynamic NTK) are
    /// fixed by this: a LongRoPE model opened beyond its original length uses the long factors from the first token.
    /// Switching while a sequence grows would leave keys in the cache that were rotated by other frequencies.
    pub n_ctx: Option<u32>,
}

/// A decoder with its weights on one device or two.
pub struct Model {
    config: DecoderConfig,
    decoder: Decoder,
    vision: Option<VisionTower>,
    n_ctx: u32,
    weights_bytes: usize,
    bytes_per_token: usize,
}

impl Model {
    /// Reads the config, checks every tensor and uploads the weights, all to one device.
    ///
    /// # Errors
    /// [`ModelError`] names the config field, tensor or limit that stands in the way; no checkpoint makes this panic.
    pub fn load(
        ckpt: &Checkpoint,
        backend: Arc<dyn Backend>,
        options: &ModelOptions,
    ) -> Result<Model, ModelError> {
        Self::load_at(ckpt, &Placement::whole(backend), options)
    }

    /// As [`Self::load`], to the devices of a placement.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_at(
        ckpt: &Checkpoint,
        placement: &Placement,
        options: &ModelOptions,
    ) -> Result<Model, ModelError> {
        let name = ckpt.path.display().to_string();
        let config = DecoderConfig::for_checkpoint(ckpt)?;
        let n_ctx = options.n_ctx.unwrap_or(config.n_ctx_train);
        if n_ctx > config.n_ctx_max {
            return Err(ModelError::ContextTooLong { model: name, n_ctx, n_ctx_max: config.n_ctx_max });
        }
        let stages = placement.stages(config.layers.len());
        let loader = Loader::new(&name, &config, ckpt, &*stages[0].0, n_ctx)?;
        let (decoder, weights_bytes) = loader.load(&stages)?;
        let bytes_per_token = weights_bytes - idle_bytes(&config, ckpt, stages.len());
        let vision = match VisionConfig::for_checkpoint(ckpt, &config)? {
            Some(vision) => Some(VisionTower::load(&name, vision, ckpt, placement.last())?),
            None => None,
        };
        let weights_bytes = weights_bytes + vision.as_ref().map_or(0, VisionTower::weights_bytes);
        Ok(Model { config, decoder, vision, n_ctx, weights_bytes, bytes_per_token })
    }

    /// What reads images, where the model has it.
    pub fn vision(&self) -> Option<&VisionTower> {
        self.vision.as_ref()
    }

    /// Logits of `batch.output_rows`: `[n_output_rows, vocab]`, scaled and capped as the family does.
    /// Stores the rows' keys and values at `batch.slots`. The logits are on [`Self::backend`].
    ///
    /// # Errors
    /// A device failed on the way; one that fails at the end says so when the logits are read.
    ///
    /// # Panics
    /// When a token id is not below [`DecoderConfig::vocab`], or `kv` is not of [`Self::kv_cache`].
    pub fn forward(&self, batch: &Batch, kv: &mut ModelKv) -> Result<Act, TensorError> {
        self.decoder.forward(self.cx(batch, KvLayers::Own), kv)
    }

    /// The normalised last hidden state of `batch.output_rows`: `[n_output_rows, hidden]`. Every span is a whole
    /// sequence, and `kv` is scratch of one layer.
    pub(crate) fn hidden(&self, batch: &Batch, kv: &mut ModelKv) -> Result<Act, TensorError> {
        self.decoder.hidden(self.cx(batch, KvLayers::Shared), kv)
    }

    fn cx<'a>(&'a self, batch: &'a Batch, kv_layers: KvLayers) -> Cx<'a> {
        Cx { backend: &*self.decoder.stages[0].backend, batch, norm_eps: self.config.norm_eps, kv_layers }
    }

    /// Where logits come from: the device of the last layer.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        let last = self.decoder.stages.last().expect("a decoder has a stage");
        &last.backend
    }

    /// The devices in order, each with how many layers it computes.
    pub fn devices(&self) -> impl Iterator<Item = (&Arc<dyn Backend>, usize)> {
        self.decoder.stages.iter().map(|stage| (&stage.backend, stage.layers.len()))
    }

    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The context length the model was opened with.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    /// The arena that holds this model's keys and values.
    pub fn kv_spec(&self, n_blocks: usize, block_tokens: usize, dtype: DType) -> KvSpec {
        KvSpec { n_blocks, block_tokens, dtype, layers: self.config.kv_layers() }
    }

    /// The arena that [`Self::kv_spec`] describes.
    ///
    /// # Errors
    /// [`TensorError`] when a device cannot hold its part.
    pub fn kv_cache(&self, spec: &KvSpec) -> Result<ModelKv, TensorError> {
        let mut n_before = 0;
        let layers = self.devices().map(|(backend, n_layers)| {
            n_before += n_layers;
            (backend.clone(), n_before - n_layers..n_before)
        });
        ModelKv::new(spec, layers)
    }

    /// Scratch of one layer's size on each device, for [`Self::hidden`].
    pub(crate) fn scratch(&self, spec: &KvSpec) -> Result<ModelKv, TensorError> {
        ModelKv::new(spec, self.devices().map(|(backend, _)| (backend.clone(), 0..1)))
    }

    /// Bytes of all weights as stored in the checkpoint.
    pub fn weights_bytes(&self) -> usize {
        self.weights_bytes
    }

    /// Weight bytes read to decode one token: all of them, but for experts not chosen and an embedding table of which
    /// one row is looked up.
    pub fn bytes_per_token(&self) -> usize {
        self.bytes_per_token
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({} layers, {} bytes)", self.config.layers.len(), self.weights_bytes)
    }
}

impl DecoderConfig {
    /// The config of a checkpoint, without touching its weights.
    ///
    /// # Errors
    /// [`ModelError`] names the family or the field that stands in the way.
    pub fn for_checkpoint(ckpt: &Checkpoint) -> Result<DecoderConfig, ModelError> {
        let name = ckpt.path.display().to_string();
        let factors = RopeFactors::read(ckpt)?;
        let fields = Fields::new(&name, &ckpt.config, ckpt.format == CheckpointFormat::Gguf, &factors);
        let mut config = families::read_config(&name, ckpt.arch.model_type, &fields)?;
        // A model published for its vectors comes without the matrix only logits need.
        if ckpt.embedding.pooling.is_some() && ckpt.tensor("lm_head.weight").is_none() {
            config.tied = true;
        }
        Ok(config)
    }
}

/// Weight bytes a decode step leaves alone.
fn idle_bytes(config: &DecoderConfig, ckpt: &Checkpoint, n_devices: usize) -> usize {
    let mut idle = 0;
    let has_table = !config.tied || n_devices > 1;
    if let (true, Some(table)) = (has_table, ckpt.tensor("embed_tokens.weight")) {
        idle += table.n_bytes() - table.n_bytes() / config.vocab;
    }
    for (i, layer) in config.layers.iter().enumerate() {
        let MlpConfig::Experts { n_experts, router, .. } = layer.mlp else { continue };
        let stacked = |part| ckpt.tensor(&format!("layers.{i}.moe.{part}.weight")).map(|t| t.n_bytes());
        let single =
            |part| ckpt.tensor(&format!("layers.{i}.moe.{part}.0.weight")).map(|t| t.n_bytes() * n_experts);
        for bytes in
            ["gate", "up", "down"].into_iter().filter_map(|part| stacked(part).or_else(|| single(part)))
        {
            idle += bytes / n_experts * (n_experts - router.top_k);
        }
    }
    idle
}
