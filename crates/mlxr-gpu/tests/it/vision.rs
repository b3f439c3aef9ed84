//! Prompts with images on the GPU: the answers of transformers (`golden/vision/make.py`), in company and by themselves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{Engine, EngineOptions, Event, Prompt, Request, RequestId, SamplingParams};
use mlxr_image::ImageProcessor;
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::{Model, ModelOptions, Placement};
use mlxr_tensor::DType;
use mlxr_text::{EncodeOptions, Tokenizer};
use serde_json::Value;

use crate::backend;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/vision").join(path)
}

/// Requests of a model's record, each with what is expected of it.
fn requests(name: &str, ckpt: &Checkpoint) -> Vec<(Request, Vec<u32>)> {
    let processor = ImageProcessor::new(&ckpt.vision.as_ref().unwrap().processor).unwrap();
    let text = std::fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
    let records: Value = serde_json::from_str(&text).unwrap();
    let request = |record: &Value| {
        let images = record["images"].as_array().unwrap().iter();
        let image = |name: &Value| processor.open(&golden("images").join(name.as_str().unwrap())).unwrap();
        let expected: Vec<u32> =
            record["greedy_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let options = EncodeOptions { add_special: false, parse_special: true };
        let request = Request {
            images: images.map(|name| Arc::new(image(name))).collect(),
            sampling: SamplingParams { seed: Some(1), ..SamplingParams::greedy() },
            max_tokens: Some(expected.len()),
            ..Request::new(Prompt::Text(record["prompt"].as_str().unwrap().to_owned(), options))
        };
        (request, expected)
    };
    records["prompts"].as_array().unwrap().iter().map(request).collect()
}

/// Runs the requests, each submitted `gap` steps after the one before, and returns their tokens.
fn run(engine: &mut Engine, requests: &[(Request, Vec<u32>)], gap: usize) -> Vec<Vec<u32>> {
    let mut events = Vec::new();
    let mut ids: Vec<RequestId> = Vec::new();
    for (request, _) in requests {
        ids.push(engine.submit(request.clone()).unwrap());
        (0..gap).for_each(|_| events.extend(engine.step()));
    }
    while !engine.is_idle() {
        events.extend(engine.step());
    }
    let tokens_of = |wanted: &RequestId| {
        let token = |event: &Event| match event {
            Event::Token { request, id, .. } if request == wanted => Some(*id),
            _ => None,
        };
        events.iter().filter_map(token).collect()
    };
    ids.iter().map(tokens_of).collect()
}

#[test]
fn answers_to_images_are_those_of_transformers_and_of_the_cpu() {
    let Some(gpu) = backend() else { return };
    let cpu = Arc::new(CpuBackend::new(CpuOptions { n_threads: Some(2), isa: None }).unwrap());
    for name in ["llava", "llava_qwen2"] {
        let ckpt = Checkpoint::open(&golden(name)).unwrap();
        let requests = requests(name, &ckpt);
        let engine = |placement: &Placement| {
            let model = Model::load_at(&ckpt, placement, &ModelOptions::default()).unwrap();
            let tokenizer = Tokenizer::from_source(&ckpt.tokenizer).unwrap();
            let options = EngineOptions {
                n_ctx: Some(160),
                kv_bytes: model.kv_spec(40, 16, DType::F32).n_bytes(),
                kv_dtype: DType::F32,
                max_batch_tokens: 32,
                ..EngineOptions::default()
            };
            Engine::new(Arc::new(model), tokenizer, &options).unwrap()
        };
        let on_gpu = Placement::whole(gpu.clone());
        let split = on_gpu.clone().with_first(1, cpu.clone());
        let expected = run(&mut engine(&Placement::whole(cpu.clone())), &requests, 40);
        for (found, (_, reference)) in expected.iter().zip(&requests) {
            assert_eq!(found, reference, "{name}");
        }
        // With gaps, images are read while others decode.
        for (placement, gap, case) in
            [(&on_gpu, 40, "alone"), (&on_gpu, 2, "in company"), (&split, 1, "split")]
        {
            assert_eq!(run(&mut engine(placement), &requests, gap), expected, "{name} {case}");
        }
    }
}
