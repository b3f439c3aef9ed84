//! Our own routes.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use mlxr_api::native::config::{ConfigReport, SettingReport};
use mlxr_engine::EngineOptions;
use mlxr_server::{App, KeepAlive, Limits, LogRing, Phase, Surroundings};
use serde_json::{Value, json};
use tracing_subscriber::layer::SubscriberExt;

use crate::harness::{
    Answer, HOUSE, ROOMY, TINY, app, app_with, ask, ask_json, assert_idle, get, models, post, send, until,
};

fn delete(path: &str) -> Request<Body> {
    Request::delete(path).body(Body::empty()).unwrap()
}

fn endless(model: &str) -> Value {
    json!({"model": model, "prompt": [5, 6, 7], "max_tokens": 400, "ignore_eos": true, "stream": true})
}

/// The error's code, after its status was compared.
fn code(answer: &Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{}", answer.text);
    let body = answer.json();
    let error = body["error"].as_object().unwrap();
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert!(error.keys().all(|key| ["code", "message", "hint"].contains(&key.as_str())), "{}", answer.text);
    error["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn models_are_loaded_listed_and_unloaded() {
    let app = app();
    let list = get(&app, "/mlxr/v1/models").await.json();
    assert_eq!(list["models"][0], json!({"name": HOUSE, "is_default": true, "loaded": null}));
    assert_eq!(list["memory"]["used_bytes"], 0);
    let loaded =
        ask_json(&app, "/mlxr/v1/models/load", json!({"model": "tiny:latest", "keep_alive": "1h"})).await;
    assert_eq!((&loaded["was_loaded"], &loaded["model"]["name"]), (&json!(false), &json!(TINY)));
    let residence = &loaded["model"]["loaded"];
    assert_eq!((&residence["n_leases"], &residence["keep_alive_s"]), (&json!(0), &json!(3600.0)));
    assert!(residence["expires_in_s"].as_f64().unwrap() > 3590.0, "{residence}");
    let plan = &residence["plan"];
    let parts = ["weights_bytes", "kv_bytes", "step_bytes"].map(|part| plan[part].as_u64().unwrap());
    assert_eq!(plan["total_bytes"], parts.iter().sum::<u64>());
    let list = get(&app, "/mlxr/v1/models").await.json();
    assert_eq!(list["memory"]["used_bytes"], plan["total_bytes"]);
    assert_eq!(list["memory"]["free_bytes"], ROOMY.limit_bytes - plan["total_bytes"].as_u64().unwrap());
    let again = ask_json(&app, "/mlxr/v1/models/load", json!({"model": TINY})).await;
    assert_eq!(again["was_loaded"], true);
    let gone = ask_json(&app, "/mlxr/v1/models/unload", json!({"model": TINY})).await;
    assert_eq!((&gone["was_loaded"], &gone["memory"]["used_bytes"]), (&json!(true), &json!(0)));
    let gone = ask_json(&app, "/mlxr/v1/models/unload", json!({"model": TINY})).await;
    assert_eq!(gone["was_loaded"], false);
    assert!(app.models.resident().is_empty());
}

#[tokio::test]
async fn a_model_in_use_goes_only_by_force() {
    let app = app();
    let response = send(&app, post("/v1/completions", endless(HOUSE))).await;
    let refused = ask(&app, post("/mlxr/v1/models/unload", json!({"model": HOUSE}))).await;
    assert_eq!(code(&refused, 409), "model_busy");
    assert!(refused.json()["error"]["hint"].as_str().unwrap().contains("force"));
    let body = json!({"model": HOUSE, "force": true});
    let gone = ask_json(&app, "/mlxr/v1/models/unload", body).await;
    assert_eq!((&gone["was_loaded"], &gone["n_cancelled"]), (&json!(true), &json!(1)));
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&text).contains("[DONE]"), "it was cut short");
    assert!(app.models.resident().is_empty());
    ask_json(&app, "/v1/completions", json!({"model": HOUSE, "prompt": "a", "max_tokens": 1})).await;
}

