//! What the decoder needs to know of a model, free of any family's field names.

use mlxr_tensor::{Gate, KvLayerSpec, Reach, RouterSpec};
use serde_json::{Map, Value};

use crate::ModelError;
use crate::fields::Fields;
use crate::rope::{RopeConfig, RopeDefaults, Settings};

/// A decoder-only transformer. [`DecoderConfig::read`] gives the plain llama shape; a family changes what differs.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    pub vocab: usize,
    pub hidden: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Context length the model was trained for.
    pub n_ctx_train: u32,
    /// Largest context the model can be opened with.
    pub n_ctx_max: u32,
    pub norm_eps: f32,
    /// The embedding table is also the output matrix.
    pub tied: bool,
    /// Factor on the embedding.
    pub embed_scale: f32,
    /// Factor on each sublayer's output before it joins the residual stream.
    pub residual_scale: f32,
    /// Factor on query-key products.
    pub attention_scale: f32,
    /// Whether rows see later ones; only models for embeddings do.
    pub reach: Reach,
    pub attention_softcap: Option<f32>,
    /// A learned extra logit per head in the attention softmax.
    pub sinks: bool,
    pub logit_scale: f32,
    pub logit_softcap: Option<f32>,
    pub gate: Gate,
    pub qk_norm: QkNorm,
    /// A norm before each sublayer.
    pub pre_norms: bool,
    /// A norm on each sublayer's output.
    pub post_norms: bool,
    pub qkv_bias: Bias,
    pub o_bias: Bias,
    pub mlp_bias: Bias,
    pub ropes: Vec<RopeConfig>,
    pub layers: Vec<LayerConfig>,
}

/// What differs between the layers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Positions a row sees, itself included; `None` sees all.
    pub window: Option<u32>,
    /// Index into [`DecoderConfig::ropes`]; `None` leaves q and k unrotated.
    pub rope: Option<usize>,
    pub mlp: MlpConfig,
}

/// The feed-forward part of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MlpConfig {
    Dense { intermediate: usize },
    Experts { n_experts: usize, intermediate: usize, router: RouterSpec },
}

/// Norms on q and k before they rotate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Over each head, one weight `[head_dim]` for all.
    PerHead,
    /// Over all heads together, a weight as long as the row.
    FullRow,
}

/// Whether linear layers add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    Absent,
    Required,
    /// The config does not say: the tensors do.
    IfPresent,
}

/// Which keys a layer's rows see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    Full,
    Sliding,
}

/// A family's config class: what a missing field means.
#[derive(Clone, Copy, Debug)]
pub struct Defaults {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    /// `None` is as many as heads.
    pub n_kv_heads: Option<usize>,
    /// `None` is `hidden / n_heads`.
    pub head_dim: Option<usize>,
    pub n_ctx: usize,
    pub norm_eps: f64,
    pub theta: f64,
    pub tied: bool,
}

/// Largest sizes taken as meant; beyond them a config is damaged.
pub const MAX_LAYERS: usize = 1024;
pub const MAX_WIDTH: usize = 1 << 20;
pub const MAX_VOCAB: usize = 1 << 24;
const MAX_HEAD_DIM: usize = 1024;
const MAX_EXPERTS: usize = 4096;

impl DecoderConfig {
    /// The plain decoder: pre-norm, SiLU gate, one rotary embedding, full attention in every layer.
    pub fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderConfig, ModelError> {
        let hidden = sized(fields, "hidden_size", Some(defaults.hidden), MAX_WIDTH)?;
        let n_heads = sized(fields, "num_attention_heads", Some(defaults.n_heads), MAX_WIDTH)?;
        let n_kv_heads = read_n_kv_heads(fields, defaults, n_heads)?;
        let head_dim = read_head_dim(fields, defaults, hidden, n_heads)?;
        if n_heads * head_dim > MAX_WIDTH {
            return Err(fields
                .refuse("num_attention_heads", format!("times {head_dim} columns is beyond {MAX_WIDTH}")));
        }
        let n_layers = sized(fields, "num_hidden_layers", Some(defaults.n_layers), MAX_LAYERS)?;
        let intermediate = sized(fields, "intermediate_size", Some(defaults.intermediate), MAX_WIDTH)?;
        let n_ctx = sized(fields, "max_position_embeddings", Some(defaults.n_ctx), i32::MAX as usize)? as u32;
        let layer = LayerConfig { window: None, rope: Some(0), mlp: MlpConfig::Dense { intermediate } };
        Ok(DecoderConfig {
            vocab: sized(fields, "vocab_size", Some(defaults.vocab), MAX_VOCAB)?,
            hidden,
            n_heads,
            n_kv_heads,
            head_dim,
            n_ctx_train: n_ctx,
            n_ctx_max: n_ctx,
            norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(defaults.norm_eps) as f32,
            tied: fields.flag("tie_word_embeddings")?.unwrap_or(defaults.tied),
            embed_scale: 1.0,
            residual_scale: 1.0,
            attention_scale: (head_dim as f32).powf(-0.5),
            reach: Reach::Causal,
            attention_softcap: None,
            sinks: false,
            logit_scale: 1.0,
            logit_softcap: None,
            gate: Gate::Silu,
            qk_norm: QkNorm::None,
            pre_norms: true,
            post_norms: false,
            qkv_bias: Bias::Absent,
            o_bias: Bias::Absent,
            mlp_bias: Bias::Absent,
            ropes: Vec::new(),
            layers: vec![layer; n_layers],
        })
    }

