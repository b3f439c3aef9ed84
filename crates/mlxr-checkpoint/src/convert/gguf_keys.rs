//! GGUF metadata from a config.json: the inverse of what opening a GGUF file does.

use mlxr_tensor::HostTensor;
use serde_json::{Map, Value};

use crate::arch::{CLASSIFIER_POOLING, CLASSIFIER_POOLINGS, Kind, Llama3};
use crate::gguf::{MetaArray, MetaValue};
use crate::{Checkpoint, CheckpointError};

pub(crate) type Entries = Vec<(String, MetaValue)>;

/// The `ARCH.*` keys, and tensors that GGUF has where config.json has numbers.
pub(crate) fn hparams(ckpt: &Checkpoint) -> Result<(Entries, Vec<HostTensor>), CheckpointError> {
    let arch = ckpt.arch;
    let config = &ckpt.config;
    let mut entries = Entries::new();
    let mut put = |key: &str, value: MetaValue| entries.push((format!("{}.{key}", arch.gguf_arch), value));
    for hparam in arch.hparams.iter().copied().flatten() {
        let Some(value) = config.get(hparam.hf).filter(|v| !v.is_null()) else { continue };
        put(hparam.gguf, number(ckpt, hparam.hf, value, hparam.kind)?);
    }
    if let Some(head_dim) = config.get("head_dim").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
    {
        put("attention.value_length", MetaValue::U32(head_dim));
        let partial = config.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
        put("rope.dimension_count", MetaValue::U32((f64::from(head_dim) * partial) as u32));
    }
    if let Some(pattern) = unusual_windows(ckpt) {
        put("attention.sliding_window_pattern", MetaValue::Array(MetaArray::of_bool(&pattern)));
    }
    if arch.encoder {
        put("attention.causal", MetaValue::Bool(false));
        let pooling = config.get("classifier_pooling").and_then(Value::as_str).unwrap_or("cls");
        if let Some((id, _)) = CLASSIFIER_POOLINGS.iter().find(|(_, name)| *name == pooling)
            && ckpt.tensor("cls.out.weight").is_some()
        {
            put(CLASSIFIER_POOLING, MetaValue::U32(*id));
        }
    }
    if let Some(pooling) = ckpt.embedding.pooling {
        put("pooling_type", MetaValue::U32(pooling.gguf_id()));
    }
    let mut tensors = Vec::new();
    if let Some(scaling) = config.get("rope_scaling").and_then(Value::as_object) {
        rope_scaling(ckpt, scaling, &mut put, &mut tensors)?;
    }
    Ok((entries, tensors))
}

fn number(ckpt: &Checkpoint, key: &str, value: &Value, kind: Kind) -> Result<MetaValue, CheckpointError> {
    let one = |value: &Value| match kind {
        Kind::Int => value.as_u64().and_then(|n| u32::try_from(n).ok()).map(MetaValue::U32),
        Kind::Float => value.as_f64().map(|f| MetaValue::F32(f as f32)),
        Kind::Bool => value.as_bool().map(MetaValue::Bool),
        Kind::Text => value.as_str().map(MetaValue::from),
    };
    let list = || {
        let items: Option<Vec<u32>> =
            value.as_array()?.iter().map(|v| u32::try_from(v.as_u64()?).ok()).collect();
        items.map(|items| MetaValue::Array(MetaArray::of_u32(&items)))
    };
    one(value).or_else(list).ok_or_else(|| {
        CheckpointError::unsupported(&ckpt.path, format!("{key}: {value}"), "correct config.json")
    })
}

/// Which layers have a window, where that is not what the family's period says.
fn unusual_windows(ckpt: &Checkpoint) -> Option<Vec<bool>> {
    let types = ckpt.config.get("layer_types")?.as_array()?;
    let flags: Vec<bool> = types.iter().map(|t| t == "sliding_attention").collect();
    let period = usize::try_from(ckpt.arch.swa_period).ok()?;
    let usual = match period {
        0 => flags.iter().all(|f| !f),
        _ => flags.iter().enumerate().all(|(i, &f)| f == (i % period < period - 1)),
    };
    (!usual && flags.iter().any(|&f| f)).then_some(flags)
}