#[tokio::test]
async fn a_plan_is_what_loading_takes() {
    let app = app();
    let plan = ask_json(&app, "/mlxr/v1/plan", json!({"model": TINY})).await;
    assert!(app.models.resident().is_empty(), "a plan loads nothing");
    assert_eq!(
        (&plan["fits"], &plan["fits_now"], &plan["kv_type"]),
        (&json!(true), &json!(true), &json!("f16"))
    );
    let loaded = ask_json(&app, "/mlxr/v1/models/load", json!({"model": TINY})).await;
    assert_eq!(loaded["model"]["loaded"]["plan"], plan["plan"]);
    let stats = get(&app, "/mlxr/v1/stats").await.json();
    assert_eq!(stats["models"][0]["n_blocks"], plan["n_blocks"]);
    // Twice the bytes per value, half the context: as much.
    let body = json!({"model": TINY, "n_ctx": 256, "kv_type": "f32"});
    let other = ask_json(&app, "/mlxr/v1/plan", body).await;
    assert_eq!(other["plan"]["kv_bytes"], plan["plan"]["kv_bytes"]);
    assert_eq!(other["n_full_seqs"], plan["n_full_seqs"]);
    let huge = ask_json(&app, "/mlxr/v1/plan", json!({"model": TINY, "kv_bytes": 1_u64 << 40})).await;
    assert_eq!((&huge["fits"], &huge["fits_now"]), (&json!(false), &json!(false)));
    for (extra, text) in [
        (json!({"n_ctx": 1_000_000}), "at most"),
        (json!({"n_ctx": 0}), "n_ctx is 0"),
        (json!({"kv_type": "q5_0"}), "f32, f16, bf16, q8_0, q4_0 or fp8"),
        (json!({"kv_bytes": 10}), "one context of 512 tokens takes"),
    ] {
        let mut body = json!({"model": TINY});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let refused = ask(&app, post("/mlxr/v1/plan", &body)).await;
        assert_eq!(code(&refused, 400), "invalid_request");
        assert!(refused.text.contains(text), "{body}: {}", refused.text);
    }
}

#[tokio::test]
async fn requests_are_listed_and_cancelled() {
    let app = app();
    assert_eq!(get(&app, "/mlxr/v1/requests").await.json(), json!({"requests": []}));
    let response = send(&app, post("/v1/completions", endless(HOUSE))).await;
    let list = get(&app, "/mlxr/v1/requests").await.json();
    let running = &list["requests"][0];
    assert_eq!((&running["model"], &running["n_prompt"]), (&json!(HOUSE), &json!(3)));
    let path = format!("/mlxr/v1/requests/{HOUSE}/{}", running["id"]);
    let cancelled = ask(&app, delete(&path)).await;
    assert_eq!(cancelled.json(), json!({"model": HOUSE, "cancelled": [running["id"]]}));
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&text).contains("[DONE]"), "it was cut short");
    assert_idle(&app, HOUSE).await;
    assert_eq!(code(&ask(&app, delete(&path)).await, 404), "request_not_found");
    assert_eq!(code(&ask(&app, delete("/mlxr/v1/requests/nobody/1")).await, 404), "model_not_found");
}

#[tokio::test]
async fn the_cache_is_shown_explained_and_cleared() {
    let app = app();
    let body = json!({"model": TINY, "messages": [{"role": "user", "content": "Hi"}]});
    let explained = ask_json(&app, "/mlxr/v1/cache/explain", body).await;
    assert_eq!((&explained["n_matched"], &explained["token_idx"]), (&json!(0), &json!(0)));
    assert!(!explained["explanation"].as_str().unwrap().is_empty());
    let tokens: Vec<u32> = (0..100).map(|i| 5 + i % 7).collect();
    let complete = json!({"model": TINY, "prompt": tokens, "max_tokens": 1});
    ask_json(&app, "/v1/completions", complete).await;
    let explained = ask_json(&app, "/mlxr/v1/cache/explain", json!({"model": TINY, "tokens": tokens})).await;
    assert_eq!(explained["n_prompt"], 100);
    let cache = get(&app, "/mlxr/v1/cache").await.json();
    assert_eq!(cache["models"][0]["model"], TINY);
    let cleared = ask(&app, delete("/mlxr/v1/cache")).await.json();
    assert_eq!(cleared["models"][0]["n_blocks"], cache["models"][0]["n_blocks"]);
    assert_eq!(get(&app, "/mlxr/v1/cache").await.json()["models"][0]["n_blocks"], 0);
    for body in [json!({"model": TINY}), json!({"model": TINY, "prompt": "a", "tokens": [1]})] {
        let refused = ask(&app, post("/mlxr/v1/cache/explain", &body)).await;
        assert_eq!(code(&refused, 400), "invalid_request");
        assert!(refused.text.contains("exactly one of prompt, messages and tokens"), "{}", refused.text);
    }
    let body = json!({"model": TINY, "tokens": [5, 9999]});
    let refused = ask(&app, post("/mlxr/v1/cache/explain", body)).await;
    assert!(refused.text.contains("tokens[1] is 9999"), "{}", refused.text);
    let refused = ask(&app, post("/mlxr/v1/cache/explain", json!({"model": TINY, "prompt": []}))).await;
    assert_eq!(code(&refused, 400), "invalid_request");
}

