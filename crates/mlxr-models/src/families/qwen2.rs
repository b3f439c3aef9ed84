//! Qwen 2 and 2.5: llama with biases on q, k and v, and a window in the upper layers when switched on.

use crate::ModelError;
use crate::config::{Bias, DecoderConfig, Defaults, LayerKind, layer_kinds, read_gate, read_window};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 151_936,
    hidden: 4096,
    intermediate: 22_016,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: Some(32),
    head_dim: None,
    n_ctx: 32_768,
    norm_eps: 1e-6,
    theta: 10_000.0,
    tied: false,
};

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    // Fixed by the family, whatever the field says.
    fields.note("attention_bias");
    config.qkv_bias = Bias::Required;
    let kinds = set_upper_windows(&mut config, fields)?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    Ok(config)
}

/// `use_sliding_window`: a window in the layers from `max_window_layers` on. Shared by Qwen 2 and 3.
pub fn set_upper_windows(
    config: &mut DecoderConfig,
    fields: &Fields<'_>,
) -> Result<Vec<LayerKind>, ModelError> {
    const DEFAULT_WINDOW: u32 = 4096;
    const DEFAULT_FIRST: usize = 28;
    let is_on = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = read_window(fields, Some(DEFAULT_WINDOW))?.filter(|_| is_on);
    let first = fields.count("max_window_layers")?.unwrap_or(DEFAULT_FIRST);
    let kinds = layer_kinds(fields, config.layers.len(), |i| window.is_some() && i >= first)?;
    config.set_windows(fields, &kinds, window)?;
    Ok(kinds)
}
