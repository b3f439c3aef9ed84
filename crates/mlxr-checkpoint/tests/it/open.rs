//! Opening small files written by hand.

use std::fs;
use std::path::Path;

use mlxr_checkpoint::{Checkpoint, CheckpointError, CheckpointFormat, TokenizerSource};
use mlxr_tensor::RopePairing;

const HIDDEN: usize = 4;

fn config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 3, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
    })
}

/// A safetensors file of f32 tensors whose values count up from 0.
fn safetensors(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, shape) in tensors {
        let start = data.len();
        for i in 0..shape.iter().product::<usize>() {
            data.extend((i as f32).to_le_bytes());
        }
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

fn write_dir(dir: &Path, tensors: &[(&str, &[usize])]) {
    fs::write(dir.join("config.json"), config().to_string()).unwrap();
    fs::write(dir.join("model.safetensors"), safetensors(tensors)).unwrap();
}

#[test]
fn a_safetensors_folder_opens_under_canonical_names() {
    let dir = tempfile::tempdir().unwrap();
    let tensors: &[(&str, &[usize])] = &[
        ("model.embed_tokens.weight", &[3, HIDDEN]),
        ("model.layers.0.self_attn.q_proj.weight", &[HIDDEN, HIDDEN]),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", &[1]),
        ("lm_head.weight", &[3, HIDDEN]),
        ("model.layers.0.novelty.weight", &[2]),
    ];
    write_dir(dir.path(), tensors);
    let ckpt = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(ckpt.format, CheckpointFormat::Safetensors);
    assert_eq!(ckpt.rope_pairing, RopePairing::Half);
    assert!(matches!(ckpt.tokenizer, TokenizerSource::None));
    let names: Vec<_> = ckpt.tensors().map(|t| t.name()).collect();
    assert_eq!(names, ["embed_tokens.weight", "layers.0.attn.q.weight"]);
    let q = ckpt.tensor("layers.0.attn.q.weight").unwrap();
    assert_eq!(q.to_f32().unwrap()[5], 5.0);
    assert_eq!(ckpt.unknown.len(), 1);
    assert_eq!(ckpt.ignored, ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"]);
    assert_eq!(ckpt.config["head_dim"], 2);
}

#[test]
fn an_unknown_family_lists_the_known_ones() {
    let dir = tempfile::tempdir().unwrap();
    write_dir(dir.path(), &[]);
    fs::write(dir.path().join("config.json"), r#"{"model_type": "rwkv"}"#).unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::UnknownArchitecture { found, .. } if found == "rwkv"));
    assert!(error.to_string().contains("qwen3_moe"), "{error}");
}
