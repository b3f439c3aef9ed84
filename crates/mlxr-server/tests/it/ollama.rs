//! Ollama's dialect.

use axum::http::StatusCode;
use mlxr_server::{App, KeepAlive, Limits};
use serde_json::{Value, json};

use crate::harness::{
    Answer, HOUSE, ROOMY, TINY, app, app_with, ask, ask_json, assert_idle, get, models, post,
};

const GENERATE: &str = "/api/generate";
const CHAT: &str = "/api/chat";

/// Greedy, without the penalty that is Ollama's default.
fn options() -> Value {
    json!({"temperature": 0, "repeat_penalty": 1, "num_predict": 5})
}

fn story(extra: Value) -> Value {
    with(json!({"model": HOUSE, "prompt": "Tell me a story about a cat.", "options": options()}), extra)
}

fn chat(extra: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Tell me a story about a cat."}]);
    with(json!({"model": HOUSE, "messages": messages, "options": options()}), extra)
}

fn with(mut body: Value, extra: Value) -> Value {
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn lines(answer: &Answer) -> Vec<Value> {
    assert!(answer.text.ends_with('\n'), "{}", answer.text);
    answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Replaces times, which differ from answer to answer.
fn normalised(answer: &Answer) -> String {
    let mut text = answer.text.clone();
    for line in answer.text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        text = text.replace(line["created_at"].as_str().unwrap(), "NOW");
        for field in ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
            if let Some(ns) = line[field].as_u64() {
                text = text.replace(&format!("\"{field}\":{ns}"), &format!("\"{field}\":0"));
            }
        }
    }
    text
}

const METRICS: &str = concat!(
    r#""total_duration":0,"load_duration":0,"prompt_eval_count":16,"prompt_eval_duration":0,"eval_count":5,"#,
    r#""eval_duration":0}"#
);

#[tokio::test]
async fn a_streamed_chat_is_these_lines() {
    let app = app();
    let answer = ask(&app, post(CHAT, chat(json!({})))).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let head = r#"{"model":"house","created_at":"NOW","message":{"role":"assistant","content":"#;
    let mut expected = String::new();
    for piece in ["Once", " upon", " a", " time", ","] {
        expected += &format!("{head}\"{piece}\"}},\"done\":false}}\n");
    }
    expected += &format!("{head}\"\"}},\"done\":true,\"done_reason\":\"length\",{METRICS}\n");
    assert_eq!(normalised(&answer), expected);
}

#[tokio::test]
async fn a_whole_chat_is_one_object() {
    let app = app();
    let answer = ask(&app, post(CHAT, chat(json!({"stream": false})))).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let head =
        r#"{"model":"house","created_at":"NOW","message":{"role":"assistant","content":"Once upon a time,"}"#;
    assert_eq!(normalised(&answer), format!("{head},\"done\":true,\"done_reason\":\"length\",{METRICS}"));
    let answer = answer.json();
    let ns = |field: &str| answer[field].as_u64().unwrap();
    assert!(ns("load_duration") > 0 && ns("prompt_eval_duration") > 0 && ns("eval_duration") > 0);
    assert!(ns("load_duration") + ns("prompt_eval_duration") + ns("eval_duration") <= ns("total_duration"));
}

#[tokio::test]
async fn generate_streams_and_gives_a_context_to_go_on_from() {
    let app = app();
    let answer = ask(&app, post(GENERATE, story(json!({})))).await;
    let all = lines(&answer);
    let last = all.last().unwrap();
    let context: Vec<u32> = serde_json::from_value(last["context"].clone()).unwrap();
    assert_eq!(context.len(), 16 + 5);
    let head = r#"{"model":"house","created_at":"NOW","response":"#;
    let mut expected = String::new();
    for piece in ["Once", " upon", " a", " time", ","] {
        expected += &format!("{head}\"{piece}\",\"done\":false}}\n");
    }
    let ids = last["context"].to_string();
    expected += &format!("{head}\"\",\"done\":true,\"done_reason\":\"length\",\"context\":{ids},{METRICS}\n");
    assert_eq!(normalised(&answer), expected);

    let next = json!({"context": context, "prompt": "Who was it?", "stream": false});
    let next = ask_json(&app, GENERATE, story(next)).await;
    let fresh = ask_json(&app, GENERATE, story(json!({"prompt": "Who was it?", "stream": false}))).await;
    let count = |answer: &Value| answer["prompt_eval_count"].as_u64().unwrap();
    assert_eq!(count(&next), count(&fresh) + 21, "the story came before");
}

