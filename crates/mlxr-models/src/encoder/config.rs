//! What the encoder needs to know of a model, free of any family's field names.

use mlxr_checkpoint::{Checkpoint, CheckpointFormat, Pooling};
use mlxr_tensor::{Activation, Gate, KvLayerSpec};

use crate::ModelError;
use crate::config::{Bias, LayerKind, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, rope_by_kind, sized};
use crate::families;
use crate::fields::Fields;
use crate::rope::{RopeConfig, RopeDefaults, RopeFactors};

/// A transformer whose rows see the whole text.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    pub vocab: usize,
    pub hidden: usize,
    pub n_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    /// Tokens of a text at most.
    pub n_ctx: u32,
    pub norm_eps: f32,
    pub positions: Positions,
    /// Kinds of tokens with a vector of their own (first and second text of a pair); 0 is none.
    pub n_types: usize,
    pub norms: NormPlace,
    pub mlp: EncoderMlp,
    pub attn_bias: Bias,
    pub mlp_bias: Bias,
    pub norm_bias: Bias,
    pub ropes: Vec<RopeConfig>,
    pub layers: Vec<EncoderLayer>,
    /// The head that scores pairs, where the checkpoint has one.
    pub score: Option<ScoreConfig>,
}

/// How a row knows its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// A vector per position; the first token's is row `first` of `n_rows`.
    Learned {
        n_rows: usize,
        first: u32,
    },
    Rotary,
}

/// Where the norms are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// After each sum with the residual stream.
    After,
    /// Before each sublayer but the first, which follows the embedding's norm; and at the end.
    Before,
    /// Before each sublayer, the first one too.
    BeforeAll,
}

/// The feed-forward part of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EncoderMlp {
    Plain(Activation),
    Gated(Gate),
}

/// What differs between layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderLayer {
    /// Rows see tokens less than this far away.
    pub window: Option<u32>,
    /// Index into [`EncoderConfig::ropes`].
    pub rope: Option<usize>,
}

/// The classification head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreConfig {
    pub n_labels: usize,
    pub pooling: Pooling,
    /// What follows the head's hidden layer, where it has one.
    pub dense: Option<Activation>,
}

/// A family's config class: what a missing field means.
#[derive(Clone, Copy, Debug)]
pub struct EncoderDefaults {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub n_ctx: usize,
    pub norm_eps: f64,
}

impl EncoderConfig {
    /// BERT's shape without positions; a family changes what differs.
    pub fn read(fields: &Fields<'_>, defaults: &EncoderDefaults) -> Result<EncoderConfig, ModelError> {
        let hidden = sized(fields, "hidden_size", Some(defaults.hidden), MAX_WIDTH)?;
        let n_heads = sized(fields, "num_attention_heads", Some(defaults.n_heads), MAX_WIDTH)?;
        if !hidden.is_multiple_of(n_heads) || !(hidden / n_heads).is_multiple_of(2) {
            let reason = format!("does not cut hidden_size {hidden} into heads of an even size");
            return Err(fields.refuse("num_attention_heads", reason));
        }
        let head_dim = hidden / n_heads;
        if fields.count("head_dim")?.is_some_and(|stated| stated != head_dim) {
            return Err(fields.refuse("head_dim", format!("{head_dim} columns a head are supported")));
        }
        if fields.flag("is_decoder")? == Some(true) {
            return Err(fields.refuse("is_decoder", "an encoder sees the whole text"));
        }
        let n_layers = sized(fields, "num_hidden_layers", Some(defaults.n_layers), MAX_LAYERS)?;
        let n_ctx = sized(fields, "max_position_embeddings", Some(defaults.n_ctx), MAX_VOCAB)?;
        Ok(EncoderConfig {
            vocab: sized(fields, "vocab_size", Some(defaults.vocab), MAX_VOCAB)?,
            hidden,
            n_heads,
            head_dim,
            intermediate: sized(fields, "intermediate_size", Some(defaults.intermediate), MAX_WIDTH)?,
            n_ctx: n_ctx as u32,
            norm_eps: fields.positive("layer_norm_eps")?.unwrap_or(defaults.norm_eps) as f32,
            positions: Positions::Rotary,
            n_types: 0,
            norms: NormPlace::After,
            mlp: EncoderMlp::Plain(Activation::Gelu),
            attn_bias: Bias::Required,
            mlp_bias: Bias::Required,
            norm_bias: Bias::Required,
            ropes: Vec::new(),
            layers: vec![EncoderLayer { window: None, rope: None }; n_layers],
            score: None,
        })
    }

