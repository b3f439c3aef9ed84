//! The same tokens whatever the schedule: batches, chunks, blocks, forks, preemption, cancellation of others, and
//! whatever was cached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mlxr_engine::{
    Engine, EngineOptions, Event, FinishReason, OverflowStats, Prompt, Request, RequestId, Runner,
    SamplingParams,
};
use mlxr_tensor::{Batch, BlockCopy, TensorError};
use proptest::prelude::*;

use crate::fake::{self, FakeRunner, Outcome, engine, forgetful, hashed};

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let sampling = prop_oneof![
        Just(SamplingParams::greedy()),
        any::<u64>().prop_map(|seed| SamplingParams { seed: Some(seed), ..SamplingParams::default() }),
    ];
    // Prompts that begin like others, at block boundaries and between, or like nothing else.
    let family = |n: u32| (0..60).map(move |i| (i * 7 + n * 31) % fake::N_VOCAB as u32);
    let prompt = (0u32..3, 0usize..56, proptest::collection::vec(0u32..fake::N_VOCAB as u32, 1..10))
        .prop_map(move |(n, n_common, own)| {
            family(n).take(n_common).chain(own).take(60).collect::<Vec<u32>>()
        });
    let request =
        (prompt, sampling, 0usize..12, 1usize..4, 0usize..3, (any::<bool>(), any::<bool>(), -2i32..3))
            .prop_map(|(prompt, mut sampling, max_tokens, n, extra, (logprobs, echo, priority))| {
                sampling.seed.get_or_insert(1);
                Request {
                    sampling,
                    max_tokens: Some(max_tokens),
                    n,
                    best_of: Some((n + extra).min(4)),
                    logprobs: logprobs.then_some(0),
                    prompt_logprobs: echo.then_some(2),
                    priority,
                    ..Request::new(Prompt::Tokens(prompt))
                }
            });
    proptest::collection::vec(request, 1..7)
}