#[tokio::test]
async fn generate_and_chat_agree_and_a_raw_prompt_is_left_alone() {
    let app = app();
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story about a cat."}]);
    let chat = ask_json(&app, CHAT, chat(json!({"messages": messages, "stream": false}))).await;
    let asked = story(json!({"system": "Be brief.", "stream": false}));
    let generated = ask_json(&app, GENERATE, asked).await;
    assert_eq!(chat["message"]["content"], generated["response"]);
    assert_eq!(chat["prompt_eval_count"], generated["prompt_eval_count"]);

    let prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nTell me a story about a cat.<|im_end|>\n\
                  <|im_start|>assistant\n";
    let raw = ask_json(&app, GENERATE, story(json!({"raw": true, "prompt": prompt, "stream": false}))).await;
    assert_eq!(raw["response"], generated["response"]);
    assert!(raw.get("context").is_none(), "{raw}");
}

#[tokio::test]
async fn an_answer_that_has_begun_goes_on() {
    let app = app();
    let messages = json!([
        {"role": "user", "content": "Tell me a story about a cat."}, {"role": "assistant", "content": "Once upon a"}
    ]);
    let answer = ask_json(&app, CHAT, chat(json!({"messages": messages, "stream": false}))).await;
    assert!(answer["message"]["content"].as_str().unwrap().starts_with(" time,"), "{answer}");
    assert_eq!(answer["prompt_eval_count"], 19);
}

#[tokio::test]
async fn options_are_honoured() {
    let app = app();
    let ask = async |options: Value| {
        ask_json(&app, GENERATE, story(json!({"options": options, "stream": false}))).await
    };
    let seeded = |seed: i64| json!({"num_predict": 20, "seed": seed, "temperature": 1.5});
    let (one, again, other) = (ask(seeded(7)).await, ask(seeded(7)).await, ask(seeded(8)).await);
    assert_eq!(one["response"], again["response"]);
    assert_ne!(one["response"], other["response"]);
    let free = ask(json!({"num_predict": 40, "temperature": 0})).await;
    let likeliest = ask(json!({"num_predict": 40, "temperature": 2, "top_k": 1})).await;
    let nucleus = ask(json!({"num_predict": 40, "temperature": 2, "top_p": 0})).await;
    assert_eq!((&free["response"], &free["response"]), (&likeliest["response"], &nucleus["response"]));
    let stopped = ask(json!({"num_predict": 40, "temperature": 0, "stop": ["."]})).await;
    let sentence = free["response"].as_str().unwrap().split('.').next().unwrap().to_owned();
    assert_eq!(
        (stopped["response"].as_str().unwrap(), &stopped["done_reason"]),
        (&*sentence, &json!("stop"))
    );
    let small = ask(json!({"num_ctx": 18, "temperature": 0})).await;
    assert_eq!((&small["eval_count"], &small["done_reason"]), (&json!(2), &json!("length")));
}

#[tokio::test]
async fn logprobs_come_with_their_tokens() {
    let app = app();
    let body = |stream| story(json!({"stream": stream, "logprobs": true, "top_logprobs": 2}));
    let whole = ask_json(&app, GENERATE, body(false)).await;
    let tokens = whole["logprobs"].as_array().unwrap();
    let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(text, whole["response"]);
    for token in tokens {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"]);
    }
    let streamed = ask(&app, post(GENERATE, body(true))).await;
    let streamed: Vec<Value> =
        lines(&streamed).iter().filter_map(|line| line["logprobs"].as_array().cloned()).flatten().collect();
    assert_eq!(&streamed, tokens);
}

