//! OpenAI's routes.

use mlxr_api::openai::chat::{ChatCompletion, ChatCompletionChunk, ChatCompletionRequest};
use mlxr_api::openai::completions::{Completion, CompletionRequest};
use mlxr_api::openai::embeddings::{EmbeddingList, EmbeddingRequest};
use mlxr_api::openai::error::ErrorBody;
use mlxr_api::openai::models::{DeletedModel, Model, ModelList};
use mlxr_api::openai::rerank::{Rerank, RerankRequest};
use mlxr_api::openai::responses::{
    DeletedResponse, InputTokenCount, ItemList, Response, ResponseRequest, StreamEvent,
};
use mlxr_api::openai::sampling::SamplingExtensions;
use serde_json::json;

use super::endpoint::{Endpoint, number, one_of, text};
use super::{BEGINNING, MODEL, RERANKER, Section, question};

const RESPONSE_ID: &str = "Its id.";

pub fn section() -> Section {
    let endpoints = vec![
        Endpoint::post("/v1/chat/completions", "Answer a conversation")
            .body_with::<ChatCompletionRequest, SamplingExtensions>()
            .example("plain", json!({"model": MODEL, "messages": question(), "max_tokens": 16}))
            .example(
                "streamed",
                json!({"model": MODEL, "messages": question(), "max_tokens": 16, "stream": true}),
            )
            .answer::<ChatCompletion>()
            .events::<ChatCompletionChunk>("With `stream`: a chunk per event, and `data: [DONE]` at the end.")
            .queues::<ErrorBody>(),
        Endpoint::post("/v1/completions", "Continue one or more prompts")
            .body_with::<CompletionRequest, SamplingExtensions>()
            .example("plain", json!({"model": MODEL, "prompt": BEGINNING, "max_tokens": 16}))
            .example(
                "streamed",
                json!({"model": MODEL, "prompt": BEGINNING, "max_tokens": 16, "stream": true}),
            )
            .answer::<Completion>()
            .events::<Completion>("With `stream`: a piece per event, and `data: [DONE]` at the end.")
            .queues::<ErrorBody>(),
        Endpoint::post("/v1/embeddings", "Make vectors of texts")
            .body::<EmbeddingRequest>()
            .example("plain", json!({"model": MODEL, "input": [BEGINNING, "There was a fox"]}))
            .answer::<EmbeddingList>()
            .queues::<ErrorBody>(),
        rerank("/v1/rerank"),
        rerank("/v2/rerank"),
        rerank("/rerank"),
        Endpoint::post("/v1/responses", "Answer a conversation, and keep the answer")
            .about("Functions are called by the client; the tools OpenAI runs itself are refused. Kept in memory, the \
                    longest unused first to go; a key sees its own.")
            .body_with::<ResponseRequest, SamplingExtensions>()
            .example("plain", json!({"model": MODEL, "input": BEGINNING, "max_output_tokens": 16}))
            .example(
                "streamed",
                json!({"model": MODEL, "input": BEGINNING, "max_output_tokens": 16, "stream": true}),
            )
            .answer::<Response>()
            .events::<StreamEvent>("With `stream`: named events, the last with the whole response.")
            .queues::<ErrorBody>(),
        Endpoint::post("/v1/responses/input_tokens", "Count the tokens of a request's input")
            .body_with::<ResponseRequest, SamplingExtensions>()
            .example("plain", json!({"model": MODEL, "input": BEGINNING}))
            .answer::<InputTokenCount>(),
        Endpoint::get("/v1/responses/{id}", "Show a response").part("id", RESPONSE_ID).answer::<Response>(),
        Endpoint::delete("/v1/responses/{id}", "Forget a response, and cancel it if it runs")
            .part("id", RESPONSE_ID)
            .answer::<DeletedResponse>(),
        Endpoint::post("/v1/responses/{id}/cancel", "Cancel a response in the background")
            .part("id", RESPONSE_ID)
            .answer::<Response>(),
        Endpoint::get("/v1/responses/{id}/input_items", "List what a response is the answer to")
            .part("id", RESPONSE_ID)
            .query("after", "The item that the page begins behind.", text())
            .query("limit", "Items of a page; 20 by default.", number(1, 100))
            .query("order", "Which end comes first.", one_of(&["asc", "desc"]))
            .answer::<ItemList>(),
        Endpoint::get("/v1/models", "List the models").answer::<ModelList>(),
        Endpoint::get("/v1/models/{id}", "Show a model").part("id", "Its name.").answer::<Model>(),
        Endpoint::delete("/v1/models/{id}", "Delete a model of the catalogue")
            .part("id", "Its name.")
            .answer::<DeletedModel>(),
    ];
    Section {
        tag: "openai",
        about: "What OpenAI's clients speak.",
        endpoints: endpoints.into_iter().map(Endpoint::errors::<ErrorBody>).collect(),
    }
}

fn rerank(path: &'static str) -> Endpoint {
    Endpoint::post(path, "Order documents by how well they answer a query")
        .about("In the shape that Jina's and Cohere's clients share, for cross-encoders.")
        .body::<RerankRequest>()
        .example("plain", json!({"model": RERANKER, "query": "foxes", "documents": [BEGINNING, "A fox"]}))
        .answer::<Rerank>()
        .queues::<ErrorBody>()
}
