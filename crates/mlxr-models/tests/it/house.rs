//! The bundled models against transformers in float32; `golden/house.py` recorded it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlxr_checkpoint::convert::{GgufOptions, hf_to_gguf};
use mlxr_models::Model;
use mlxr_tensor::DType;
use serde::Deserialize;

use crate::harness::{Blocks, Session, best, open_path};

/// Closer best logits than this may change places between two engines in float32.
const TIE: f32 = 1e-3;
/// The same after weights and activations were rounded to eight bits.
const ROUNDED_TIE: f32 = 1.0;

#[derive(Deserialize)]
struct House {
    main: Vec<Record>,
    draft: Vec<Record>,
}

#[derive(Deserialize)]
struct Record {
    text: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
    /// Gap between the two best logits at every greedy step.
    margins: Vec<f32>,
    /// `(id, logit)` at the last prompt position.
    top10: Vec<(u32, f32)>,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden() -> House {
    let text = std::fs::read_to_string(repository().join("golden/house.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The logits from the last prompt position on, each greedy id of the record fed in turn.
fn replay(model: &Model, record: &Record) -> Vec<Vec<f32>> {
    let mut session = Session::new(model, 1, 16, Blocks::Scattered);
    let prompt = session.feed(&record.prompt_ids);
    let fed = &record.greedy_ids[..record.greedy_ids.len() - 1];
    let decode = fed.iter().map(|&id| session.feed(&[id]).remove(0));
    std::iter::once(prompt.last().unwrap().clone()).chain(decode).collect()
}

/// Every record's greedy ids come out wherever the reference's two best logits are `tie` apart, and the best logits
/// after the prompt agree within `tolerance` of the largest one.
fn check(model: &Model, records: &[Record], tie: f32, tolerance: f32) {
    for record in records {
        let logits = replay(model, record);
        let largest = record.top10.iter().fold(0f32, |m, (_, logit)| m.max(logit.abs()));
        for &(id, expected) in &record.top10 {
            let error = (logits[0][id as usize] - expected).abs() / largest;
            assert!(error < tolerance, "{:?}: logit of {id} is off by {error:e} of the largest", record.text);
        }
        for (step, row) in logits.iter().enumerate() {
            let (found, expected) = (best(row), record.greedy_ids[step]);
            let clear = record.margins[step] > tie;
            assert!(found == expected || !clear, "{:?}: {found} for {expected} at step {step}", record.text);
        }
    }
}

#[test]
fn the_bundled_files_say_what_their_originals_say() {
    let golden = golden();
    let model = |name: &str| open_path(&repository().join("models").join(name));
    check(&model("mlxr-27m-q8_0.gguf"), &golden.main, ROUNDED_TIE, 5e-2);
    check(&model("mlxr-4m-draft-q8_0.gguf"), &golden.draft, ROUNDED_TIE, 5e-2);
}

#[test]
fn the_originals_equal_transformers_from_safetensors_and_from_an_f16_gguf() {
    let Some(folder) = std::env::var_os("MLXR_HOUSE_MODEL").map(PathBuf::from) else {
        println!("MLXR_HOUSE_MODEL is not set: the checks on that folder are skipped");
        return;
    };
    let golden = golden();
    let temp = tempfile::tempdir().unwrap();
    for (name, records) in [("main", &golden.main), ("draft", &golden.draft)] {
        check(&open_path(&folder.join(name)), records, TIE, 1e-3);
        let gguf = temp.path().join(format!("{name}.gguf"));
        let options = GgufOptions { dtype: DType::F16, ..GgufOptions::default() };
        hf_to_gguf(&folder.join(name), &gguf, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        check(&open_path(&gguf), records, TIE, 1e-3);
    }
}