/// A conversation with a text of several blocks before the question, and one behind it.
fn conversation(question: &str) -> Value {
    let rules =
        "Answer in one short sentence, kindly, without any numbers, and never speak of the sea. ".repeat(4);
    let question = format!("{question} {rules}");
    json!([{"role": "system", "content": rules}, {"role": "user", "content": question}])
}

#[tokio::test]
async fn an_explanation_names_the_place_where_prompts_part_and_foretells_what_is_cached() {
    let app = app();
    let ask_chat = async |question: &str| -> Value {
        let body = json!({"model": HOUSE, "messages": conversation(question), "max_tokens": 1});
        ask_json(&app, "/v1/chat/completions", body).await["usage"].clone()
    };
    let (asked, other) = ("Where does a red fox sleep at night?", "Where does a red wolf sleep at night?");
    ask_chat(asked).await;
    assert_idle(&app, HOUSE).await;
    let body = json!({"model": HOUSE, "messages": conversation(other)});
    let explained = ask_json(&app, "/mlxr/v1/cache/explain", body.clone()).await;
    assert_eq!(explained["reason"], "diverges", "{explained}");
    let texts = [asked, other].map(async |question| {
        let body = json!({"model": HOUSE, "messages": conversation(question)});
        ask_json(&app, "/mlxr/v1/apply-template", body).await["prompt"].as_str().unwrap().to_owned()
    });
    let [cached, prompt] = texts;
    let (cached, prompt) = (cached.await, prompt.await);
    let n_chars = usize::try_from(explained["char_idx"].as_u64().unwrap()).unwrap();
    let (is_same, is_other) = (prompt.chars().take(n_chars), prompt.chars().skip(n_chars));
    assert!(is_same.eq(cached.chars().take(n_chars)), "what is before it is the same");
    let (here, there) = (&explained["prompt"]["text"], &explained["cached"]["text"]);
    assert!(is_other.collect::<String>().starts_with(here.as_str().unwrap()), "{explained}");
    let behind: String = cached.chars().skip(n_chars).collect();
    assert!(behind.starts_with(there.as_str().unwrap()) && here != there, "{explained}");
    assert!(explained["explanation"].as_str().unwrap().contains(&format!("character {n_chars}")));
    // What it foretells comes true.
    let n_matched = explained["n_matched"].as_u64().unwrap();
    assert!(n_matched > 0 && n_matched <= explained["token_idx"].as_u64().unwrap(), "{explained}");
    assert_eq!(ask_chat(other).await["prompt_tokens_details"]["cached_tokens"], n_matched);
    assert_idle(&app, HOUSE).await;
    ask(&app, delete("/mlxr/v1/cache")).await;
    let explained = ask_json(&app, "/mlxr/v1/cache/explain", body.clone()).await;
    assert_eq!((&explained["reason"], &explained["n_matched"]), (&json!("evicted"), &json!(0)));
}

