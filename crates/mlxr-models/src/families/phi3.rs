//! Phi 3, 3.5 and 4 (mini): llama with LongRoPE, rotation of part of each head, and an optional window.
//!
//! On disk q, k and v are one matrix, as are gate and up; the checkpoint reader splits them.

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, layer_kinds, read_gate, read_window};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 32_064,
    hidden: 3072,
    intermediate: 8192,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: None,
    head_dim: None,
    n_ctx: 4096,
    norm_eps: 1e-5,
    theta: 10_000.0,
    tied: false,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    let window = read_window(fields, None)?;
    let kinds = layer_kinds(fields, config.layers.len(), |_| window.is_some())?;
    config.set_windows(fields, &kinds, window)?;
    // Stated even where nothing is scaled.
    fields.note("original_max_position_embeddings");
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    Ok(config)
}
