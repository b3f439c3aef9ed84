//! Steps that begin before the one before has ended give the same tokens, whatever becomes of their sequences meanwhile.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlxr_engine::sampler::{Penalties, Stage};
use mlxr_engine::{
    Engine, EngineOptions, Event, FinishReason, Finished, Output, Prompt, RankedLogits, Request, Runner,
    SamplingParams, Started, StopCause,
};
use mlxr_tensor::{
    Batch, BlockCopy, DeviceTokens, Guess, GuessedToken, MAX_LARGEST, Ranked, RowsWanted, TensorError,
    argmax, largest,
};

use crate::fake::{self, FakeRunner, N_VOCAB, Outcome, hashed, tokenizer};

/// How often a device did what.
#[derive(Default)]
struct Counts {
    started: AtomicUsize,
    /// Steps that began with tokens the host did not know.
    fed: AtomicUsize,
}

impl Counts {
    fn read(&self) -> [usize; 2] {
        [&self.started, &self.fed].map(|n| n.load(Ordering::Relaxed))
    }
}

/// A device that computes in order; every so many of its guesses are wrong.
struct Device {
    inner: FakeRunner,
    wrong_every: Option<usize>,
    n_guesses: usize,
    counts: Arc<Counts>,
}

impl Device {
    fn guess(&mut self, row: &[f32], guess: &Guess, has_sum: bool) -> GuessedToken {
        let ranked = Ranked::of(row, MAX_LARGEST);
        let id = if guess.is_whole {
            let all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
            guess.token(&all, None)
        } else {
            guess.token(&ranked.largest, has_sum.then_some(ranked.exp_sum))
        };
        self.n_guesses += 1;
        if self.wrong_every.is_some_and(|n| self.n_guesses.is_multiple_of(n)) {
            let id = id.map(|id| (id + 1) % N_VOCAB as u32);
            return GuessedToken { id, is_sure: false };
        }
        // A number as far from all boundaries as these is sure.
        GuessedToken { id, is_sure: guess.is_whole && !self.n_guesses.is_multiple_of(3) }
    }
}

impl Runner for Device {
    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn run(&mut self, _: &[BlockCopy], _: &Batch) -> Result<Vec<f32>, TensorError> {
        panic!("every step is started")
    }

    fn start(
        &mut self,
        copies: &[BlockCopy],
        batch: &Batch,
        wanted: RowsWanted,
        guesses: &[Guess],
    ) -> Option<Result<Started, TensorError>> {
        let mut batch = batch.clone();
        if let Some(fed) = batch.fed.take().filter(|fed| !fed.rows.is_empty()) {
            self.counts.fed.fetch_add(1, Ordering::Relaxed);
            let known = fed.tokens.handle::<Vec<GuessedToken>>();
            for [row, from] in fed.rows {
                batch.tokens[row as usize] = known[from as usize].id.unwrap_or(0);
            }
        }
        self.counts.started.fetch_add(1, Ordering::Relaxed);
        let logits = match self.inner.run(copies, &batch) {
            Ok(logits) => logits,
            Err(error) => return Some(Err(error)),
        };
        let rows: Vec<&[f32]> = logits.chunks_exact(N_VOCAB).collect();
        assert_eq!(rows.len(), guesses.len(), "a guess for each row");
        let has_sum = matches!(wanted, RowsWanted::Ranked(_) | RowsWanted::All);
        let guesses: Vec<GuessedToken> =
            rows.iter().zip(guesses).map(|(row, guess)| self.guess(row, guess, has_sum)).collect();
        let output = match wanted {
            RowsWanted::Best => Output::Best(rows.iter().map(|row| argmax(row)).collect()),
            RowsWanted::Largest(n) => {
                let of_row = |row: &&[f32]| argmax(row).map_or_else(Vec::new, |_| largest(row, n));
                Output::Largest(rows.iter().map(of_row).collect())
            }
            RowsWanted::All => Output::Logits(logits.clone()),
            RowsWanted::Ranked(n) => {
                let rows = rows.iter().map(|row| Ranked::of(row, n)).collect();
                let logits = logits.clone();
                let of_rows = move |rows: &[u32]| {
                    let row = |&row: &u32| &logits[row as usize * N_VOCAB..][..N_VOCAB];
                    Ok(rows.iter().flat_map(row).copied().collect())
                };
                Output::Ranked(RankedLogits { rows, logits: Box::new(of_rows) })
            }
        };
        let tokens = DeviceTokens::new(guesses.clone());
        Some(Ok(Started::new(tokens, move || Ok(Finished { output, guesses }))))
    }