#[tokio::test]
async fn the_blocks_of_an_arena_are_shown() {
    let app = app();
    assert_eq!(get(&app, "/mlxr/v1/kv").await.json(), json!({"models": []}));
    let mut stream = send(&app, post("/v1/completions", endless(HOUSE))).await.into_body();
    // It has a block once it has a token.
    stream.frame().await.unwrap().unwrap();
    let states = async |query: &str| -> (Value, Vec<String>) {
        let map = get(&app, &format!("/mlxr/v1/kv?{query}")).await.json()["models"][0].clone();
        let blocks = map["blocks"].as_array().unwrap().iter();
        let states = blocks.map(|block| block["state"].as_str().unwrap().to_owned()).collect();
        (map, states)
    };
    let (map, found) = states(&format!("model={HOUSE}&limit=65536")).await;
    assert_eq!((found.len() as u64, &map["model"]), (map["n_blocks"].as_u64().unwrap(), &json!(HOUSE)));
    assert!(map["block_bytes"].as_u64().unwrap() > 0);
    let used = map["blocks"].as_array().unwrap().iter().find(|block| block["state"] == "used").unwrap();
    let running = &get(&app, "/mlxr/v1/requests").await.json()["requests"][0];
    let owner = map["seqs"].as_array().unwrap().iter().find(|seq| seq["seq"] == used["seq"]).unwrap();
    assert_eq!((&owner["request"], &used["n_seqs"]), (&running["id"], &json!(1)));
    assert!(used["n_tokens"].as_u64().unwrap() > 0);
    drop(stream);
    assert_idle(&app, HOUSE).await;
    let (_, found) = states("limit=65536").await;
    let cache = &get(&app, "/mlxr/v1/cache").await.json()["models"][0];
    let count = |state: &str| found.iter().filter(|known| *known == state).count() as u64;
    assert_eq!((count("used"), count("idle")), (0, cache["n_idle_blocks"].as_u64().unwrap()));
    let (part, found) = states("first=1&limit=2").await;
    assert_eq!((&part["blocks"][0]["block"], found.len()), (&json!(1), 2));
    assert_eq!(states("first=99999999").await.1, Vec::<String>::new());
    assert_eq!(code(&get(&app, "/mlxr/v1/kv?limit=0").await, 400), "invalid_request");
    assert_eq!(code(&get(&app, "/mlxr/v1/kv?model=nobody").await, 404), "model_not_found");
}

#[tokio::test]
async fn a_conversation_becomes_a_prompt() {
    let app = app();
    let apply = async |body: Value| ask_json(&app, "/mlxr/v1/apply-template", body).await;
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "Hello, you!"}]}]);
    let written = apply(json!({"model": HOUSE, "messages": messages})).await;
    assert!(written["prompt"].as_str().unwrap().contains("Hello, you!"), "{written}");
    assert_eq!(written["n_tokens"], written["tokens"].as_array().unwrap().len());
    // As many as the chat route counts, and the same ones: all of them are found again but the last block.
    let body = json!({"model": HOUSE, "messages": messages, "max_tokens": 1});
    let usage = ask_json(&app, "/v1/chat/completions", body).await["usage"].clone();
    assert_eq!(usage["prompt_tokens"], written["n_tokens"]);
    let tokens = json!({"model": HOUSE, "tokens": written["tokens"]});
    let text = ask_json(&app, "/mlxr/v1/detokenize", tokens).await;
    assert_eq!(text["text"], written["prompt"]);
    // An answer that has begun stays open at its end.
    let begun = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Once upon"}]);
    let open = apply(json!({"model": HOUSE, "messages": begun, "continue_final_message": true})).await;
    assert!(open["prompt"].as_str().unwrap().ends_with("Once upon"), "{open}");
    let closed = apply(json!({"model": HOUSE, "messages": begun})).await;
    assert!(!closed["prompt"].as_str().unwrap().ends_with("Once upon"), "{closed}");
    // Tools are shown to the model.
    let tool =
        json!({"type": "function", "function": {"name": "look_up_a_word", "parameters": {"type": "object"}}});
    let shown = apply(json!({"model": HOUSE, "messages": messages, "tools": [tool]})).await;
    assert!(shown["prompt"].as_str().unwrap().contains("look_up_a_word"), "{shown}");
    let variables = json!({"model": HOUSE, "messages": messages, "chat_template_kwargs": {"colour": "red"}});
    let warned = apply(variables.clone()).await;
    assert!(warned["warnings"][0].as_str().unwrap().starts_with("colour"), "{warned}");
    let mut strict = variables;
    strict["strict"] = true.into();
    assert_eq!(code(&ask(&app, post("/mlxr/v1/apply-template", strict)).await, 400), "unsupported_field");
    for (messages, text) in [
        (json!([]), "messages is empty"),
        (json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), "reads only text"),
        (json!([{"role": "king", "content": "a"}]), "messages[0].role"),
    ] {
        let body = json!({"model": HOUSE, "messages": messages});
        let refused = ask(&app, post("/mlxr/v1/apply-template", body)).await;
        assert_eq!(code(&refused, 400), "invalid_request");
        assert!(refused.text.contains(text), "{}", refused.text);
    }
}

