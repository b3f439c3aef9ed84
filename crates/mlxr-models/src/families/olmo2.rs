//! OLMo 2: llama with norms after the sublayers instead of before, and on whole q and k rows.

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, LayerKind, QkNorm, read_gate};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 50_304,
    hidden: 4096,
    intermediate: 11_008,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: None,
    head_dim: None,
    n_ctx: 2048,
    norm_eps: 1e-5,
    theta: 10_000.0,
    tied: false,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    config.set_biases(fields)?;
    config.pre_norms = false;
    config.post_norms = true;
    config.qk_norm = QkNorm::FullRow;
    config.set_rope(fields, &vec![LayerKind::Full; config.layers.len()], DEFAULTS.theta, true)?;
    Ok(config)
}