    fn save_blocks(&mut self, blocks: &[u32]) -> Result<Box<dyn Any + Send>, TensorError> {
        self.inner.save_blocks(blocks)
    }

    fn load_blocks(&mut self, blocks: &[u32], saved: &(dyn Any + Send), first: usize) {
        self.inner.load_blocks(blocks, saved, first);
    }
}

fn device(
    n_blocks: usize,
    options: &EngineOptions,
    wrong_every: Option<usize>,
    logits_of: fn(&[u32]) -> Vec<f32>,
) -> (Engine, Arc<Counts>) {
    let counts = Arc::<Counts>::default();
    let inner = FakeRunner::new(n_blocks, options.block_tokens, Box::new(logits_of));
    let runner = Device { inner, wrong_every, n_guesses: 0, counts: counts.clone() };
    (Engine::with_runner(Box::new(runner), tokenizer(), n_blocks, options).unwrap(), counts)
}

fn request(prompt: &[u32], max_tokens: usize, sampling: SamplingParams) -> Request {
    Request {
        sampling: SamplingParams { seed: Some(u64::from(prompt[0])), ..sampling },
        max_tokens: Some(max_tokens),
        ..Request::new(Prompt::Tokens(prompt.to_vec()))
    }
}

/// Chains a device can follow.
fn followed() -> Vec<SamplingParams> {
    let plain = SamplingParams::default();
    let neutral = SamplingParams { ignore_eos: true, ..SamplingParams::neutral() };
    vec![
        SamplingParams::greedy(),
        SamplingParams { ignore_eos: true, ..SamplingParams::greedy() },
        plain.clone(),
        SamplingParams { ignore_eos: true, temperature: 1.5, ..plain.clone() },
        SamplingParams { top_k: 0, top_p: 0.6, min_p: 0.0, ..plain.clone() },
        SamplingParams { min_p: 0.3, ..neutral.clone() },
        SamplingParams {
            top_k: 12,
            order: vec![Stage::TopK, Stage::Temperature, Stage::MinP],
            ..plain.clone()
        },
        SamplingParams {
            penalties: Penalties { repeat: 1.3, presence: 0.2, ..Penalties::default() },
            ..plain
        },
        SamplingParams { logit_bias: vec![(40, -2.0), (41, -1.0)], ..SamplingParams::greedy() },
        SamplingParams::neutral(),
        SamplingParams { temperature: 0.7, ..neutral },
    ]
}

/// Chains it cannot.
fn others() -> Vec<SamplingParams> {
    let penalties = Penalties { last_n: None, frequency: 0.3, ..Penalties::default() };
    vec![
        SamplingParams { penalties, ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(40, 2.0)], ..SamplingParams::greedy() },
        SamplingParams { typical_p: 0.8, ..SamplingParams::default() },
    ]
}

/// Requests of all kinds and lengths.
fn mixed() -> Vec<Request> {
    let prompt = |i: usize| (0..1 + i * 7 % 40).map(|at| (20 + i * 3 + at) as u32).collect::<Vec<_>>();
    let chains = followed().into_iter().chain(others());
    let mut requests: Vec<Request> =
        chains.enumerate().map(|(i, sampling)| request(&prompt(i), 3 + i * 5 % 23, sampling)).collect();
    requests.push(Request { n: 3, ..request(&prompt(20), 9, SamplingParams::default()) });
    requests.push(Request { n: 3, ..request(&prompt(19), 9, SamplingParams::neutral()) });
    requests.push(Request { logprobs: Some(2), ..request(&prompt(21), 9, SamplingParams::default()) });
    requests.push(Request { prompt_logprobs: Some(0), ..request(&prompt(22), 5, SamplingParams::greedy()) });
    requests.push(request(&prompt(23), 0, SamplingParams::greedy()));
    requests.push(request(&prompt(24), 1, SamplingParams::greedy()));
    requests
}

