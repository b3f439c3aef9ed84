//! Vectors of texts, and scores of pairs: whole texts in, one forward, pooled rows out.
//!
//! Invariant: what comes out for a text depends on that text alone, bit for bit, whatever else is in the batch.

use std::sync::Arc;

use mlxr_checkpoint::{Checkpoint, DenseModule, EmbeddingFiles, Pooling};
use mlxr_tensor::{Act, Activation, Backend, Batch, DType, KvLayerSpec, KvSpec, TensorError};

use crate::config::Bias;
use crate::decoder::Linear;
use crate::encoder::{self, Encoder, EncoderConfig, LayerNorm};
use crate::head::{EmbedderHead, ScoreActivation};
use crate::placement::{ModelKv, Placement};
use crate::upload::{Expected, Upload};
use crate::{Model, ModelError, ModelOptions};

/// Tokens per block of the scratch that holds one layer's keys and values.
const BLOCK_TOKENS: usize = 32;

/// One text as the model reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    pub tokens: Vec<u32>,
    /// 0 or 1 for each token: the first or the second text of a pair. Empty where all are of the first.
    pub types: Vec<u32>,
}

/// A model that reads whole texts, on a backend.
pub struct Embedder {
    backend: Arc<dyn Backend>,
    trunk: Trunk,
    head: Head,
    n_ctx: u32,
    weights_bytes: usize,
}

enum Trunk {
    Encoder { encoder: Box<Encoder>, config: Box<EncoderConfig> },
    Decoder(Arc<Model>),
}

enum Head {
    Pool { pooling: Pooling, dense: Vec<Dense> },
    Score(Box<ScoreHead>),
}

/// A linear layer on pooled vectors, and what follows it.
struct Dense {
    linear: Linear,
    activation: Option<Activation>,
}

/// The classification head.
struct ScoreHead {
    pooling: Pooling,
    dense: Option<Dense>,
    norm: Option<(LayerNorm, f32)>,
    out: Linear,
    activation: ScoreActivation,
}

impl Embedder {
    /// Loads a model that makes vectors or scores: an encoder, which computes where a decoder's last layer would, or a
    /// decoder published for its vectors.
    ///
    /// # Errors
    /// [`ModelError`] names the config field, tensor or limit that stands in the way; no checkpoint makes this panic.
    pub fn load(
        ckpt: &Checkpoint,
        placement: &Placement,
        options: &ModelOptions,
    ) -> Result<Embedder, ModelError> {
        if !ckpt.arch.encoder {
            let model = Arc::new(Model::load_at(ckpt, placement, options)?);
            return Self::of_decoder(model, ckpt);
        }
        let backend = placement.last().clone();
        let name = ckpt.path.display().to_string();
        let config = EncoderConfig::for_checkpoint(ckpt)?;
        let n_ctx = options.n_ctx.unwrap_or(config.n_ctx);
        if n_ctx > config.n_ctx {
            return Err(ModelError::ContextTooLong { model: name, n_ctx, n_ctx_max: config.n_ctx });
        }
        let (encoder, weights_bytes) = encoder::load(&name, &config, ckpt, &*backend)?;
        let mut upload = Upload::new(&name, ckpt, &*backend);
        let head = match score_head(&name, &config, &mut upload)? {
            Some(score) => Head::Score(Box::new(score)),
            None => pool(&name, config.hidden, ckpt, &mut upload, Pooling::Mean)?,
        };
        let weights_bytes = weights_bytes + upload.n_bytes;
        let trunk = Trunk::Encoder { encoder: Box::new(encoder), config: Box::new(config) };
        Ok(Embedder { backend, trunk, head, n_ctx, weights_bytes })
    }

