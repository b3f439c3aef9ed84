//! Qwen 3: Qwen 2 with a norm on each q and k head in place of the biases.

use super::qwen2::set_upper_windows;
use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, QkNorm, read_gate};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 151_936,
    hidden: 4096,
    intermediate: 22_016,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: Some(32),
    head_dim: Some(128),
    n_ctx: 32_768,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: false,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    config.set_biases(fields)?;
    config.qk_norm = QkNorm::PerHead;
    let kinds = set_upper_windows(&mut config, fields)?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    Ok(config)
}
