//! Weights quantised by other people's tools, against transformers over what those tools unpack;
//! `golden/quantised_hf/make.py` recorded them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_models::{Model, ModelOptions};
use mlxr_tensor::Backend;
use serde_json::Value;

use crate::exact::Exact;
use crate::harness::{Blocks, Session, backend, best};

/// Largest difference from the reference, relative to its largest logit.
const EXACT: f32 = 1e-3;
/// The same where the backend rounds activations to eight bits; see `golden.rs`.
const ROUNDED: f32 = 6e-2;

fn folder(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/quantised_hf").join(kind)
}

fn kinds() -> serde_json::Map<String, Value> {
    let golden: Value = serde_json::from_str(&fs::read_to_string(folder("golden.json")).unwrap()).unwrap();
    golden["kinds"].as_object().unwrap().clone()
}

fn floats(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }) / largest
}

/// The largest error of the logits, and how many greedy ids differ, over the record's prompt and answer.
fn run(model: &Model, record: &Value) -> (f32, usize) {
    let mut session = Session::new(model, 1, 16, Blocks::Scattered);
    let prefill = session.feed(&ids(&record["ids"]));
    let mut largest = 0.0f32;
    for (position, row) in record["logits"].as_object().unwrap() {
        largest = largest.max(error(&prefill[position.parse::<usize>().unwrap()], &floats(row)));
    }
    let (mut row, mut n_other) = (prefill.last().unwrap().clone(), 0);
    let greedy = ids(&record["greedy_ids"]);
    for &id in &greedy {
        n_other += usize::from(best(&row) != id);
        row = session.feed(&[id]).remove(0);
    }
    let last = floats(&record["decode_logits"][&greedy.len().to_string()]);
    (largest.max(error(&row, &last)), n_other)
}

fn load(kind: &str, backend: Arc<dyn Backend>) -> Model {
    let ckpt = Checkpoint::open(&folder(kind)).unwrap_or_else(|e| panic!("{kind}: {e}"));
    assert!(ckpt.unknown.is_empty(), "{kind}: {:?}", ckpt.unknown);
    Model::load(&ckpt, backend, &ModelOptions { n_ctx: None }).unwrap_or_else(|e| panic!("{kind}: {e}"))
}

#[test]
fn every_published_quantisation_gives_the_logits_of_its_own_unpacking() {
    let kinds = kinds();
    assert_eq!(kinds.len(), 16);
    for (kind, record) in &kinds {
        let (error, n_other) = run(&load(kind, Arc::new(Exact(backend()))), record);
        assert!(error < EXACT, "{kind}: logits off by {error}");
        assert_eq!(n_other, 0, "{kind}: greedy ids differ");
    }
}

#[test]
fn published_weights_run_as_they_are() {
    for (kind, record) in &kinds() {
        let (error, _) = run(&load(kind, backend()), record);
        assert!(error < ROUNDED, "{kind}: logits off by {error}");
    }
}

/// No weight is larger in memory than in the file by more than wider scales make it.
#[test]
fn published_weights_stay_quantised() {
    for (kind, most_bits) in [
        ("fp8-block", 9.1),
        ("fp8-tensor", 9.1),
        ("bnb-int8", 9.1),
        ("int4-packed", 6.1),
        ("gptq-2bit", 4.1),
        ("gptq-3bit", 5.1),
        ("awq", 6.1),
        ("nf4-nested", 5.1),
    ] {
        let ckpt = Checkpoint::open(&folder(kind)).unwrap();
        let down = ckpt.tensor("layers.0.mlp.down.weight").unwrap();
        let bits = down.n_bytes() as f64 * 8.0 / down.n_elements() as f64;
        assert!(bits < most_bits, "{kind}: {bits} bits per weight as {}", down.format().name());
    }
}
