//! Logits and greedy ids against the reference implementations; `golden/tiny.py` and its siblings recorded them.

use std::fs;

use mlxr_models::Model;
use serde_json::Value;

use crate::harness::{Blocks, Session, best, open, tiny};

/// Largest difference from the reference, relative to its largest logit, where weights are exact in f32.
const EXACT: f32 = 1e-3;
/// The same where the CPU multiplies quantised weights by activations rounded to eight bits: each product is off by up
/// to 1/254 of its group's largest value, and a tiny model has few terms to average that over.
const QUANTISED: f32 = 6e-2;

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
        let ids = |name: &str| -> Vec<u32> {
            record[name].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
        };
        let row = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let rows = |name: &str| -> Vec<(usize, Vec<f32>)> {
            record[name].as_object().unwrap().iter().map(|(k, v)| (k.parse().unwrap(), row(v))).collect()
        };
        Reference {
            ids: ids("ids"),
            logits: rows("logits"),
            greedy_ids: ids("greedy_ids"),
            decode_logits: rows("decode_logits"),
        }
    }
}

fn references(family: &str, pointer: &str) -> Option<Vec<Reference>> {
    let text = fs::read_to_string(tiny(family).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    Some(golden.pointer(pointer)?.as_array()?.iter().map(Reference::parse).collect())
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

struct Check<'a> {
    family: &'a str,
    /// File or folder of the family.
    file: &'a str,
    /// Where in golden.json the reference is.
    pointer: &'a str,
    tolerance: f32,
    /// The reference's choice is the best logit at every step, not just near it.
    same_ids: bool,
}

fn check(check: &Check<'_>) {
    let Check { family, file, pointer, tolerance, same_ids } = *check;
    let references = references(family, pointer).unwrap_or_else(|| panic!("{family}: no {pointer}"));
    assert!(references.len() == 3, "{family}: three prompts");
    for reference in &references {
        let model = open(&format!("{family}/{file}"), n_ctx_for(family, reference));
        for chunk in [reference.ids.len(), 7] {
            let (error, behind) = run(&model, reference, chunk);
            let n = reference.ids.len();
            assert!(
                error < tolerance,
                "{family}/{file}, {n} ids in chunks of {chunk}: logits off by {error}"
            );
            let allowed = if same_ids { 0.0 } else { 2.0 * tolerance };
            assert!(
                behind <= allowed,
                "{family}/{file}, {n} ids in chunks of {chunk}: best id differs by {behind}"
            );
        }
    }
}

/// The part of golden.json that holds for the family's GGUF: some say less than config.json does.
fn gguf_pointer(family: &str) -> &'static str {
    // llama.cpp rounds the ends of gpt-oss's YaRN ramp, which the model does not.
    match references(family, "/gguf/prompts") {
        Some(_) if family != "gpt_oss" => "/gguf/prompts",
        _ => "/prompts",
    }
}

#[test]
fn every_family_matches_transformers() {
    for family in FAMILIES {
        let (tolerance, same_ids) = if family == "gpt_oss" { (QUANTISED, false) } else { (EXACT, true) };
        check(&Check { family, file: "hf", pointer: "/prompts", tolerance, same_ids });
    }
    check(&Check {
        family: "gpt_oss",
        file: "hf-bf16",
        pointer: "/prompts",
        tolerance: EXACT,
        same_ids: true,
    });
}

#[test]
fn configs_in_the_style_of_transformers_5_mean_the_same() {
    check(&Check {
        family: "llama3",
        file: "hf-new-style",
        pointer: "/prompts",
        tolerance: EXACT,
        same_ids: true,
    });
}

#[test]
fn every_gguf_matches_transformers() {
    for family in FAMILIES {
        let pointer = gguf_pointer(family);
        check(&Check { family, file: "model.gguf", pointer, tolerance: EXACT, same_ids: true });
    }
}

#[test]
fn every_mlx_folder_matches_transformers_on_the_dequantised_weights() {
    for family in FAMILIES {
        let pointer = "/mlx/mlx-4bit/prompts";
        check(&Check { family, file: "mlx-4bit", pointer, tolerance: QUANTISED, same_ids: false });
    }
    for kind in ["mlx-2bit", "mlx-3bit", "mlx-5bit", "mlx-6bit", "mlx-8bit", "mlx-mxfp4"] {
        let pointer = format!("/mlx/{kind}/prompts");
        check(&Check {
            family: "llama",
            file: kind,
            pointer: &pointer,
            tolerance: QUANTISED,
            same_ids: false,
        });
    }
}
