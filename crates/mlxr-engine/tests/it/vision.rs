//! Images in prompts, on real weights: the reference's answers, the same bits in any company, and a prefix cache that
//! tells images apart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{Engine, EngineOptions, Prompt, Request, SamplingParams, SubmitError};
use mlxr_image::ImageProcessor;
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::{Model, ModelOptions};
use mlxr_tensor::{DType, Pixels};
use mlxr_text::{EncodeOptions, Tokenizer};
use serde_json::Value;

use crate::fake::{self, Outcome, roomy};
use crate::invariance::together;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/vision").join(path)
}

struct Loaded {
    model: Arc<Model>,
    tokenizer: Tokenizer,
    processor: ImageProcessor,
}

fn load(name: &str) -> Loaded {
    let ckpt = Checkpoint::open(&golden(name)).unwrap();
    let backend = CpuBackend::new(CpuOptions { n_threads: Some(1), isa: None }).unwrap();
    let model = Model::load(&ckpt, Arc::new(backend), &ModelOptions::default()).unwrap();
    let processor = ImageProcessor::new(&ckpt.vision.as_ref().unwrap().processor).unwrap();
    let tokenizer = Tokenizer::from_source(&ckpt.tokenizer).unwrap();
    Loaded { model: Arc::new(model), tokenizer, processor }
}

impl Loaded {
    fn engine(&self, options: &EngineOptions) -> Engine {
        Engine::new(self.model.clone(), self.tokenizer.clone(), options).unwrap()
    }

    fn image(&self, name: &str) -> Arc<Pixels> {
        Arc::new(self.processor.open(&golden(&format!("images/{name}"))).unwrap())
    }

    fn request(&self, prompt: &str, images: &[&str], max_tokens: usize) -> Request {
        let options = EncodeOptions { add_special: false, parse_special: true };
        Request {
            images: images.iter().map(|name| self.image(name)).collect(),
            sampling: SamplingParams { seed: Some(3), ignore_eos: true, ..SamplingParams::greedy() },
            max_tokens: Some(max_tokens),
            ..Request::new(Prompt::Text(prompt.to_owned(), options))
        }
    }
}

fn exact() -> EngineOptions {
    EngineOptions { kv_dtype: DType::F32, n_ctx: Some(160), ..EngineOptions::default() }
}