    /// Sets the rotary embeddings from `rope_scaling`, or `rope_parameters` with one set for all layers or one per
    /// kind of layer.
    pub fn set_rope(
        &mut self,
        fields: &Fields<'_>,
        kinds: &[LayerKind],
        theta: f64,
        truncate: bool,
    ) -> Result<(), ModelError> {
        let defaults = RopeDefaults { theta, head_dim: self.head_dim, n_ctx: self.n_ctx_train, truncate };
        for (kind, rope) in rope_by_kind(fields, kinds, &defaults)? {
            self.use_rope(kinds, kind, rope);
        }
        Ok(())
    }

    /// Makes every layer of `kind` rotate by `rope`.
    pub fn use_rope(&mut self, kinds: &[LayerKind], kind: LayerKind, rope: RopeConfig) {
        self.n_ctx_max = self.n_ctx_max.max(rope.n_ctx_max(self.n_ctx_train));
        let index = self.ropes.iter().position(|known| *known == rope).unwrap_or_else(|| {
            self.ropes.push(rope);
            self.ropes.len() - 1
        });
        for (layer, _) in self.layers.iter_mut().zip(kinds).filter(|(_, k)| **k == kind) {
            layer.rope = Some(index);
        }
    }

    /// Gives the sliding layers their window.
    pub fn set_windows(
        &mut self,
        fields: &Fields<'_>,
        kinds: &[LayerKind],
        window: Option<u32>,
    ) -> Result<(), ModelError> {
        for (layer, kind) in self.layers.iter_mut().zip(kinds) {
            layer.window = match kind {
                LayerKind::Full => None,
                LayerKind::Sliding if window.is_none() => {
                    return Err(fields.missing("sliding_window", "sliding_attention layers need it"));
                }
                LayerKind::Sliding => window,
            };
        }
        Ok(())
    }

    /// Biases as `attention_bias` and `mlp_bias` say, or as the tensors show.
    pub fn set_biases(&mut self, fields: &Fields<'_>) -> Result<(), ModelError> {
        let stated = |name| -> Result<Bias, ModelError> {
            Ok(match fields.flag(name)? {
                Some(true) => Bias::Required,
                Some(false) => Bias::Absent,
                None => Bias::IfPresent,
            })
        };
        self.qkv_bias = stated("attention_bias")?;
        // A GGUF says nothing of biases: its config was filled in from the q tensor.
        self.o_bias = if fields.from_gguf { Bias::IfPresent } else { self.qkv_bias };
        self.mlp_bias = stated("mlp_bias")?;
        Ok(())
    }

    /// What each layer keeps per token.
    pub fn kv_layers(&self) -> Vec<KvLayerSpec> {
        vec![self.kv_layer(); self.layers.len()]
    }

    /// What one layer keeps per token; all are alike.
    pub fn kv_layer(&self) -> KvLayerSpec {
        KvLayerSpec { n_kv_heads: self.n_kv_heads, k_dim: self.head_dim, v_dim: self.head_dim }
    }
}

impl LayerKind {
    /// The name in `layer_types` and in per-type `rope_parameters`.
    pub const fn name(self) -> &'static str {
        match self {
            LayerKind::Full => "full_attention",
            LayerKind::Sliding => "sliding_attention",
        }
    }
}

/// The kind of each layer: `layer_types`, or what the family assumes.
pub fn layer_kinds(
    fields: &Fields<'_>,
    n_layers: usize,
    is_sliding: impl Fn(usize) -> bool,
) -> Result<Vec<LayerKind>, ModelError> {
    let Some(names) = fields.texts("layer_types")? else {
        let kind = |i| if is_sliding(i) { LayerKind::Sliding } else { LayerKind::Full };
        return Ok((0..n_layers).map(kind).collect());
    };
    if names.len() != n_layers {
        return Err(fields.refuse("layer_types", format!("has {} entries, expected {n_layers}", names.len())));
    }
    let kind = |name: &str| [LayerKind::Full, LayerKind::Sliding].into_iter().find(|k| k.name() == name);
    let unknown =
        |name: &str| fields.refuse("layer_types", format!("layers of type {name:?} are not supported"));
    names.into_iter().map(|name| kind(name).ok_or_else(|| unknown(name))).collect()
}

/// `sliding_window`; zero, as GGUF files have it, is none. `default` holds where the field is missing, not null.
pub fn read_window(fields: &Fields<'_>, default: Option<u32>) -> Result<Option<u32>, ModelError> {
    if !fields.is_stated("sliding_window") {
        return Ok(default);
    }
    match fields.count("sliding_window")? {
        None | Some(0) => Ok(None),
        Some(n) => match u32::try_from(n) {
            Ok(n) => Ok(Some(n)),
            Err(_) => Err(fields.refuse("sliding_window", "does not fit 32 bits")),
        },
    }
}

