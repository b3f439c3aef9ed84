//! From an image to rows of the text model: CLIP's vision tower and LLaVA's projector.
//!
//! An image is computed by itself, so its rows depend on nothing else.

mod config;

use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_tensor::{Act, Backend, Batch, DType, KvCache, KvSpec, Pixels, TensorError, Weight};

use crate::ModelError;
use crate::config::Bias;
use crate::decoder::Linear;
use crate::encoder::{self, Cx, Layer, LayerNorm};
use crate::upload::{Expected, Upload};

pub use config::VisionConfig;

/// Tokens per block of the scratch that holds one layer's keys and values.
const BLOCK_TOKENS: usize = 32;

/// Whether a tensor is the tower's or the projector's.
pub fn is_part(name: &str) -> bool {
    name.starts_with("vision.") || name.starts_with("projector.")
}

/// A vision tower with its projector, on a backend.
pub struct VisionTower {
    backend: Arc<dyn Backend>,
    config: VisionConfig,
    /// The vector of the row that stands for the whole image: `[1, hidden]`.
    class: Weight,
    /// The convolution that reads patches: `[hidden, n_channels * patch_size^2]`.
    patches: Weight,
    positions: Weight,
    embed_norm: LayerNorm,
    layers: Vec<Layer>,
    up: Linear,
    down: Linear,
    weights_bytes: usize,
}

impl VisionTower {
    /// Checks every tensor against the config, then uploads.
    pub(crate) fn load(
        model: &str,
        config: VisionConfig,
        ckpt: &Checkpoint,
        backend: &Arc<dyn Backend>,
    ) -> Result<VisionTower, ModelError> {
        let n_layers = config.encoder.layers.len();
        // Layers behind the hidden states that are taken, and the norm at the end.
        let is_idle = |name: &str| {
            let layer = name.strip_prefix("vision.layers.").and_then(|rest| rest.split('.').next());
            let layer = layer.and_then(|layer| layer.parse::<usize>().ok());
            layer.is_some_and(|layer| layer >= n_layers) || name.starts_with("vision.norm.")
        };
        expected(&config).check(model, ckpt, |name| !is_part(name) || is_idle(name))?;
        let mut upload = Upload::new(model, ckpt, &**backend);
        let hidden = config.encoder.hidden;
        let n_in = config.n_channels * config.patch_size.pow(2);
        Ok(VisionTower {
            class: upload.weight_as("vision.class", &[1, hidden])?,
            patches: upload.weight_as("vision.patches.weight", &[hidden, n_in])?,
            positions: upload.weight("vision.positions.weight")?,
            embed_norm: LayerNorm {
                weight: upload.weight("vision.embed_norm.weight")?,
                bias: upload.bias("vision.embed_norm", Bias::Required)?,
            },
            layers: encoder::load_layers(&config.encoder, &mut upload, "vision.")?,
            up: upload.linear("projector.up", config.projector_bias)?,
            down: upload.linear("projector.down", config.projector_bias)?,
            weights_bytes: upload.n_bytes,
            backend: backend.clone(),
            config,
        })
    }

    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Bytes of its weights as stored in the checkpoint.
    pub fn weights_bytes(&self) -> usize {
        self.weights_bytes
    }

    /// Scratch for [`Self::rows`].
    ///
    /// # Errors
    /// [`TensorError`] when the device cannot hold it.
    pub fn scratch(&self) -> Result<KvCache, TensorError> {
        let n_blocks = (self.config.n_patches() + 1).div_ceil(BLOCK_TOKENS);
        let layers = vec![self.config.encoder.kv_layer()];
        self.backend.kv_cache(&KvSpec { n_blocks, block_tokens: BLOCK_TOKENS, dtype: DType::F32, layers })
    }

    /// The rows of the text model that an image takes, one after another: `[n_rows, hidden]` of the text model.
    /// `scratch` comes from [`Self::scratch`].
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// When the image has another shape than [`VisionConfig::image_shape`].
    pub fn rows(&self, image: &Pixels, scratch: &mut KvCache) -> Result<Vec<f32>, TensorError> {
        let hidden = self.hidden(image, scratch);
        let cx = Cx { backend: &*self.backend, batch: &Batch::new(), norm_eps: 0.0 };
        let mut x = cx.linear(&hidden, &self.up); // [n_rows, hidden of the text model]
        self.backend.activate(&mut x, self.config.projector);
        self.backend.read(&cx.linear(&x, &self.down))
    }

    /// The hidden states that are taken: `[n_rows, hidden]`.
    fn hidden(&self, image: &Pixels, scratch: &mut KvCache) -> Act {
        let (backend, config) = (&*self.backend, &self.config);
        assert_eq!(image.shape(), config.image_shape(), "the shape of an image");
        let n_rows = config.n_patches() + 1;
        let mut batch = Batch::new();
        let blocks: Vec<u32> = (0..n_rows.div_ceil(BLOCK_TOKENS) as u32).collect();
        batch.push(&vec![0; n_rows], 0, &blocks, BLOCK_TOKENS);
        let cx = Cx { backend, batch: &batch, norm_eps: config.encoder.norm_eps };

        let patches: Vec<u32> = (1..n_rows as u32).collect();
        let pixels = backend.act(image.n_channels * image.height, image.width, &image.values);
        let pixels = backend.patches(&pixels, image.n_channels, config.patch_size);
        let mut x = cx.look_up(&self.class, vec![0; n_rows]); // [n_rows, hidden]
        backend.scatter_rows(&mut x, &patches, &backend.linear(&pixels, &self.patches, None));
        backend.add(&mut x, &cx.look_up(&self.positions, (0..n_rows as u32).collect()), 1.0);
        let x = cx.norm(x, Some(&self.embed_norm));
        let x = cx.through(&self.layers, x, scratch);
        if config.has_class { x } else { backend.gather_rows(&x, &patches) }
    }
}

impl std::fmt::Debug for VisionTower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VisionTower({} layers, {} bytes)", self.layers.len(), self.weights_bytes)
    }
}

fn expected(config: &VisionConfig) -> Expected {
    let mut expected = Expected::default();
    let (hidden, text_hidden) = (config.encoder.hidden, config.text_hidden);
    expected.need("vision.class", &[hidden]);
    let patch = [hidden, config.n_channels, config.patch_size, config.patch_size];
    expected.need("vision.patches.weight", &patch);
    expected.need("vision.positions.weight", &[config.n_patches() + 1, hidden]);
    expected.need("vision.embed_norm.weight", &[hidden]);
    expected.need("vision.embed_norm.bias", &[hidden]);
    encoder::expect_layers(&mut expected, &config.encoder, "vision.");
    for (part, n_in) in [("up", hidden), ("down", text_hidden)] {
        expected.need(format!("projector.{part}.weight"), &[text_hidden, n_in]);
        expected.bias(format!("projector.{part}.bias"), &[text_hidden], config.projector_bias);
    }
    expected
}
