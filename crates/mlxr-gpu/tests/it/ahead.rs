//! An engine that begins steps before the one before has ended gives the tokens of one that waits.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::sampler::Penalties;
use mlxr_engine::{
    Engine, EngineOptions, Event, FinishReason, ModelRunner, Prompt, RankedLogits, Request, RequestId,
    Runner, SamplingParams,
};
use mlxr_models::{Model, ModelOptions};
use mlxr_tensor::{Batch, BlockCopy, TensorError};
use mlxr_text::Tokenizer;

use crate::backend;

const N_BLOCKS: usize = 40;

/// The same device, waited for in every step.
struct Waiting(ModelRunner);

impl Runner for Waiting {
    fn n_vocab(&self) -> usize {
        self.0.n_vocab()
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        self.0.run(copies, batch)
    }

    fn run_best(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<Option<u32>>, TensorError> {
        self.0.run_best(copies, batch)
    }

    fn run_ranked(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<RankedLogits, TensorError> {
        self.0.run_ranked(copies, batch)
    }

    fn save_blocks(&mut self, blocks: &[u32]) -> Result<Box<dyn Any + Send>, TensorError> {
        self.0.save_blocks(blocks)
    }

    fn load_blocks(&mut self, blocks: &[u32], saved: &(dyn Any + Send), first: usize) {
        self.0.load_blocks(blocks, saved, first);
    }
}

fn requests() -> Vec<Request> {
    let plain = SamplingParams::default();
    let neutral = SamplingParams::neutral();
    let penalties = Penalties { repeat: 1.3, ..Penalties::default() };
    let chains = [
        SamplingParams::greedy(),
        SamplingParams { ignore_eos: true, ..SamplingParams::greedy() },
        SamplingParams { temperature: 1.5, ..plain.clone() },
        SamplingParams { top_p: 0.7, ..neutral.clone() },
        SamplingParams { min_p: 0.1, temperature: 0.7, ..neutral.clone() },
        SamplingParams { penalties, ..plain.clone() },
        neutral,
        plain.clone(),
    ];
    let prompt =
        |i: u32| Prompt::Tokens((0..3 + i * 13 % 40).map(|at| 3 + (i * 31 + at * 7) % 250).collect());
    let request = |(i, sampling): (usize, SamplingParams)| Request {
        sampling: SamplingParams { seed: Some(i as u64), ..sampling },
        max_tokens: Some(12 + i * 5 % 17),
        ..Request::new(prompt(i as u32))
    };
    let mut requests: Vec<Request> = chains.into_iter().enumerate().map(request).collect();
    requests.push(Request { n: 2, logprobs: Some(1), ..request((8, plain)) });
    requests
}

/// Tokens and end of each choice, in the order of submission; one request is cancelled on the way.
fn texts(engine: &mut Engine) -> Vec<(Vec<u32>, Option<FinishReason>)> {
    let mut found = BTreeMap::<(RequestId, u32), (Vec<u32>, Option<FinishReason>)>::new();
    let mut take = |events: Vec<Event>| {
        for event in events {
            match event {
                Event::Token { request, choice, id, .. } => {
                    found.entry((request, choice)).or_default().0.push(id);
                }
                Event::ChoiceEnd { request, choice, reason, .. } => {
                    found.entry((request, choice)).or_default().1 = Some(reason);
                }
                _ => {}
            }
        }
    };
    for request in requests() {
        engine.submit(request).unwrap();
        take(engine.step());
        take(engine.step());
    }
    let endless = SamplingParams { ignore_eos: true, ..SamplingParams::greedy() };
    let cancelled = Request { sampling: endless, ..Request::new(Prompt::Tokens(vec![9, 8, 7])) };
    let cancelled = engine.submit(cancelled).unwrap();
    for n_steps in 0.. {
        if engine.is_idle() {
            break;
        }
        if n_steps == 4 {
            engine.cancel(cancelled);
        }
        take(engine.step());
        assert_eq!(engine.check_integrity(), Ok(()));
    }
    assert!(matches!(found.remove(&(cancelled, 0)), Some((_, Some(FinishReason::Cancelled)))));
    found.into_values().collect()
}

#[test]
fn tokens_are_those_of_an_engine_that_waits() {
    let Some(gpu) = backend() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny");
    for path in ["llama/hf", "gpt_oss/model.gguf", "gemma2/hf"] {
        let ckpt = Checkpoint::open(&root.join(path)).unwrap();
        let model = Arc::new(Model::load(&ckpt, gpu.clone(), &ModelOptions::default()).unwrap());
        let tokenizer = Tokenizer::from_source(&ckpt.tokenizer).unwrap();
        let options = EngineOptions { n_ctx: Some(96), ..EngineOptions::default() };
        let spec = model.kv_spec(N_BLOCKS, options.block_tokens, options.kv_dtype);
        let engine = |runner: Box<dyn Runner>| {
            Engine::with_runner(runner, tokenizer.clone(), N_BLOCKS, &options).unwrap()
        };
        let new_runner = || ModelRunner::new(model.clone(), &spec).unwrap();
        let found = texts(&mut engine(Box::new(new_runner())));
        let expected = texts(&mut engine(Box::new(Waiting(new_runner()))));
        assert_eq!(found, expected, "{path}");
        assert!(found.iter().map(|(ids, _)| ids.len()).sum::<usize>() > 100, "{path}");
    }
}
