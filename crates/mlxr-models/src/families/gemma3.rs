//! Gemma 3, the text model: Gemma 2 with norms on q and k in place of the caps, five windowed layers to one that
//! sees all, and different rotary embeddings for the two kinds.

use mlxr_tensor::Reach;

use super::gemma2::{read_softcap, set_gemma_shape};
use crate::ModelError;
use crate::config::{DecoderConfig, Defaults, LayerKind, QkNorm, sized};
use crate::fields::Fields;
use crate::rope::{RopeConfig, RopeScaling};

const DEFAULTS: Defaults = Defaults {
    vocab: 262_208,
    hidden: 2304,
    intermediate: 9216,
    n_layers: 26,
    n_heads: 8,
    n_kv_heads: Some(4),
    head_dim: Some(256),
    n_ctx: 131_072,
    norm_eps: 1e-6,
    theta: 1_000_000.0,
    tied: true,
};
const LOCAL_THETA: f64 = 10_000.0;
const DEFAULT_PATTERN: usize = 6;

pub fn config(fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let mut config = DecoderConfig::read(fields, &DEFAULTS)?;
    // Where layer types are listed, the pattern may be anything: nothing reads it.
    let pattern = match fields.is_stated("layer_types") {
        true => DEFAULT_PATTERN,
        false => sized(fields, "sliding_window_pattern", Some(DEFAULT_PATTERN), usize::MAX)?,
    };
    let kinds = set_gemma_shape(&mut config, fields, |i| (i + 1) % pattern != 0)?;
    config.qk_norm = QkNorm::PerHead;
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        config.reach = Reach::Both;
        // The window is as wide as stated, half of it on each side.
        for layer in &mut config.layers {
            layer.window = layer.window.map(|window| window / 2 + 1);
        }
    }
    config.attention_softcap = read_softcap(fields, "attn_logit_softcapping", None)?;
    config.logit_softcap = read_softcap(fields, "final_logit_softcapping", None)?;
    config.set_rope(fields, &kinds, DEFAULTS.theta, true)?;
    set_local_rope(&mut config, fields, &kinds)?;
    Ok(config)
}

/// Where the config has no rotary settings per kind of layer, the windowed layers have their own base and no scaling.
fn set_local_rope(
    config: &mut DecoderConfig,
    fields: &Fields<'_>,
    kinds: &[LayerKind],
) -> Result<(), ModelError> {
    let theta = fields.positive("rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    let per_kind = fields.object("rope_parameters")?;
    if per_kind.is_some_and(|settings| settings.contains_key(LayerKind::Sliding.name())) {
        return Ok(());
    }
    let local = RopeConfig { theta, rotary_dim: config.head_dim, scaling: RopeScaling::None };
    config.use_rope(kinds, LayerKind::Sliding, local);
    Ok(())
}