/// Submits a request every other step, while the earlier ones run.
fn staggered(engine: &mut Engine, requests: &[Request]) -> Vec<Outcome> {
    let (mut ids, mut outcomes) = (Vec::new(), BTreeMap::new());
    for request in requests {
        ids.push(engine.submit(request.clone()).unwrap());
        for _ in 0..2 {
            fake::record(&mut outcomes, engine.step());
            assert_eq!(engine.check_integrity(), Ok(()));
        }
    }
    fake::finish(engine, &mut outcomes);
    ids.iter().map(|id| outcomes.remove(id).unwrap()).collect()
}

#[test]
fn tokens_are_the_same_whatever_the_device_guesses() {
    let options = EngineOptions::default();
    let requests = mixed();
    let alone = |request: &Request| fake::run(&mut fake::forgetful(), request.clone());
    let expected: Vec<Outcome> = requests.iter().map(alone).collect();
    // The tight arena holds a few of them: sequences lose their blocks and come back.
    for (n_blocks, is_tight) in [(96, false), (9, true)] {
        for wrong_every in [None, Some(5), Some(1)] {
            for prefix_cache in [true, false] {
                let options = EngineOptions { prefix_cache, n_ctx: Some(96), ..options };
                let (engine, counts) = device(n_blocks, &options, wrong_every, hashed);
                let mut engine = engine.with_overflow(if prefix_cache { 0 } else { 20 });
                let found = staggered(&mut engine, &requests);
                for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                    assert_eq!(found, expected, "{i} in {n_blocks} blocks, wrong {wrong_every:?}");
                }
                let [started, fed] = counts.read();
                assert!(fed > 5 && started > fed + 5, "{started} {fed}");
                assert_eq!(engine.stats().n_preemptions > 0, is_tight);
            }
        }
    }
}

#[test]
fn every_step_but_the_first_begins_with_guesses_and_none_computes_a_row_too_many() {
    let endless: fn(&[u32]) -> Vec<f32> = |history| {
        let mut logits = hashed(history);
        logits[..3].fill(f32::NEG_INFINITY);
        logits
    };
    for sampling in followed() {
        let (mut engine, counts) = device(16, &EngineOptions::default(), None, endless);
        fake::run(&mut engine, request(&[50, 51, 52], 24, sampling.clone()));
        let [started, fed] = counts.read();
        // Penalties of a guess lack the token before, which nobody knows when it is made.
        let n_wrong = if sampling.penalties == Penalties::default() { 0 } else { started - 24 };
        assert_eq!((started, fed), (24 + n_wrong, 23), "{sampling:?}");
        assert_eq!(engine.stats().n_rows as usize, 3 + 23 + n_wrong);
        assert!(n_wrong < 6, "{n_wrong} steps for nothing");
    }
    for sampling in others() {
        let (mut engine, counts) = device(16, &EngineOptions::default(), None, endless);
        let found = fake::run(&mut engine, request(&[50, 51, 52], 24, sampling.clone()));
        assert_eq!(counts.read()[1], 0, "{sampling:?}");
        assert_eq!(engine.stats().n_rows as usize, 3 + found.choices[&0].ids.len() - 1);
    }
}

/// Ends after the sixth generated token of a prompt of four, unless the prompt begins with 60.
fn ending(history: &[u32]) -> Vec<f32> {
    let mut logits = hashed(history);
    logits[..3].fill(-9.0);
    if history.len() == 10 && history[0] != 60 {
        logits[tokenizer().eog_ids()[0] as usize] = 99.0;
    }
    logits
}

