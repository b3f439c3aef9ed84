//! ModernBERT (arXiv 2412.13663): rotary positions, norms before the sublayers, a gated MLP; of three layers two see
//! a window.

use mlxr_checkpoint::Pooling;
use mlxr_tensor::{Activation, Gate};

use crate::ModelError;
use crate::config::{Bias, LayerKind, layer_kinds, read_gate};
use crate::encoder::{EncoderConfig, EncoderDefaults, EncoderMlp, NormPlace, ScoreConfig, read_activation};
use crate::fields::Fields;
use crate::rope::{RopeConfig, RopeScaling};

const DEFAULTS: EncoderDefaults = EncoderDefaults {
    vocab: 50_368,
    hidden: 768,
    intermediate: 1152,
    n_layers: 22,
    n_heads: 12,
    n_ctx: 8192,
    norm_eps: 1e-5,
};
const GLOBAL_THETA: f64 = 160_000.0;
const LOCAL_THETA: f64 = 10_000.0;
const LOCAL_ATTENTION: usize = 128;
const PATTERN: usize = 3;

pub fn config(fields: &Fields<'_>) -> Result<EncoderConfig, ModelError> {
    let mut config = EncoderConfig::read(fields, &DEFAULTS)?;
    config.norms = NormPlace::Before;
    config.norm_bias = Bias::IfPresent;
    config.attn_bias = Bias::IfPresent;
    config.mlp_bias = Bias::IfPresent;
    for name in ["norm_bias", "attention_bias", "mlp_bias", "sliding_window_pattern"] {
        fields.note(name);
    }
    config.mlp = EncoderMlp::Gated(read_gate(fields, "hidden_activation")?.unwrap_or(Gate::Gelu));
    let kinds = layer_kinds(fields, config.layers.len(), |i| !i.is_multiple_of(PATTERN))?;
    let local = fields.count("local_attention")?.unwrap_or(LOCAL_ATTENTION);
    let window = u32::try_from(local / 2 + 1).map_err(|_| fields.refuse("local_attention", "too large"))?;
    for (layer, kind) in config.layers.iter_mut().zip(&kinds) {
        layer.window = (*kind == LayerKind::Sliding).then_some(window);
    }
    config.set_rope(fields, &kinds, GLOBAL_THETA)?;
    let theta = fields.positive("rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    let per_kind = fields.object("rope_parameters")?;
    if !per_kind.is_some_and(|settings| settings.contains_key(LayerKind::Sliding.name())) {
        let rope = RopeConfig { theta, rotary_dim: config.head_dim, scaling: RopeScaling::None };
        config.use_rope(&kinds, LayerKind::Sliding, rope);
    }
    config.score = Some(ScoreConfig {
        n_labels: 1,
        pooling: match fields.text("classifier_pooling")? {
            None | Some("cls") => Pooling::Cls,
            Some("mean") => Pooling::Mean,
            Some(_) => return Err(fields.refuse("classifier_pooling", "not one of cls, mean")),
        },
        dense: Some(read_activation(fields, "classifier_activation")?.unwrap_or(Activation::Gelu)),
    });
    Ok(config)
}
