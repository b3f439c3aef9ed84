//! Logits and greedy ids against the reference implementations; `golden/tiny.py` and its siblings recorded them.

use std::fs;

use mlxr_models::Model;
use mlxr_tensor::DType;
use serde_json::Value;

use crate::harness::{Blocks, Session, best, open, open_exact, tiny};

/// Largest difference from the reference, relative to its largest logit, where weights are exact in f32.
const EXACT: f32 = 1e-3;
/// The same where the backend rounds activations to eight bits: the largest of a group has 127 steps, so a value is
/// off by 1/254 of it at most and one product by about half a percent of its spread, which some ten products in a row
/// amplify. llama.cpp is off by 1.2e-2 to 3.1e-2 from the exact logits in the same way.
const ROUNDED: f32 = 6e-2;

/// llama.cpp's own quantised files of one model with rows long enough for super-blocks.
const WIDE: [&str; 8] = ["Q4_0", "Q8_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS"];

const FAMILIES: [&str; 17] = [
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt_oss",
    "granite",
    "llama",
    "llama3",
    "llama_bias",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "phi3_longrope",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
];

/// A reference run: a prompt, logits by position, ids that follow greedily, logits by number of ids fed.
struct Reference {
    ids: Vec<u32>,
    logits: Vec<(usize, Vec<f32>)>,
    greedy_ids: Vec<u32>,
    decode_logits: Vec<(usize, Vec<f32>)>,
}

impl Reference {
    fn parse(record: &Value) -> Reference {
        let rows = |name: &str| -> Vec<(usize, Vec<f32>)> {
            let rows = record[name].as_object().into_iter().flatten();
            rows.map(|(n, row)| (n.parse().unwrap(), floats(row))).collect()
        };
        let ids = ids(&record["ids"]);
        let mut logits = rows("logits");
        // Quantised files have the last position alone, under the name of what computed it.
        if let Some(row) = record.get("float32") {
            logits.push((ids.len() - 1, floats(row)));
        }
        assert!(!logits.is_empty(), "a reference has logits");
        let greedy_ids = self::ids(&record["greedy_ids"]);
        Reference { ids, logits, greedy_ids, decode_logits: rows("decode_logits") }
    }
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

fn floats(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// The recorded runs at `pointer` of the family's golden.json.
fn records(family: &str, pointer: &str) -> Vec<Value> {
    let text = fs::read_to_string(tiny(family).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let records = golden.pointer(pointer).and_then(Value::as_array).cloned();
    let records = records.unwrap_or_else(|| panic!("{family}: no {pointer}"));
    assert_eq!(records.len(), 3, "{family}: three prompts");
    records
}

fn references(family: &str, pointer: &str) -> Vec<Reference> {
    records(family, pointer).iter().map(Reference::parse).collect()
}

/// LongRoPE's reference switches factors by prompt length; here the context a model is opened with decides.
fn n_ctx_for(family: &str, reference: &Reference) -> Option<u32> {
    let n_ctx_original = 48;
    let is_short = reference.ids.len() + reference.greedy_ids.len() <= n_ctx_original;
    (family == "phi3_longrope" && is_short).then_some(n_ctx_original as u32)
}

fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    difference.fold(0.0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }) / largest
}

/// Feeds the prompt in chunks and then the reference's greedy ids one by one; returns the largest error of the logits
/// and, over all steps, by how much the reference's choice fell behind the best logit.
fn run(model: &Model, reference: &Reference, chunk: usize) -> (f32, f32) {
    let mut session = Session::new(model, 1, 16, Blocks::Scattered);
    run_in(&mut session, reference, chunk)
}

fn run_in(session: &mut Session<'_>, reference: &Reference, chunk: usize) -> (f32, f32) {
    let prefill: Vec<Vec<f32>> = reference.ids.chunks(chunk).flat_map(|chunk| session.feed(chunk)).collect();
    let mut error = 0.0f32;
    for (position, expected) in &reference.logits {
        error = error.max(relative_error(&prefill[*position], expected));
    }
    let mut behind = 0.0f32;
    let mut row = prefill.last().unwrap().clone();
    for (i, &id) in reference.greedy_ids.iter().enumerate() {
        let largest = row.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        behind = behind.max((row[best(&row) as usize] - row[id as usize]) / largest);
        row = session.feed(&[id]).remove(0);
        if let Some((_, expected)) = reference.decode_logits.iter().find(|(n, _)| *n == i + 1) {
            error = error.max(relative_error(&row, expected));
        }
    }
    (error, behind)
}

/// Logits within [`EXACT`] and the same ids, with the weights' own values and no rounding of activations.
fn check(family: &str, file: &str, pointer: &str) {
    for reference in &references(family, pointer) {
        let model = open_exact(&format!("{family}/{file}"), n_ctx_for(family, reference));
        for chunk in [reference.ids.len(), 7] {
            let (error, behind) = run(&model, reference, chunk);
            let case = format!("{family}/{file}, {} ids in chunks of {chunk}", reference.ids.len());
            assert!(error < EXACT, "{case}: logits off by {error}");
            assert!(behind == 0.0, "{case}: another id is ahead by {behind}");
        }
    }
}

/// The part of golden.json that holds for the family's GGUF: some say less than config.json does.
fn gguf_pointer(family: &str) -> &'static str {
    match family {
        "mistral" | "gemma3_text" => "/gguf/prompts",
        // llama.cpp rounds the ends of gpt-oss's YaRN ramp; the model was trained without, so this is no guide.
        _ => "/prompts",
    }
}

