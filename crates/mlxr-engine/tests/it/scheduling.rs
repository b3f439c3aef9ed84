//! The same tokens whatever the schedule: batches, chunks, blocks, forks, preemption, cancellation of others, and
//! whatever was cached.

use std::collections::BTreeMap;

use mlxr_engine::{EngineOptions, FinishReason, Prompt, Request, RequestId, SamplingParams};
use proptest::prelude::*;

use crate::fake::{self, Outcome, engine, forgetful, hashed};

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
    ) {
        let mut alone = forgetful();
        let expected: Vec<Outcome> =
            requests.iter().map(|request| fake::run(&mut alone, request.clone())).collect();

        let mut together = engine(n_blocks, &options, Box::new(hashed));
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
fn a_full_arena_preempts_and_recomputes() {
    let options =
        EngineOptions { n_ctx: Some(48), block_tokens: 16, max_seqs: 4, ..EngineOptions::default() };
    let mut small = engine(4, &options, Box::new(hashed));
    let request = |first: u32| Request {
        sampling: SamplingParams { seed: Some(3), ..SamplingParams::default() },
        max_tokens: Some(30),
        ..Request::new(Prompt::Tokens((first..first + 10).collect()))
    };
    let ids: Vec<RequestId> = (0..4).map(|i| small.submit(request(i * 20)).unwrap()).collect();
    let mut outcomes = BTreeMap::new();
    fake::finish(&mut small, &mut outcomes);
    assert!(small.stats().n_preemptions > 0);
    for (i, id) in ids.iter().enumerate() {
        assert_eq!(outcomes[id], fake::run(&mut forgetful(), request(i as u32 * 20)));
    }
}
