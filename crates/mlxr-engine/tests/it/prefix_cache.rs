//! What is reused, what is not, and what the cache says about itself.

use std::collections::BTreeMap;

use mlxr_engine::{Engine, EngineOptions, Event, FinishReason, PrefixStop, Prompt, Request, SamplingParams};
use mlxr_text::EncodeOptions;

use crate::fake::{self, engine, forgetful, hashed, tokenizer};

/// Blocks of 16, as many as asked for, no threshold.
fn small(n_blocks: usize) -> Engine {
    engine(n_blocks, &options(), Box::new(hashed))
}

fn options() -> EngineOptions {
    EngineOptions { block_tokens: 16, cache_above_percent: 100, ..EngineOptions::default() }
}

fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request {
        sampling: SamplingParams { seed: Some(1), ignore_eos: true, ..SamplingParams::greedy() },
        max_tokens: Some(max_tokens),
        ..Request::new(Prompt::Tokens(prompt))
    }
}

fn text(n: u32, step: u32) -> Vec<u32> {
    (0..n).map(|i| 3 + (i * step) % 280).collect()
}

#[test]
fn a_repeated_prompt_computes_its_last_block_alone() {
    let mut engine = small(16);
    let expected = fake::run(&mut forgetful(), greedy(text(50, 7), 4));
    for (n_cached, n_rows) in [(0, 50 + 3), (48, 2 + 3)] {
        let before = engine.stats().n_rows;
        let found = fake::run(&mut engine, greedy(text(50, 7), 4));
        assert_eq!((&found, found.n_cached, engine.stats().n_rows - before), (&expected, n_cached, n_rows));
    }
    // A whole number of blocks: the last token has to be computed, and with it its block.
    fake::run(&mut engine, greedy(text(64, 7), 1));
    assert_eq!(fake::run(&mut engine, greedy(text(64, 7), 1)).n_cached, 48);
    let stats = engine.cache_stats();
    assert_eq!((stats.n_lookups, stats.n_hit_tokens), (4, 48 + 48 + 48));
    assert_eq!((stats.n_blocks, stats.n_idle_blocks, stats.n_evictions), (4, 4, 0));
}

#[test]
fn an_answer_is_found_when_the_conversation_goes_on() {
    let mut engine = small(16);
    let mut history = text(20, 11);
    let first = fake::run(&mut engine, greedy(history.clone(), 30));
    history.extend(&first.choices[&0].ids);
    history.extend([5, 6, 7]);
    let second = fake::run(&mut engine, greedy(history.clone(), 5));
    // 20 of the prompt and 29 of the answer were stored: the last token never was.
    assert_eq!(second.n_cached, 48);
    assert_eq!(second, fake::run(&mut forgetful(), greedy(history, 5)));
}

#[test]
fn those_who_come_together_share_what_the_first_has_computed() {
    // 16 rows per step: the second one's beginning is there when its turn comes.
    let options = EngineOptions { max_batch_tokens: 16, max_seqs: 4, ..options() };
    let mut engine = engine(16, &options, Box::new(hashed));
    let ids = [0, 1].map(|_| engine.submit(greedy(text(100, 7), 3)).unwrap());
    let mut outcomes = BTreeMap::new();
    fake::finish(&mut engine, &mut outcomes);
    assert_eq!(outcomes[&ids[0]].n_cached, 0);
    assert_eq!(outcomes[&ids[1]].n_cached, 96);
    for id in ids {
        assert_eq!(outcomes[&id], fake::run(&mut forgetful(), greedy(text(100, 7), 3)));
    }
}

#[test]
fn what_was_computed_twice_is_kept_once() {
    let mut engine = small(16);
    for _ in 0..2 {
        engine.submit(greedy(text(40, 7), 4)).unwrap();
    }
    engine.step();
    let stats = engine.stats();
    assert_eq!((stats.n_rows, stats.cache.n_blocks), (80, 2));
    // Two blocks shared and a partial one for each.
    assert_eq!((stats.blocks.n_shared, stats.blocks.n_blocks - stats.blocks.n_free), (2, 4));
    fake::finish(&mut engine, &mut BTreeMap::new());
}

