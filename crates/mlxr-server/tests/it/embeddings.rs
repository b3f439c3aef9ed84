//! Vectors and scores over HTTP: those of sentence-transformers (`golden/embeddings`), in every form of request.

use std::path::Path;
use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mlxr_engine::EngineOptions;
use mlxr_server::{App, KeepAlive, Limits, ModelSource, ModelSpec, Models};
use serde_json::{Value, json};

use crate::harness::{
    BERT, RANKER, ROOMY, TINY, app_with_embedders, ask, ask_json, get, post, repository, setup, until,
};

/// The models' names here, and in `golden/embeddings`.
const EMBEDDERS: [(&str, &str); 6] = [
    (BERT, "bert"),
    ("nomic", "nomic_bert"),
    ("modernbert", "modernbert"),
    ("xlm", "xlm_roberta"),
    ("qwen3", "qwen3"),
    ("gemma3", "gemma3"),
];

fn app() -> Arc<App> {
    app_with_embedders(EngineOptions::default(), Limits::default())
}

fn golden(name: &str) -> Value {
    let path = repository("golden/embeddings").join(format!("{name}.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The vectors of an answer in OpenAI's shape.
fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let data = answer["data"].as_array().unwrap();
    for (i, item) in data.iter().enumerate() {
        assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(i)));
    }
    data.iter().map(|item| floats(&item["embedding"])).collect()
}

fn assert_close(got: &[f32], expected: &Value, what: &str) {
    let expected = floats(expected);
    assert_eq!(got.len(), expected.len(), "{what}");
    let distance = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance <= 2e-5, "{what}: an element differs by {distance}");
}

async fn embed(app: &Arc<App>, body: Value) -> Value {
    ask_json(app, "/v1/embeddings", body).await
}

/// A refusal in OpenAI's shape: the field it names, its code and its message.
async fn refused(app: &Arc<App>, path: &str, body: Value) -> (String, String, String) {
    let answer = ask(app, post(path, &body)).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {}", answer.text);
    let error = answer.json()["error"].clone();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("param"), text("code"), text("message"))
}

/// A text of about `n` tokens.
fn long_text(n: usize) -> String {
    "the cat sat on the mat ".repeat(n.div_ceil(6))
}

#[tokio::test]
async fn every_form_of_input_has_the_vectors_of_sentence_transformers() {
    let app = app();
    for (model, name) in EMBEDDERS {
        let golden = golden(name);
        let (texts, ids) = (&golden["texts"], &golden["ids"]);
        let answer = embed(&app, json!({"model": model, "input": texts})).await;
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(model)));
        let n_tokens: usize = ids.as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len()).sum();
        assert_eq!(answer["usage"], json!({"prompt_tokens": n_tokens, "total_tokens": n_tokens}));
        let found = vectors(&answer);
        for (i, vector) in found.iter().enumerate() {
            assert_close(vector, &golden["vectors"][i], &format!("{name}, text {i}"));
            // Alone, as ids and in base64: bit for bit the same.
            for input in [&texts[i], &ids[i], &json!([ids[i]])] {
                let alone = embed(&app, json!({"model": model, "input": input})).await;
                assert_eq!(vectors(&alone), std::slice::from_ref(vector), "{name}, {input}");
            }
        }
        let packed = embed(&app, json!({"model": model, "input": ids, "encoding_format": "base64"})).await;
        for (item, vector) in packed["data"].as_array().unwrap().iter().zip(&found) {
            let bytes = BASE64_STANDARD.decode(item["embedding"].as_str().unwrap()).unwrap();
            let floats: Vec<f32> =
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert_eq!(&floats, vector, "{name}");
        }
    }
}

#[tokio::test]
async fn many_at_once_get_what_each_gets_alone() {
    let app = app();
    let body = |i: usize| json!({"model": BERT, "input": [long_text(1 + i * 7 % 90), "a", format!("{i}")]});
    let mut alone = Vec::new();
    for i in 0..24 {
        alone.push(vectors(&embed(&app, body(i)).await));
    }
    let asked: Vec<_> = (0..24)
        .map(|i| {
            let app = app.clone();
            tokio::spawn(async move { vectors(&embed(&app, body(i)).await) })
        })
        .collect();
    for (task, alone) in asked.into_iter().zip(alone) {
        assert_eq!(task.await.unwrap(), alone);
    }
}

