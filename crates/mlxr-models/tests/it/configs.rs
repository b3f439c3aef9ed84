//! What is refused, and how the message reads.

use std::fs;

use mlxr_checkpoint::Checkpoint;
use mlxr_models::{MlpConfig, Model, Multiplications, RopeScaling};
use serde_json::{Map, Value, json};

use crate::harness::{Blocks, Session, load, open, tiny};

/// The family's folder with some config fields replaced (or removed, by `null` written as `"-"`).
fn changed(family: &str, changes: &Value, n_ctx: Option<u32>) -> Result<Model, String> {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tiny(family).join("hf")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("-") => drop(config.as_object_mut().unwrap().remove(name)),
            _ => config[name] = value.clone(),
        }
    }
    fs::write(&path, config.to_string()).unwrap();
    let prefix = format!("{}: ", dir.path().display());
    let ckpt = Checkpoint::open(dir.path()).map_err(|e| e.to_string())?;
    load(&ckpt, n_ctx).map_err(|e| e.to_string().replace(&prefix, ""))
}

fn refused(family: &str, changes: Value, message: &str) {
    match changed(family, &changes, None) {
        Ok(_) => panic!("{family} with {changes} was accepted"),
        Err(found) => assert_eq!(found, message, "{family} with {changes}"),
    }
}

#[test]
fn fields_that_cannot_be_honoured_are_named() {
    refused(
        "llama",
        json!({"hidden_act": "relu2"}),
        "config field hidden_act = \"relu2\": not one of silu, gelu, gelu_pytorch_tanh",
    );
    refused(
        "llama",
        json!({"rope_scaling": {"rope_type": "spiral", "factor": 2}}),
        "config field rope_scaling.rope_type = \"spiral\": not one of default, linear, dynamic, yarn, longrope, llama3",
    );
    refused(
        "llama",
        json!({"rope_scaling": {"rope_type": "linear", "factor": 2, "spin": 3}}),
        "config field rope_scaling.spin = 3: not a setting this program knows",
    );
    refused(
        "llama",
        json!({"rope_scaling": {"rope_type": "yarn", "factor": "four"}}),
        "config field rope_scaling.factor = \"four\": expected a finite number",
    );
    refused(
        "llama",
        json!({"rope_scaling": {"rope_type": "linear"}}),
        "config field rope_scaling.factor is missing: this rope type needs it",
    );
    refused(
        "llama",
        json!({"sliding_window": 64}),
        "config field sliding_window = 64: not supported for this model type",
    );
    refused(
        "gemma",
        json!({"use_bidirectional_attention": true}),
        "config field use_bidirectional_attention = true: not supported for this model type",
    );
    refused(
        "qwen2",
        json!({"layer_types": ["full_attention", "linear_attention"]}),
        "config field layer_types = [\"full_attention\",\"linear_attention\"]: layers of type \"linear_attention\" are not supported",
    );
    refused(
        "phi3_longrope",
        json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1], "long_factor": [1, 1]}}),
        "config field rope_scaling.short_factor = [1,1]: has 2 factors, expected 6",
    );
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    for (changes, field) in [
        (json!({"num_key_value_heads": 3}), "num_key_value_heads = 3"),
        (json!({"num_attention_heads": 0}), "num_attention_heads = 0"),
        (json!({"num_attention_heads": 1e18}), "num_attention_heads = 1e+18"),
        (json!({"head_dim": 7}), "head_dim = 7"),
        (json!({"hidden_size": 1e12}), "hidden_size = 1000000000000.0"),
        (json!({"max_position_embeddings": -1}), "max_position_embeddings = -1"),
        (json!({"rms_norm_eps": 0}), "rms_norm_eps = 0"),
        (json!({"rope_theta": -5}), "rope_theta = -5"),
        (json!({"vocab_size": "many"}), "vocab_size = \"many\""),
    ] {
        let message = changed("llama", &changes, None).err().unwrap();
        assert!(message.contains(field), "{changes}: {message}");
    }
}

