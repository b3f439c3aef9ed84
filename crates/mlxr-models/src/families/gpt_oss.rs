//! gpt-oss: experts with biases and a clamped gate, attention sinks, every second layer with a window, YaRN.

use mlxr_tensor::Gate;

use crate::ModelError;
use crate::config::{
    Bias, DecoderConfig, Defaults, LayerKind, layer_kinds, read_experts, read_gate, read_window, sized,
};
use crate::fields::Fields;
use crate::rope::{RopeConfig, RopeDefaults};

const DEFAULTS: Defaults = Defaults {
    vocab: 201_088,
    hidden: 2880,
    intermediate: 2880,
    n_layers: 36,
    n_heads: 64,
    n_kv_heads: Some(8),
    head_dim: Some(64),
    n_ctx: 131_072,
    norm_eps: 1e-5,
    theta: 150_000.0,
    tied: false,
};
const DEFAULT_WINDOW: u32 = 128;

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    if read_gate(fields, "hidden_act")?.is_some_and(|gate| gate != Gate::Silu) {
        return Err(fields.refuse("hidden_act", "only silu is supported for this model type"));
    }
    config.gate = Gate::ClampedSwiglu {
        alpha: fields.positive("swiglu_alpha")?.unwrap_or(1.702) as f32,
        limit: fields.positive("swiglu_limit")?.unwrap_or(7.0) as f32,
    };
    config.sinks = true;
    config.qkv_bias =
        if fields.flag("attention_bias")?.unwrap_or(true) { Bias::Required } else { Bias::Absent };
    config.o_bias = config.qkv_bias;
    config.mlp_bias = Bias::Required;

    let window = read_window(fields, Some(DEFAULT_WINDOW))?;
    let kinds = layer_kinds(fields, config.layers.len(), |i| window.is_some() && i % 2 == 0)?;
    config.set_windows(fields, &kinds, window)?;
    set_rope(&mut config, fields, &kinds)?;

    let intermediate = sized(fields, "intermediate_size", Some(DEFAULTS.intermediate), usize::MAX)?;
    let experts = read_experts(fields, 128, 4, intermediate, false)?;
    config.layers.iter_mut().for_each(|layer| layer.mlp = experts);
    Ok(config)
}

/// YaRN, also where the config does not mention it. The family never rounds the ends of the ramp; a GGUF cannot
/// say so.
fn set_rope(config: &mut DecoderConfig, fields: &Fields<'_>, kinds: &[LayerKind]) -> Result<(), ModelError> {
    let settings = (fields.object("rope_parameters")?, fields.object("rope_scaling")?);
    if settings != (None, None) {
        return config.set_rope(fields, kinds, DEFAULTS.theta, !fields.from_gguf);
    }
    let defaults = RopeDefaults {
        theta: DEFAULTS.theta,
        head_dim: config.head_dim,
        n_ctx: config.n_ctx_train,
        truncate: false,
    };
    let assumed = serde_json::json!({
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
    });
    if let Some(assumed) = assumed.as_object() {
        let rope = RopeConfig::read(fields, Some(("rope_parameters", assumed)), &defaults)?;
        for kind in [LayerKind::Full, LayerKind::Sliding] {
            config.use_rope(kinds, kind, rope.clone());
        }
    }
    Ok(())
}