#[test]
fn a_preempted_request_finds_what_is_left_of_it() {
    let mut engine = small(5);
    let (a, b) = (greedy(text(30, 7), 30), greedy(text(46, 11), 4));
    let ids = [a.clone(), b.clone()].map(|request| engine.submit(request).unwrap());
    let mut outcomes = BTreeMap::new();
    fake::finish(&mut engine, &mut outcomes);
    assert!(engine.stats().n_preemptions > 0);
    assert!(engine.cache_stats().n_hit_tokens > 0);
    // What it had computed itself is not called cached.
    assert_eq!((outcomes[&ids[0]].n_cached, outcomes[&ids[1]].n_cached), (0, 0));
    assert_eq!(outcomes[&ids[0]], fake::run(&mut forgetful(), a));
    assert_eq!(outcomes[&ids[1]], fake::run(&mut forgetful(), b));
}

#[test]
fn cached_blocks_give_way_to_whoever_needs_them() {
    let mut engine = small(6);
    for step in [7, 11] {
        fake::run(&mut engine, greedy(text(40, step), 1));
    }
    let stats = engine.stats();
    assert_eq!((stats.cache.n_idle_blocks, stats.blocks.n_free), (4, 6));
    let whole = greedy(text(90, 13), 6);
    engine.submit(whole.clone()).unwrap();
    engine.step();
    assert_eq!((engine.stats().n_running, engine.stats().blocks.n_free), (1, 0));
    assert_eq!(engine.cache_stats().n_evictions, 4);
    fake::finish(&mut engine, &mut BTreeMap::new());
    assert_eq!(fake::run(&mut engine, whole.clone()), fake::run(&mut forgetful(), whole));
}

#[test]
fn above_the_threshold_idle_blocks_go_until_the_lower_one() {
    let options = EngineOptions { cache_above_percent: 90, cache_down_to_percent: 70, ..options() };
    let mut engine = engine(20, &options, Box::new(hashed));
    for i in 0..8 {
        fake::run(&mut engine, greedy(text(33, 2 * i + 3), 1));
    }
    // Two blocks each, and a partial one while it runs: never more than nine tenths of 20.
    assert_eq!((engine.cache_stats().n_idle_blocks, engine.cache_stats().n_evictions), (16, 0));
    fake::run(&mut engine, greedy(text(33, 91), 1));
    // In its step 16 idle and 3 used; down to 14 of 20.
    assert_eq!((engine.cache_stats().n_idle_blocks, engine.cache_stats().n_evictions), (13, 5));
    // The oldest went first.
    assert_eq!(fake::run(&mut engine, greedy(text(33, 3), 1)).n_cached, 0);
    assert_eq!(fake::run(&mut engine, greedy(text(33, 91), 1)).n_cached, 32);
}

#[test]
fn scored_prompts_are_computed_whole() {
    let mut engine = small(16);
    let scored = Request { prompt_logprobs: Some(1), ..greedy(text(50, 7), 3) };
    let expected = fake::run(&mut forgetful(), scored.clone());
    fake::run(&mut engine, greedy(text(50, 7), 3));
    for _ in 0..2 {
        let found = fake::run(&mut engine, scored.clone());
        assert_eq!((&found, found.n_cached), (&expected, 0));
    }
}

#[test]
fn choices_share_a_cached_prompt() {
    let mut engine = small(16);
    let request = Request {
        n: 3,
        sampling: SamplingParams { seed: Some(11), ignore_eos: true, ..SamplingParams::neutral() },
        ..greedy(text(40, 9), 30)
    };
    let expected = fake::run(&mut forgetful(), request.clone());
    for n_cached in [0, 32] {
        let found = fake::run(&mut engine, request.clone());
        assert_eq!((&found, found.n_cached), (&expected, n_cached));
    }
}

#[test]
fn nothing_is_found_after_clearing_also_while_somebody_runs() {
    let mut engine = small(16);
    fake::run(&mut engine, greedy(text(50, 7), 1));
    engine.submit(greedy(text(50, 7), 40)).unwrap();
    engine.step();
    assert_eq!(engine.clear_cache(), 3);
    assert_eq!(engine.clear_cache(), 0);
    fake::finish(&mut engine, &mut BTreeMap::new());
    assert_eq!(engine.cache_stats().n_blocks, 0);
    let expected = fake::run(&mut forgetful(), greedy(text(50, 7), 2));
    for n_cached in [0, 48] {
        let found = fake::run(&mut engine, greedy(text(50, 7), 2));
        assert_eq!((&found, found.n_cached), (&expected, n_cached));
    }
}