    /// Vectors from the last hidden state of a loaded decoder. Without files that say how, the last token's is taken,
    /// the one that has seen the whole text.
    ///
    /// # Errors
    /// As [`Self::load`], for the layers after the pooling.
    pub fn of_decoder(model: Arc<Model>, ckpt: &Checkpoint) -> Result<Embedder, ModelError> {
        let backend = model.backend().clone();
        let name = ckpt.path.display().to_string();
        let mut upload = Upload::new(&name, ckpt, &*backend);
        let head = pool(&name, model.config().hidden, ckpt, &mut upload, Pooling::Last)?;
        let (n_ctx, weights_bytes) = (model.n_ctx(), model.weights_bytes() + upload.n_bytes);
        Ok(Embedder { backend, trunk: Trunk::Decoder(model), head, n_ctx, weights_bytes })
    }

    /// What comes out.
    pub fn head(&self) -> EmbedderHead {
        match &self.head {
            Head::Pool { pooling, dense } => {
                let n_dims = dense.last().map_or(self.hidden(), |layer| layer.linear.weight.shape()[0]);
                EmbedderHead::Vectors { pooling: *pooling, n_dims }
            }
            Head::Score(score) => {
                EmbedderHead::Scores { n_labels: score.out.weight.shape()[0], activation: score.activation }
            }
        }
    }

    /// Where the weights are.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The devices in order, each with how many layers it computes; of an encoder none are counted.
    pub fn devices(&self) -> Vec<(&Arc<dyn Backend>, usize)> {
        match &self.trunk {
            Trunk::Encoder { .. } => vec![(&self.backend, 0)],
            Trunk::Decoder(model) => model.devices().collect(),
        }
    }

    /// Tokens of a text at most.
    pub fn n_ctx(&self) -> u32 {
        self.n_ctx
    }

    pub fn vocab(&self) -> usize {
        match &self.trunk {
            Trunk::Encoder { config, .. } => config.vocab,
            Trunk::Decoder(model) => model.config().vocab,
        }
    }

    fn hidden(&self) -> usize {
        match &self.trunk {
            Trunk::Encoder { config, .. } => config.hidden,
            Trunk::Decoder(model) => model.config().hidden,
        }
    }

    /// Kinds of tokens that have a vector of their own.
    fn n_types(&self) -> usize {
        match &self.trunk {
            Trunk::Encoder { config, .. } => config.n_types,
            Trunk::Decoder(_) => 0,
        }
    }

    /// Bytes of all weights as stored in the checkpoint.
    pub fn weights_bytes(&self) -> usize {
        self.weights_bytes
    }

    /// Scratch for batches of `n_tokens` in `n_texts` texts at most.
    ///
    /// # Errors
    /// [`TensorError`] when a device cannot hold it.
    pub fn scratch(&self, n_tokens: usize, n_texts: usize) -> Result<ModelKv, TensorError> {
        let layer = match &self.trunk {
            Trunk::Encoder { config, .. } => config.kv_layer(),
            Trunk::Decoder(model) => model.config().kv_layer(),
        };
        let spec = scratch_spec(layer, n_tokens, n_texts);
        match &self.trunk {
            Trunk::Encoder { .. } => ModelKv::new(&spec, [(self.backend.clone(), 0..1)]),
            Trunk::Decoder(model) => model.scratch(&spec),
        }
    }

    /// Runs whole texts in one forward, each with a result of its own: a vector, all tokens' vectors one after
    /// another, or scores. `scratch` comes from [`Self::scratch`].
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// When a text is empty, longer than the context or together longer than the scratch, or a token id is not in
    /// the vocabulary.
    pub fn run(&self, texts: &[Text], scratch: &mut ModelKv) -> Result<Vec<Vec<f32>>, TensorError> {
        let (batch, types) = self.batch(texts);
        let hidden = match &self.trunk {
            Trunk::Encoder { encoder, .. } => {
                encoder.forward(&*self.backend, &batch, &types, &mut scratch.parts[0].1)
            }
            Trunk::Decoder(model) => model.hidden(&batch, scratch)?,
        };
        let pooled = self.pool(texts, &hidden)?;
        match &self.head {
            Head::Pool { dense, .. } => self.after_pooling(dense, pooled),
            Head::Score(score) => self.score(score, pooled),
        }
    }

