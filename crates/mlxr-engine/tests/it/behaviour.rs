//! What a client of the engine sees.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mlxr_engine::sampler::{Dry, ParamError, Penalties};
use mlxr_engine::{
    Engine, EngineError, EngineOptions, Event, FinishReason, Prompt, RankedLogits, Request, Runner,
    SamplingParams, ScoreError, StopCause, SubmitError,
};
use mlxr_tensor::{Batch, BlockCopy, TensorError};
use mlxr_text::EncodeOptions;

use crate::fake::{self, FakeRunner, N_VOCAB, Outcome, engine, hashed, roomy, tokenizer};

fn greedy(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        sampling: SamplingParams { seed: Some(1), ..SamplingParams::greedy() },
        max_tokens: Some(max_tokens),
        ..Request::new(Prompt::Tokens(prompt.to_vec()))
    }
}

/// An engine whose model always continues with `text`, whatever the prompt, and an end token after it.
fn speaking(text: &str, n_prompt: usize) -> Engine {
    let tokenizer = tokenizer();
    let mut script = tokenizer.encode(text, EncodeOptions::default()).unwrap();
    script.push(tokenizer.eog_ids()[0]);
    let logits = move |history: &[u32]| {
        let mut logits = vec![0.0; N_VOCAB];
        let next = (history.len() + 1).checked_sub(n_prompt + 1).and_then(|i| script.get(i));
        logits[next.copied().unwrap_or(5) as usize] = 9.0;
        logits
    };
    engine(8, &EngineOptions::default(), Box::new(logits))
}

fn only(outcome: &Outcome) -> &fake::ChoiceOutcome {
    assert_eq!(outcome.choices.len(), 1);
    &outcome.choices[&0]
}

/// One thread per model owns the engine, so it has to get there.
#[test]
fn an_engine_can_be_moved_to_its_thread() {
    let mut engine = roomy();
    let here = fake::run(&mut engine, greedy(&[40], 4));
    let there = std::thread::spawn(move || fake::run(&mut engine, greedy(&[40], 4))).join().unwrap();
    assert_eq!(here, there);
}

