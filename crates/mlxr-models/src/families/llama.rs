//! Llama 1 to 3.x, and everything with its shape: TinyLlama, Yi, SmolLM 1 and 2, Vicuna.

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, LayerKind, read_gate};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 32_000,
    hidden: 4096,
    intermediate: 11_008,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: None,
    head_dim: None,
    n_ctx: 2048,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: false,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    config.set_biases(fields)?;
    config.set_rope(fields, &vec![LayerKind::Full; config.layers.len()], DEFAULTS.theta, true)?;
    Ok(config)
}