    fn pooling(&self) -> Pooling {
        match &self.head {
            Head::Pool { pooling, .. } => *pooling,
            Head::Score(score) => score.pooling,
        }
    }

    /// The texts as rows, and the kind of each row.
    fn batch(&self, texts: &[Text]) -> (Batch, Vec<u32>) {
        let mut batch = Batch::new();
        let mut types = Vec::new();
        let mut next_block = 0u32;
        let is_typed = self.n_types() > 1 && texts.iter().any(|text| !text.types.is_empty());
        for text in texts {
            assert!(!text.tokens.is_empty(), "a text has a token");
            let n_blocks = text.tokens.len().div_ceil(BLOCK_TOKENS) as u32;
            let blocks: Vec<u32> = (next_block..next_block + n_blocks).collect();
            next_block += n_blocks;
            let first = batch.n_rows() as u32;
            batch.push(&text.tokens, 0, &blocks, BLOCK_TOKENS);
            match self.pooling() {
                Pooling::None | Pooling::Mean => batch.output_rows.extend(first..batch.n_rows() as u32),
                Pooling::Cls | Pooling::Rank => batch.output_rows.push(first),
                Pooling::Last => batch.want_last(),
            }
            if is_typed {
                let n = text.tokens.len();
                types.extend((0..n).map(|i| text.types.get(i).copied().unwrap_or(0)));
            }
        }
        (batch, types)
    }

    /// One row per text, or all rows of all texts.
    fn pool(&self, texts: &[Text], hidden: &Act) -> Result<Vec<Vec<f32>>, TensorError> {
        let (values, cols) = (self.backend.read(hidden)?, hidden.cols());
        let mut rows = values.chunks_exact(cols);
        let pooled = texts.iter().map(|text| match self.pooling() {
            Pooling::Cls | Pooling::Last | Pooling::Rank => rows.next().unwrap_or_default().to_vec(),
            Pooling::None => rows.by_ref().take(text.tokens.len()).flatten().copied().collect(),
            Pooling::Mean => {
                let mut sum = vec![0f64; cols];
                for row in rows.by_ref().take(text.tokens.len()) {
                    sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
                }
                sum.iter().map(|sum| (sum / text.tokens.len() as f64) as f32).collect()
            }
        });
        Ok(pooled.collect())
    }