#[test]
fn a_failed_forward_leaves_nothing_to_be_found() {
    let poisoned = |history: &[u32]| {
        assert!(!history.contains(&287), "poisoned token");
        hashed(history)
    };
    let mut engine = engine(16, &options(), Box::new(poisoned));
    fake::run(&mut engine, greedy(text(50, 7), 1));
    let mut bad = text(50, 7);
    bad.push(287);
    let failed = fake::run(&mut engine, greedy(bad, 1));
    assert!(matches!(failed.choices[&0].reason, Some(FinishReason::Error(_))));
    assert_eq!(engine.cache_stats().n_blocks, 0);
    assert_eq!(fake::run(&mut engine, greedy(text(50, 7), 1)).n_cached, 0);
}

#[test]
fn the_cache_can_be_switched_off() {
    let mut engine = engine(16, &EngineOptions { prefix_cache: false, ..options() }, Box::new(hashed));
    for _ in 0..2 {
        assert_eq!(fake::run(&mut engine, greedy(text(50, 7), 1)).n_cached, 0);
    }
    assert!(!engine.cache_stats().is_on);
    let explained = engine.explain_prefix(&Prompt::Tokens(text(50, 7))).unwrap();
    assert_eq!((explained.n_matched, explained.stop), (0, PrefixStop::Off));
}

#[test]
fn an_explanation_says_where_the_prompt_leaves_what_is_cached() {
    let mut engine = small(16);
    let prompt = |text: &str| Prompt::Text(text.to_owned(), EncodeOptions::default());
    let first = "The quick brown fox jumps over the lazy dog and sleeps.";
    engine.submit(Request { prompt: prompt(first), ..greedy(Vec::new(), 1) }).unwrap();
    fake::finish(&mut engine, &mut BTreeMap::new());
    let second = "The quick brown fox jumps under the lazy dog.";
    let found = engine.explain_prefix(&prompt(second)).unwrap();
    let ids = |text: &str| tokenizer().encode(text, EncodeOptions::default()).unwrap();
    let place = ids(first).iter().zip(ids(second)).take_while(|(a, b)| **a == *b).count();
    assert_eq!(
        (found.n_prompt, found.n_matched, found.block_tokens),
        (ids(second).len(), place / 16 * 16, 16)
    );
    assert_eq!(found.token_idx, place);
    let characters = tokenizer().decode(&ids(second)[..place], true).chars().count();
    assert_eq!(found.char_idx, characters);
    assert!(matches!(found.stop, PrefixStop::Diverges { .. }));
    let (cached, given) = found.differing.unwrap();
    assert_eq!((cached.id, given.id), (ids(first)[place], ids(second)[place]));
    let rest: String = second.chars().skip(found.char_idx).collect();
    assert!(rest.starts_with(&given.text) && rest.contains("under the lazy"), "{rest}");
    let unseen = engine.explain_prefix(&prompt(&"x".repeat(20))).unwrap();
    assert_eq!((unseen.n_matched, unseen.stop), (0, PrefixStop::NeverSeen));
    assert!(engine.explain_prefix(&Prompt::Tokens(Vec::new())).is_err());
}

#[test]
fn cancelling_in_the_middle_of_a_prompt_keeps_what_was_computed() {
    let options = EngineOptions { max_batch_tokens: 32, max_logit_rows: 32, ..options() };
    let mut engine = engine(16, &options, Box::new(hashed));
    let id = engine.submit(greedy(text(100, 7), 3)).unwrap();
    engine.step();
    engine.cancel(id);
    let events = engine.step();
    assert!(events.iter().any(|event| matches!(event, Event::Finish { .. })));
    assert_eq!(engine.check_integrity(), Ok(()));
    let found = fake::run(&mut engine, greedy(text(100, 7), 3));
    assert_eq!(found.n_cached, 32);
    assert_eq!(found, fake::run(&mut forgetful(), greedy(text(100, 7), 3)));
}
