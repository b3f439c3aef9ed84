//! Hyperparameter names: GGUF metadata keys and config.json keys, and the translation of the one into the other.

use serde_json::{Map, Value, json};

use super::ArchSpec;
use crate::gguf::{GgufMetadata, MetaValue};

/// The type config.json gives a hyperparameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Int,
    Float,
    Bool,
    Text,
}

/// One hyperparameter under both its names; the GGUF key follows `ARCH.`.
#[derive(Debug)]
pub struct HParam {
    pub gguf: &'static str,
    pub hf: &'static str,
    pub kind: Kind,
}

/// A value assumed where config.json has none.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    Str(&'static str),
    Int(i64),
    Float(f64),
    Bool(bool),
}

macro_rules! hparams {
    ($($gguf:literal, $hf:literal, $kind:ident;)*) => {
        &[$(HParam { gguf: $gguf, hf: $hf, kind: Kind::$kind }),*]
    };
}

type HParams = &'static [HParam];

pub const DECODER: HParams = hparams! {
    "block_count", "num_hidden_layers", Int;
    "context_length", "max_position_embeddings", Int;
    "embedding_length", "hidden_size", Int;
    "attention.head_count", "num_attention_heads", Int;
    "attention.head_count_kv", "num_key_value_heads", Int;
    "attention.layer_norm_rms_epsilon", "rms_norm_eps", Float;
    "attention.key_length", "head_dim", Int;
    "rope.freq_base", "rope_theta", Float;
    "vocab_size", "vocab_size", Int;
};

pub const ENCODER: HParams = hparams! {
    "block_count", "num_hidden_layers", Int;
    "context_length", "max_position_embeddings", Int;
    "embedding_length", "hidden_size", Int;
    "attention.head_count", "num_attention_heads", Int;
    "attention.layer_norm_epsilon", "layer_norm_eps", Float;
    "vocab_size", "vocab_size", Int;
};

pub const ROPE: HParams = hparams! {
    "rope.freq_base", "rope_theta", Float;
};

/// Positions a row sees in layers with a window, half of them on each side.
pub const LOCAL_ATTENTION: HParams = hparams! {
    "attention.sliding_window", "local_attention", Int;
    "hidden_activation", "hidden_activation", Text;
};

pub const DENSE: HParams = hparams! {
    "feed_forward_length", "intermediate_size", Int;
};

pub const SLIDING_WINDOW: HParams = hparams! {
    "attention.sliding_window", "sliding_window", Int;
};

pub const SOFTCAPS: HParams = hparams! {
    "attn_logit_softcapping", "attn_logit_softcapping", Float;
    "final_logit_softcapping", "final_logit_softcapping", Float;
};

/// The base for layers with a window.
pub const LOCAL_ROPE: HParams = hparams! {
    "rope.freq_base_swa", "rope_local_base_freq", Float;
};

pub const ORIGINAL_CONTEXT: HParams = hparams! {
    "rope.scaling.original_context_length", "original_max_position_embeddings", Int;
};

pub const MULTIPLIERS: HParams = hparams! {
    "attention.scale", "attention_multiplier", Float;
    "embedding_scale", "embedding_multiplier", Float;
    "residual_scale", "residual_multiplier", Float;
    "logit_scale", "logits_scaling", Float;
};

pub const EXPERT_WIDTH: HParams = hparams! {
    "expert_feed_forward_length", "intermediate_size", Int;
};

pub const LOCAL_EXPERTS: HParams = hparams! {
    "expert_count", "num_local_experts", Int;
    "expert_used_count", "num_experts_per_tok", Int;
};

pub const QWEN_EXPERTS: HParams = hparams! {
    "expert_count", "num_experts", Int;
    "expert_used_count", "num_experts_per_tok", Int;
    "expert_feed_forward_length", "moe_intermediate_size", Int;
};

/// Which row a classification head reads, where files say; GGUF's default is the mean.
pub(crate) const CLASSIFIER_POOLING: &str = "classifier.pooling_type";
pub(crate) const CLASSIFIER_POOLINGS: [(u32, &str); 2] = [(1, "mean"), (2, "cls")];

/// Keys of `tokenizer.ggml.` and of config.json.
const TOKEN_IDS: [(&str, &str); 3] = [
    ("bos_token_id", "bos_token_id"),
    ("eos_token_id", "eos_token_id"),
    ("padding_token_id", "pad_token_id"),
];

/// Ids in GGUF metadata that end a generation, besides `eos_token_id`.
const END_IDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Keys of `general.sampling.` and of generation_config.json.
const SAMPLING: [(&str, &str); 5] = [
    ("temp", "temperature"),
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("penalty_repeat", "repetition_penalty"),
];

