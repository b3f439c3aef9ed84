//! Nomic's BERT (arXiv 2402.01613): BERT with rotary positions, a gated MLP and no biases but those of the norms.

use mlxr_tensor::Gate;

use crate::ModelError;
use crate::config::{Bias, LayerKind, read_gate};
use crate::encoder::{EncoderConfig, EncoderDefaults, EncoderMlp};
use crate::fields::Fields;

const DEFAULTS: EncoderDefaults = EncoderDefaults { vocab: 30_528, n_ctx: 2048, ..super::bert::DEFAULTS };
const THETA: f64 = 1000.0;

pub fn config(fields: &Fields<'_>) -> Result<EncoderConfig, ModelError> {
    let mut config = EncoderConfig::read(fields, &DEFAULTS)?;
    refuse_variants(fields)?;
    // The makers' own code reaches beyond the trained length by a scaling this one does not have.
    if let Some(trained) = fields.count("max_trained_positions")?.filter(|&n| n > 0) {
        config.n_ctx = config.n_ctx.min(u32::try_from(trained).unwrap_or(u32::MAX));
    }
    config.n_types = fields.count("type_vocab_size")?.unwrap_or(2);
    config.mlp = EncoderMlp::Gated(match fields.text("hidden_act")? {
        Some("swiglu") => Gate::Silu,
        _ => read_gate(fields, "hidden_act")?.unwrap_or(Gate::Silu),
    });
    config.attn_bias = Bias::Absent;
    config.mlp_bias = Bias::Absent;
    let kinds = vec![LayerKind::Full; config.layers.len()];
    config.set_rope(fields, &kinds, THETA)?;
    Ok(config)
}

/// Settings of the makers' own code that no published model of this family uses.
fn refuse_variants(fields: &Fields<'_>) -> Result<(), ModelError> {
    const EXPECTED: [(&str, f64); 2] = [("rotary_emb_fraction", 1.0), ("moe_every_n_layers", 0.0)];
    const OFF: [&str; 6] =
        ["prenorm", "rotary_emb_interleaved", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "causal"];
    for (name, expected) in EXPECTED {
        if fields.number(name)?.is_some_and(|value| value != expected) {
            return Err(fields.refuse(name, format!("only {expected} is supported")));
        }
    }
    for name in OFF {
        if fields.flag(name)? == Some(true) {
            return Err(fields.refuse(name, "only false is supported"));
        }
    }
    Ok(())
}