    /// Learned positions, the first at row `first` of the table.
    pub fn set_learned_positions(&mut self, fields: &Fields<'_>, first: usize) -> Result<(), ModelError> {
        const NAME: &str = "position_embedding_type";
        if fields.text(NAME)?.is_some_and(|kind| kind != "absolute") {
            return Err(fields.refuse(NAME, "only absolute positions are supported"));
        }
        let n_rows = self.n_ctx as usize;
        if n_rows <= first {
            return Err(
                fields.refuse("max_position_embeddings", format!("the first {first} are not positions"))
            );
        }
        self.positions = Positions::Learned { n_rows, first: first as u32 };
        self.n_ctx = (n_rows - first) as u32;
        Ok(())
    }

    /// Rotary positions, one embedding for each kind of layer.
    pub fn set_rope(
        &mut self,
        fields: &Fields<'_>,
        kinds: &[LayerKind],
        theta: f64,
    ) -> Result<(), ModelError> {
        let defaults = RopeDefaults { theta, head_dim: self.head_dim, n_ctx: self.n_ctx, truncate: true };
        for (kind, rope) in rope_by_kind(fields, kinds, &defaults)? {
            self.use_rope(kinds, kind, rope);
        }
        Ok(())
    }

    /// Makes every layer of `kind` rotate by `rope`.
    pub fn use_rope(&mut self, kinds: &[LayerKind], kind: LayerKind, rope: RopeConfig) {
        let index = self.ropes.iter().position(|known| *known == rope).unwrap_or_else(|| {
            self.ropes.push(rope);
            self.ropes.len() - 1
        });
        for (layer, _) in self.layers.iter_mut().zip(kinds).filter(|(_, k)| **k == kind) {
            layer.rope = Some(index);
        }
    }

    /// The config of a checkpoint, without touching its weights.
    ///
    /// # Errors
    /// [`ModelError`] names the family or the field that stands in the way.
    pub fn for_checkpoint(ckpt: &Checkpoint) -> Result<EncoderConfig, ModelError> {
        let name = ckpt.path.display().to_string();
        let factors = RopeFactors::read(ckpt)?;
        let fields = Fields::new(&name, &ckpt.config, ckpt.format == CheckpointFormat::Gguf, &factors);
        let mut config = families::read_encoder_config(&name, ckpt.arch.model_type, &fields)?;
        let has = |name: &str| ckpt.tensor(name).is_some();
        config.score = config.score.filter(|_| has("cls.out.weight")).map(|score| ScoreConfig {
            n_labels: ckpt.tensor("cls.out.weight").map_or(0, |t| t.rows()),
            dense: score.dense.filter(|_| has("cls.dense.weight")),
            ..score
        });
        Ok(config)
    }

    /// What a layer keeps of each token while it runs.
    pub fn kv_layer(&self) -> KvLayerSpec {
        KvLayerSpec { n_kv_heads: self.n_heads, k_dim: self.head_dim, v_dim: self.head_dim }
    }
}

/// The activation in field `name`.
pub fn read_activation(fields: &Fields<'_>, name: &str) -> Result<Option<Activation>, ModelError> {
    match fields.text(name)? {
        None => Ok(None),
        Some("gelu") => Ok(Some(Activation::Gelu)),
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Some(Activation::GeluTanh)),
        Some("quick_gelu") => Ok(Some(Activation::QuickGelu)),
        Some("silu" | "swish") => Ok(Some(Activation::Silu)),
        Some("relu") => Ok(Some(Activation::Relu)),
        Some("tanh") => Ok(Some(Activation::Tanh)),
        Some(_) => {
            Err(fields.refuse(name, "not one of gelu, gelu_pytorch_tanh, quick_gelu, silu, relu, tanh"))
        }
    }
}