/// A number as config.json would have it; arrays whose elements agree become one number.
fn to_json(value: &MetaValue, kind: Kind) -> Option<Value> {
    if let MetaValue::Array(array) = value {
        let items: Option<Vec<Value>> = (0..array.len()).map(|i| to_json(&array.number(i)?, kind)).collect();
        let items = items?;
        let first = items.first()?.clone();
        return Some(if items.iter().all(|v| *v == first) { first } else { Value::Array(items) });
    }
    match kind {
        Kind::Int => value.as_i64().map(Value::from),
        Kind::Float => value.as_f64().map(|v| json!(shortest(v))),
        Kind::Bool => value.as_bool().map(Value::from),
        Kind::Text => value.as_str().map(Value::from),
    }
}

/// The float that prints like the f32 it came from (1e-5, not 9.999999747378752e-6).
pub(super) fn shortest(v: f64) -> f64 {
    let narrow = v as f32;
    if f64::from(narrow) == v { narrow.to_string().parse().unwrap_or(v) } else { v }
}

/// A config.json from GGUF metadata.
pub(crate) fn config_from_gguf(arch: &ArchSpec, metadata: &GgufMetadata) -> Map<String, Value> {
    let mut config = Map::new();
    config.insert("architectures".to_owned(), json!([arch.hf_class]));
    config.insert("model_type".to_owned(), json!(arch.model_type));
    let key = |name: &str| format!("{}.{name}", arch.gguf_arch);
    for hparam in arch.hparams.iter().copied().flatten() {
        if let Some(value) = metadata.get(&key(hparam.gguf)).and_then(|v| to_json(v, hparam.kind)) {
            config.insert(hparam.hf.to_owned(), value);
        }
    }
    if !config.contains_key("vocab_size")
        && let Some(tokens) = metadata.strings("tokenizer.ggml.tokens")
    {
        config.insert("vocab_size".to_owned(), json!(tokens.len()));
    }
    if arch.encoder {
        if let Some(n) = metadata.u64("tokenizer.ggml.token_type_count") {
            config.insert("type_vocab_size".to_owned(), json!(n));
        }
        let pooling = metadata.u64(&key(CLASSIFIER_POOLING)).unwrap_or(1);
        let name =
            CLASSIFIER_POOLINGS.iter().find(|(id, _)| u64::from(*id) == pooling).map(|(_, name)| *name);
        config
            .insert("classifier_pooling".to_owned(), name.map_or_else(|| json!(pooling), |name| json!(name)));
    }
    fill_head_dim(&mut config);
    let head_dim = config.get("head_dim").and_then(Value::as_u64);
    if let (Some(head_dim), Some(rope_dim)) = (head_dim, metadata.u64(&key("rope.dimension_count")))
        && rope_dim < head_dim
    {
        config.insert("partial_rotary_factor".to_owned(), json!(rope_dim as f64 / head_dim as f64));
    }
    if let Some(scaling) = rope_scaling_from_gguf(metadata, &key) {
        config.insert("rope_scaling".to_owned(), scaling);
    }
    if let Some(pattern) = metadata.get(&key("attention.sliding_window_pattern")) {
        let pattern = match pattern {
            MetaValue::Array(array) => array.to_bools().map(|flags| json!(flags)),
            period => period.as_u64().map(Value::from),
        };
        config.extend(pattern.map(|p| ("sliding_window_pattern".to_owned(), p)));
    }
    if config.get("sliding_window").and_then(Value::as_u64) == Some(0) {
        config.insert("sliding_window".to_owned(), Value::Null);
    }
    fill_query_scalar(arch, &mut config);
    fill(&mut config, arch.gguf_defaults);
    for (gguf, hf) in TOKEN_IDS {
        if let Some(id) = metadata.u32(&format!("tokenizer.ggml.{gguf}")) {
            config.insert(hf.to_owned(), json!(id));
        }
    }
    config
}

fn fill_head_dim(config: &mut Map<String, Value>) {
    let int = |key: &str| config.get(key).and_then(Value::as_u64);
    if let (None, Some(hidden), Some(n_heads @ 1..)) =
        (int("head_dim"), int("hidden_size"), int("num_attention_heads"))
    {
        config.insert("head_dim".to_owned(), json!(hidden / n_heads));
    }
}

