//! Images in messages of every dialect, on a tiny model that reads them: transformers' answers
//! (`golden/vision/make.py`).

use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mlxr_checkpoint::Checkpoint;
use mlxr_engine::EngineOptions;
use mlxr_server::{App, KeepAlive, Limits, ModelSource, ModelSpec, Models};
use mlxr_tensor::DType;
use mlxr_text::Tokenizer;
use serde_json::{Value, json};

use crate::harness::{ROOMY, ask, ask_json, post, repository, setup};

const MODEL: &str = "llava";
const CHAT: &str = "/v1/chat/completions";

fn app() -> Arc<App> {
    let spec = ModelSpec::new(MODEL, ModelSource::Path(repository("golden/vision/llava")));
    let options = EngineOptions { kv_dtype: DType::F32, ..EngineOptions::default() };
    let models = Models::new(vec![spec], setup(options), ROOMY, KeepAlive::Forever).unwrap();
    App::new(models, Limits::default()).unwrap()
}

fn base64(image: &Value) -> String {
    let path = repository("golden/vision/images").join(image.as_str().unwrap());
    STANDARD.encode(std::fs::read(path).unwrap())
}

/// What was asked of the reference, each with the text of its answer.
fn records() -> Vec<(Value, String)> {
    let text = std::fs::read_to_string(repository("golden/vision/llava.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let ckpt = Checkpoint::open(&repository("golden/vision/llava")).unwrap();
    let tokenizer = Tokenizer::from_source(&ckpt.tokenizer).unwrap();
    let answer = |record: &Value| {
        let ids = record["greedy_ids"].as_array().unwrap().iter();
        let ids: Vec<u32> = ids.map(|id| id.as_u64().unwrap() as u32).collect();
        tokenizer.decode(&ids, true)
    };
    golden["prompts"].as_array().unwrap().iter().map(|record| (record.clone(), answer(record))).collect()
}

#[tokio::test]
async fn a_plan_counts_what_an_image_takes() {
    let options =
        EngineOptions { max_batch_tokens: 1, max_logit_rows: 1, max_seqs: 1, ..EngineOptions::default() };
    let engine = setup(options);
    let backend = engine.device.backend().unwrap();
    let spec = ModelSpec::new(MODEL, ModelSource::Path(repository("golden/vision/llava")));
    let models = Models::new(vec![spec], engine, ROOMY, KeepAlive::Forever).unwrap();
    let app = App::new(models, Limits::default()).unwrap();
    let plan = app.models.acquire(MODEL).await.unwrap().plan;
    let (record, _) = records().into_iter().find(|(record, _)| record["images"][0].is_string()).unwrap();
    let url = format!("data:image/png;base64,{}", base64(&record["images"][0]));
    let content = json!([{"type": "image_url", "image_url": {"url": url}}]);
    let body = json!({"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": content}]});
    ask_json(&app, CHAT, body).await;
    let taken = backend.allocated_bytes().unwrap();
    assert!(taken <= plan.step_bytes, "{taken} bytes taken, {} planned", plan.step_bytes);
}