fn options() -> impl Strategy<Value = (usize, EngineOptions)> {
    (4usize..40, 4usize..12, prop_oneof![Just((16, 5..12usize)), Just((32, 3..8usize))]).prop_flat_map(
        |(max_batch_tokens, max_logit_rows, (block_tokens, n_blocks))| {
            n_blocks.prop_map(move |n_blocks| {
                let options = EngineOptions {
                    n_ctx: Some(72),
                    block_tokens,
                    max_batch_tokens,
                    max_logit_rows,
                    max_seqs: 4,
                    max_waiting: 8,
                    aging_steps: 4,
                    cache_above_percent: if n_blocks % 2 == 0 { 90 } else { 100 },
                    ..EngineOptions::default()
                };
                (n_blocks, options)
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn company_and_schedule_change_nothing(
        requests in requests(),
        (n_blocks, options) in options(),
        cancelled in proptest::option::of((any::<usize>(), 0usize..20)),
        n_kept in 0usize..8,
    ) {
        let mut alone = forgetful();
        let expected: Vec<Outcome> =
            requests.iter().map(|request| fake::run(&mut alone, request.clone())).collect();

        let mut together = engine(n_blocks, &options, Box::new(hashed)).with_overflow(n_kept);
        let ids: Vec<RequestId> =
            requests.iter().map(|request| together.submit(request.clone()).unwrap()).collect();
        let mut outcomes = BTreeMap::new();
        let victim = cancelled.map(|(i, after)| (ids[i % ids.len()], after));
        if let Some((victim, after)) = victim {
            for _ in 0..after {
                fake::record(&mut outcomes, together.step());
            }
            together.cancel(victim);
        }
        fake::finish(&mut together, &mut outcomes);

        for ((id, expected), request) in ids.iter().zip(&expected).zip(&requests) {
            let found = &outcomes[id];
            prop_assert_eq!(found.n_finishes, 1);
            prop_assert_eq!(found.choices.len(), request.n);
            let is_victim = victim.is_some_and(|(victim, _)| victim == *id);
            let is_cancelled = |found: &Outcome| {
                found.choices.values().any(|c| c.reason == Some(FinishReason::Cancelled))
            };
            // A choice that best_of ranked away may be the one that was cut short.
            if is_victim && (is_cancelled(found) || found.usage != expected.usage) {
                if request.best_of == Some(request.n) {
                    for (choice, expected) in &expected.choices {
                        prop_assert!(expected.ids.starts_with(&found.choices[choice].ids));
                    }
                }
            } else {
                prop_assert_eq!(found, expected);
            }
        }

        // Once more, with what the first round has left behind.
        let ids: Vec<RequestId> =
            requests.iter().map(|request| together.submit(request.clone()).unwrap()).collect();
        let mut outcomes = BTreeMap::new();
        fake::finish(&mut together, &mut outcomes);
        for (id, expected) in ids.iter().zip(&expected) {
            prop_assert_eq!(&outcomes[id], expected);
        }
    }
}

#[test]
fn a_full_arena_preempts_and_what_is_not_kept_elsewhere_is_computed_again() {
    let options = EngineOptions {
        n_ctx: Some(48),
        block_tokens: 16,
        max_seqs: 4,
        prefix_cache: false,
        ..EngineOptions::default()
    };
    let request = |first: u32| Request {
        sampling: SamplingParams { seed: Some(3), ..SamplingParams::default() },
        max_tokens: Some(30),
        ..Request::new(Prompt::Tokens((first..first + 10).collect()))
    };
    for (max_kept, is_enough) in [(0, false), (1, false), (8, true)] {
        let mut small = engine(4, &options, Box::new(hashed)).with_overflow(max_kept);
        let ids: Vec<RequestId> = (0..4).map(|i| small.submit(request(i * 20)).unwrap()).collect();
        let mut outcomes = BTreeMap::new();
        fake::finish(&mut small, &mut outcomes);
        // The last token of an answer is not run.
        let usage = outcomes.values().map(|outcome| outcome.usage);
        let n_needed: usize = usage.map(|usage| usage.n_prompt + usage.n_completion - 1).sum();
        let stats = small.stats();
        assert!(stats.n_preemptions > 0);
        for (i, id) in ids.iter().enumerate() {
            assert_eq!(outcomes[id], fake::run(&mut forgetful(), request(i as u32 * 20)));
        }
        let OverflowStats { max_blocks, n_blocks, n_out, n_in } = stats.overflow;
        assert_eq!((max_blocks, n_blocks, n_in), (max_kept, 0, n_out), "what went out came back");
        assert_eq!(n_out > 0, max_kept > 0);
        assert_eq!(
            stats.n_rows == n_needed as u64,
            is_enough,
            "{} rows of {n_needed} needed ones",
            stats.n_rows
        );
    }
}

#[test]
fn what_is_kept_of_a_sequence_goes_with_it() {
    let options =
        EngineOptions { n_ctx: Some(48), max_seqs: 4, prefix_cache: false, ..EngineOptions::default() };
    let mut small = engine(3, &options, Box::new(hashed)).with_overflow(8);
    let request = |first: u32| Request {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(30),
        ..Request::new(Prompt::Tokens((first..first + 12).collect()))
    };
    let ids: Vec<RequestId> = (0..3).map(|i| small.submit(request(i * 20)).unwrap()).collect();
    let mut outcomes = BTreeMap::new();
    while small.stats().overflow.n_blocks == 0 {
        fake::record(&mut outcomes, small.step());
    }
    for id in ids {
        small.cancel(id);
    }
    fake::finish(&mut small, &mut outcomes);
    assert_eq!(small.stats().overflow.n_blocks, 0);
}

/// A runner that takes time by a clock of its own: `fixed` for a step, `per_row` for each of its rows.
struct Timed {
    inner: FakeRunner,
    clock: Arc<AtomicU64>,
    fixed_us: u64,
    per_row_us: u64,
}

impl Runner for Timed {
    fn n_vocab(&self) -> usize {
        self.inner.n_vocab()
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        let time_us = self.fixed_us + self.per_row_us * batch.n_rows() as u64;
        self.clock.fetch_add(time_us, Ordering::Relaxed);
        self.inner.run(copies, batch)
    }
}

/// Keeps an engine under load for so many steps. Returns the 95th percentile of the time between two tokens of a
/// request in the second half, in microseconds, and the tokens of that half.
fn itl_under_load(target_itl: Option<Duration>, fixed_us: u64, per_row_us: u64) -> (u64, usize) {
    let options = EngineOptions { max_seqs: 16, max_waiting: 64, target_itl, ..EngineOptions::default() };
    let clock = Arc::new(AtomicU64::new(0));
    let inner = FakeRunner::new(512, options.block_tokens, Box::new(hashed));
    let runner = Timed { inner, clock: clock.clone(), fixed_us, per_row_us };
    let (start, by) = (Instant::now(), clock.clone());
    let mut engine = Engine::with_runner(Box::new(runner), fake::tokenizer(), 512, &options)
        .unwrap()
        .with_clock(Arc::new(move || start + Duration::from_micros(by.load(Ordering::Relaxed))));
    let mut last_tokens = BTreeMap::new();
    let (mut times, mut n_submitted) = (Vec::new(), 0u32);
    let n_steps = 4000;
    for step in 0..n_steps {
        while engine.stats().n_waiting < 4 {
            // No two prompts alike, so that none is cached.
            let prompt = (0..100 + n_submitted % 200).map(|i| (i * 7 + n_submitted * 13) % 280).collect();
            let request = Request {
                sampling: SamplingParams { seed: Some(1), ignore_eos: true, ..SamplingParams::default() },
                max_tokens: Some(40),
                ..Request::new(Prompt::Tokens(prompt))
            };
            engine.submit(request).unwrap();
            n_submitted += 1;
        }
        for event in engine.step() {
            let Event::Token { request, .. } = event else { continue };
            let now = clock.load(Ordering::Relaxed);
            if let Some(last) = last_tokens.insert(request, now)
                && step >= n_steps / 2
            {
                times.push(now - last);
            }
        }
    }
    times.sort_unstable();
    (times[times.len() * 95 / 100], times.len())
}

#[test]
fn the_batch_grows_only_while_tokens_come_in_time() {
    // A prompt takes what a step has and makes everybody wait.
    let (p95_us, _) = itl_under_load(None, 1000, 100);
    assert!(p95_us > 20_000, "{p95_us}");
    let (p95_us, n_tokens) = itl_under_load(Some(Duration::from_millis(10)), 1000, 100);
    assert!((7_000..=11_000).contains(&p95_us), "{p95_us}");
    // A few sequences still run side by side.
    assert!(n_tokens > 3 * 2000, "{n_tokens}");
    // A target out of reach still lets one sequence run at a time.
    let (p95_us, n_tokens) = itl_under_load(Some(Duration::from_micros(10)), 1000, 100);
    assert!(p95_us <= 3_000 && n_tokens > 500, "{p95_us} {n_tokens}");
}
