//! SmolLM 3: llama in which every fourth layer does not rotate q and k.

use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, layer_kinds, read_gate, read_window, sized};
use crate::fields::Fields;

const DEFAULTS: Defaults = Defaults {
    vocab: 128_256,
    hidden: 2048,
    intermediate: 11_008,
    n_layers: 36,
    n_heads: 16,
    n_kv_heads: Some(4),
    head_dim: None,
    n_ctx: 32_768,
    norm_eps: 1e-6,
    theta: 2_000_000.0,
    tied: true,
};
const DEFAULT_INTERVAL: usize = 4;

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    config.gate = read_gate(fields, "hidden_act")?.unwrap_or(config.gate);
    config.set_biases(fields)?;
    let rotates = read_rotating_layers(fields, config.layers.len())?;
    let is_on = fields.flag("use_sliding_window")?.unwrap_or(false);
    let window = read_window(fields, None)?.filter(|_| is_on);
    let kinds = layer_kinds(fields, config.layers.len(), |i| window.is_some() && !rotates[i])?;
    config.set_windows(fields, &kinds, window)?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    for (layer, _) in config.layers.iter_mut().zip(&rotates).filter(|(_, rotates)| !**rotates) {
        layer.rope = None;
    }
    Ok(config)
}

/// `no_rope_layers`, which despite its name holds a one for each layer that does rotate.
fn read_rotating_layers(fields: &Fields<'_>, n_layers: usize) -> Result<Vec<bool>, ModelError> {
    let interval = sized(fields, "no_rope_layer_interval", Some(DEFAULT_INTERVAL), usize::MAX)?;
    match fields.counts("no_rope_layers")? {
        Some(list) if list.len() == n_layers => Ok(list.into_iter().map(|n| n != 0).collect()),
        Some(list) => {
            let reason = format!("has {} entries, expected {n_layers}", list.len());
            Err(fields.refuse("no_rope_layers", reason))
        }
        None => Ok((0..n_layers).map(|i| (i + 1) % interval != 0).collect()),
    }
}
