//! GGUF metadata of a model's own namespace that no table reads: refused where it changes the arithmetic, reported
//! where nobody knows.

use std::path::Path;

use super::ArchSpec;
use crate::CheckpointError;
use crate::gguf::{GgufMetadata, MetaValue};

/// What a key may say without changing anything.
enum Neutral {
    Numbers(&'static [f64]),
    Bool(bool),
    /// What another key says, or that it says nothing.
    SameAs(&'static str),
}

use Neutral::{Bool, Numbers, SameAs};

/// Keys that change the arithmetic of families whose table does not list them.
const CHANGING: &[(&str, Neutral)] = &[
    ("attention.causal", Bool(true)),
    ("attention.clamp_kqv", Numbers(&[0.0])),
    ("attention.key_length_swa", SameAs("attention.key_length")),
    ("attention.kv_lora_rank", Numbers(&[0.0])),
    ("attention.max_alibi_bias", Numbers(&[0.0])),
    ("attention.output_scale", Numbers(&[0.0, 1.0])),
    ("attention.q_lora_rank", Numbers(&[0.0])),
    ("attention.scale", Numbers(&[0.0])),
    ("attention.shared_kv_layers", Numbers(&[0.0])),
    ("attention.temperature_length", Numbers(&[0.0])),
    ("attention.temperature_scale", Numbers(&[0.0])),
    ("attention.value_length", SameAs("attention.key_length")),
    ("attention.value_length_swa", SameAs("attention.key_length")),
    ("attn_logit_softcapping", Numbers(&[0.0])),
    ("embedding_scale", Numbers(&[0.0, 1.0])),
    ("expert_count", Numbers(&[0.0])),
    // Softmax over all or over the chosen ones, whose weights then add up to one.
    ("expert_gating_func", Numbers(&[0.0, 1.0, 3.0])),
    ("expert_group_count", Numbers(&[0.0, 1.0])),
    ("expert_group_used_count", Numbers(&[0.0, 1.0])),
    ("expert_shared_count", Numbers(&[0.0])),
    ("expert_shared_feed_forward_length", Numbers(&[0.0])),
    ("expert_weights_norm", Bool(true)),
    ("expert_weights_scale", Numbers(&[0.0, 1.0])),
    ("final_logit_softcapping", Numbers(&[0.0])),
    ("interleave_moe_layer_step", Numbers(&[0.0, 1.0])),
    ("leading_dense_block_count", Numbers(&[0.0])),
    ("logit_scale", Numbers(&[0.0, 1.0])),
    ("moe_every_n_layers", Numbers(&[0.0, 1.0])),
    ("nextn_predict_layers", Numbers(&[0.0])),
    ("residual_scale", Numbers(&[0.0, 1.0])),
    ("rope.dimension_count_swa", SameAs("rope.dimension_count")),
    ("rope.dimension_sections", Numbers(&[0.0])),
    ("rope.freq_base_swa", SameAs("rope.freq_base")),
    ("rope.scaling.yarn_log_multiplier", Numbers(&[0.0])),
    ("router_logit_softcapping", Numbers(&[0.0])),
    ("swin_norm", Bool(false)),
    ("use_parallel_residual", Bool(false)),
];

/// Namespaces of layers no family here has.
const CHANGING_PREFIXES: [&str; 5] = ["ssm.", "wkv.", "shortconv.", "attention.indexer.", "altup."];

/// Keys read without a table, and those that describe the file.
const READ: [&str; 16] = [
    "attention.sliding_window_pattern",
    "classifier.output_labels",
    "classifier.pooling_type",
    "expert_feed_forward_length",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
];

impl Neutral {
    fn allows(&self, value: &MetaValue, of: &dyn Fn(&str) -> Option<f64>) -> bool {
        match (self, value) {
            (_, MetaValue::Array(array)) => {
                (0..array.len()).all(|i| array.number(i).is_some_and(|item| self.allows(&item, of)))
            }
            (Numbers(neutral), value) => value.as_f64().is_some_and(|v| neutral.contains(&v)),
            (Bool(neutral), value) => value.as_bool() == Some(*neutral),
            (SameAs(key), value) => of(key).is_none_or(|other| value.as_f64() == Some(other)),
        }
    }
}

/// One line for each key of the family's namespace that nothing reads.
///
/// # Errors
/// When a key says that the model computes something that is not computed here.
pub(crate) fn unread_keys(
    path: &Path,
    arch: &ArchSpec,
    metadata: &GgufMetadata,
) -> Result<Vec<String>, CheckpointError> {
    let mut unread = Vec::new();
    for (full, value) in metadata.iter() {
        let Some(key) = full.strip_prefix(arch.gguf_arch).and_then(|rest| rest.strip_prefix('.')) else {
            continue;
        };
        if arch.hparams.iter().copied().flatten().any(|h| h.gguf == key) || READ.contains(&key) {
            continue;
        }
        let of = |key: &str| metadata.get(&format!("{}.{key}", arch.gguf_arch)).and_then(MetaValue::as_f64);
        if key == "attention.causal" && arch.encoder && value.as_bool() == Some(false) {
            continue;
        }
        let known = CHANGING.iter().find(|(name, _)| *name == key);
        match known {
            Some((_, neutral)) if neutral.allows(value, &of) => {}
            None if !CHANGING_PREFIXES.iter().any(|prefix| key.starts_with(prefix)) => {
                unread.push(format!("metadata {full:?} is not known here and has no effect"));
            }
            _ => {
                let what = format!("metadata {full:?} = {}", shown(value));
                let hint = format!("it changes what models of the family {} compute", arch.model_type);
                return Err(CheckpointError::unsupported(path, what, hint));
            }
        }
    }
    Ok(unread)
}

fn shown(value: &MetaValue) -> String {
    match value {
        MetaValue::Array(array) => format!("an array of {}", array.len()),
        value => value
            .as_f64()
            .map(|v| v.to_string())
            .or(value.as_bool().map(|v| v.to_string()))
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(entries: &[(&str, MetaValue)]) -> Result<Vec<String>, CheckpointError> {
        let arch = ArchSpec::for_model_type("llama").expect("a family");
        let entries = entries.iter().map(|(key, value)| (format!("llama.{key}"), value.clone()));
        unread_keys(Path::new("m.gguf"), arch, &GgufMetadata::from_entries(entries))
    }

    #[test]
    fn keys_that_change_the_arithmetic_are_refused_by_name() {
        for (key, value) in [
            ("attention.clamp_kqv", MetaValue::F32(8.0)),
            ("attention.causal", MetaValue::Bool(false)),
            ("attention.value_length", MetaValue::U32(32)),
            ("expert_weights_norm", MetaValue::Bool(false)),
            ("logit_scale", MetaValue::F32(0.5)),
            ("rope.dimension_sections", MetaValue::Array(crate::MetaArray::of_i32(&[8, 12, 12, 0]))),
            ("ssm.state_size", MetaValue::U32(16)),
        ] {
            let found = unread(&[("attention.key_length", MetaValue::U32(16)), (key, value)]);
            let text = found.unwrap_err().to_string();
            assert!(text.contains(key) && text.contains("not supported"), "{text}");
        }
    }

    #[test]
    fn values_that_mean_nothing_are_taken_and_unknown_keys_reported() {
        let found = unread(&[
            ("attention.clamp_kqv", MetaValue::F32(0.0)),
            ("attention.causal", MetaValue::Bool(true)),
            ("attention.key_length", MetaValue::U32(16)),
            ("attention.value_length", MetaValue::U32(16)),
            ("rope.freq_base", MetaValue::F32(1e4)),
            ("novel", MetaValue::U32(1)),
        ]);
        let found = found.unwrap();
        assert!(found.len() == 1 && found[0].contains("\"llama.novel\""), "{found:?}");
    }
}
