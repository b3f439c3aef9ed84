//! Mistral 7B, Nemo, Small and kin: llama with an optional sliding window in every layer.

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, layer_kinds, read_gate, read_window};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 32_000,
    hidden: 4096,
    intermediate: 14_336,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: Some(8),
    head_dim: None,
    n_ctx: 4096 * 32,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: false,
};
const DEFAULT_WINDOW: u32 = 4096;

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    let window = read_window(fields, Some(DEFAULT_WINDOW).filter(|_| !fields.from_gguf))?;
    let kinds = layer_kinds(fields, config.layers.len(), |_| window.is_some())?;
    config.set_windows(fields, &kinds, window)?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    Ok(config)
}