    fn after_pooling(&self, dense: &[Dense], pooled: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, TensorError> {
        if dense.is_empty() {
            return Ok(pooled);
        }
        // A result of several rows stays one result.
        let n_rows: Vec<usize> = pooled.iter().map(|values| values.len() / self.hidden()).collect();
        let mut x = self.rows(&pooled.concat(), self.hidden());
        for layer in dense {
            x = self.dense(layer, &x);
        }
        let (values, cols) = (self.backend.read(&x)?, x.cols());
        let mut rows = values.chunks_exact(cols);
        Ok(n_rows.into_iter().map(|n| rows.by_ref().take(n).flatten().copied().collect()).collect())
    }

    fn score(&self, head: &ScoreHead, pooled: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, TensorError> {
        let mut x = self.rows(&pooled.concat(), self.hidden());
        if let Some(dense) = &head.dense {
            x = self.dense(dense, &x);
        }
        if let Some((norm, eps)) = &head.norm {
            x = self.backend.layer_norm(&x, &norm.weight, norm.bias.as_ref(), *eps);
        }
        let scores = self.backend.linear(&x, &head.out.weight, head.out.bias.as_ref());
        Ok(self.backend.read(&scores)?.chunks_exact(scores.cols()).map(<[f32]>::to_vec).collect())
    }

    fn rows(&self, values: &[f32], cols: usize) -> Act {
        self.backend.act(values.len() / cols, cols, values)
    }

    fn dense(&self, layer: &Dense, x: &Act) -> Act {
        let mut x = self.backend.linear(x, &layer.linear.weight, layer.linear.bias.as_ref());
        if let Some(kind) = layer.activation {
            self.backend.activate(&mut x, kind);
        }
        x
    }
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Embedder({:?}, {} bytes)", self.head(), self.weights_bytes)
    }
}

/// The keys and values of one layer in batches of `n_tokens` in `n_texts` texts at most, which all layers store in turn.
pub fn scratch_spec(layer: KvLayerSpec, n_tokens: usize, n_texts: usize) -> KvSpec {
    // The last block of every text may be almost empty.
    let n_blocks = n_tokens.div_ceil(BLOCK_TOKENS) + n_texts;
    KvSpec { n_blocks, block_tokens: BLOCK_TOKENS, dtype: DType::F32, layers: vec![layer] }
}

/// The head that makes vectors; `usual` is the pooling where no file says.
fn pool(
    model: &str,
    hidden: usize,
    ckpt: &Checkpoint,
    upload: &mut Upload<'_>,
    usual: Pooling,
) -> Result<Head, ModelError> {
    let EmbeddingFiles { pooling, dense, .. } = &ckpt.embedding;
    let pooling = pooling.unwrap_or(usual);
    if pooling == Pooling::Rank {
        return Err(ModelError::MissingTensors {
            model: model.to_owned(),
            n: 1,
            first: vec!["cls.out.weight".to_owned()],
        });
    }
    let mut width = hidden;
    let mut layers = Vec::with_capacity(dense.len());
    for module in dense {
        let name = format!("dense.{}", module.index);
        let weight = upload.tensor(&format!("{name}.weight"))?;
        let n_out = weight.rows();
        let mut expected = Expected::default();
        expected.need(format!("{name}.weight"), &[n_out, width]);
        if module.has_bias {
            expected.need(format!("{name}.bias"), &[n_out]);
        }
        expected.check(model, ckpt, |_| true)?;
        let linear = upload.linear(&name, Bias::IfPresent)?;
        layers.push(Dense { linear, activation: dense_activation(model, module)? });
        width = n_out;
    }
    Ok(Head::Pool { pooling, dense: layers })
}

/// The function a dense layer's file names by its class.
fn dense_activation(model: &str, module: &DenseModule) -> Result<Option<Activation>, ModelError> {
    match module.activation.rsplit('.').next().unwrap_or_default() {
        "Identity" => Ok(None),
        "Tanh" => Ok(Some(Activation::Tanh)),
        "GELU" => Ok(Some(Activation::Gelu)),
        "ReLU" => Ok(Some(Activation::Relu)),
        "SiLU" => Ok(Some(Activation::Silu)),
        _ => Err(ModelError::Config {
            model: model.to_owned(),
            field: "activation_function of a dense layer".to_owned(),
            value: module.activation.clone(),
            reason: "not one of Identity, Tanh, GELU, ReLU, SiLU".to_owned(),
        }),
    }
}

fn score_head(
    model: &str,
    config: &EncoderConfig,
    upload: &mut Upload<'_>,
) -> Result<Option<ScoreHead>, ModelError> {
    let Some(score) = config.score else { return Ok(None) };
    let dense = match score.dense {
        Some(kind) => {
            Some(Dense { linear: upload.linear("cls.dense", Bias::IfPresent)?, activation: Some(kind) })
        }
        None => None,
    };
    let norm = match upload.ckpt.tensor("cls.norm.weight") {
        Some(_) => {
            let weight = upload.weight("cls.norm.weight")?;
            Some((LayerNorm { weight, bias: upload.bias("cls.norm", Bias::IfPresent)? }, config.norm_eps))
        }
        None => None,
    };
    let out = upload.linear("cls.out", Bias::IfPresent)?;
    let class = upload.ckpt.embedding.score_activation.as_deref();
    let activation = ScoreActivation::named(model, class, out.weight.shape()[0])?;
    Ok(Some(ScoreHead { pooling: score.pooling, dense, norm, out, activation }))
}