fn fill_query_scalar(arch: &ArchSpec, config: &mut Map<String, Value>) {
    let int = |key: &str| config.get(key).and_then(Value::as_u64);
    let Some(exception) = arch.query_scalar_layers else { return };
    let scalar = if int("num_hidden_layers") == Some(exception) {
        int("hidden_size").zip(int("num_attention_heads").filter(|&n| n > 0)).map(|(hidden, n)| hidden / n)
    } else {
        int("head_dim")
    };
    config.extend(scalar.map(|s| ("query_pre_attn_scalar".to_owned(), json!(s))));
}

fn rope_scaling_from_gguf(metadata: &GgufMetadata, key: &dyn Fn(&str) -> String) -> Option<Value> {
    let float = |name: &str| metadata.f32(&key(name)).map(|v| shortest(v.into()));
    // Files from before the typed keys only have a linear scale.
    let old_linear = float("rope.scale_linear").filter(|&factor| factor != 1.0);
    let kind = match metadata.str(&key("rope.scaling.type")) {
        Some("none") => return None,
        Some(kind) => kind,
        None => return old_linear.map(|factor| json!({"rope_type": "linear", "factor": factor})),
    };
    let mut scaling = Map::new();
    scaling.insert("rope_type".to_owned(), json!(kind));
    let floats = [
        ("rope.scaling.factor", "factor"),
        ("rope.scaling.attn_factor", "attention_factor"),
        ("rope.scaling.yarn_ext_factor", "extrapolation_factor"),
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ];
    for (gguf, hf) in floats {
        if let Some(value) = float(gguf) {
            scaling.insert(hf.to_owned(), json!(value));
        }
    }
    if let Some(n) = metadata.u64(&key("rope.scaling.original_context_length")) {
        scaling.insert("original_max_position_embeddings".to_owned(), json!(n));
    }
    Some(Value::Object(scaling))
}

/// `general.sampling.*` for what a generation_config.json says of sampling.
pub(crate) fn sampling_entries(generation: &Map<String, Value>) -> Vec<(String, MetaValue)> {
    let entry = |(gguf, hf): &(&str, &str)| {
        let value = generation.get(*hf)?;
        let value = match *hf {
            "top_k" => MetaValue::I32(value.as_i64()?.try_into().ok()?),
            _ => MetaValue::F32(value.as_f64()? as f32),
        };
        Some((format!("general.sampling.{gguf}"), value))
    };
    SAMPLING.iter().filter_map(entry).collect()
}

/// A generation_config.json from GGUF metadata.
pub(crate) fn generation_from_gguf(metadata: &GgufMetadata) -> Map<String, Value> {
    let mut generation = Map::new();
    for (gguf, hf) in TOKEN_IDS {
        if let Some(id) = metadata.u32(&format!("tokenizer.ggml.{gguf}")) {
            generation.insert(hf.to_owned(), json!(id));
        }
    }
    let mut ends: Vec<u32> = metadata.u32("tokenizer.ggml.eos_token_id").into_iter().collect();
    for id in END_IDS.iter().filter_map(|key| metadata.u32(key)) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    if ends.len() > 1 {
        generation.insert("eos_token_id".to_owned(), json!(ends));
    }
    for (gguf, hf) in SAMPLING {
        if let Some(value) = metadata.get(&format!("general.sampling.{gguf}")) {
            let kind = if hf == "top_k" { Kind::Int } else { Kind::Float };
            generation.extend(to_json(value, kind).map(|v| (hf.to_owned(), v)));
        }
    }
    generation
}

/// Brings newer spellings of config.json to the one everything else reads: the text part of a multimodal config
/// moves to the top, `rope_parameters` also appears as `rope_theta` and `rope_scaling`.
pub(crate) fn normalise_config(config: &mut Map<String, Value>) {
    if let Some(Value::Object(text)) = config.remove("text_config") {
        for (key, value) in text {
            config.insert(key, value);
        }
    }
    if let Some(Value::Object(rope)) = config.get("rope_parameters").cloned() {
        flatten_rope_parameters(config, &rope);
    }
    let Some(Value::Object(scaling)) = config.get_mut("rope_scaling") else { return };
    if let Some(kind) = scaling.get("type").cloned() {
        scaling.entry("rope_type").or_insert(kind);
    }
    // Early long-context phis use these names; a real YaRN has no lists of factors.
    let is_listed = scaling.contains_key("short_factor") && scaling.contains_key("long_factor");
    if is_listed && scaling.get("rope_type").is_some_and(|kind| kind == "yarn" || kind == "su") {
        scaling.insert("rope_type".to_owned(), json!("longrope"));
    }
    // The long-context phis say it beside the scaling or inside it.
    const ORIGINAL: &str = "original_max_position_embeddings";
    if scaling.get("rope_type").is_some_and(|kind| kind == "longrope")
        && let Some(n) = scaling.get(ORIGINAL).cloned()
    {
        config.entry(ORIGINAL).or_insert(n);
    }
}