#[tokio::test]
async fn a_model_s_prompts_go_before_the_text() {
    let app = app();
    let golden = golden("nomic_bert");
    let body = |name: &str| json!({"model": "nomic", "input": golden["texts"], "prompt_name": name});
    for (i, vector) in vectors(&embed(&app, body("query")).await).iter().enumerate() {
        assert_close(vector, &golden["query_vectors"][i], &format!("text {i}"));
    }
    let (param, _, message) = refused(&app, "/v1/embeddings", body("question")).await;
    assert_eq!(param, "prompt_name");
    assert!(message.contains("document, query"), "{message}");
}

#[tokio::test]
async fn what_is_too_long_is_refused_with_both_numbers_or_cut_where_that_is_asked_for() {
    let app = app();
    let text = long_text(300);
    let (param, code, message) =
        refused(&app, "/v1/embeddings", json!({"model": BERT, "input": ["a", text]})).await;
    assert_eq!((param.as_str(), code.as_str()), ("input[1]", "context_length_exceeded"));
    let tokens = ask_json(&app, "/mlxr/v1/tokenize", json!({"model": BERT, "text": text})).await;
    assert!(message.contains(&tokens["n_tokens"].to_string()) && message.contains("100"), "{message}");
    let cut = embed(&app, json!({"model": BERT, "input": text, "truncate": true})).await;
    assert_eq!(cut["usage"]["prompt_tokens"], 100);
    let ids = tokens["tokens"].as_array().unwrap();
    let kept: Vec<&Value> = ids[..99].iter().chain(ids.last()).collect();
    assert_eq!(vectors(&embed(&app, json!({"model": BERT, "input": kept})).await), vectors(&cut));

    let older = json!({"model": BERT, "prompt": text});
    for (path, body) in [("/api/embed", json!({"model": BERT, "input": text})), ("/api/embeddings", older)] {
        let answer = ask(&app, post(path, body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let message = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(message.contains(&tokens["n_tokens"].to_string()) && message.contains("100"), "{message}");
    }
    let same = ask_json(&app, "/api/embed", json!({"model": BERT, "input": text, "truncate": true})).await;
    assert_eq!(floats(&same["embeddings"][0]), vectors(&cut)[0]);
}

/// A server with a copy of the tiny BERT whose config.json has `more`.
fn app_with_config(dir: &Path, more: &Value) -> Arc<App> {
    let from = repository("golden/embeddings/bert");
    std::fs::create_dir(dir.join("1_Pooling")).unwrap();
    for file in [
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ] {
        std::fs::copy(from.join(file), dir.join(file)).unwrap();
    }
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    std::fs::write(&path, config.to_string()).unwrap();
    let spec = ModelSpec::new(BERT, ModelSource::Path(dir.to_owned()));
    let models = Models::new(vec![spec], setup(EngineOptions::default()), ROOMY, KeepAlive::Forever).unwrap();
    App::new(models, Limits::default()).unwrap()
}

#[tokio::test]
async fn vectors_are_shortened_where_the_model_says_that_they_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let listed = app_with_config(dir.path(), &json!({"matryoshka_dimensions": [8, 16]}));
    let golden = golden("bert");
    let body = |n: i64| json!({"model": BERT, "input": golden["texts"], "dimensions": n});
    for (i, vector) in vectors(&embed(&listed, body(8)).await).iter().enumerate() {
        assert_close(vector, &golden["shortened"]["vectors"][i], &format!("text {i}"));
    }
    let ollama = ask_json(&listed, "/api/embed", body(8)).await;
    assert_close(&floats(&ollama["embeddings"][0]), &golden["shortened"]["vectors"][0], "Ollama's");
    let whole = vectors(&embed(&listed, body(32)).await);
    assert_close(&whole[0], &golden["vectors"][0], "the whole vector");
    for (app, n, words) in [
        (&listed, 9, "cut, 8, 16"),
        (&listed, 0, "have 32"),
        (&listed, 33, "have 32"),
        (&app(), 8, "matryoshka_dimensions"),
    ] {
        let (param, _, message) = refused(app, "/v1/embeddings", body(n)).await;
        assert_eq!(param, "dimensions");
        assert!(message.contains(words) && message.contains(&n.to_string()), "{message}");
        let answer = ask(app, post("/api/embed", body(n))).await;
        assert_eq!((answer.status, &answer.json()["error"]), (StatusCode::BAD_REQUEST, &json!(message)));
    }
}

#[tokio::test]
async fn a_model_that_generates_makes_vectors_too() {
    let app = app();
    let found = vectors(&embed(&app, json!({"model": TINY, "input": [[5, 6, 7], [8]]})).await);
    for vector in &found {
        let length: f32 = vector.iter().map(|v| v * v).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
    }
    let generated = json!({"model": TINY, "prompt": [5], "max_tokens": 3, "ignore_eos": true});
    ask_json(&app, "/v1/completions", generated).await;
    let stats = get(&app, "/mlxr/v1/stats").await.json();
    assert_eq!((&stats["models"][0]["model"], &stats["embedders"][0]["n_texts"]), (&json!(TINY), &json!(2)));
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_by_name() {
    let app = app();
    for (body, field, words) in [
        (json!({"model": BERT, "input": []}), "input[0]", "no tokens"),
        (json!({"model": BERT, "input": [[5], []]}), "input[1]", "no tokens"),
        (json!({"model": BERT, "input": [[5, 4_000_000]]}), "input[0]", "4000000"),
        (json!({"model": BERT, "input": ["a", 3]}), "input", "mixed"),
        (json!({"model": BERT, "input": vec!["a"; 2049]}), "input", "2048"),
        (json!({"model": RANKER, "input": "a"}), "model", "/v1/rerank"),
        (
            json!({"model": BERT, "input": "a", "strict": true, "input_type": "query"}),
            "input_type",
            "input_type",
        ),
        (json!({"model": BERT, "input": "a", "strict": true, "user": "u"}), "user", "user"),
    ] {
        let (param, _, message) = refused(&app, "/v1/embeddings", body).await;
        assert_eq!(param, field, "{message}");
        assert!(message.contains(words), "{message}");
    }
    let lenient = ask(&app, post("/v1/embeddings", json!({"model": BERT, "input": "a", "user": "u"}))).await;
    assert_eq!(lenient.headers["x-mlxr-unsupported"], "user");
    assert_eq!(lenient.json()["warnings"].as_array().unwrap().len(), 1);
    let missing = ask(&app, post("/v1/embeddings", json!({"model": "nobody", "input": "a"}))).await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    let (param, _, message) =
        refused(&app, "/v1/chat/completions", json!({"model": BERT, "messages": []})).await;
    assert_eq!(param, "model");
    assert!(message.contains("embedding model"), "{message}");
}

#[tokio::test]
async fn a_full_queue_is_refused_at_once() {
    let options = EngineOptions { max_waiting: 0, ..EngineOptions::default() };
    let app = app_with_embedders(options, Limits::default());
    for (path, body) in [
        ("/v1/embeddings", json!({"model": BERT, "input": "a"})),
        ("/api/embed", json!({"model": BERT, "input": "a"})),
        ("/v1/rerank", json!({"model": RANKER, "query": "a", "documents": ["b"]})),
    ] {
        let answer = ask(&app, post(path, body)).await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{path}: {}", answer.text);
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_and_the_metrics_say_so() {
    const N_TEXTS: usize = 2048;
    let app = app();
    let lease = app.models.acquire_embedder(BERT).await.unwrap();
    let texts = vec![long_text(80); N_TEXTS];
    let leaves = app.clone();
    let asked = tokio::spawn(async move {
        ask(&leaves, post("/v1/embeddings", json!({"model": BERT, "input": texts}))).await
    });
    until(|| lease.handle.stats().n_waiting == 1).await;
    asked.abort();
    assert!(asked.await.unwrap_err().is_cancelled());
    embed(&app, json!({"model": BERT, "input": ["a", "b"]})).await;
    let stats = lease.handle.stats();
    assert!(stats.n_waiting == 0 && stats.n_texts < N_TEXTS as u64, "{stats:?}");
    let metrics = get(&app, "/metrics").await.text;
    for line in [
        r#"mlxr_embeddings_total{model="bert",outcome="cancelled"} 1"#,
        r#"mlxr_embeddings_total{model="bert",outcome="done"} 1"#,
        r#"mlxr_embedding_texts_total{model="bert"} 2"#,
        r#"mlxr_embedding_tokens_total{model="bert"} 6"#,
        r#"mlxr_embedding_duration_seconds_count{model="bert"} 1"#,
        r#"mlxr_embeddings_waiting{model="bert"} 0"#,
        "mlxr_models_loaded 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn pairs_have_the_scores_of_sentence_transformers_best_first() {
    let app = app();
    for (model, name) in
        [(RANKER, "bert_rank"), ("modern-ranker", "modernbert_rank"), ("xlm-ranker", "xlm_roberta_rank")]
    {
        let golden = golden(name);
        for (i, pair) in golden["pairs"].as_array().unwrap().iter().enumerate() {
            let body = json!({"model": model, "query": pair[0], "documents": [pair[1]]});
            let answer = ask_json(&app, "/v1/rerank", body).await;
            let result = &answer["results"][0];
            let (found, expected) =
                (result["relevance_score"].as_f64().unwrap(), golden["scores"][i].as_f64().unwrap());
            assert!((found - expected).abs() <= 1e-4, "{name}: {found} in place of {expected}");
            assert_eq!(result["document"], json!({"text": pair[1]}));
            let n_tokens = golden["ids"][i].as_array().unwrap().len();
            assert_eq!(answer["usage"], json!({"prompt_tokens": n_tokens, "total_tokens": n_tokens}));
        }
        // The first two pairs have the same query.
        let scores = [&golden["scores"][0], &golden["scores"][1]].map(|score| score.as_f64().unwrap());
        let best = usize::from(scores[1] > scores[0]);
        let documents = json!([golden["pairs"][0][1], {"text": golden["pairs"][1][1], "id": 7}]);
        let body = json!({"model": model, "query": golden["pairs"][0][0], "documents": documents});
        let answer = ask_json(&app, "/rerank", body.clone()).await;
        let order: Vec<_> =
            answer["results"].as_array().unwrap().iter().map(|r| r["index"].clone()).collect();
        assert_eq!(order, [json!(best), json!(1 - best)], "{name}");
        let second = &answer["results"][usize::from(best == 0)];
        assert_eq!(second["document"]["id"], 7, "a document comes back as it is");
        let mut few = body;
        few["top_n"] = json!(1);
        few["return_documents"] = json!(false);
        let few = ask_json(&app, "/v2/rerank", few).await;
        assert_eq!(few["results"].as_array().unwrap().len(), 1);
        assert_eq!(few["results"][0]["index"], json!(best));
        assert!(few["results"][0].get("document").is_none());
        // Alone or among others: bit for bit the same.
        assert_eq!(few["results"][0]["relevance_score"], answer["results"][0]["relevance_score"]);
    }
}

#[tokio::test]
async fn rerank_refuses_what_it_cannot_do_and_cuts_only_documents() {
    let app = app();
    let body = |model: &str, more: Value| {
        let mut body = json!({"model": model, "query": "what sat?", "documents": ["a", long_text(300)]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, field, words) in [
        (body(BERT, json!({})), "model", "no cross-encoder"),
        (body(TINY, json!({})), "model", "no cross-encoder"),
        (body(RANKER, json!({})), "documents[1]", "100"),
        (body(RANKER, json!({"top_n": 0})), "top_n", "1 or more"),
        (body(RANKER, json!({"documents": ["a", 3]})), "documents[1]", "string"),
        (body(RANKER, json!({"truncate": true, "query": long_text(300)})), "documents[0]", "100"),
        (body(RANKER, json!({"strict": true, "rank_fields": ["text"]})), "rank_fields", "rank_fields"),
    ] {
        let (param, _, message) = refused(&app, "/v1/rerank", body).await;
        assert_eq!(param, field, "{message}");
        assert!(message.contains(words), "{message}");
    }
    let cut = ask_json(&app, "/v1/rerank", body(RANKER, json!({"truncate": true}))).await;
    let shorter = ask_json(&app, "/v1/rerank", body(RANKER, json!({"max_tokens_per_doc": 5}))).await;
    let frame = ask_json(&app, "/v1/rerank", body(RANKER, json!({"documents": [""]}))).await;
    let n = |answer: &Value| answer["usage"]["total_tokens"].as_u64().unwrap();
    // The first document is one token.
    assert_eq!(n(&cut), n(&frame) + 1 + 100);
    assert_eq!(n(&shorter), 2 * n(&frame) + 1 + 5);
    let none = ask_json(&app, "/v1/rerank", body(RANKER, json!({"documents": []}))).await;
    assert_eq!((n(&none), &none["results"]), (0, &json!([])));
}

#[tokio::test]
async fn ollama_s_clients_get_vectors_counts_and_times() {
    let app = app();
    let golden = golden("bert");
    let body = json!({"model": "bert:latest", "input": golden["texts"], "keep_alive": "10m"});
    let answer = ask_json(&app, "/api/embed", body).await;
    assert_eq!(answer["model"], "bert");
    for (i, vector) in answer["embeddings"].as_array().unwrap().iter().enumerate() {
        assert_close(&floats(vector), &golden["vectors"][i], &format!("text {i}"));
    }
    let (total, load) =
        (answer["total_duration"].as_u64().unwrap(), answer["load_duration"].as_u64().unwrap());
    assert!(0 < load && load < total, "{load} of {total}");
    let n_tokens: usize =
        golden["ids"].as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len()).sum();
    assert_eq!(answer["prompt_eval_count"], n_tokens);
    let one = ask_json(&app, "/api/embed", json!({"model": BERT, "input": golden["texts"][0]})).await;
    assert_eq!(one["embeddings"], json!([answer["embeddings"][0]]));
    let older = ask_json(&app, "/api/embeddings", json!({"model": BERT, "prompt": golden["texts"][0]})).await;
    assert_eq!(older, json!({"embedding": answer["embeddings"][0]}));

    let options = json!({"num_ctx": 4, "temperature": 0.5, "num_gpu": 1, "typo": 1});
    let body = json!({"model": BERT, "input": golden["texts"][1], "options": options, "x": 1});
    let refused = ask(&app, post("/api/embed", body.clone())).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text.contains("9 tokens") && refused.text.contains("is 4 tokens"), "{}", refused.text);
    let mut body = body;
    body["truncate"] = json!(true);
    let cut = ask(&app, post("/api/embed", body)).await;
    assert_eq!(cut.json()["prompt_eval_count"], 4);
    let noticed = cut.headers["x-mlxr-unsupported"].to_str().unwrap();
    assert_eq!(noticed, "options.temperature, options.num_gpu, options.typo, x");
}

#[tokio::test]
async fn ollama_s_clients_load_and_unload_an_embedding_model() {
    let app = app();
    let empty = ask_json(&app, "/api/embed", json!({"model": BERT})).await;
    assert_eq!((&empty["embeddings"], &empty["prompt_eval_count"]), (&json!([]), &json!(0)));
    let running = get(&app, "/api/ps").await.json();
    assert_eq!(
        (&running["models"][0]["name"], &running["models"][0]["context_length"]),
        (&json!(BERT), &json!(128))
    );
    let none = ask_json(&app, "/api/embeddings", json!({"model": BERT, "prompt": "", "keep_alive": 0})).await;
    assert_eq!(none, json!({"embedding": []}));
    assert_eq!(app.models.unload_expired().await, None);
    assert!(app.models.loaded().is_empty());
    let shown = ask_json(&app, "/api/show", json!({"model": BERT})).await;
    assert_eq!(shown["capabilities"], json!(["embedding"]));
    let asked = ask(&app, post("/api/generate", json!({"model": BERT, "prompt": "a"}))).await;
    assert_eq!(asked.status, StatusCode::BAD_REQUEST);
    assert!(asked.json()["error"].as_str().unwrap().contains("embedding model"), "{}", asked.text);
}

#[tokio::test]
async fn our_own_routes_know_embedding_models() {
    let app = app();
    let loaded = ask_json(&app, "/mlxr/v1/models/load", json!({"model": BERT})).await;
    assert_eq!((&loaded["model"]["name"], &loaded["was_loaded"]), (&json!(BERT), &json!(false)));
    let plan = ask_json(&app, "/mlxr/v1/plan", json!({"model": BERT})).await;
    assert_eq!(plan["plan"], loaded["model"]["loaded"]["plan"]);
    assert_eq!(plan["kv_type"], "f32");
    let text = ask_json(&app, "/mlxr/v1/tokenize", json!({"model": BERT, "text": "a"})).await;
    assert_eq!(text["tokens"], golden("bert")["ids"][0]);
    let unloaded = ask_json(&app, "/mlxr/v1/models/unload", json!({"model": BERT})).await;
    assert_eq!(unloaded["was_loaded"], json!(true));
}