#[tokio::test]
async fn the_books_balance() {
    let app = app();
    let nothing = ask_json(&app, "/mlxr/v1/integrity", json!({})).await;
    assert_eq!(nothing, json!({"is_ok": true, "models": []}));
    ask_json(&app, "/v1/completions", json!({"model": TINY, "prompt": [5], "max_tokens": 1})).await;
    let answer = ask(&app, post("/mlxr/v1/integrity", "")).await.json();
    assert_eq!((&answer["is_ok"], &answer["models"][0]["model"]), (&json!(true), &json!(TINY)));
    assert!(answer["models"][0]["n_blocks"].as_u64().unwrap() > 0);
    let other = ask_json(&app, "/mlxr/v1/integrity", json!({"model": HOUSE})).await;
    assert_eq!(other["models"], json!([]), "it is not in memory");
}

#[tokio::test]
async fn text_goes_to_tokens_and_back() {
    let app = app();
    let text = "Once upon a time, \u{1f409}";
    let body = json!({"model": HOUSE, "text": text, "with_pieces": true, "add_special": false});
    let cut = ask_json(&app, "/mlxr/v1/tokenize", body).await;
    let tokens = cut["tokens"].as_array().unwrap();
    assert_eq!(cut["n_tokens"], tokens.len());
    let pieces = cut["pieces"].as_array().unwrap().iter();
    let bytes: Vec<u8> = pieces
        .flat_map(|piece| piece["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8))
        .collect();
    assert!(String::from_utf8(bytes).unwrap().ends_with(text), "{cut}");
    let back = ask_json(&app, "/mlxr/v1/detokenize", json!({"model": HOUSE, "tokens": tokens})).await;
    assert_eq!(back["text"], text);
    let plain = ask_json(&app, "/mlxr/v1/tokenize", json!({"model": HOUSE, "text": text, "x": 1})).await;
    assert_eq!(plain["warnings"], json!(["x is not honoured: the field is unknown"]));
    assert!(plain.get("pieces").is_none());
    let refused = ask(&app, post("/mlxr/v1/detokenize", json!({"model": TINY, "tokens": [1, 288]}))).await;
    assert_eq!(code(&refused, 400), "invalid_request");
    assert!(refused.text.contains("tokens[1] is 288, but the vocabulary has 288"), "{}", refused.text);
    let strict = json!({"model": TINY, "text": "a", "x": 1, "strict": true});
    let refused = ask(&app, post("/mlxr/v1/tokenize", strict)).await;
    assert_eq!(code(&refused, 400), "unsupported_field");
}

#[tokio::test]
async fn scores_are_what_completions_report() {
    let app = app();
    let text = "Once upon a time there was a little";
    let body = json!({"model": HOUSE, "prompt": text, "echo": true, "logprobs": 1, "max_tokens": 1, "temperature": 0});
    let echoed = ask_json(&app, "/v1/completions", body).await;
    let expected = echoed["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    let answer = ask_json(&app, "/mlxr/v1/score", json!({"model": HOUSE, "text": text, "top": 2})).await;
    let score = &answer["scores"][0];
    let found = score["tokens"].as_array().unwrap();
    // All but the first, which has nothing before it, and the one that was generated.
    assert_eq!(found.len(), expected.len() - 2, "{answer}");
    let mut sum = 0.0;
    for (token, expected) in found.iter().zip(&expected[1..]) {
        assert_eq!(token["logprob"], *expected);
        assert_eq!(token["top"].as_array().unwrap().len(), 2);
        sum += token["logprob"].as_f64().unwrap();
    }
    assert!((score["logprob"].as_f64().unwrap() - sum).abs() < 1e-4, "{score}");
    let perplexity = (-sum / found.len() as f64).exp();
    assert!((score["perplexity"].as_f64().unwrap() / perplexity - 1.0).abs() < 1e-4, "{score}");
    assert!(answer.get("best").is_none());
}

#[tokio::test]
async fn choices_are_scored_behind_their_context() {
    let app = app();
    let body = json!({
        "model": HOUSE, "context": "Once upon a", "choices": [" xylophone", " time", " time there was"]
    });
    let answer = ask_json(&app, "/mlxr/v1/score", body).await;
    let scores = answer["scores"].as_array().unwrap();
    assert_eq!((scores.len(), &answer["best"]), (3, &json!(1)), "{answer}");
    assert_eq!((&scores[1]["text"], &scores[1]["is_greedy"]), (&json!(" time"), &json!(true)));
    assert_eq!(scores[0]["is_greedy"], false);
    // A choice is scored without what is before it: one that begins like another begins with its tokens.
    let ids = |score: &Value| -> Vec<Value> {
        score["tokens"].as_array().unwrap().iter().map(|token| token["id"].clone()).collect()
    };
    assert_eq!(ids(&scores[2])[..ids(&scores[1]).len()], ids(&scores[1]));
    let read: String =
        scores[2]["tokens"].as_array().unwrap().iter().map(|token| token["text"].as_str().unwrap()).collect();
    assert_eq!(read, " time there was");
    for (body, text) in [
        (json!({"model": TINY}), "exactly one of"),
        (json!({"model": TINY, "text": "a", "choices": ["b"]}), "exactly one of"),
        (json!({"model": TINY, "choices": []}), "must have 1 to 64"),
        (json!({"model": TINY, "context": "a", "choices": ["b", ""]}), "choices[1] adds nothing"),
        (json!({"model": TINY, "tokens": [5]}), "nothing before it"),
        (json!({"model": TINY, "tokens": [5, 288]}), "the vocabulary has 288"),
        (json!({"model": TINY, "tokens": [5, 6], "top": 101}), "at most 100"),
    ] {
        let refused = ask(&app, post("/mlxr/v1/score", &body)).await;
        assert_eq!(code(&refused, 400), "invalid_request");
        assert!(refused.text.contains(text), "{body}: {}", refused.text);
    }
    assert_idle(&app, TINY).await;
}

#[tokio::test]
async fn metrics_as_json_are_those_of_the_text() {
    let app = app();
    let body = json!({"model": TINY, "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": true});
    ask_json(&app, "/v1/completions", body).await;
    let list = get(&app, "/mlxr/v1/metrics").await.json();
    let metrics = list["metrics"].as_array().unwrap();
    let find = |name: &str| metrics.iter().find(|metric| metric["name"] == name).unwrap();
    assert!(metrics.iter().all(|metric| metric["name"].as_str().unwrap().starts_with("mlxr_")));
    let prompt = find("mlxr_prompt_tokens_total");
    assert_eq!(prompt["type"], "counter");
    assert_eq!(prompt["samples"], json!([{"labels": {"model": "tiny"}, "value": 3.0}]));
    assert!(!prompt["help"].as_str().unwrap().is_empty());
    let itl = &find("mlxr_inter_token_latency_seconds")["samples"][0];
    assert_eq!(itl["count"], 3);
    let quantiles = ["p50", "p95", "p99"].map(|name| itl[name].as_f64().unwrap());
    assert!(quantiles[0] <= quantiles[1] && quantiles[1] <= quantiles[2], "{itl}");
    let buckets = itl["buckets"].as_array().unwrap();
    assert!(buckets.len() > 10 && buckets.last().unwrap()["count"] == 3, "{itl}");
    assert!(find("mlxr_uptime_seconds")["samples"][0]["value"].as_f64().unwrap() > 0.0);
    for name in ["mlxr_memory_used_bytes", "mlxr_process_resident_bytes", "mlxr_engine_rows_per_step"] {
        assert!(find(name)["samples"][0]["value"].as_f64().unwrap() > 0.0, "{name}");
    }
    // Every number of the text is there.
    let text = get(&app, "/metrics").await.text;
    let names: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        assert!(metrics.iter().any(|metric| metric["name"] == name), "{name}");
    }
}

#[tokio::test]
async fn stats_config_and_version_tell_what_the_server_is() {
    let setting = SettingReport {
        key: "limits.strict".to_owned(),
        value: json!(true),
        origin: "--strict".to_owned(),
        about: "Refuse fields".to_owned(),
    };
    let config = ConfigReport { file: Some("server.yaml".to_owned()), settings: vec![setting] };
    let surroundings = Surroundings { config: config.clone(), ..Surroundings::default() };
    let models = models(EngineOptions::default(), ROOMY, KeepAlive::Forever);
    let app = App::within(surroundings, models, Limits::default()).unwrap();
    let shown: ConfigReport = serde_json::from_value(get(&app, "/mlxr/v1/config").await.json()).unwrap();
    assert_eq!(shown, config);
    let version = get(&app, "/mlxr/v1/version").await.json();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["os"], std::env::consts::OS);
    ask_json(
        &app,
        "/v1/completions",
        json!({"model": TINY, "prompt": [5, 6], "max_tokens": 3, "ignore_eos": true}),
    )
    .await;
    assert_idle(&app, TINY).await;
    let stats = get(&app, "/mlxr/v1/stats").await.json();
    let tiny = &stats["models"][0];
    assert_eq!(
        (&tiny["model"], &tiny["n_generated"], &tiny["n_ctx"]),
        (&json!(TINY), &json!(3), &json!(512))
    );
    assert!(stats["uptime_s"].as_f64().unwrap() > 0.0 && stats["process_bytes"].as_u64().unwrap() > 1 << 20);
}

#[tokio::test]
async fn settings_are_changed_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.yaml");
    std::fs::write(&file, "listen:\n  port: 1 # mine\n").unwrap();
    let from_a_flag = SettingReport {
        key: "limits.strict".to_owned(),
        value: json!(true),
        origin: "--strict".to_owned(),
        about: String::new(),
    };
    let surroundings = Surroundings {
        config: ConfigReport { file: None, settings: vec![from_a_flag] },
        config_path: Some(file.clone()),
        ..Surroundings::default()
    };
    let models = models(EngineOptions::default(), ROOMY, KeepAlive::Forever);
    let app = App::within(surroundings, models.clone(), Limits::default()).unwrap();
    let change = |app: &std::sync::Arc<App>, settings: serde_json::Value| {
        let body = json!({"settings": settings}).to_string();
        let app = app.clone();
        async move { ask(&app, Request::patch("/mlxr/v1/config").body(Body::from(body)).unwrap()).await }
    };
    let settings = json!({"listen.port": 2, "models.preload": ["a", "b c"], "limits.strict": false});
    let changed = change(&app, settings).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
    let warning = "limits.strict comes from --strict, which wins over the file";
    assert_eq!(changed.json(), json!({"file": file.to_str().unwrap(), "warnings": [warning]}));
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        text,
        "listen:\n  port: 2 # mine\nmodels:\n  preload: [a, \"b c\"]\nlimits:\n  strict: false\n"
    );

    let mistakes = [
        (json!({"listen.prot": 3, "listen.host": "::1"}), "did you mean \"listen.port\"?"),
        (json!({"listen.host": "::1", "listen.port": "soon"}), "listen.port"),
        (json!({"listen.port": null}), "settings.listen.port"),
        (json!({}), "settings is empty"),
    ];
    for (settings, says) in mistakes {
        let refused = change(&app, settings).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.text);
        assert!(refused.json()["error"]["message"].as_str().unwrap().contains(says), "{}", refused.text);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "nothing of what was refused is there");

    let nowhere = App::new(models, Limits::default()).unwrap();
    let refused = change(&nowhere, json!({"listen.port": 2})).await;
    assert!(refused.text.contains("no place for server.yaml"), "{}", refused.text);
}