#[test]
fn tensors_that_disagree_with_the_config_are_named() {
    refused(
        "llama",
        json!({"num_hidden_layers": 3}),
        "9 tensors are missing: layers.2.attn.k.weight, layers.2.attn.o.weight, layers.2.attn.q.weight, \
         layers.2.attn.v.weight, layers.2.attn_norm.weight, ...",
    );
    refused(
        "llama",
        json!({"num_hidden_layers": 1}),
        "9 tensors have no place in this model: layers.1.attn.k.weight, layers.1.attn.o.weight, \
         layers.1.attn.q.weight, layers.1.attn.v.weight, layers.1.attn_norm.weight, ...",
    );
    refused(
        "llama",
        json!({"intermediate_size": 64}),
        "tensor \"layers.0.mlp.down.weight\" has shape [64, 96], expected [64, 64]",
    );
    refused(
        "llama_bias",
        json!({"mlp_bias": false}),
        "6 tensors have no place in this model: layers.0.mlp.down.bias, layers.0.mlp.gate.bias, \
         layers.0.mlp.up.bias, layers.1.mlp.down.bias, layers.1.mlp.gate.bias, ...",
    );
    refused(
        "llama",
        json!({"attention_bias": true}),
        "8 tensors are missing: layers.0.attn.k.bias, layers.0.attn.o.bias, layers.0.attn.q.bias, \
         layers.0.attn.v.bias, layers.1.attn.k.bias, ...",
    );
}

#[test]
fn a_config_may_leave_unsaid_what_its_class_assumes() {
    let changes = json!({
        "rms_norm_eps": "-", "hidden_act": "-", "rope_theta": "-", "attention_bias": "-", "mlp_bias": "-",
        "rope_scaling": "-", "tie_word_embeddings": "-",
    });
    let model = changed("llama", &changes, None).unwrap();
    assert_eq!(model.config().norm_eps, 1e-6);
    assert_eq!(model.config().ropes[0].theta, 10_000.0);
    assert!(!model.config().tied);
}

#[test]
fn per_type_rope_parameters_reach_their_layers() {
    let changes = json!({
        "rope_theta": "-", "rope_local_base_freq": "-", "rope_scaling": "-",
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
        },
    });
    let model = changed("gemma3_text", &changes, None).unwrap();
    let config = model.config();
    let rope = |layer: usize| &config.ropes[config.layers[layer].rope.unwrap()];
    assert_eq!((rope(0).theta, &rope(0).scaling), (70.0, &RopeScaling::None));
    assert_eq!((rope(5).theta, &rope(5).scaling), (500.0, &RopeScaling::Linear { factor: 4.0 }));
}

/// As transformers 5.23.0 saves the configs of the tiny checkpoints; removed fields moved into `rope_parameters`.
#[test]
fn configs_saved_by_transformers_5_mean_the_same() {
    let yarn = json!({
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "original_max_position_embeddings": 32,
        "rope_theta": 150000, "rope_type": "yarn", "truncate": false,
    });
    let longrope = json!({
        "long_factor": [1.1, 1.4, 2.3, 4.7, 9.1, 16.0], "original_max_position_embeddings": 48,
        "partial_rotary_factor": 0.75, "rope_theta": 10000.0, "rope_type": "longrope",
        "short_factor": [1.0, 1.05, 1.1, 1.3, 1.6, 2.0], "type": "longrope",
    });
    let per_type = json!({
        "full_attention": {"factor": 8.0, "rope_theta": 1000000.0, "rope_type": "linear"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    });
    let plain = json!({"rope_theta": 5000000.0, "rope_type": "default"});
    for (family, rope_parameters) in
        [("gpt_oss", yarn), ("phi3_longrope", longrope), ("gemma3_text", per_type), ("smollm3", plain)]
    {
        let changes = json!({
            "rope_parameters": rope_parameters, "rope_scaling": "-", "rope_theta": "-",
            "rope_local_base_freq": "-", "original_max_position_embeddings": "-",
        });
        let saved = changed(family, &changes, None).unwrap();
        assert_eq!(saved.config(), open(&format!("{family}/hf"), None).config(), "{family}");
    }
}

#[test]
fn a_multimodal_config_holds_the_text_model_inside() {
    let path = tiny("gemma3_text").join("hf/config.json");
    let text: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let mut changes = json!({"model_type": "gemma3", "text_config": text});
    for (name, _) in text.as_object().unwrap().iter().filter(|(name, _)| *name != "model_type") {
        changes[name] = json!("-");
    }
    let wrapped = changed("gemma3_text", &changes, None).unwrap();
    assert_eq!(wrapped.config(), open("gemma3_text/hf", None).config());
}

#[test]
fn a_context_beyond_the_model_is_refused() {
    let message = changed("llama", &json!({}), Some(1000)).err().unwrap();
    assert_eq!(message, "a context of 1000 tokens was asked for, the model can use at most 512");
    let yarn = json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}});
    assert_eq!(changed("llama", &yarn, Some(1000)).unwrap().n_ctx(), 1000);
}