#[test]
fn a_sequence_that_ends_gives_back_the_slot_of_the_step_that_had_begun() {
    let options = EngineOptions::default();
    let (mut engine, counts) = device(16, &options, None, ending);
    let long = engine.submit(request(&[60, 1, 2, 3], 40, SamplingParams::default())).unwrap();
    let short = engine.submit(request(&[61, 1, 2, 3], 40, SamplingParams::default())).unwrap();
    let mut outcomes = BTreeMap::new();
    for _ in 0..7 {
        fake::record(&mut outcomes, engine.step());
    }
    let ended = &outcomes[&short].choices[&0];
    assert!(matches!(ended.reason, Some(FinishReason::Stop(StopCause::EndOfGeneration(_)))), "{ended:?}");
    assert_eq!(ended.ids.len(), 6);
    // The other holds a block for its tokens, and nobody any other.
    let blocks = engine.stats().blocks;
    assert_eq!(blocks.n_blocks - blocks.n_free, 1);
    // What took its place while its last row was still on the way is not disturbed.
    let next = engine.submit(request(&[60, 9, 9, 9], 20, SamplingParams::default())).unwrap();
    fake::finish(&mut engine, &mut outcomes);
    let alone = |prompt: &[u32], n| {
        let mut engine = fake::engine(16, &options, Box::new(ending));
        fake::run(&mut engine, request(prompt, n, SamplingParams::default()))
    };
    assert_eq!(outcomes[&long], alone(&[60, 1, 2, 3], 40));
    assert_eq!(outcomes[&short], alone(&[61, 1, 2, 3], 40));
    assert_eq!(outcomes[&next], alone(&[60, 9, 9, 9], 20));
    assert!(counts.read()[1] > 35);
}

#[test]
fn a_stop_string_and_a_cancellation_leave_the_others_alone() {
    let options = EngineOptions { block_tokens: 16, ..EngineOptions::default() };
    let plain = request(&[70, 71], 30, SamplingParams::default());
    let whole = fake::run(&mut fake::roomy(), plain.clone());
    let text: Vec<char> = whole.choices[&0].text.chars().collect();
    let stop: String = text[text.len() / 2..text.len() / 2 + 2].iter().collect();
    let stopped = Request { stop: vec![stop], ..plain.clone() };
    let (mut engine, _) = device(16, &options, Some(4), hashed);
    let ids: Vec<_> =
        [&plain, &stopped, &plain].map(|request| engine.submit(request.clone()).unwrap()).to_vec();
    let mut outcomes = BTreeMap::new();
    for n_steps in 0.. {
        if engine.is_idle() {
            break;
        }
        if n_steps == 5 {
            // Its row of the next step is on the way.
            assert!(engine.cancel(ids[2]));
        }
        fake::record(&mut outcomes, engine.step());
        assert_eq!(engine.check_integrity(), Ok(()));
    }
    assert_eq!(outcomes[&ids[0]], whole);
    assert_eq!(outcomes[&ids[1]], fake::run(&mut fake::roomy(), stopped));
    let cancelled = &outcomes[&ids[2]].choices[&0];
    assert_eq!(cancelled.reason, Some(FinishReason::Cancelled));
    assert!(cancelled.ids.len() > 2 && whole.choices[&0].ids.starts_with(&cancelled.ids), "{cancelled:?}");
}

#[test]
fn a_step_begun_for_requests_that_are_gone_is_given_up() {
    let (mut engine, counts) = device(16, &EngineOptions::default(), None, hashed);
    let first = engine.submit(request(&[80, 81], 30, SamplingParams::default())).unwrap();
    engine.step();
    engine.cancel(first);
    assert_eq!(counts.read(), [2, 1]);
    let ended = engine.step().into_iter().filter(|event| matches!(event, Event::Finish { .. })).count();
    assert_eq!((ended, engine.is_idle(), counts.read()), (1, true, [2, 1]));
    let again = request(&[80, 81], 30, SamplingParams::default());
    assert_eq!(fake::run(&mut engine, again.clone()), fake::run(&mut fake::roomy(), again));
}

#[test]
fn a_device_that_fails_ends_the_step_it_ran_and_the_one_that_had_begun() {
    let poisoned = |history: &[u32]| {
        assert!(history.len() < 12, "the device broke");
        hashed(history)
    };
    let (mut engine, _) = device(16, &EngineOptions::default(), None, poisoned);
    let sampling = SamplingParams { ignore_eos: true, ..SamplingParams::default() };
    let id = engine.submit(request(&[90, 91], 30, sampling)).unwrap();
    let mut outcomes = BTreeMap::new();
    fake::finish(&mut engine, &mut outcomes);
    let Some(FinishReason::Error(reason)) = &outcomes[&id].choices[&0].reason else { panic!() };
    assert!(reason.contains("the device broke"), "{reason}");
}
