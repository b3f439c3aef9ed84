//! Qwen 3 with experts (30B-A3B, 235B-A22B): some layers may stay dense.

use crate::ModelError;
use crate::config::{
    DecoderConfig, Defaults, QkNorm, layer_kinds, read_experts, read_gate, read_window, sized,
};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 151_936,
    hidden: 2048,
    intermediate: 6144,
    n_layers: 24,
    n_heads: 32,
    n_kv_heads: Some(4),
    head_dim: None,
    n_ctx: 32_768,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: false,
};
const DEFAULT_WINDOW: u32 = 4096;

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    config.set_biases(fields)?;
    config.qk_norm = QkNorm::PerHead;

    // Unlike the dense family, a window that is switched on holds in every layer.
    let is_on = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = read_window(fields, Some(DEFAULT_WINDOW))?.filter(|_| is_on);
    let kinds = layer_kinds(fields, config.layers.len(), |_| window.is_some())?;
    config.set_windows(fields, &kinds, window)?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    set_experts(&mut config, fields)?;
    Ok(config)
}

fn set_experts(config: &mut DecoderConfig, fields: &Fields<'_>) -> Result<(), ModelError> {
    let intermediate = sized(fields, "moe_intermediate_size", Some(768), 1 << 20)?;
    let renormalise = fields.flag("norm_topk_prob")?.unwrap_or(false);
    let experts = read_experts(fields, 128, 8, intermediate, !renormalise)?;
    let step = sized(fields, "decoder_sparse_step", Some(1), usize::MAX)?;
    let dense = fields.counts("mlp_only_layers")?.unwrap_or_default();
    for (i, layer) in config.layers.iter_mut().enumerate() {
        if (i + 1) % step == 0 && !dense.contains(&i) {
            layer.mlp = experts;
        }
    }
    Ok(())
}
