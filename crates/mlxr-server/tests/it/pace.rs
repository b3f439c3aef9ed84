//! A target for the time between two tokens, as a server's clients see it.

use std::time::Duration;

use mlxr_engine::EngineOptions;
use mlxr_server::Limits;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{TINY, app_with, ask_json, get};

const N_REQUESTS: usize = 8;
/// Of each request: 3 tokens of prompt and 100 of answer, the last of which nobody looks back at.
const BLOCKS: usize = 102_usize.div_ceil(16);

/// The texts of requests that come together, the model's statistics, and the most blocks that were in use.
async fn side_by_side(target_itl: Option<Duration>) -> (Vec<String>, Value, usize) {
    let options = EngineOptions { target_itl, block_tokens: 16, ..EngineOptions::default() };
    let app = app_with(options, Limits::default());
    // In memory before the first of them comes.
    let lease = app.models.acquire(TINY).await.unwrap();
    let mut asking = JoinSet::new();
    for i in 0..N_REQUESTS {
        let app = app.clone();
        let body = json!({
            "model": TINY, "prompt": [i, 6, 7], "max_tokens": 100, "ignore_eos": true, "temperature": 0.9, "seed": i,
        });
        asking.spawn(async move { (i, ask_json(&app, "/v1/completions", body).await) });
    }
    let mut texts = vec![String::new(); N_REQUESTS];
    while let Some(answer) = asking.join_next().await {
        let (i, answer) = answer.unwrap();
        texts[i] = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    }
    let stats = get(&app, "/mlxr/v1/stats").await.json()["models"][0].clone();
    (texts, stats, lease.engine.stats().blocks.peak_used)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_decides_how_many_run_side_by_side_and_not_what_they_say() {
    let (texts, stats, _) = side_by_side(None).await;
    assert!(stats["pace"].is_null(), "{stats}");

    // Out of reach: one after the other.
    let (one_by_one, stats, n_blocks) = side_by_side(Some(Duration::from_nanos(1))).await;
    assert_eq!(one_by_one, texts);
    assert_eq!((&stats["pace"]["max_seqs"], n_blocks), (&json!(1), BLOCKS), "{stats}");
    assert!(stats["pace"]["p95_ms"].as_f64() > stats["pace"]["target_ms"].as_f64(), "{stats}");

    // Within reach: more and more together.
    let (together, stats, n_blocks) = side_by_side(Some(Duration::from_secs(3600))).await;
    assert_eq!(together, texts);
    assert_eq!(stats["pace"]["target_ms"], 3_600_000.0);
    assert!(stats["pace"]["max_seqs"].as_u64() > Some(2) && n_blocks > 2 * BLOCKS, "{n_blocks} {stats}");
}