#[test]
fn greedy_text_is_the_argmax_of_each_step() {
    let mut expected = vec![40, 41, 42];
    for _ in 0..20 {
        let logits = hashed(&expected);
        let best = (0..N_VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        expected.push(best as u32);
    }
    let found = fake::run(&mut roomy(), greedy(&[40, 41, 42], 20));
    assert_eq!(only(&found).ids, expected[3..]);
    assert_eq!(only(&found).reason, Some(FinishReason::Length));
    assert_eq!((found.usage.n_prompt, found.usage.n_completion), (3, 20));
}

#[test]
fn an_end_token_stops_and_is_not_text() {
    let found = fake::run(&mut speaking("hello, world", 2), greedy(&[50, 51], 50));
    assert_eq!(only(&found).text, "hello, world");
    let eog = tokenizer().eog_ids()[0];
    assert_eq!(only(&found).reason, Some(FinishReason::Stop(StopCause::EndOfGeneration(eog))));
    assert_eq!(found.usage.n_completion, only(&found).ids.len() + 1);
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let request = Request { stop: vec!["wor".to_owned(), "nothing".to_owned()], ..greedy(&[50, 51], 50) };
    let found = fake::run(&mut speaking("hello, world", 2), request);
    assert_eq!(only(&found).text, "hello, ");
    assert_eq!(only(&found).reason, Some(FinishReason::Stop(StopCause::Text("wor".to_owned()))));
}

#[test]
fn text_held_back_for_a_stop_string_comes_with_the_end() {
    let request = Request { stop: vec!["world!".to_owned()], ..greedy(&[50, 51], 50) };
    let found = fake::run(&mut speaking("hello, world", 2), request);
    assert_eq!(only(&found).text, "hello, world");
}

#[test]
fn a_character_spread_over_tokens_is_never_cut() {
    let mut engine = speaking("naïve 😀", 2);
    engine.submit(greedy(&[50, 51], 50)).unwrap();
    let mut text = String::new();
    while !engine.is_idle() {
        for event in engine.step() {
            if let Event::Token { text: piece, .. } | Event::ChoiceEnd { text: piece, .. } = event {
                assert!(!piece.contains('\u{fffd}'));
                text.push_str(&piece);
            }
        }
    }
    assert_eq!(text, "naïve 😀");
}

#[test]
fn a_stop_id_ends_the_choice() {
    let comma = tokenizer().encode("hello,", EncodeOptions::default()).unwrap().pop().unwrap();
    let request = Request { stop_ids: vec![comma], ..greedy(&[50, 51], 50) };
    let found = fake::run(&mut speaking("hello, world", 2), request);
    assert_eq!(only(&found).text, "hello");
    assert_eq!(only(&found).reason, Some(FinishReason::Stop(StopCause::Id(comma))));
}

#[test]
fn ignore_eos_goes_on_to_the_limit() {
    let mut request = greedy(&[50, 51], 30);
    request.sampling.ignore_eos = true;
    let found = fake::run(&mut speaking("hello, world", 2), request);
    assert_eq!((only(&found).ids.len(), &only(&found).reason), (30, &Some(FinishReason::Length)));
    assert!(only(&found).ids.iter().all(|id| !tokenizer().eog_ids().contains(id)));
}

#[test]
fn the_context_is_the_limit_when_none_is_given() {
    let options = EngineOptions { n_ctx: Some(20), block_tokens: 16, ..EngineOptions::default() };
    let mut engine = engine(2, &options, Box::new(hashed));
    let mut request = Request { max_tokens: None, ..greedy(&[7; 12], 0) };
    request.sampling.ignore_eos = true;
    assert_eq!(only(&fake::run(&mut engine, request)).ids.len(), 8);
}

#[test]
fn choices_differ_share_the_prompt_and_repeat_by_seed() {
    let request = Request {
        n: 3,
        sampling: SamplingParams { seed: Some(11), ..SamplingParams::neutral() },
        ..greedy(&[9; 40], 6)
    };
    let mut engine = roomy();
    let found = fake::run(&mut engine, request.clone());
    // 40 prompt rows once, then 5 rows for each of 3 choices.
    assert_eq!(engine.stats().n_rows, 40 + 3 * 5);
    assert_eq!(engine.stats().n_block_copies, 2);
    assert_ne!(found.choices[&0].ids, found.choices[&1].ids);
    assert_ne!(found.choices[&1].ids, found.choices[&2].ids);
    assert_eq!(found, fake::run(&mut roomy(), request));
}

#[test]
fn an_unseeded_request_says_which_seed_repeats_it() {
    let mut request = Request { sampling: SamplingParams::neutral(), ..greedy(&[9; 4], 16) };
    let first = fake::run(&mut roomy(), request.clone());
    request.sampling.seed = Some(first.usage.seed);
    assert_eq!(fake::run(&mut roomy(), request), first);
}

#[test]
fn best_of_returns_the_likeliest_choices_first() {
    let mut all = Request {
        n: 4,
        logprobs: Some(0),
        sampling: SamplingParams { seed: Some(5), ..SamplingParams::neutral() },
        ..greedy(&[9; 4], 8)
    };
    let mean = |choice: &fake::ChoiceOutcome| {
        choice.logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / choice.logprobs.len() as f64
    };
    let mut ranked: Vec<_> = fake::run(&mut roomy(), all.clone()).choices.into_values().collect();
    ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    (all.n, all.best_of) = (2, Some(4));
    let found = fake::run(&mut roomy(), all);
    assert_eq!(found.choices.into_values().collect::<Vec<_>>(), ranked[..2]);
    assert_eq!(found.usage.n_completion, 32);
}

#[test]
fn logprobs_are_the_raw_distributions() {
    let mut request = Request { logprobs: Some(2), ..greedy(&[9; 4], 1) };
    request.sampling.penalties = Penalties { presence: 5.0, ..Penalties::default() };
    request.sampling.temperature = 0.3;
    let mut engine = roomy();
    engine.submit(request).unwrap();
    let events = engine.step();
    let Event::Token { id, logprobs: Some(found), .. } = &events[0] else { panic!("{events:?}") };
    let logits = hashed(&[9; 4]);
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let expected = |id: u32| f64::from(logits[id as usize]) - sum.ln();
    assert_eq!(found.token.id, *id);
    assert_eq!(found.top.len(), 2);
    assert!(found.top[0].logprob >= found.top[1].logprob);
    for token in found.top.iter().chain([&found.token]) {
        assert!((f64::from(token.logprob) - expected(token.id)).abs() < 1e-5);
    }
}

#[test]
fn scores_are_the_prompts_log_probabilities_in_bounded_chunks() {
    let tokens: Vec<u32> = (0..100u32).map(|i| i * 7 % 288).collect();
    let mut engine = roomy();
    let (mut found, mut longest) = (Vec::new(), 0);
    engine
        .score(tokens.clone(), 1, |chunk| {
            longest = longest.max(chunk.len());
            found.extend_from_slice(chunk);
        })
        .unwrap();
    assert!(longest <= EngineOptions::default().max_logit_rows + 1);
    assert_eq!(found.iter().map(|token| token.id).collect::<Vec<_>>(), tokens);
    assert_eq!(found[0].logprobs, None);
    for (i, token) in found.iter().enumerate().skip(1) {
        let logits = hashed(&tokens[..i]);
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = f64::from(logits[tokens[i] as usize]) - sum.ln();
        let logprobs = token.logprobs.as_ref().unwrap();
        assert!((f64::from(logprobs.token.logprob) - expected).abs() < 1e-5);
        assert_eq!(logprobs.top.len(), 1);
    }
    engine.submit(greedy(&[1], 1)).unwrap();
    assert!(matches!(engine.score(tokens, 0, |_| {}), Err(ScoreError::Busy)));
}

#[test]
fn a_panicking_forward_ends_its_batch_and_not_the_engine() {
    let poisoned = |history: &[u32]| {
        assert!(!history.contains(&200), "poisoned token");
        hashed(history)
    };
    let mut engine = engine(8, &EngineOptions::default(), Box::new(poisoned));
    let a = engine.submit(greedy(&[1, 2], 8)).unwrap();
    let b = engine.submit(Request { n: 2, ..greedy(&[1, 200], 8) }).unwrap();
    let mut outcomes = BTreeMap::new();
    fake::finish(&mut engine, &mut outcomes);
    for id in [a, b] {
        for choice in outcomes[&id].choices.values() {
            let Some(FinishReason::Error(reason)) = &choice.reason else { panic!("{choice:?}") };
            assert!(reason.contains("poisoned token"), "{reason}");
        }
    }
    assert_eq!(outcomes[&b].choices.len(), 2);
    assert_eq!(fake::run(&mut engine, greedy(&[1, 2], 8)), fake::run(&mut roomy(), greedy(&[1, 2], 8)));
}

/// Gives the largest logits, and no others.
struct LargestAlone(FakeRunner);

impl Runner for LargestAlone {
    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn run(&mut self, _: &[BlockCopy], _: &Batch) -> Result<Vec<f32>, TensorError> {
        Err(TensorError::DeviceLost { backend: "fake", reason: "logits were read".to_owned() })
    }

    fn run_best(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<Option<u32>>, TensorError> {
        self.0.run_best(copies, batch)
    }

    fn run_largest(
        &mut self,
        copies: &[BlockCopy],
        batch: &Batch,
        n: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        self.0.run_largest(copies, batch, n)
    }
}

#[test]
fn logits_are_read_only_where_somebody_needs_more_than_the_largest() {
    let options = EngineOptions::default();
    let new = || {
        let runner = LargestAlone(FakeRunner::new(64, options.block_tokens, Box::new(hashed)));
        Engine::with_runner(Box::new(runner), fake::tokenizer(), 64, &options).unwrap()
    };
    let plain = greedy(&[1, 2], 8);
    let with = |change: fn(&mut SamplingParams)| {
        let mut request = plain.clone();
        change(&mut request.sampling);
        request
    };
    let lowering = [
        plain.clone(),
        with(|sampling| sampling.ignore_eos = true),
        with(|sampling| sampling.penalties.repeat = 1.5),
        with(|sampling| sampling.logit_bias = vec![(40, -2.0), (41, f32::NEG_INFINITY)]),
    ];
    for request in lowering {
        assert_eq!(fake::run(&mut new(), request.clone()), fake::run(&mut roomy(), request));
    }
    let drawn = with(|sampling| *sampling = SamplingParams { seed: Some(7), ..SamplingParams::default() });
    let read = Request { logprobs: Some(0), ..drawn.clone() };
    let ids = |outcome: Outcome| only(&outcome).ids.clone();
    assert_eq!(
        ids(fake::run(&mut new(), drawn)),
        ids(fake::run(&mut roomy(), read)),
        "seeds give the same tokens"
    );
    let needing = [
        Request { logprobs: Some(0), ..plain.clone() },
        Request { prompt_logprobs: Some(0), ..plain.clone() },
        Request { best_of: Some(2), ..plain.clone() },
        with(|sampling| *sampling = SamplingParams::neutral()),
        with(|sampling| sampling.penalties.repeat = 0.9),
        with(|sampling| {
            sampling.penalties = Penalties { last_n: None, presence: 0.5, ..Penalties::default() }
        }),
        with(|sampling| sampling.logit_bias = vec![(3, 1.0)]),
    ];
    for request in needing {
        let outcome = fake::run(&mut new(), request);
        let reason = outcome.choices[&0].reason.clone();
        assert!(
            matches!(&reason, Some(FinishReason::DeviceLost(why)) if why.contains("logits were read")),
            "{reason:?}"
        );
    }
}

/// Gives what a device with memory of its own gives, and counts how often that was not enough.
struct Remote {
    inner: FakeRunner,
    n_read: Arc<AtomicUsize>,
}

impl Runner for Remote {
    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn run(&mut self, _: &[BlockCopy], _: &Batch) -> Result<Vec<f32>, TensorError> {
        panic!("all logits were read at once")
    }

    fn run_ranked(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<RankedLogits, TensorError> {
        let RankedLogits { rows, logits } = self.inner.run_ranked(copies, batch)?;
        let n_read = self.n_read.clone();
        let logits = Box::new(move |rows: &[u32]| {
            n_read.fetch_add(1, Ordering::Relaxed);
            logits(rows)
        });
        Ok(RankedLogits { rows, logits })
    }
}

#[test]
fn a_device_gives_the_largest_logits_and_all_of_them_only_where_those_do_not_decide() {
    let options = EngineOptions::default();
    // (top_p, min_p, whether more than the 256 largest of 288 are kept)
    for (top_p, min_p, is_flat) in
        [(0.5, 0.0, false), (0.9, 0.05, false), (1.0, 0.2, false), (0.9999, 0.0, true)]
    {
        let n_read = Arc::<AtomicUsize>::default();
        let inner = FakeRunner::new(64, options.block_tokens, Box::new(hashed));
        let runner = Remote { inner, n_read: n_read.clone() };
        let mut engine = Engine::with_runner(Box::new(runner), fake::tokenizer(), 64, &options).unwrap();
        let sampling = |seed| SamplingParams { top_p, min_p, seed: Some(seed), ..SamplingParams::neutral() };
        let request = |seed| Request { sampling: sampling(seed), ..greedy(&[1, 2, 3], 12) };
        let ids: Vec<_> = (0..4).map(|seed| (engine.submit(request(seed)).unwrap(), seed)).collect();
        let mut outcomes = BTreeMap::new();
        fake::finish(&mut engine, &mut outcomes);
        for (id, seed) in ids {
            // Log-probabilities need all logits.
            let expected = fake::run(&mut roomy(), Request { logprobs: Some(0), ..request(seed) });
            let (found, expected) = (only(&outcomes[&id]), only(&expected));
            let is_same = found.text == expected.text && found.reason == expected.reason;
            assert!(is_same, "{top_p} {min_p} {seed}: {found:?} {expected:?}");
        }
        // A cut may be on the edge by chance.
        let n_read = n_read.load(Ordering::Relaxed);
        assert!(if is_flat { n_read > 8 } else { n_read < 3 }, "{top_p} {min_p}: {n_read}");
    }
}

#[test]
fn logits_that_are_no_numbers_end_their_sequence_alone() {
    let broken = |history: &[u32]| if history[0] == 200 { vec![f32::NAN; N_VOCAB] } else { hashed(history) };
    let mut engine = engine(8, &EngineOptions::default(), Box::new(broken));
    let good = engine.submit(greedy(&[1, 2], 8)).unwrap();
    let bad = engine.submit(greedy(&[200, 2], 8)).unwrap();
    let mut outcomes = BTreeMap::new();
    fake::finish(&mut engine, &mut outcomes);
    let Some(FinishReason::Error(reason)) = &only(&outcomes[&bad]).reason else { panic!() };
    assert!(reason.contains("no distribution"), "{reason}");
    assert_eq!(outcomes[&good], fake::run(&mut roomy(), greedy(&[1, 2], 8)));
}

#[test]
fn cancelling_frees_the_blocks_at_once() {
    let mut engine = roomy();
    let id = engine.submit(greedy(&[1; 40], 100)).unwrap();
    let waiting = engine.submit(greedy(&[2; 4], 100)).unwrap();
    engine.step();
    assert!(engine.cancel(id) && engine.cancel(waiting));
    assert!(!engine.cancel(id));
    let blocks = engine.stats().blocks;
    assert_eq!(blocks.n_free, blocks.n_blocks);
    assert!(!engine.is_idle(), "the cancellations are still to be reported");
    let finishes = engine.step().into_iter().filter(|e| matches!(e, Event::Finish { .. })).count();
    assert_eq!((finishes, engine.is_idle()), (2, true));
}

#[test]
fn a_request_that_cannot_be_served_is_refused_with_the_numbers() {
    let options = EngineOptions {
        n_ctx: Some(16),
        block_tokens: 16,
        max_seqs: 2,
        max_waiting: 1,
        ..EngineOptions::default()
    };
    let mut engine = engine(1, &options, Box::new(hashed));
    let mut check = |request: Request, expected: &str| {
        assert_eq!(engine.submit(request).unwrap_err().to_string(), expected);
    };
    check(greedy(&[], 1), "prompt is empty");
    check(Request::new(Prompt::Text(String::new(), EncodeOptions::default())), "prompt is empty");
    check(greedy(&[1; 16], 1), "prompt has 16 tokens, but the context holds 16 with the answer");
    check(greedy(&[1, 288], 1), "prompt names token 288, but the vocabulary has 288");
    let base = || greedy(&[1], 1);
    check(
        Request { stop_ids: vec![999], ..base() },
        "stop_token_ids names token 999, but the vocabulary has 288",
    );
    check(Request { n: 0, ..base() }, "n is 0 and best_of 0, but 1 <= n <= best_of must hold");
    check(
        Request { n: 2, best_of: Some(1), ..base() },
        "n is 2 and best_of 1, but 1 <= n <= best_of must hold",
    );
    check(Request { n: 3, ..base() }, "3 choices asked for, but at most 2 sequences run at a time");
    check(Request { stop: vec![String::new()], ..base() }, "stop contains an empty string");
    check(
        Request { stop: vec!["x".to_owned(); 33], ..base() },
        "stop is 33 long, but at most 32 are allowed",
    );
    check(Request { logprobs: Some(101), ..base() }, "logprobs is 101 long, but at most 100 are allowed");
    let sampling = SamplingParams { logit_bias: vec![(288, 1.0)], ..SamplingParams::greedy() };
    check(Request { sampling, ..base() }, "logit_bias names token 288, but the vocabulary has 288");
    let sampling = SamplingParams { top_p: 0.0, ..SamplingParams::greedy() };
    let refused = engine.submit(Request { sampling, ..base() }).unwrap_err();
    assert!(matches!(refused, SubmitError::Sampling(ParamError { field: "top_p", .. })));

    assert_eq!(only(&fake::run(&mut engine, greedy(&[1; 16], 0))).reason, Some(FinishReason::Length));
    engine.submit(base()).unwrap();
    let refused = engine.submit(base()).unwrap_err();
    assert!(matches!(refused, SubmitError::QueueFull { n_waiting: 1, max_waiting: 1 }));
}

#[test]
fn options_that_make_no_sense_are_refused_by_name() {
    let check = |options: EngineOptions, expected: &str| {
        let runner = Box::new(fake::FakeRunner::new(4, 16, Box::new(hashed)));
        let refused = Engine::with_runner(runner, tokenizer(), 4, &options).unwrap_err();
        assert_eq!(refused.to_string(), expected);
    };
    let base = EngineOptions { block_tokens: 16, ..EngineOptions::default() };
    check(EngineOptions { block_tokens: 24, ..base }, "block_tokens is 24, but must be 16 or 32");
    check(EngineOptions { max_seqs: 0, ..base }, "max_seqs is 0, but must be 1 or more");
    check(
        EngineOptions { max_batch_tokens: 8, ..base },
        "max_batch_tokens is 8, but must be at least max_seqs",
    );
    check(EngineOptions { max_logit_rows: 8, ..base }, "max_logit_rows is 8, but must be at least max_seqs");
    check(
        EngineOptions { kv_dtype: mlxr_tensor::DType::Q5_0, ..base },
        "kv_dtype is Q5_0, but must be f32, f16, bf16, q8_0, q4_0 or fp8",
    );
    let runner = Box::new(fake::FakeRunner::new(4, 16, Box::new(hashed)));
    let long = EngineOptions { n_ctx: Some(65), ..base };
    let refused = Engine::with_runner(runner, tokenizer(), 4, &long).unwrap_err();
    assert!(matches!(refused, EngineError::KvTooSmall { n_tokens: 64, n_ctx: 65, .. }));
}

#[test]
fn dry_breaks_a_loop_that_greedy_text_would_stay_in() {
    // The model repeats its last four tokens for ever, the runner-up is a counter.
    let looping = |history: &[u32]| {
        let mut logits = vec![0.0; N_VOCAB];
        logits[100 + history.len() % 4] = 5.0;
        logits[150 + history.len() % 100] = 4.0;
        logits
    };
    let mut request = greedy(&[9; 1], 40);
    let mut looped = engine(8, &EngineOptions::default(), Box::new(looping));
    let plain = fake::run(&mut looped, request.clone());
    assert!(only(&plain).ids.iter().all(|&id| id < 150));
    request.sampling.dry = Dry { multiplier: 0.8, ..Dry::default() };
    let broken = fake::run(&mut looped, request);
    assert!(only(&broken).ids.iter().any(|&id| id >= 150));
}