fn rope_scaling(
    ckpt: &Checkpoint,
    scaling: &Map<String, Value>,
    put: &mut dyn FnMut(&str, MetaValue),
    tensors: &mut Vec<HostTensor>,
) -> Result<(), CheckpointError> {
    let kind = scaling.get("rope_type").and_then(Value::as_str).unwrap_or_default();
    let float = |key: &str| scaling.get(key).and_then(Value::as_f64);
    let refuse = || {
        let what = format!("rope_scaling {}", Value::Object(scaling.clone()));
        CheckpointError::unsupported(&ckpt.path, what, "GGUF holds linear, yarn, longrope and llama3 scaling")
    };
    let head_dim = ckpt.config.get("head_dim").and_then(Value::as_u64).ok_or_else(refuse)? as usize;
    let theta = ckpt.config.get("rope_theta").and_then(Value::as_f64).ok_or_else(refuse)?;
    match kind {
        "default" => {}
        "linear" | "yarn" => {
            put("rope.scaling.type", MetaValue::from(kind));
            let floats = [
                ("factor", "rope.scaling.factor"),
                ("attention_factor", "rope.scaling.attn_factor"),
                ("extrapolation_factor", "rope.scaling.yarn_ext_factor"),
                ("beta_fast", "rope.scaling.yarn_beta_fast"),
                ("beta_slow", "rope.scaling.yarn_beta_slow"),
            ];
            for (hf, gguf) in floats {
                if let Some(value) = float(hf) {
                    put(gguf, MetaValue::F32(value as f32));
                }
            }
            if let Some(n) = float("original_max_position_embeddings") {
                put("rope.scaling.original_context_length", MetaValue::U32(n as u32));
            }
        }
        "llama3" => {
            let rule = Llama3::from_json(scaling).ok_or_else(refuse)?;
            let factors: Vec<f32> = rule.factors(head_dim / 2, theta).iter().map(|&f| f as f32).collect();
            tensors.push(vector(ckpt, "rope_freqs.weight", &factors)?);
        }
        "longrope" | "su" => {
            let (original, context) = long_rope_contexts(ckpt, scaling).ok_or_else(refuse)?;
            let list = |key: &str| {
                let items: Option<Vec<f32>> =
                    scaling.get(key)?.as_array()?.iter().map(|v| v.as_f64().map(|f| f as f32)).collect();
                items
            };
            let scale = context / original;
            let usual = if scale > 1.0 { (1.0 + scale.ln() / original.ln()).sqrt() } else { 1.0 };
            let factor = float("attention_factor").unwrap_or(usual);
            put("rope.scaling.attn_factor", MetaValue::F32(factor as f32));
            tensors.push(vector(ckpt, "rope_factors_long.weight", &list("long_factor").ok_or_else(refuse)?)?);
            tensors.push(vector(
                ckpt,
                "rope_factors_short.weight",
                &list("short_factor").ok_or_else(refuse)?,
            )?);
        }
        _ => return Err(refuse()),
    }
    Ok(())
}

fn long_rope_contexts(ckpt: &Checkpoint, scaling: &Map<String, Value>) -> Option<(f64, f64)> {
    let key = "original_max_position_embeddings";
    let original = ckpt.config.get(key).or_else(|| scaling.get(key))?.as_f64()?;
    let context = ckpt.config.get("max_position_embeddings")?.as_f64()?;
    (original > 1.0).then_some((original, context))
}

fn vector(ckpt: &Checkpoint, name: &str, values: &[f32]) -> Result<HostTensor, CheckpointError> {
    HostTensor::from_f32(name, &[values.len()], values).map_err(CheckpointError::tensor(&ckpt.path))
}
