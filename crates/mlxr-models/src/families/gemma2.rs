//! Gemma 2: norms around both sublayers, soft caps on scores and logits, every second layer with a window.

use mlxr_tensor::Gate;

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, LayerKind, layer_kinds, read_gate, read_window};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 256_000,
    hidden: 2304,
    intermediate: 9216,
    n_layers: 26,
    n_heads: 8,
    n_kv_heads: Some(4),
    head_dim: Some(256),
    n_ctx: 8192,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: true,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    let kinds = set_gemma_shape(&mut config, fields, |i| i % 2 == 0)?;
    config.attention_softcap = read_softcap(fields, "attn_logit_softcapping", Some(50.0))?;
    config.logit_softcap = read_softcap(fields, "final_logit_softcapping", Some(30.0))?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    Ok(config)
}

/// What Gemma 2 and 3 share; returns the kind of each layer.
pub fn set_gemma_shape(
    config: &mut DecoderConfig,
    fields: &Fields<'_>,
    is_sliding: impl Fn(usize) -> bool,
) -> Result<Vec<LayerKind>, ModelError> {
    const DEFAULT_WINDOW: u32 = 4096;
    const DEFAULT_QUERY_SCALAR: f64 = 256.0;
    let stated = read_gate(fields, "hidden_activation")?.or(read_gate(fields, "hidden_act")?);
    config.gate = stated.unwrap_or(Gate::GeluTanh);
    config.embed_scale = (config.hidden as f32).sqrt();
    config.post_norms = true;
    config.set_biases(fields)?;
    let scalar = fields.positive("query_pre_attn_scalar")?.unwrap_or(DEFAULT_QUERY_SCALAR);
    config.attention_scale = scalar.powf(-0.5) as f32;
    let window = read_window(fields, Some(DEFAULT_WINDOW))?;
    let kinds = layer_kinds(fields, config.layers.len(), |i| window.is_some() && is_sliding(i))?;
    config.set_windows(fields, &kinds, window)?;
    Ok(kinds)
}

/// A soft cap; `default` holds where the field is missing, not null.
pub fn read_softcap(
    fields: &Fields<'_>,
    name: &str,
    default: Option<f32>,
) -> Result<Option<f32>, ModelError> {
    if !fields.is_stated(name) {
        return Ok(default);
    }
    Ok(fields.positive(name)?.map(|cap| cap as f32))
}
