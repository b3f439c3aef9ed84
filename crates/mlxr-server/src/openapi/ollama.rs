//! Ollama's routes.

use mlxr_api::ollama::chat::{ChatRequest, ChatResponse};
use mlxr_api::ollama::embed::{EmbedRequest, EmbedResponse, EmbeddingRequest, EmbeddingResponse};
use mlxr_api::ollama::error::ErrorBody;
use mlxr_api::ollama::generate::{GenerateRequest, GenerateResponse};
use mlxr_api::ollama::models::{ModelList, RunningModels, ShowRequest, ShowResponse, Version};

use super::Section;
use super::endpoint::Endpoint;

pub fn section() -> Section {
    let endpoints = vec![
        Endpoint::post("/api/generate", "Continue a prompt")
            .about("Without a prompt the model is only loaded, or unloaded with a `keep_alive` of 0.")
            .body::<GenerateRequest>()
            .answer::<GenerateResponse>()
            .lines::<GenerateResponse>(
                "Unless `stream` is false: a piece per line, counts and times in the last.",
            )
            .queues::<ErrorBody>(),
        Endpoint::post("/api/chat", "Answer a conversation")
            .about("Without messages the model is only loaded, or unloaded with a `keep_alive` of 0.")
            .body::<ChatRequest>()
            .answer::<ChatResponse>()
            .lines::<ChatResponse>(
                "Unless `stream` is false: a piece per line, counts and times in the last.",
            )
            .queues::<ErrorBody>(),
        Endpoint::post("/api/embed", "Make vectors of texts")
            .about("Without input the model is only loaded.")
            .body::<EmbedRequest>()
            .answer::<EmbedResponse>()
            .queues::<ErrorBody>(),
        Endpoint::post("/api/embeddings", "Make a vector of a text")
            .about("What came before `/api/embed`. Without a prompt the model is only loaded.")
            .body::<EmbeddingRequest>()
            .answer::<EmbeddingResponse>()
            .queues::<ErrorBody>(),
        Endpoint::get("/api/tags", "List the models").answer::<ModelList>(),
        Endpoint::post("/api/show", "Show a model").body::<ShowRequest>().answer::<ShowResponse>(),
        Endpoint::get("/api/ps", "List the models in memory").answer::<RunningModels>(),
        Endpoint::get("/api/version", "Who answers").answer::<Version>(),
    ];
    Section {
        tag: "ollama",
        about: "What Ollama's clients speak.",
        endpoints: endpoints.into_iter().map(Endpoint::errors::<ErrorBody>).collect(),
    }
}