fn flatten_rope_parameters(config: &mut Map<String, Value>, rope: &Map<String, Value>) {
    // Families with two kinds of layers have one set of parameters for each.
    let global = rope.get("full_attention").and_then(Value::as_object).unwrap_or(rope);
    let local = rope.get("sliding_attention").and_then(Value::as_object);
    if let Some(theta) = local.and_then(|l| l.get("rope_theta")) {
        config.entry("rope_local_base_freq").or_insert_with(|| theta.clone());
    }
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = global.get(key) {
            config.entry(key).or_insert_with(|| value.clone());
        }
    }
    let kind = global.get("rope_type").and_then(Value::as_str).unwrap_or("default");
    if kind != "default" && config.get("rope_scaling").is_none_or(Value::is_null) {
        let mut scaling = global.clone();
        scaling.remove("rope_theta");
        config.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
}

/// Puts in what the family assumes where config.json is silent.
pub(crate) fn complete_config(arch: &ArchSpec, config: &mut Map<String, Value>) {
    for (theirs, ours) in arch.config_names {
        if let Some(value) = config.get(*theirs).cloned() {
            config.entry(*ours).or_insert(value);
        }
    }
    fill(config, arch.defaults);
    fill_head_dim(config);
    fill_layer_types(arch, config);
}

fn fill(config: &mut Map<String, Value>, defaults: &[(&str, Default)]) {
    for (key, default) in defaults {
        config.entry(*key).or_insert_with(|| match *default {
            Default::Str(v) => json!(v),
            Default::Int(v) => json!(v),
            Default::Float(v) => json!(v),
            Default::Bool(v) => json!(v),
        });
    }
}

/// Says of every layer whether it attends to a window, where the family mixes both kinds.
fn fill_layer_types(arch: &ArchSpec, config: &mut Map<String, Value>) {
    // No real model has more layers; a damaged file must not make the list long.
    const MAX_LAYERS: u64 = 100_000;
    let window = if arch.encoder { "local_attention" } else { "sliding_window" };
    let windowed = config.get(window).is_some_and(|v| !v.is_null());
    let n_layers = config.get("num_hidden_layers").and_then(Value::as_u64).filter(|&n| n <= MAX_LAYERS);
    let known = config.get("layer_types").is_some_and(Value::is_array);
    let (Some(n_layers), false, true, 1..) = (n_layers, known, windowed, arch.swa_period) else { return };
    let stated =
        ["sliding_window_pattern", "_sliding_window_pattern"].iter().find_map(|key| config.get(*key));
    let flags = stated.and_then(Value::as_array);
    let period = stated.and_then(Value::as_u64).unwrap_or(arch.swa_period).max(1);
    let is_windowed = |i: u64| match flags {
        Some(flags) => flags.get(i as usize).and_then(Value::as_bool).unwrap_or(false),
        // Encoders begin with a layer that sees everything, decoders end with one.
        None if arch.encoder => !i.is_multiple_of(period),
        None => i % period < period - 1,
    };
    let types: Vec<&str> =
        (0..n_layers).map(|i| if is_windowed(i) { "sliding_attention" } else { "full_attention" }).collect();
    config.insert("layer_types".to_owned(), json!(types));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn experts_without_a_word_are_weighed_as_each_format_means_it() {
        let arch = ArchSpec::for_model_type("qwen3_moe").unwrap();
        let mut hf = object(json!({"model_type": "qwen3_moe"}));
        complete_config(arch, &mut hf);
        assert_eq!(hf["norm_topk_prob"], json!(false));
        let mut gguf = config_from_gguf(arch, &GgufMetadata::from_entries([]));
        complete_config(arch, &mut gguf);
        assert_eq!(gguf["norm_topk_prob"], json!(true));
    }

    #[test]
    fn the_first_long_phis_say_yarn_or_su_and_mean_longrope() {
        for old in ["yarn", "su"] {
            let mut config = object(json!({
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": old, "short_factor": [1.0], "long_factor": [2.0]},
            }));
            normalise_config(&mut config);
            assert_eq!(config["rope_scaling"]["rope_type"], json!("longrope"));
        }
        let mut config = object(json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}));
        normalise_config(&mut config);
        assert_eq!(config["rope_scaling"]["rope_type"], json!("yarn"));
    }
}
