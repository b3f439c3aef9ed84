//! A runner that computes nothing: it remembers which token was written to which slot, reads every sequence back
//! through its block table, checks it, and lets a function of the tokens give the logits.

use std::any::Any;
use std::collections::BTreeMap;

use mlxr_engine::{Engine, EngineOptions, Event, FinishReason, Request, RequestId, Runner, Usage};
use mlxr_tensor::{Batch, BlockCopy, TensorError};
use mlxr_text::{HfFiles, Tokenizer};

pub const N_VOCAB: usize = 288;

/// Token and position last written there.
type Slot = Option<(u32, u32)>;

type LogitsOf = Box<dyn Fn(&[u32]) -> Vec<f32> + Send>;

pub struct FakeRunner {
    /// Token and position last written to each slot.
    slots: Vec<Slot>,
    block_tokens: usize,
    logits_of: LogitsOf,
}

impl FakeRunner {
    pub fn new(n_blocks: usize, block_tokens: usize, logits_of: LogitsOf) -> Self {
        Self { slots: vec![None; n_blocks * block_tokens], block_tokens, logits_of }
    }

    /// The sequence's tokens up to `position`, as the arena holds them.
    fn history(&self, block_table: &[u32], position: u32) -> Vec<u32> {
        (0..=position)
            .map(|at| {
                let block = block_table[at as usize / self.block_tokens] as usize;
                let slot = self.slots[block * self.block_tokens + at as usize % self.block_tokens];
                let (token, written_at) = slot.expect("the slot was written");
                assert_eq!(written_at, at, "the slot holds this sequence's token");
                token
            })
            .collect()
    }
}

impl Runner for FakeRunner {
    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        let n = self.block_tokens;
        for copy in copies {
            let from = copy.from as usize * n;
            self.slots.copy_within(from..from + n, copy.to as usize * n);
        }
        for row in 0..batch.n_rows() {
            self.slots[batch.slots[row] as usize] = Some((batch.tokens[row], batch.positions[row]));
        }
        let mut logits = Vec::new();
        for span in &batch.spans {
            for row in span.rows.clone() {
                let history = self.history(&span.block_table, batch.positions[row]);
                if batch.output_rows.contains(&(row as u32)) {
                    logits.extend((self.logits_of)(&history));
                }
            }
        }
        Ok(logits)
    }

    fn save_blocks(&mut self, blocks: &[u32]) -> Result<Box<dyn Any + Send>, TensorError> {
        let slots = |block: u32| &self.slots[block as usize * self.block_tokens..][..self.block_tokens];
        Ok(Box::new(blocks.iter().flat_map(|&block| slots(block)).copied().collect::<Vec<Slot>>()))
    }

    fn load_blocks(&mut self, blocks: &[u32], saved: &(dyn Any + Send), first: usize) {
        let n = self.block_tokens;
        let saved = &saved.downcast_ref::<Vec<Slot>>().unwrap()[first * n..];
        for (&block, slots) in blocks.iter().zip(saved.chunks_exact(n)) {
            self.slots[block as usize * n..][..n].copy_from_slice(slots);
        }
    }
}

/// Logits that depend on every token and its place.
pub fn hashed(history: &[u32]) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for &token in history {
        state = mix(state ^ u64::from(token));
    }
    (0..N_VOCAB as u64).map(|id| (mix(state ^ (id << 32)) >> 40) as f32 / (1u64 << 24) as f32 * 8.0).collect()
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Byte-level, 288 tokens, ends of generation among the first three.
pub fn tokenizer() -> Tokenizer {
    let tiny = concat!(env!("CARGO_MANIFEST_DIR"), "/../../golden/tiny/llama/hf/");
    let read = |name: &str| std::fs::read(format!("{tiny}{name}")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&read("tokenizer_config.json")).unwrap();
    Tokenizer::from_hf(&HfFiles {
        tokenizer_json: &read("tokenizer.json"),
        tokenizer_config: config.as_object().unwrap(),
        special_tokens_map: &serde_json::Map::new(),
    })
    .unwrap()
}

pub fn engine(n_blocks: usize, options: &EngineOptions, logits_of: LogitsOf) -> Engine {
    let runner = Box::new(FakeRunner::new(n_blocks, options.block_tokens, logits_of));
    Engine::with_runner(runner, tokenizer(), n_blocks, options).unwrap()
}

/// Room for everything.
pub fn roomy() -> Engine {
    engine(64, &EngineOptions::default(), Box::new(hashed))
}

/// Room for everything, and nothing is ever reused.
pub fn forgetful() -> Engine {
    engine(64, &EngineOptions { prefix_cache: false, ..EngineOptions::default() }, Box::new(hashed))
}

/// Everything that came of a request.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Tokens, their log-probabilities and text, by choice.
    pub choices: BTreeMap<u32, ChoiceOutcome>,
    /// Prompt tokens and their log-probabilities.
    pub prompt: Vec<(u32, Option<f32>)>,
    pub usage: Usage,
    /// Left out of comparisons.
    pub n_cached: usize,
    pub n_finishes: usize,
}

impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        (&self.choices, &self.prompt, self.usage, self.n_finishes)
            == (&other.choices, &other.prompt, other.usage, other.n_finishes)
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChoiceOutcome {
    pub ids: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub text: String,
    pub reason: Option<FinishReason>,
}

/// Adds what events say about their requests.
pub fn record(outcomes: &mut BTreeMap<RequestId, Outcome>, events: Vec<Event>) {
    for event in events {
        let outcome = outcomes.entry(event.request()).or_default();
        assert_eq!(outcome.n_finishes, 0, "nothing follows a finish");
        match event {
            Event::Prompt { tokens, .. } => {
                let found = tokens.into_iter().map(|t| (t.id, t.logprobs.map(|l| l.token.logprob)));
                outcome.prompt.extend(found);
            }
            Event::Token { choice, id, text, logprobs, .. } => {
                let choice = outcome.choices.entry(choice).or_default();
                assert_eq!(choice.reason, None, "no token follows a choice's end");
                choice.ids.push(id);
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs.map(|l| l.token.logprob));
            }
            Event::ChoiceEnd { choice, reason, text, .. } => {
                let choice = outcome.choices.entry(choice).or_default();
                assert_eq!(choice.reason.replace(reason), None, "a choice ends once");
                choice.text.push_str(&text);
            }
            Event::Finish { usage, .. } => {
                assert!(outcome.choices.values().all(|choice| choice.reason.is_some()));
                // What was cached depends on who came before; nothing else may.
                outcome.n_cached = usage.n_cached;
                outcome.usage = Usage { n_cached: 0, ..usage };
                outcome.n_finishes += 1;
            }
        }
    }
}

/// Steps until nothing is left, checking the books after every step.
pub fn finish(engine: &mut Engine, outcomes: &mut BTreeMap<RequestId, Outcome>) {
    for _ in 0..10_000 {
        if engine.is_idle() {
            let blocks = engine.stats().blocks;
            assert_eq!(blocks.n_free, blocks.n_blocks, "blocks leaked");
            return;
        }
        record(outcomes, engine.step());
        assert_eq!(engine.check_integrity(), Ok(()));
    }
    panic!("no progress");
}

/// Runs one request to its end.
pub fn run(engine: &mut Engine, request: Request) -> Outcome {
    let id = engine.submit(request).unwrap();
    let mut outcomes = BTreeMap::new();
    finish(engine, &mut outcomes);
    let outcome = outcomes.remove(&id).unwrap();
    assert_eq!(outcome.n_finishes, 1);
    outcome
}
