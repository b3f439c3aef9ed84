//! Granite 3: llama with four multipliers, on embeddings, scores, residuals and logits.

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

    let multiplier = |name| -> Result<f32, ModelError> { Ok(fields.number(name)?.unwrap_or(1.0) as f32) };
    config.embed_scale = multiplier("embedding_multiplier")?;
    config.residual_scale = multiplier("residual_multiplier")?;
    config.attention_scale = multiplier("attention_multiplier")?;
    // Logits are divided by it.
    config.logit_scale = (1.0 / fields.positive("logits_scaling")?.unwrap_or(1.0)) as f32;
    Ok(config)
}