#[test]
fn every_family_matches_transformers() {
    FAMILIES.iter().for_each(|family| check(family, "hf", "/prompts"));
    check("gpt_oss", "hf-bf16", "/prompts");
}

#[test]
fn configs_in_the_style_of_transformers_5_mean_the_same() {
    check("llama3", "hf-new-style", "/prompts");
}

#[test]
fn every_gguf_matches_transformers() {
    FAMILIES.iter().for_each(|family| check(family, "model.gguf", gguf_pointer(family)));
    check("gpt_oss", "model-mxfp4.gguf", "/prompts");
    check("llama", "split/model-00001-of-00003.gguf", "/prompts");
}

#[test]
fn every_mlx_folder_matches_transformers_on_the_dequantised_weights() {
    FAMILIES.iter().for_each(|family| check(family, "mlx-4bit", "/mlx/mlx-4bit/prompts"));
    for kind in ["mlx-2bit", "mlx-3bit", "mlx-5bit", "mlx-6bit", "mlx-8bit", "mlx-mxfp4"] {
        check("llama", kind, &format!("/mlx/{kind}/prompts"));
    }
}

#[test]
fn files_quantised_by_llama_cpp_match_transformers_on_the_dequantised_weights() {
    WIDE.iter().for_each(|kind| check("llama_wide", &format!("{kind}.gguf"), &format!("/{kind}/prompts")));
}

/// The backend as it is, which may round activations to eight bits where weights are quantised.
#[test]
fn rounding_of_activations_stays_small() {
    let mlx = ["mlx-4bit", "mlx-8bit", "mlx-mxfp4"];
    let mlx = mlx.map(|kind| ("llama", kind.to_owned(), format!("/mlx/{kind}/prompts")));
    let wide = WIDE.map(|kind| ("llama_wide", format!("{kind}.gguf"), format!("/{kind}/prompts")));
    for (family, file, pointer) in mlx.iter().chain(&wide) {
        let model = open(&format!("{family}/{file}"), None);
        for reference in &references(family, pointer) {
            let (error, behind) = run(&model, reference, reference.ids.len());
            assert!(error < ROUNDED, "{family}/{file}: logits off by {error}");
            assert!(behind < ROUNDED, "{family}/{file}: another id is ahead by {behind}");
        }
    }
}

#[test]
fn files_quantised_by_llama_cpp_give_its_logits() {
    for kind in WIDE {
        let model = open(&format!("llama_wide/{kind}.gguf"), None);
        for record in records("llama_wide", &format!("/{kind}/prompts")) {
            let expected = floats(&record["llamacpp"]);
            let logits = Session::new(&model, 1, 16, Blocks::InOrder).feed(&ids(&record["ids"]));
            let error = relative_error(logits.last().unwrap(), &expected);
            assert!(error < ROUNDED, "{kind}: logits off by {error}");
        }
    }
}

#[test]
fn a_cache_of_fewer_bits_stays_close() {
    // Steps of 2^-11, 2^-8, a group's largest / 254, 2^-4 and a group's largest / 8, and room for what two layers make of them.
    for (dtype, tolerance) in [
        (DType::F16, 2e-3),
        (DType::BF16, 1.5e-2),
        (DType::Q8_0, 4e-2),
        (DType::F8E4M3, 2.4e-1),
        (DType::Q4_0, 5e-1),
    ] {
        let model = open("qwen3/hf", None);
        for reference in &references("qwen3", "/prompts") {
            let mut session = Session::with_cache(&model, dtype);
            let (error, _) = run_in(&mut session, reference, 7);
            assert!(error < tolerance, "{dtype}: logits off by {error}");
            assert!(error > EXACT / 100.0, "{dtype}: the cache was not used");
        }
    }
}
