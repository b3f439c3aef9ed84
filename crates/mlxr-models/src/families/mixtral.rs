//! Mixtral: mistral with eight experts in every layer, two of them at work.

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, layer_kinds, read_experts, read_gate, read_window, sized};
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
    norm_eps: 1e-5,
    theta: 1_000_000.0,
    tied: false,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    let window = read_window(fields, None)?;
    let kinds = layer_kinds(fields, config.layers.len(), |_| window.is_some())?;
    config.set_windows(fields, &kinds, window)?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;

    let intermediate = sized(fields, "intermediate_size", Some(DEFAULTS.intermediate), usize::MAX)?;
    // The reference takes the softmax over all experts and renormalises: the same as one over the chosen.
    let experts = read_experts(fields, 8, 2, intermediate, false)?;
    config.layers.iter_mut().for_each(|layer| layer.mlp = experts);
    Ok(config)
}