/// The activation in field `name`.
pub fn read_gate(fields: &Fields<'_>, name: &str) -> Result<Option<Gate>, ModelError> {
    match fields.text(name)? {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(Gate::Silu)),
        Some("gelu") => Ok(Some(Gate::Gelu)),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Some(Gate::GeluTanh)),
        Some(_) => Err(fields.refuse(name, "not one of silu, gelu, gelu_pytorch_tanh")),
    }
}

/// Experts of one layer: `num_local_experts` or `num_experts`, and `num_experts_per_tok`.
pub fn read_experts(
    fields: &Fields<'_>,
    n_experts: usize,
    top_k: usize,
    intermediate: usize,
    softmax_over_all: bool,
) -> Result<MlpConfig, ModelError> {
    let other = fields.count("num_experts")?.unwrap_or(n_experts);
    let n_experts = sized(fields, "num_local_experts", Some(other), MAX_EXPERTS)?;
    let top_k = sized(fields, "num_experts_per_tok", Some(top_k), n_experts)?;
    Ok(MlpConfig::Experts { n_experts, intermediate, router: RouterSpec { top_k, softmax_over_all } })
}

/// A size from 1 to `max`.
pub fn sized(
    fields: &Fields<'_>,
    name: &str,
    default: Option<usize>,
    max: usize,
) -> Result<usize, ModelError> {
    match fields.count(name)?.or(default) {
        Some(n) if (1..=max).contains(&n) => Ok(n),
        Some(n) => Err(fields.refuse(name, format!("{n} is not between 1 and {max}"))),
        None => Err(fields.missing(name, "it has no default")),
    }
}

fn read_n_kv_heads(fields: &Fields<'_>, defaults: &Defaults, n_heads: usize) -> Result<usize, ModelError> {
    const NAME: &str = "num_key_value_heads";
    let default = if fields.is_stated(NAME) { n_heads } else { defaults.n_kv_heads.unwrap_or(n_heads) };
    let n_kv_heads = sized(fields, NAME, Some(default), n_heads)?;
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(fields.refuse(NAME, format!("{n_heads} heads cannot share {n_kv_heads} evenly")));
    }
    Ok(n_kv_heads)
}

fn read_head_dim(
    fields: &Fields<'_>,
    defaults: &Defaults,
    hidden: usize,
    n_heads: usize,
) -> Result<usize, ModelError> {
    let default = defaults.head_dim.unwrap_or(hidden / n_heads);
    let stated = fields.count("head_dim")?;
    if stated.is_none() && defaults.head_dim.is_none() && !hidden.is_multiple_of(n_heads) {
        return Err(fields.refuse("num_attention_heads", format!("does not divide hidden_size {hidden}")));
    }
    let head_dim = stated.unwrap_or(default);
    if head_dim == 0 || head_dim % 2 == 1 || head_dim > MAX_HEAD_DIM {
        return Err(
            fields.refuse("head_dim", format!("{head_dim} is not an even number up to {MAX_HEAD_DIM}"))
        );
    }
    Ok(head_dim)
}

/// The rotary embedding of each kind of layer there is, from `rope_scaling`, or `rope_parameters` with one set for all
/// layers or one per kind of layer.
pub fn rope_by_kind(
    fields: &Fields<'_>,
    kinds: &[LayerKind],
    defaults: &RopeDefaults,
) -> Result<Vec<(LayerKind, RopeConfig)>, ModelError> {
    let settings = rope_settings(fields)?;
    let present = [LayerKind::Full, LayerKind::Sliding].into_iter().filter(|kind| kinds.contains(kind));
    let read = |kind: LayerKind| {
        let rope = match settings {
            Some((name, all)) if is_per_kind(all) => {
                let inside = fields.inside(name, all);
                let Some(own) = inside.object(kind.name())? else {
                    return Err(inside.missing(kind.name(), "layers of this type need it"));
                };
                RopeConfig::read(fields, Some((&format!("{name}.{}", kind.name()), own)), defaults)?
            }
            all => RopeConfig::read(fields, all, defaults)?,
        };
        Ok((kind, rope))
    };
    present.map(read).collect()
}

/// The rotary settings and the field they are in.
fn rope_settings<'a>(fields: &Fields<'a>) -> Result<Option<Settings<'a>>, ModelError> {
    let newer = fields.object("rope_parameters")?.map(|settings| ("rope_parameters", settings));
    let older = fields.object("rope_scaling")?.map(|settings| ("rope_scaling", settings));
    // Where both are there, the reader of the file copied part of the newer form under the older name.
    Ok(newer.or(older))
}

fn is_per_kind(settings: &Map<String, Value>) -> bool {
    [LayerKind::Full, LayerKind::Sliding].iter().any(|kind| settings.contains_key(kind.name()))
}
