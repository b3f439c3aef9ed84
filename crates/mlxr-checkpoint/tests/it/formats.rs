//! The tiny checkpoints under `golden/tiny` are one model in three formats: all must open as the same tensors.

use std::fs;
use std::path::{Path, PathBuf};

use mlxr_checkpoint::{Checkpoint, CheckpointFormat};
use mlxr_tensor::{Format, HostTensor, RopePairing};
use serde_json::{Map, Value};

/// Names that only GGUF has as tensors; config.json says the same in numbers.
const ROPE_FACTORS: &str = "rope_factors.";

pub fn families() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny");
    let mut found: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    found.retain(|p| p.join("hf/config.json").is_file());
    found.sort();
    assert!(found.len() >= 6, "golden/tiny is missing");
    found
}

pub fn open(path: &Path) -> Checkpoint {
    let ckpt = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
    let unknown: Vec<_> = ckpt.unknown.iter().map(HostTensor::name).collect();
    assert!(unknown.is_empty(), "{}: unknown {unknown:?}", path.display());
    ckpt
}

pub fn names(ckpt: &Checkpoint) -> Vec<String> {
    let all = ckpt.tensors().map(|t| t.name().to_owned());
    let mut merged: Vec<String> =
        all.filter(|n| !n.starts_with(ROPE_FACTORS)).map(|n| stacked_name(&n)).collect();
    merged.dedup();
    merged.sort();
    merged.dedup();
    merged
}

/// `layers.0.moe.up.3.weight` -> `layers.0.moe.up.weight`.
fn stacked_name(name: &str) -> String {
    match name.split('.').collect::<Vec<_>>()[..] {
        [a, b, "moe", part, expert, last] if expert.parse::<u32>().is_ok() => {
            format!("{a}.{b}.moe.{part}.{last}")
        }
        _ => name.to_owned(),
    }
}

/// Shape and values of a tensor; separate experts are put on top of each other.
pub fn values(ckpt: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f32>) {
    if let Some(tensor) = ckpt.tensor(name) {
        return (tensor.shape().to_vec(), tensor.to_f32().unwrap());
    }
    let (head, last) = name.rsplit_once('.').unwrap();
    let mut shape = vec![0];
    let mut all = Vec::new();
    while let Some(expert) = ckpt.tensor(&format!("{head}.{}.{last}", shape[0])) {
        shape.truncate(1);
        shape[0] += 1;
        shape.extend(expert.shape());
        all.extend(expert.to_f32().unwrap());
    }
    assert!(!all.is_empty(), "{}: no {name}", ckpt.path.display());
    (shape, all)
}

/// Undoes the order GGUF converters give to the rows of each q and k head.
fn half_order(rows: &[f32], n_heads: usize, n_rows: usize) -> Vec<f32> {
    let cols = rows.len() / n_rows;
    let head_dim = n_rows / n_heads;
    let mut out = vec![0.0; rows.len()];
    for head in 0..n_heads {
        for j in 0..head_dim {
            let from = head * head_dim + j;
            let to = head * head_dim + (j % 2) * (head_dim / 2) + j / 2;
            out[to * cols..(to + 1) * cols].copy_from_slice(&rows[from * cols..(from + 1) * cols]);
        }
    }
    out
}

pub fn in_half_order(ckpt: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f32>) {
    let (shape, all) = values(ckpt, name);
    let key = match name.split('.').collect::<Vec<_>>()[..] {
        [_, _, "attn", "q", _] => "num_attention_heads",
        [_, _, "attn", "k", _] => "num_key_value_heads",
        _ => return (shape, all),
    };
    if ckpt.rope_pairing == RopePairing::Half {
        return (shape, all);
    }
    let n_heads = ckpt.config[key].as_u64().unwrap() as usize;
    let all = half_order(&all, n_heads, shape[0]);
    (shape, all)
}

#[test]
fn gguf_files_hold_the_tensors_of_the_hugging_face_folders() {
    for family in families() {
        let hf = open(&family.join("hf"));
        let gguf_path = family.join("model.gguf");
        let gguf = open(&gguf_path);
        assert_eq!((hf.format, gguf.format), (CheckpointFormat::Safetensors, CheckpointFormat::Gguf));
        assert_eq!(names(&hf), names(&gguf), "{}", family.display());
        for name in names(&hf) {
            let (shape, expected) = values(&hf, &name);
            let (gguf_shape, found) = in_half_order(&gguf, &name);
            assert_eq!(shape, gguf_shape, "{} {name}", family.display());
            assert!(expected == found, "{} {name}: values differ", family.display());
        }
    }
}