#[test]
fn bytes_per_token_count_what_a_step_reads() {
    let dense = open("llama/hf", None);
    let table = dense.config().vocab * dense.config().hidden * 4;
    assert_eq!(dense.weights_bytes() - dense.bytes_per_token(), table - dense.config().hidden * 4);

    let tied = open("llama3/hf", None);
    assert_eq!(tied.weights_bytes(), tied.bytes_per_token());

    let moe = open("qwen3_moe/hf", None);
    let config = moe.config();
    let MlpConfig::Experts { n_experts, intermediate, router } = config.layers[0].mlp else {
        panic!("qwen3_moe has experts")
    };
    let idle_experts =
        config.layers.len() * (n_experts - router.top_k) * 3 * intermediate * config.hidden * 4;
    let idle_table = (config.vocab - 1) * config.hidden * 4;
    assert_eq!(moe.weights_bytes() - moe.bytes_per_token(), idle_experts + idle_table);
}

#[test]
fn multiplications_count_the_matrices_that_a_token_meets() {
    for family in ["llama", "llama3", "qwen3_moe"] {
        let ckpt = Checkpoint::open(&tiny(family).join("hf")).unwrap();
        let model = load(&ckpt, None).unwrap();
        let config = model.config();
        let [counted] = Multiplications::of(config, &ckpt)[..] else { panic!("{family} has one format") };
        let last = config.layers.last().unwrap();
        let mlp = match last.mlp {
            MlpConfig::Dense { intermediate, .. } => 3 * intermediate * config.hidden,
            MlpConfig::Experts { n_experts, intermediate, router, .. } => {
                (3 * intermediate * router.top_k + n_experts) * config.hidden
            }
        };
        let output = config.n_heads * config.head_dim * config.hidden;
        let of_logits = config.vocab * config.hidden + mlp + output;
        assert_eq!(counted.of_logits.round(), of_logits as f64, "{family}");
        // What a step reads is matrices and a few vectors.
        let read = model.bytes_per_token() as f64 / 4.0;
        let met = counted.of_token + counted.of_logits;
        assert!(0.98 * read < met && met < read, "{family}: {met} of {read} weights");
    }
}

/// Values no field expects in every place.
fn hostile_values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(false),
        json!(0),
        json!(1),
        json!(3),
        json!(-1),
        json!(0.5),
        json!(1e300),
        json!(u64::MAX),
        json!("x"),
        json!([]),
        json!([1, "x"]),
        json!({}),
        json!({"full_attention": 3}),
    ]
}

/// Fields of the config and of the objects inside it, as paths.
fn field_paths(config: &Map<String, Value>) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (name, value) in config {
        paths.push(vec![name.clone()]);
        let inside = value.as_object().into_iter().flatten();
        paths.extend(inside.map(|(inner, _)| vec![name.clone(), inner.clone()]));
    }
    paths
}

#[test]
fn no_value_of_any_field_panics() {
    let families = ["gemma3_text", "gpt_oss", "llama3", "phi3_longrope", "qwen2", "qwen3_moe", "smollm3"];
    let mut n_refused = 0;
    for family in families {
        let mut ckpt = Checkpoint::open(&tiny(family).join("hf")).unwrap();
        let config = ckpt.config.clone();
        for path in field_paths(&config) {
            for value in hostile_values() {
                ckpt.config = config.clone();
                match path.as_slice() {
                    [outer] => drop(ckpt.config.insert(outer.clone(), value)),
                    [outer, inner, ..] => ckpt.config[outer][inner] = value,
                    [] => unreachable!("a path has a name"),
                }
                match load(&ckpt, None) {
                    Ok(model) => drop(Session::new(&model, 1, 16, Blocks::InOrder).feed(&[5, 6, 7])),
                    Err(_) => n_refused += 1,
                }
            }
        }
    }
    assert!(n_refused > 1000, "most hostile values are refused, {n_refused} were");
}
