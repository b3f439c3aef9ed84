//! RoBERTa and XLM-RoBERTa (arXiv 1911.02116): BERT whose positions begin after that of the padding token.

use super::bert::set_bert_shape;
use crate::ModelError;
use crate::encoder::{EncoderConfig, EncoderDefaults};
use crate::fields::Fields;

const DEFAULTS: EncoderDefaults =
    EncoderDefaults { vocab: 250_002, norm_eps: 1e-5, n_ctx: 514, ..super::bert::DEFAULTS };

pub fn config(fields: &Fields<'_>) -> Result<EncoderConfig, ModelError> {
    let mut config = EncoderConfig::read(fields, &DEFAULTS)?;
    let padding = fields.count("pad_token_id")?.unwrap_or(1);
    set_bert_shape(&mut config, fields, padding.saturating_add(1), 1)?;
    Ok(config)
}