#[test]
fn a_split_model_is_the_whole_model() {
    let llama = families().into_iter().find(|f| f.ends_with("llama")).unwrap();
    let whole = open(&llama.join("model.gguf"));
    let split = open(&llama.join("split/model-00001-of-00003.gguf"));
    assert_eq!(names(&whole), names(&split));
    for name in names(&whole) {
        assert!(values(&whole, &name) == values(&split, &name), "{name}");
    }
    let error = Checkpoint::open(&llama.join("split/model-00002-of-00003.gguf")).unwrap_err().to_string();
    assert!(error.contains("name the first part") && error.contains("00001-of-00003"), "{error}");
}

/// What a family's forward reads must not depend on the format it came from.
#[test]
fn configs_from_gguf_say_what_config_json_says() {
    const ALWAYS: &[&str] =
        &["head_dim", "hidden_act", "tie_word_embeddings", "bos_token_id", "eos_token_id", "layer_types"];
    const WHERE_USED: &[&str] = &["query_pre_attn_scalar", "rope_scaling"];
    for family in families() {
        let hf = open(&family.join("hf"));
        let gguf = open(&family.join("model.gguf"));
        let mut config = hf.config.clone();
        config.extend(gguf_changes(&family));
        let keys = hf.arch.hparams.iter().copied().flatten().map(|h| h.hf).chain(ALWAYS.iter().copied());
        for key in keys.chain(WHERE_USED.iter().copied()) {
            let of = |config: &Map<String, Value>| stated(config, key);
            let (a, b) = (of(&config), of(&gguf.config));
            assert!(same(&a, &b), "{} {key}: {a} {b}", family.display());
        }
    }
}

/// What the family's GGUF file cannot say, as the reference outputs record it.
fn gguf_changes(family: &Path) -> Map<String, Value> {
    let golden: Value = serde_json::from_slice(&fs::read(family.join("golden.json")).unwrap()).unwrap();
    golden["gguf"]["changes"].as_object().cloned().unwrap_or_default()
}

/// The value of a key; a list that says nothing special of any layer is none.
fn stated(config: &Map<String, Value>, key: &str) -> Value {
    let value = config.get(key).cloned().unwrap_or(Value::Null);
    let all_full = value.as_array().is_some_and(|a| a.iter().all(|v| v == "full_attention"));
    if all_full { Value::Null } else { value }
}

/// Equal but for the rounding of numbers to f32, and for keys a default explains.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().unwrap() as f32 == b.as_f64().unwrap() as f32,
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            let said_otherwise = ["type", "truncate"];
            let stated = a.iter().filter(|(k, _)| !said_otherwise.contains(&k.as_str()));
            stated.into_iter().all(|(k, v)| b.get(k).is_some_and(|other| same(v, other)))
        }
        _ => a == b,
    }
}

fn mlx_dirs(family: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(family).unwrap().map(|e| e.unwrap().path());
    entries.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("mlx-")).collect()
}

#[test]
fn mlx_folders_hold_the_same_tensors_within_what_their_bits_can_say() {
    for family in families() {
        let hf = open(&family.join("hf"));
        for dir in mlx_dirs(&family) {
            let mlx = open(&dir);
            assert_eq!(mlx.format, CheckpointFormat::Mlx);
            assert_eq!(names(&hf), names(&mlx), "{}", dir.display());
            for name in names(&hf) {
                let (shape, expected) = values(&hf, &name);
                let (mlx_shape, found) = values(&mlx, &name);
                assert_eq!(shape, mlx_shape, "{} {name}", dir.display());
                let worst = tolerance(mlx.tensor(&name), &expected);
                for (a, b) in expected.iter().zip(&found) {
                    assert!((a - b).abs() <= worst, "{} {name}: {a} {b} {worst}", dir.display());
                }
            }
        }
    }
}

/// The largest rounding error of a format over these values.
fn tolerance(tensor: Option<&HostTensor>, values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let steps = match tensor.map(HostTensor::format) {
        Some(Format::MlxAffine { bits, .. }) => f32::from((1u16 << bits) - 1),
        Some(Format::MlxFloat(_)) => 6.0,
        _ => 256.0,
    };
    // Scales may be bf16.
    2.0 * largest * (1.0 / steps + 1.0 / 256.0)
}