#[test]
fn answers_to_images_are_the_reference_s() {
    for name in ["llava", "llava_qwen2"] {
        let loaded = load(name);
        let text = std::fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
        let records: Value = serde_json::from_str(&text).unwrap();
        let mut engine = loaded.engine(&exact());
        for record in records["prompts"].as_array().unwrap() {
            let images: Vec<&str> =
                record["images"].as_array().unwrap().iter().map(|image| image.as_str().unwrap()).collect();
            let expected: Vec<u32> = record["greedy_ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap() as u32)
                .collect();
            let prompt = record["prompt"].as_str().unwrap();
            let found = fake::run(&mut engine, loaded.request(prompt, &images, expected.len()));
            assert_eq!(found.choices[&0].ids, expected, "{name}: {}", record["text"]);
            assert_eq!(found.usage.n_prompt, record["ids"].as_array().unwrap().len());
        }
    }
}

/// Two that differ in their image alone, one of two images, one that forks, one that is scored, one without.
fn requests(loaded: &Loaded) -> Vec<Request> {
    let with_logprobs = |request| Request { logprobs: Some(1), ..request };
    let drawn = SamplingParams { seed: Some(7), ignore_eos: true, ..SamplingParams::default() };
    let wide = loaded.request("Look: <image>\nWhat is it?", &["wide.png"], 14);
    [
        wide.clone(),
        loaded.request("Look: <image>\nWhat is it?", &["tall.webp"], 14),
        loaded.request("<image><image> Alike?", &["wide.png", "palette.gif"], 9),
        Request { n: 2, sampling: drawn, ..loaded.request("A <image>", &["palette.gif"], 12) },
        Request { prompt_logprobs: Some(0), ..wide },
        loaded.request("Nothing to see here", &[], 20),
    ]
    .map(with_logprobs)
    .to_vec()
}

#[test]
fn tokens_of_prompts_with_images_do_not_depend_on_the_schedule() {
    for name in ["llava", "llava_qwen2"] {
        let loaded = load(name);
        let requests = requests(&loaded);
        for kv_dtype in [DType::F32, DType::F16] {
            let base = EngineOptions { n_ctx: Some(80), kv_dtype, ..EngineOptions::default() };
            let mut alone = loaded.engine(&EngineOptions { prefix_cache: false, ..base });
            let expected: Vec<Outcome> =
                requests.iter().map(|request| fake::run(&mut alone, request.clone())).collect();
            assert_ne!(expected[0].choices, expected[1].choices, "the image makes a difference");

            let tight = EngineOptions {
                max_seqs: 4,
                max_batch_tokens: 7,
                max_logit_rows: 5,
                cache_above_percent: 100,
                ..base
            };
            let mut engine = loaded.engine(&tight);
            for round in ["tight", "tight, what is left of it cached"] {
                assert_eq!(together(&mut engine, &requests), expected, "{name} {kv_dtype} {round}");
            }
            assert!(engine.stats().n_preemptions > 0, "the arena is too roomy to test preemption");

            let host_kv_bytes = loaded.model.kv_spec(20, 16, kv_dtype).n_bytes().unwrap();
            let mut engine = loaded.engine(&EngineOptions { host_kv_bytes, prefix_cache: false, ..tight });
            assert_eq!(together(&mut engine, &requests), expected, "{name} {kv_dtype} kept elsewhere");
            assert!(engine.stats().overflow.n_out > 0);

            let kv_bytes = loaded.model.kv_spec(40, 32, kv_dtype).n_bytes();
            let mut engine = loaded.engine(&EngineOptions { block_tokens: 32, kv_bytes, ..base });
            for round in ["wide", "wide, cached"] {
                assert_eq!(together(&mut engine, &requests), expected, "{name} {kv_dtype} {round}");
            }
            assert!(engine.stats().cache.n_hit_tokens > 0, "nothing was found again");
        }
    }
}

#[test]
fn the_prefix_cache_tells_images_apart_and_knows_them_again() {
    let loaded = load("llava");
    let mut engine = loaded.engine(&exact());
    let mut cached = |image: &str, text: &str| {
        let prompt = format!("The same words before it, <image>\n{text}");
        fake::run(&mut engine, loaded.request(&prompt, &[image], 2)).n_cached
    };
    assert_eq!(cached("wide.png", "What is it?"), 0);
    // The block before the image is shared, those that the image is in are not.
    assert_eq!(cached("tall.webp", "What is it?"), 16);
    assert_eq!(cached("palette.gif", "What is it?"), 16);
    assert_eq!(cached("wide.png", "Where is it?"), 32);
    assert_eq!(cached("tall.webp", "What is it?"), 32);
}

#[test]
fn requests_whose_images_have_no_place_are_refused() {
    let loaded = load("llava");
    let mut engine = loaded.engine(&exact());
    let mut refused = |request| engine.submit(request).unwrap_err();
    let error = refused(loaded.request("no place", &["wide.png"], 1));
    assert!(matches!(error, SubmitError::ImagePlaces { n_images: 1, n_places: 0 }), "{error}");
    let error = refused(loaded.request("<image> and <image>", &["wide.png"], 1));
    assert!(matches!(error, SubmitError::ImagePlaces { n_images: 1, n_places: 2 }), "{error}");
    let small = Request {
        images: vec![Arc::new(Pixels::new([3, 14, 14], vec![0.0; 588]))],
        ..loaded.request("<image>", &[], 1)
    };
    assert!(matches!(refused(small), SubmitError::ImageShape { index: 0, .. }));
    // An image takes as many tokens of the context as it has rows.
    let many = "<image>".repeat(10);
    let error = refused(loaded.request(&many, &["wide.png"; 10], 1));
    assert!(matches!(error, SubmitError::PromptTooLong { n_prompt: 160, n_ctx: 160 }), "{error}");
    assert!(engine.is_idle());
    let blind = Request { images: vec![loaded.image("wide.png")], ..Request::new(Prompt::Tokens(vec![5])) };
    assert!(matches!(roomy().submit(blind), Err(SubmitError::NoImages { n_images: 1 })));
}
