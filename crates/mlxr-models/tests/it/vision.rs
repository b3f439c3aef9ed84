//! Images as rows of the text model and what follows from them, against transformers (`golden/vision/make.py`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_models::{Model, ModelOptions};
use mlxr_tensor::{Backend, Batch, DType, GivenRows, Pixels};
use serde_json::{Value, json};

use crate::exact::Exact;
use crate::harness::{backend, best};

const TOLERANCE: f32 = 1e-4;
const BLOCK_TOKENS: usize = 16;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/vision").join(path)
}

fn read(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(golden(path)).unwrap()).unwrap()
}

fn floats(list: &Value) -> Vec<f32> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// What the image processor makes of an image.
fn pixels(name: &str) -> Pixels {
    let record = &read("pixels.json")["images"][format!("{name} 28")];
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.261_302_6, 0.275_777_1]);
    let values = floats(&record["levels"]).into_iter().enumerate();
    let values = values.map(|(i, level)| (level / 255.0 - mean[i / 784]) / std[i / 784]).collect();
    Pixels::new([3, 28, 28], values)
}

fn open(name: &str, backend: Arc<dyn Backend>) -> Model {
    let ckpt = Checkpoint::open(&golden(name)).unwrap_or_else(|e| panic!("{e}"));
    Model::load(&ckpt, backend, &ModelOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    difference.fold(0f32, |m, d| if d.is_nan() { f32::INFINITY } else { m.max(d) }) / largest
}

/// The logits after a prompt that is fed in chunks with its images' rows, and the ids that follow greedily.
fn answer(model: &Model, record: &Value, chunk: usize) -> (Vec<f32>, Vec<u32>) {
    let tower = model.vision().unwrap();
    let (n_rows, token) = (tower.config().n_rows(), tower.config().image_token);
    let mut scratch = tower.scratch().unwrap();
    let images = record["images"].as_array().unwrap().iter();
    let rows: Vec<Arc<[f32]>> = images
        .map(|name| tower.rows(&pixels(name.as_str().unwrap()), &mut scratch).unwrap().into())
        .collect();
    let mut tokens = ids(&record["ids"]);
    let starts: Vec<usize> = (0..tokens.len())
        .filter(|&i| tokens[i] == token)
        .enumerate()
        .filter(|(n, _)| n % n_rows == 0)
        .map(|(_, i)| i)
        .collect();
    assert_eq!(starts.len(), rows.len());
    let n_greedy = record["greedy_ids"].as_array().unwrap().len();
    let n_blocks = (tokens.len() + n_greedy).div_ceil(BLOCK_TOKENS);
    let mut kv = model.kv_cache(&model.kv_spec(n_blocks, BLOCK_TOKENS, DType::F32)).unwrap();
    let table: Vec<u32> = (0..n_blocks as u32).rev().collect();
    let (mut n_fed, mut first, mut found) = (0, Vec::new(), Vec::new());
    while found.len() < n_greedy {
        let end = tokens.len().min(n_fed + chunk);
        let mut batch = Batch::new();
        batch.push(&tokens[n_fed..end], n_fed as u32, &table, BLOCK_TOKENS);
        batch.want_last();
        for (&start, values) in starts.iter().zip(&rows) {
            let (from, to) = (start.max(n_fed), (start + n_rows).min(end));
            if from < to {
                let values = values.clone();
                batch.given.push(GivenRows { rows: from - n_fed..to - n_fed, values, first: from - start });
            }
        }
        let logits = model.forward(&batch, &mut kv).unwrap();
        n_fed = end;
        if n_fed == tokens.len() {
            let logits = model.backend().read(&logits).unwrap();
            found.push(best(&logits));
            tokens.extend(found.last());
            if found.len() == 1 {
                first = logits;
            }
        }
    }
    (first, found)
}

/// A copy of a model whose config.json has been changed.
fn changed(change: impl Fn(&mut Value)) -> Result<Model, String> {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden("llava")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut config = read("llava/config.json");
    change(&mut config);
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let ckpt = Checkpoint::open(dir.path()).map_err(|e| e.to_string())?;
    Model::load(&ckpt, backend(), &ModelOptions::default()).map_err(|e| e.to_string())
}

#[test]
fn what_a_tower_may_not_be_is_refused_by_field() {
    let refused = |change: &dyn Fn(&mut Value)| changed(change).unwrap_err();
    assert!(changed(|_| {}).unwrap().vision().is_some());
    for (field, value, said) in [
        ("vision_feature_layer", json!([-2, -5]), "vision_feature_layer"),
        ("vision_feature_layer", json!(-5), "has 3 layers"),
        ("vision_feature_layer", json!(4), "has 3 layers"),
        ("vision_feature_select_strategy", json!("mean"), "default and full"),
        ("image_token_index", json!(296), "vocabulary has 296"),
        ("projector_hidden_act", json!("mish"), "projector_hidden_act"),
        ("multimodal_projector_bias", json!(false), "no place in this model: projector"),
    ] {
        let error = refused(&|config| config[field] = value.clone());
        assert!(error.contains(said), "{error}");
    }
    for (field, value, said) in [
        ("model_type", json!("siglip_vision_model"), "vision_config.model_type"),
        ("patch_size", json!(14), "shape"),
        ("num_attention_heads", json!(3), "vision_config.num_attention_heads"),
    ] {
        let error = refused(&|config| config["vision_config"][field] = value.clone());
        assert!(error.contains(said), "{error}");
    }
    let error = refused(&|config| config["text_config"]["model_type"] = json!("gemma"));
    assert!(error.contains("llava on llama, mistral, qwen2"), "{error}");
    let counted_from_the_front = changed(|config| config["vision_feature_layer"] = json!(2)).unwrap();
    assert_eq!(counted_from_the_front.vision().unwrap().config().encoder.layers.len(), 2);
}

#[test]
fn an_image_becomes_the_rows_that_transformers_makes_of_it() {
    for name in ["llava", "llava_qwen2"] {
        let model = open(name, Arc::new(Exact(backend())));
        let tower = model.vision().unwrap();
        let mut scratch = tower.scratch().unwrap();
        for record in read(&format!("{name}.json"))["prompts"].as_array().unwrap() {
            let Some(image) = record["images"][0].as_str() else { continue };
            let rows = tower.rows(&pixels(image), &mut scratch).unwrap();
            let error = relative_error(&rows, &floats(&record["rows"]));
            assert!(error < TOLERANCE, "{name}, {image}: off by {error}");
        }
    }
}

#[test]
fn answers_to_images_are_those_of_transformers_in_chunks_of_any_size() {
    for name in ["llava", "llava_qwen2"] {
        let model = open(name, Arc::new(Exact(backend())));
        for record in read(&format!("{name}.json"))["prompts"].as_array().unwrap() {
            let (whole, _) = answer(&model, record, usize::MAX / 2);
            for chunk in [1000, 7, 1] {
                let (logits, found) = answer(&model, record, chunk);
                let case = format!("{name}, {} in chunks of {chunk}", record["text"]);
                let error = relative_error(&logits, &floats(&record["logits"]));
                assert!(error < TOLERANCE, "{case}: logits off by {error}");
                assert_eq!(found, ids(&record["greedy_ids"]), "{case}");
                assert_eq!(logits, whole, "{case}: other bits");
            }
        }
    }
}
