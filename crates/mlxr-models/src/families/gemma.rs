//! Gemma 1: llama with scaled embeddings, a GELU gate, wide heads and tied weights.
//!
//! Norm weights arrive as the effective multiplier (the checkpoint reader adds the one that the files leave out).

use mlxr_tensor::Gate;

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, LayerKind, read_gate};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 256_000,
    hidden: 3072,
    intermediate: 24_576,
    n_layers: 28,
    n_heads: 16,
    n_kv_heads: Some(16),
    head_dim: Some(256),
    n_ctx: 8192,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: true,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    let stated = read_gate(fields, "hidden_activation")?.or(read_gate(fields, "hidden_act")?);
    // The first files say "gelu" and were trained with the tanh form.
    config.gate = stated.filter(|gate| *gate != Gate::Gelu).unwrap_or(Gate::GeluTanh);
    config.embed_scale = (config.hidden as f32).sqrt();
    config.set_biases(fields)?;
    config.set_rope(fields, &vec![LayerKind::Full; config.layers.len()], DEFAULTS.theta, true)?;
    Ok(config)
}