fn app_with_logs() -> (std::sync::Arc<App>, LogRing) {
    let surroundings = Surroundings::default();
    let logs = surroundings.logs.clone();
    let models = models(EngineOptions::default(), ROOMY, KeepAlive::Forever);
    (App::within(surroundings, models, Limits::default()).unwrap(), logs)
}

fn log(ring: &LogRing, work: impl FnOnce()) {
    tracing::subscriber::with_default(tracing_subscriber::registry().with(ring.clone()), work);
}

#[tokio::test]
async fn the_last_lines_of_the_log_are_shown() {
    let (app, logs) = app_with_logs();
    log(&logs, || {
        tracing::info!(target: "mlxr_server", "one");
        tracing::warn!(target: "mlxr_engine", n = 2, "two");
        tracing::debug!(target: "mlxr_engine", "three");
    });
    let messages = async |query: &str| -> Vec<String> {
        let answer = get(&app, &format!("/mlxr/v1/logs?{query}")).await.json();
        let lines = answer["lines"].as_array().unwrap().iter();
        lines.map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(messages("").await, ["one", "two", "three"]);
    assert_eq!(messages("level=warn").await, ["two"]);
    assert_eq!(messages("target=mlxr_engine&limit=1").await, ["three"]);
    assert_eq!(messages("since=1&level=info").await, ["two"]);
    let answer = get(&app, "/mlxr/v1/logs?limit=1").await.json();
    assert_eq!((&answer["n_left_out"], &answer["lines"][0]["seq"]), (&json!(2), &json!(2)));
    let warned = get(&app, "/mlxr/v1/logs?level=warn").await.json();
    assert_eq!(
        (&warned["lines"][0]["level"], &warned["lines"][0]["fields"]),
        (&json!("warn"), &json!({"n": 2}))
    );
    assert_eq!(code(&get(&app, "/mlxr/v1/logs?level=loud").await, 400), "invalid_request");
    assert_eq!(code(&get(&app, "/mlxr/v1/logs?colour=red").await, 400), "invalid_request");
}

#[tokio::test]
async fn a_followed_log_goes_on_until_the_server_closes() {
    let (app, logs) = app_with_logs();
    log(&logs, || tracing::info!("before"));
    for (accept, content_type, before, after) in [
        ("*/*", "application/x-ndjson", "", "\n"),
        ("text/event-stream", "text/event-stream", "data: ", "\n\n"),
    ] {
        let request = Request::get("/mlxr/v1/logs?follow=true&limit=1").header("accept", accept);
        let response = send(&app, request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.headers()["content-type"], content_type);
        let mut body = response.into_body();
        let mut read = async || -> Value {
            let frame = tokio::time::timeout(Duration::from_secs(60), body.frame()).await.unwrap();
            let text = String::from_utf8(frame.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
            let line = text.strip_prefix(before).and_then(|text| text.strip_suffix(after)).unwrap();
            serde_json::from_str(line).unwrap()
        };
        let first = read().await;
        assert!(first["message"] == "before" || first["message"] == "after", "{first}");
        log(&logs, || tracing::warn!("after"));
        assert_eq!(read().await["message"], "after");
        if accept == "text/event-stream" {
            app.stopper.enter(Phase::Finishing);
            let end = tokio::time::timeout(Duration::from_secs(60), body.frame()).await.unwrap();
            assert!(end.is_none(), "{end:?}");
        }
    }
}

#[tokio::test]
async fn mistakes_are_told_in_one_shape() {
    let app = app_with(EngineOptions::default(), Limits { max_body_bytes: 1000, ..Limits::default() });
    for path in [
        "/mlxr/v1/models/load",
        "/mlxr/v1/models/unload",
        "/mlxr/v1/plan",
        "/mlxr/v1/cache/explain",
        "/mlxr/v1/tokenize",
        "/mlxr/v1/detokenize",
        "/mlxr/v1/apply-template",
        "/mlxr/v1/score",
    ] {
        let of = async |body: &str| ask(&app, post(path, body)).await;
        assert_eq!(code(&of("{\"model\": ").await, 400), "invalid_request", "{path}");
        assert_eq!(code(&of("{}").await, 400), "invalid_request", "{path}");
        let with_type = of(r#"{"model": 3, "text": "a", "tokens": [1], "messages": []}"#).await;
        assert!(
            with_type.json()["error"]["message"].as_str().unwrap().starts_with("model: "),
            "{}",
            with_type.text
        );
        let body = r#"{"model": "nobody", "text": "a", "tokens": [1], "messages": []}"#;
        assert_eq!(code(&of(body).await, 404), "model_not_found", "{path}");
        assert_eq!(code(&of(&" ".repeat(1001)).await, 413), "request_too_large", "{path}");
    }
    assert_eq!(code(&get(&app, "/mlxr/v1/nothing").await, 404), "unknown_url");
    assert_eq!(code(&get(&app, "/mlxr/v1/tokenize").await, 405), "method_not_allowed");
    until(|| app.models.resident().is_empty()).await;
}
