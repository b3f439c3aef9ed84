//! The same tokens and log-probabilities, bit for bit, on real weights: alone, in company, in chunks, forked,
//! preempted, in blocks of another size, in every KV type, with and without the prefix cache, greedy and drawn.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{Engine, EngineError, EngineOptions, Prompt, Request, SamplingParams};
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::{Model, ModelOptions};
use mlxr_tensor::{DType, KvSpec};
use mlxr_text::Tokenizer;

use crate::fake::{self, Outcome};

const KV_DTYPES: [DType; 6] = KvSpec::DTYPES;

fn tiny(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny").join(path)
}

struct Loaded {
    model: Arc<Model>,
    tokenizer: Tokenizer,
}

fn load(path: &str) -> Loaded {
    let checkpoint = Checkpoint::open(&tiny(path)).unwrap();
    let backend = CpuBackend::new(CpuOptions { n_threads: Some(1), isa: None }).unwrap();
    let model = Model::load(&checkpoint, Arc::new(backend), &ModelOptions::default()).unwrap();
    let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer).unwrap();
    Loaded { model: Arc::new(model), tokenizer }
}

impl Loaded {
    fn engine(&self, options: &EngineOptions) -> Engine {
        Engine::new(self.model.clone(), self.tokenizer.clone(), options).unwrap()
    }
}

/// Longer than a block, than a sliding window and than the chunks; one forks, one is scored.
fn requests() -> Vec<Request> {
    let prompt = |n: u32, step: u32| Prompt::Tokens((0..n).map(|i| 3 + (i * step + n) % 280).collect());
    let drawn = |seed| SamplingParams { seed: Some(seed), ..SamplingParams::default() };
    let greedy = SamplingParams { seed: Some(0), ..SamplingParams::greedy() };
    let request = |prompt, sampling: &SamplingParams, max_tokens| Request {
        sampling: SamplingParams { ignore_eos: true, ..sampling.clone() },
        max_tokens: Some(max_tokens),
        logprobs: Some(1),
        ..Request::new(prompt)
    };
    vec![
        request(prompt(37, 11), &greedy, 20),
        Request { n: 2, ..request(prompt(21, 5), &drawn(7), 14) },
        Request { prompt_logprobs: Some(0), ..request(prompt(30, 17), &drawn(8), 9) },
        request(prompt(1, 1), &drawn(9), 24),
    ]
}

pub fn together(engine: &mut Engine, requests: &[Request]) -> Vec<Outcome> {
    let ids: Vec<_> = requests.iter().map(|request| engine.submit(request.clone()).unwrap()).collect();
    let mut outcomes = BTreeMap::new();
    fake::finish(engine, &mut outcomes);
    ids.iter().map(|id| outcomes.remove(id).unwrap()).collect()
}

#[track_caller]
fn check(path: &str) {
    let loaded = load(path);
    let requests = requests();
    for kv_dtype in KV_DTYPES {
        let base = EngineOptions { n_ctx: Some(64), kv_dtype, block_tokens: 16, ..EngineOptions::default() };
        let mut alone = loaded.engine(&EngineOptions { prefix_cache: false, ..base });
        let expected: Vec<Outcome> =
            requests.iter().map(|request| fake::run(&mut alone, request.clone())).collect();

        // An arena of 64 tokens for 133: sequences preempt each other.
        let tight = EngineOptions {
            max_seqs: 4,
            max_batch_tokens: 9,
            max_logit_rows: 5,
            cache_above_percent: 100,
            ..base
        };
        let mut engine = loaded.engine(&tight);
        for round in ["tight", "tight, what is left of it cached"] {
            assert_eq!(together(&mut engine, &requests), expected, "{path} {kv_dtype} {round}");
        }
        assert!(engine.stats().cache.n_hit_tokens > 0, "nothing was found again");
        assert!(engine.stats().n_preemptions > 0, "the arena is too roomy to test preemption");

        let host_kv_bytes = loaded.model.kv_spec(20, 16, kv_dtype).n_bytes().unwrap();
        let mut engine = loaded.engine(&EngineOptions { host_kv_bytes, prefix_cache: false, ..tight });
        assert_eq!(together(&mut engine, &requests), expected, "{path} {kv_dtype} kept elsewhere");
        let overflow = engine.stats().overflow;
        assert!(overflow.n_out > 0 && overflow.n_in == overflow.n_out, "{overflow:?}");

        let bytes = loaded.model.kv_spec(10, 32, kv_dtype).n_bytes();
        let wide = EngineOptions { block_tokens: 32, kv_bytes: bytes, ..base };
        let mut engine = loaded.engine(&wide);
        assert_eq!(together(&mut engine, &requests), expected, "{path} {kv_dtype} wide");
        assert!(engine.stats().n_block_copies > 0, "the fork did not share its last block");
        let again = together(&mut engine, &requests);
        assert_eq!(again, expected, "{path} {kv_dtype} wide, cached");
        // One block of 32 each of the prompt of 37 tokens; the scored one computes what it reports.
        assert_eq!(again.iter().map(|outcome| outcome.n_cached).collect::<Vec<_>>(), [32, 0, 0, 0]);
    }
}

#[test]
fn qwen3_tokens_do_not_depend_on_the_schedule() {
    check("qwen3/hf");
}

#[test]
fn sliding_windows_and_soft_caps_do_not_depend_on_the_schedule() {
    check("gemma2/hf");
}

#[test]
fn experts_and_sinks_do_not_depend_on_the_schedule() {
    check("gpt_oss/hf");
}

#[test]
fn greedy_text_is_the_reference_s() {
    let loaded = load("llama/hf");
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(tiny("llama/golden.json")).unwrap()).unwrap();
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    let options = EngineOptions { kv_dtype: DType::F32, n_ctx: Some(160), ..EngineOptions::default() };
    let mut n_compared = 0;
    for prompt in golden["prompts"].as_array().unwrap() {
        let request = Request {
            sampling: SamplingParams::greedy(),
            max_tokens: Some(64),
            ..Request::new(Prompt::Tokens(ids(&prompt["ids"])))
        };
        let found = fake::run(&mut loaded.engine(&options), request);
        // The reference goes on after an end of generation, the engine stops there.
        let found = &found.choices[&0].ids;
        assert!(ids(&prompt["greedy_ids"]).starts_with(found), "{found:?}");
        n_compared += found.len();
    }
    assert!(n_compared >= 100, "{n_compared}");
}

#[test]
fn a_kv_type_that_does_not_fit_the_heads_is_refused() {
    // Heads of 16 do not fill quant blocks of 32.
    let loaded = load("llama3/hf");
    let options = EngineOptions { kv_dtype: DType::Q8_0, ..EngineOptions::default() };
    let refused = Engine::new(loaded.model.clone(), loaded.tokenizer.clone(), &options).unwrap_err();
    assert!(matches!(refused, EngineError::KvType { dtype: DType::Q8_0 }), "{refused}");
    let small = EngineOptions { kv_bytes: Some(100), ..EngineOptions::default() };
    let refused = Engine::new(loaded.model.clone(), loaded.tokenizer.clone(), &small).unwrap_err();
    assert!(matches!(refused, EngineError::KvTooSmall { kv_bytes: 100, n_tokens: 0, .. }), "{refused}");
}