#[tokio::test]
async fn a_request_without_a_prompt_loads_or_unloads() {
    let app = App::new(models(Default::default(), ROOMY, KeepAlive::default()), Limits::default()).unwrap();
    let names = async || {
        let running = get(&app, "/api/ps").await.json();
        let names = running["models"].as_array().unwrap().iter().map(|model| model["name"].clone());
        names.collect::<Vec<Value>>()
    };
    assert!(names().await.is_empty());
    let loaded = ask(&app, post(GENERATE, json!({"model": HOUSE, "keep_alive": -1}))).await;
    let head = r#"{"model":"house","created_at":"NOW","#;
    assert_eq!(normalised(&loaded), format!(r#"{head}"response":"","done":true,"done_reason":"load"}}"#));
    ask_json(&app, CHAT, json!({"model": TINY, "messages": []})).await;
    assert_eq!(names().await, [HOUSE, TINY]);

    let running = get(&app, "/api/ps").await.json()["models"].clone();
    assert_eq!(running[0]["expires_at"], "9999-12-31T23:59:59Z", "-1 is for ever");
    assert!(running[1]["expires_at"].as_str().unwrap() < "9999");
    assert!(running[0]["size"].as_u64().unwrap() > 29_000_000 && running[0]["size_vram"] == 0);
    assert!(running[0]["context_length"].as_u64().unwrap() >= 512);

    let gone = ask(&app, post(CHAT, json!({"model": HOUSE, "keep_alive": 0}))).await;
    let message = r#""message":{"role":"assistant","content":""}"#;
    assert_eq!(normalised(&gone), format!(r#"{head}{message},"done":true,"done_reason":"unload"}}"#));
    assert_eq!(names().await, [TINY]);
    // With a prompt, a keep-alive of 0 lets the model go after the answer.
    ask_json(&app, CHAT, chat(json!({"keep_alive": 0, "stream": false}))).await;
    app.models.unload_expired().await;
    assert_eq!(names().await, [TINY]);
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let app = app();
    let tags = get(&app, "/api/tags").await.json();
    let list = tags["models"].as_array().unwrap();
    assert_eq!(list.iter().map(|model| &model["name"]).collect::<Vec<_>>(), [HOUSE, TINY]);
    let details = &list[0]["details"];
    assert_eq!((&details["format"], &details["quantization_level"]), (&json!("gguf"), &json!("Q8_0")));
    assert_eq!(list[1]["details"]["format"], "safetensors");
    for model in list {
        let digest = model["digest"].as_str().unwrap();
        assert!(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
        assert!(model["size"].as_u64().unwrap() > 0);
    }
    assert_ne!(list[0]["digest"], list[1]["digest"]);
    assert_eq!(get(&app, "/api/tags").await.json(), tags, "nothing about a model changes by asking");

    let shown = ask_json(&app, "/api/show", json!({"model": "house:latest"})).await;
    assert_eq!(&shown["details"], details);
    let template = shown["template"].as_str().unwrap();
    assert!(template.contains("<|im_start|>") && shown["modelfile"].as_str().unwrap().contains(template));
    assert!(shown["model_info"]["general.architecture"].is_string());
    assert!(shown["model_info"]["tokenizer.ggml.tokens"].is_null());
    assert_eq!(shown["capabilities"][0], "completion");
    assert!(shown.get("tensors").is_none());
    let verbose = ask_json(&app, "/api/show", json!({"model": HOUSE, "verbose": true})).await;
    assert!(verbose["model_info"]["tokenizer.ggml.tokens"].as_array().unwrap().len() > 1000);
    assert!(verbose["tensors"].as_array().unwrap().iter().any(|tensor| tensor["type"] == "Q8_0"));
    let shown = ask_json(&app, "/api/show", json!({"model": TINY})).await;
    assert!(shown["model_info"]["llama.block_count"] == 2, "{shown}");

    assert_eq!(get(&app, "/api/version").await.text, r#"{"version":"0.1.0"}"#);
    assert_eq!(get(&app, "/").await.text, "mlxr is running");
}

#[tokio::test]
async fn errors_are_a_text_under_the_right_status() {
    let app = app();
    let check = async |path: &str, body: Value, status: u16, text: &str| {
        let answer = ask(&app, post(path, &body)).await;
        assert_eq!(answer.status.as_u16(), status, "{body}: {}", answer.text);
        let error = answer.json();
        assert_eq!(error.as_object().unwrap().len(), 1, "{error}");
        assert!(error["error"].as_str().unwrap().contains(text), "{body}: {error}");
    };
    for (path, key) in [(GENERATE, "prompt"), (CHAT, "messages"), ("/api/show", "x")] {
        let mut body = json!({"model": "gpt-9"});
        body[key] = if key == "messages" { json!([]) } else { json!("Hi") };
        check(path, body, 404, "model 'gpt-9' not found\nhint: the models here are house, tiny").await;
    }
    check(GENERATE, json!({"prompt": "Hi"}), 400, "missing field `model`").await;
    check(GENERATE, story(json!({"options": {"temperature": -1}})), 400, "temperature is -1").await;
    check(GENERATE, story(json!({"options": {"mirostat": 3}})), 400, "mirostat is 3").await;
    check(
        GENERATE,
        story(json!({"options": {"num_ctx": 9}})),
        400,
        "it has 16 tokens, and this model's maximum context length is 9 tokens",
    )
    .await;
    check(GENERATE, story(json!({"template": "{{ .Prompt }}"})), 400, "template cannot be given").await;
    check(GENERATE, story(json!({"images": ["AAAA"]})), 400, "reads only text").await;
    check(GENERATE, story(json!({"raw": true, "system": "x"})), 400, "neither system nor context").await;
    check(GENERATE, story(json!({"suffix": "x"})), 400, "not trained to fill in").await;
    let unsupported = json!({"type": "object", "not": {}});
    check(GENERATE, story(json!({"format": unsupported})), 400, "keyword \"not\" at #/not").await;
    check(GENERATE, story(json!({"think": true})), 400, "\"house\" does not support thinking").await;
    check(GENERATE, story(json!({"context": [99_999_999]})), 400, "the vocabulary has").await;
    check(GENERATE, story(json!({"top_logprobs": 21})), 400, "from 0 to 20").await;
    check(CHAT, chat(json!({"format": {"type": "wizard"}})), 400, "wizard").await;
    check(CHAT, chat(json!({"messages": [{"role": "robot", "content": "x"}]})), 400, "messages[0].role")
        .await;
    let seen = json!([{"role": "user", "content": "x", "images": ["AAAA"]}]);
    check(CHAT, chat(json!({"messages": seen})), 400, "messages[0].images").await;
    let tools = json!([{"type": "function", "function": {"description": "f"}}]);
    check(CHAT, chat(json!({"tools": tools})), 400, "tools[0].function.name").await;
    let long = json!([{"role": "user", "content": "word ".repeat(600)}]);
    check(CHAT, chat(json!({"model": TINY, "messages": long})), 400, "maximum context length is 512").await;
    let missing = get(&app, "/api/nothing").await;
    assert_eq!(
        (missing.status, missing.text.as_str()),
        (StatusCode::NOT_FOUND, r#"{"error":"no such route: GET /api/nothing"}"#,)
    );
    assert_eq!(get(&app, CHAT).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_idle(&app, TINY).await;
}

#[tokio::test]
async fn what_has_no_effect_is_reported_and_in_strict_mode_refused() {
    let app = app();
    let extra = json!({
        "options": {"num_gpu": 1, "num_predict": 1, "num_ctx": 1_000_000, "flash": true},
        "shift": true, "frobnicate": 1, "think": false, "stream": false
    });
    let answer = ask(&app, post(GENERATE, story(extra.clone()))).await;
    let expected = "options.num_ctx, options.num_gpu, options.flash, shift, frobnicate";
    assert_eq!(answer.headers["x-mlxr-unsupported"], expected);
    assert_eq!(answer.json()["warnings"].as_array().unwrap().len(), 5);
    let streamed = with(story(extra.clone()), json!({"stream": true}));
    let streamed = ask(&app, post(GENERATE, streamed)).await;
    assert_eq!(lines(&streamed).last().unwrap()["warnings"], answer.json()["warnings"]);
    let strict = app_with(Default::default(), Limits { strict: true, ..Limits::default() });
    let refused = ask(&strict, post(GENERATE, story(extra))).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.json()["error"].as_str().unwrap().contains("options.num_gpu is not honoured"));
    ask_json(&strict, GENERATE, story(json!({"stream": false}))).await;
}
