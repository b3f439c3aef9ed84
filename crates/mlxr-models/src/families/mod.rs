//! The model families: how each one's config.json becomes a [`DecoderConfig`] or an [`EncoderConfig`].
//!
//! A family file states its config class's defaults and what it does differently from llama, nothing else.

mod bert;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt_oss;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod modernbert;
mod nomic_bert;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod smollm3;
mod xlm_roberta;

use crate::ModelError;
use crate::config::DecoderConfig;
use crate::encoder::EncoderConfig;
use crate::fields::Fields;

type ReadEncoderConfig = fn(&Fields<'_>) -> Result<EncoderConfig, ModelError>;

/// `model_type` of the families that read a text and write none, and its reader.
const ENCODERS: &[(&str, ReadEncoderConfig)] = &[
    ("bert", bert::config),
    ("modernbert", modernbert::config),
    ("nomic_bert", nomic_bert::config),
    ("xlm-roberta", xlm_roberta::config),
];

type ReadConfig = fn(&Fields<'_>) -> Result<DecoderConfig, ModelError>;

/// `model_type` and its reader.
const FAMILIES: &[(&str, ReadConfig)] = &[
    ("gemma", gemma::config),
    ("gemma2", gemma2::config),
    ("gemma3", gemma3::config),
    ("gemma3_text", gemma3::config),
    ("gpt_oss", gpt_oss::config),
    ("granite", granite::config),
    ("llama", llama::config),
    ("mistral", mistral::config),
    ("mixtral", mixtral::config),
    ("olmo2", olmo2::config),
    ("phi3", phi3::config),
    ("qwen2", qwen2::config),
    ("qwen3", qwen3::config),
    ("qwen3_moe", qwen3_moe::config),
    ("smollm3", smollm3::config),
];

/// Reads and checks the config of the family `model_type`.
pub fn read_config(model: &str, model_type: &str, fields: &Fields<'_>) -> Result<DecoderConfig, ModelError> {
    let read = find(FAMILIES, model, model_type)?;
    let config = read(fields)?;
    fields.finish()?;
    Ok(config)
}

/// [`read_config`] for encoders.
pub fn read_encoder_config(
    model: &str,
    model_type: &str,
    fields: &Fields<'_>,
) -> Result<EncoderConfig, ModelError> {
    let read = find(ENCODERS, model, model_type)?;
    let config = read(fields)?;
    fields.finish()?;
    Ok(config)
}

fn find<T: Copy>(families: &[(&str, T)], model: &str, model_type: &str) -> Result<T, ModelError> {
    let found = families.iter().find(|(name, _)| *name == model_type);
    found.map(|(_, read)| *read).ok_or_else(|| {
        let supported: Vec<&str> = families.iter().map(|(name, _)| *name).collect();
        ModelError::UnknownFamily {
            model: model.to_owned(),
            model_type: model_type.to_owned(),
            supported: supported.join(", "),
        }
    })
}
