//! BERT (arXiv 1810.04805): learned positions, norms after the sums, a plain MLP.

use mlxr_checkpoint::Pooling;
use mlxr_tensor::Activation;

use crate::ModelError;
use crate::encoder::{EncoderConfig, EncoderDefaults, EncoderMlp, ScoreConfig, read_activation};
use crate::fields::Fields;

pub const DEFAULTS: EncoderDefaults = EncoderDefaults {
    vocab: 30_522,
    hidden: 768,
    intermediate: 3072,
    n_layers: 12,
    n_heads: 12,
    n_ctx: 512,
    norm_eps: 1e-12,
};

pub fn config(fields: &Fields<'_>) -> Result<EncoderConfig, ModelError> {
    let mut config = EncoderConfig::read(fields, &DEFAULTS)?;
    set_bert_shape(&mut config, fields, 0, 2)?;
    Ok(config)
}

/// What BERT and RoBERTa share: learned positions that begin at row `first`, kinds of tokens, a head with a tanh.
pub fn set_bert_shape(
    config: &mut EncoderConfig,
    fields: &Fields<'_>,
    first: usize,
    n_types: usize,
) -> Result<(), ModelError> {
    // RoBERTa's biases are as certain as BERT's, but no GGUF speaks of them.
    fields.note("attention_bias");
    fields.note("mlp_bias");
    config.set_learned_positions(fields, first)?;
    config.n_types = fields.count("type_vocab_size")?.unwrap_or(n_types);
    config.mlp = EncoderMlp::Plain(read_activation(fields, "hidden_act")?.unwrap_or(Activation::Gelu));
    config.score = Some(ScoreConfig { n_labels: 1, pooling: Pooling::Cls, dense: Some(Activation::Tanh) });
    Ok(())
}
