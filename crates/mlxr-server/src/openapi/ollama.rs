//! Ollama's routes.

use mlxr_api::ollama::chat::{ChatRequest, ChatResponse};
use mlxr_api::ollama::create::{CopyRequest, CreateRequest, DeleteRequest, Progress, TransferRequest};
use mlxr_api::ollama::embed::{EmbedRequest, EmbedResponse, EmbeddingRequest, EmbeddingResponse};
use mlxr_api::ollama::error::ErrorBody;
use mlxr_api::ollama::generate::{GenerateRequest, GenerateResponse};
use mlxr_api::ollama::models::{ModelList, RunningModels, ShowRequest, ShowResponse, Version};
use serde_json::{Value, json};
use utoipa::openapi::path::HttpMethod;

use super::endpoint::Endpoint;
use super::{BEGINNING, MODEL, Section, question};

/// Options of examples.
fn short() -> Value {
    json!({"num_predict": 16})
}

pub fn section() -> Section {
    let endpoints = vec![
        Endpoint::post("/api/generate", "Continue a prompt")
            .about("Without a prompt the model is only loaded, or unloaded with a `keep_alive` of 0.")
            .body::<GenerateRequest>()
            .example(
                "plain",
                json!({"model": MODEL, "prompt": BEGINNING, "stream": false, "options": short()}),
            )
            .example("streamed", json!({"model": MODEL, "prompt": BEGINNING, "options": short()}))
            .answer::<GenerateResponse>()
            .lines::<GenerateResponse>(
                "Unless `stream` is false: a piece per line, counts and times in the last.",
            )
            .queues::<ErrorBody>(),
        Endpoint::post("/api/chat", "Answer a conversation")
            .about("Without messages the model is only loaded, or unloaded with a `keep_alive` of 0.")
            .body::<ChatRequest>()
            .example(
                "plain",
                json!({"model": MODEL, "messages": question(), "stream": false, "options": short()}),
            )
            .example("streamed", json!({"model": MODEL, "messages": question(), "options": short()}))
            .answer::<ChatResponse>()
            .lines::<ChatResponse>(
                "Unless `stream` is false: a piece per line, counts and times in the last.",
            )
            .queues::<ErrorBody>(),
        Endpoint::post("/api/embed", "Make vectors of texts")
            .about("Without input the model is only loaded.")
            .body::<EmbedRequest>()
            .example("plain", json!({"model": MODEL, "input": [BEGINNING, "There was a fox"]}))
            .answer::<EmbedResponse>()
            .queues::<ErrorBody>(),
        Endpoint::post("/api/embeddings", "Make a vector of a text")
            .about("What came before `/api/embed`. Without a prompt the model is only loaded.")
            .body::<EmbeddingRequest>()
            .example("plain", json!({"model": MODEL, "prompt": BEGINNING}))
            .answer::<EmbeddingResponse>()
            .queues::<ErrorBody>(),
        Endpoint::get("/api/tags", "List the models").answer::<ModelList>(),
        Endpoint::post("/api/show", "Show a model")
            .body::<ShowRequest>()
            .example("plain", json!({"model": MODEL}))
            .answer::<ShowResponse>(),
        Endpoint::get("/api/ps", "List the models in memory").answer::<RunningModels>(),
        Endpoint::post("/api/create", "Make a model")
            .about("From a model that is here, or from files sent to `/api/blobs` before; converted and quantised as far as needed.")
            .body::<CreateRequest>()
            .example("plain", json!({"model": "bard", "from": MODEL, "system": "Rhyme.", "stream": false}))
            .example("streamed", json!({"model": "bard", "from": MODEL, "system": "Rhyme."}))
            .answer::<Progress>()
            .lines::<Progress>("Unless `stream` is false: a step per line, `success` in the last."),
        Endpoint::post("/api/copy", "Give a model a second name")
            .body::<CopyRequest>()
            .example("plain", json!({"source": MODEL, "destination": "poet"})),
        Endpoint::delete("/api/delete", "Remove a model")
            .about("Its weights go too when no other model has them. Requests that run finish.")
            .body::<DeleteRequest>()
            .example("plain", json!({"model": "bard"})),
        Endpoint::new(HttpMethod::Head, "/api/blobs/{digest}", "Whether a file is here")
            .part("digest", "`sha256:` and 64 hexadecimal digits"),
        Endpoint::post("/api/blobs/{digest}", "Send a file")
            .about("Its content must have the digest.")
            .part("digest", "`sha256:` and 64 hexadecimal digits")
            .bytes()
            .also(201, "The file was stored; 200 is that it was here already."),
        Endpoint::post("/api/pull", "Fetch a model")
            .about("Always refused: there is no store to fetch from.")
            .body::<TransferRequest>()
            .example("plain", json!({"model": "bard"})),
        Endpoint::post("/api/push", "Publish a model")
            .about("Always refused: there is no store to publish to.")
            .body::<TransferRequest>()
            .example("plain", json!({"model": "bard"})),
        Endpoint::get("/api/version", "Who answers").answer::<Version>(),
    ];
    Section {
        tag: "ollama",
        about: "What Ollama's clients speak.",
        endpoints: endpoints.into_iter().map(Endpoint::errors::<ErrorBody>).collect(),
    }
}
