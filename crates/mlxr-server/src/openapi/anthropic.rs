//! Anthropic's routes.

use mlxr_api::anthropic::error::ErrorBody;
use mlxr_api::anthropic::messages::{MessageAnswer, MessagesRequest, TokenCount};
use mlxr_api::anthropic::stream::StreamEvent;
use serde_json::json;

use super::endpoint::Endpoint;
use super::{MODEL, Section, question};

pub fn section() -> Section {
    let endpoints = vec![
        Endpoint::post("/v1/messages", "Answer a conversation")
            .body::<MessagesRequest>()
            .example("plain", json!({"model": MODEL, "max_tokens": 16, "messages": question()}))
            .example(
                "streamed",
                json!({"model": MODEL, "max_tokens": 16, "messages": question(), "stream": true}),
            )
            .answer::<MessageAnswer>()
            .events::<StreamEvent>("With `stream`: events named by their `type`, `message_stop` last.")
            .queues::<ErrorBody>(),
        Endpoint::post("/v1/messages/count_tokens", "Count the tokens of a conversation")
            .body::<MessagesRequest>()
            .example("plain", json!({"model": MODEL, "max_tokens": 16, "messages": question()}))
            .answer::<TokenCount>(),
    ];
    Section {
        tag: "anthropic",
        about: "What Anthropic's clients speak.",
        endpoints: endpoints.into_iter().map(Endpoint::errors::<ErrorBody>).collect(),
    }
}