#[tokio::test]
async fn every_dialect_shows_images_to_the_model() {
    let app = app();
    for (record, expected) in records() {
        let images: Vec<String> = record["images"].as_array().unwrap().iter().map(base64).collect();
        let text = json!({"type": "text", "text": record["text"]});
        let n_prompt = record["ids"].as_array().unwrap().len();
        let n = record["greedy_ids"].as_array().unwrap().len();

        let url = |data: &String| json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}});
        let content: Value = images.iter().map(url).chain([text.clone()]).collect();
        let messages = json!([{"role": "user", "content": content}]);
        let body = json!({"model": MODEL, "temperature": 0, "max_tokens": n, "messages": messages});
        let answer = ask_json(&app, CHAT, body).await;
        assert_eq!(answer["choices"][0]["message"]["content"], expected, "{record}");
        assert_eq!(answer["usage"]["prompt_tokens"], n_prompt);

        let source = |data: &String| json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}});
        let content: Value = images.iter().map(source).chain([text]).collect();
        let messages = json!([{"role": "user", "content": content}]);
        let body = json!({"model": MODEL, "temperature": 0, "max_tokens": n, "messages": messages});
        let answer = ask_json(&app, "/v1/messages", body).await;
        assert_eq!(answer["content"][0]["text"], expected, "{record}");
        let counted =
            ask_json(&app, "/v1/messages/count_tokens", json!({"model": MODEL, "messages": messages})).await;
        assert_eq!(counted["input_tokens"], n_prompt);

        let part = |data: &String| json!({"type": "input_image", "image_url": format!("data:image/png;base64,{data}")});
        let said = json!({"type": "input_text", "text": record["text"]});
        let content: Value = images.iter().map(part).chain([said]).collect();
        let input = json!([{"role": "user", "content": content}]);
        let body = json!({"model": MODEL, "temperature": 0, "max_output_tokens": n, "input": input});
        let answer = ask_json(&app, "/v1/responses", body).await;
        assert_eq!(answer["output"][0]["content"][0]["text"], expected, "{record}");
        assert_eq!(answer["usage"]["input_tokens"], n_prompt);

        let options = json!({"temperature": 0, "num_predict": n, "repeat_penalty": 1.0});
        let message = json!({"role": "user", "content": record["text"], "images": images});
        let body = json!({"model": MODEL, "stream": false, "options": options, "messages": [message]});
        let answer = ask_json(&app, "/api/chat", body).await;
        assert_eq!(answer["message"]["content"], expected, "{record}");
        assert_eq!(answer["prompt_eval_count"], n_prompt);

        let body = json!({"model": MODEL, "stream": false, "options": options, "prompt": record["text"], "images": images});
        let answer = ask_json(&app, "/api/generate", body).await;
        assert_eq!(answer["response"], expected, "{record}");
        // Tokens alone would not bring images back.
        assert_eq!(answer.get("context").is_some(), images.is_empty());
    }
}

#[tokio::test]
async fn what_a_tool_gives_back_may_be_an_image() {
    let app = app();
    let (record, _) = records().into_iter().find(|(record, _)| record["images"][0].is_string()).unwrap();
    let data = base64(&record["images"][0]);
    let count = async |content: Value| {
        let call = json!({"type": "tool_use", "id": "a", "name": "look", "input": {}});
        let result = json!({"type": "tool_result", "tool_use_id": "a", "content": content});
        let messages = json!([
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]},
        ]);
        let body = json!({"model": MODEL, "messages": messages});
        ask_json(&app, "/v1/messages/count_tokens", body).await["input_tokens"].as_u64().unwrap()
    };
    let text = json!({"type": "text", "text": "There."});
    let source = json!({"type": "base64", "media_type": "image/png", "data": data});
    let image = json!({"type": "image", "source": source});
    let without = count(json!([text])).await;
    let with = count(json!([image, text])).await;
    assert!(with >= without + 4, "{with} tokens with an image, {without} without");
}

#[tokio::test]
async fn what_is_no_image_is_refused_by_its_field() {
    let app = app();
    let refused = async |path: &str, message: Value, field: &str, said: &str| {
        let body = json!({"model": MODEL, "max_tokens": 1, "messages": [message]});
        let answer = ask(&app, post(path, body)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
        assert!(answer.text.contains(field) && answer.text.contains(said), "{}", answer.text);
    };
    let link = |url: &str| json!({"role": "user", "content": [{"type": "image_url", "image_url": url}]});
    let field = "messages[0].content[0].type";
    refused(CHAT, link("https://example.org/cat.png"), field, "this server fetches nothing").await;
    refused(CHAT, link("data:image/png;base64,%%"), field, "no base64").await;
    refused(CHAT, link("data:image/png;base64,AAAA"), field, "not an image in PNG").await;
    // A placeholder that somebody types has no image.
    let typed = json!({"role": "user", "content": "What is <image>?"});
    refused(CHAT, typed, "0 images are given", "1 places").await;
    let source = json!({"type": "url", "url": "https://example.org/cat.png"});
    let block = json!({"role": "user", "content": [{"type": "image", "source": source}]});
    refused("/v1/messages", block, field, "this server fetches nothing").await;
    let link = json!({"type": "input_image", "image_url": "https://example.org/cat.png"});
    let input = json!([{"role": "user", "content": [link]}]);
    let answer = ask(&app, post("/v1/responses", json!({"model": MODEL, "input": input}))).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
    assert!(answer.text.contains("this server fetches nothing"), "{}", answer.text);
    let sent = json!({"role": "user", "content": "What?", "images": ["AAAA"]});
    refused("/api/chat", sent, "messages[0].images", "not an image in PNG").await;
}
