//! Our own routes.

use mlxr_api::native::cache::{
    CacheList, ClearAnswer, ExplainAnswer, ExplainRequest, IntegrityAnswer, IntegrityRequest,
};
use mlxr_api::native::config::{ConfigChange, ConfigChanged, ConfigReport};
use mlxr_api::native::error::ErrorBody;
use mlxr_api::native::kv::KvMaps;
use mlxr_api::native::logs::{Level, LogEvent, LogLines};
use mlxr_api::native::metrics::MetricList;
use mlxr_api::native::models::{
    LoadAnswer, LoadRequest, ModelList, PlanAnswer, PlanRequest, UnloadAnswer, UnloadRequest,
};
use mlxr_api::native::requests::{CancelAnswer, RequestList};
use mlxr_api::native::score::{ScoreAnswer, ScoreRequest};
use mlxr_api::native::shutdown::{ShutdownAnswer, ShutdownRequest};
use mlxr_api::native::stats::{Stats, Version};
use mlxr_api::native::text::{
    DetokenizeAnswer, DetokenizeRequest, TemplateAnswer, TemplateRequest, TokenizeAnswer, TokenizeRequest,
};
use mlxr_engine::MAX_MAP_BLOCKS;
use serde_json::json;
use utoipa::openapi::HttpMethod;

use super::endpoint::{Endpoint, number, one_of, text};
use super::{BEGINNING, MODEL, Section, question};
use crate::log_ring::MAX_LINES;

pub fn section() -> Section {
    let endpoints = models().into_iter().chain(engine()).chain(texts()).chain(server());
    Section {
        tag: "native",
        about: "mlxr's own routes: the models in memory, what runs, and the way from text to tokens and back.",
        endpoints: endpoints.map(Endpoint::errors::<ErrorBody>).collect(),
    }
}

fn models() -> Vec<Endpoint> {
    vec![
        Endpoint::get("/mlxr/v1/models", "List the models, those in memory with what they take")
            .answer::<ModelList>(),
        Endpoint::post("/mlxr/v1/models/load", "Bring a model into memory")
            .body::<LoadRequest>()
            .example("plain", json!({"model": MODEL, "keep_alive": "10m"}))
            .answer::<LoadAnswer>()
            .refuses::<ErrorBody>(503, "There is no memory for it beside the models in use."),
        Endpoint::post("/mlxr/v1/models/unload", "Take a model out of memory")
            .body::<UnloadRequest>()
            .example("plain", json!({"model": MODEL}))
            .answer::<UnloadAnswer>()
            .refuses::<ErrorBody>(409, "It is in use, and `force` is not set."),
        Endpoint::post("/mlxr/v1/plan", "Say what a model would take, without loading it")
            .body::<PlanRequest>()
            .example("plain", json!({"model": MODEL, "n_ctx": 1024, "kv_type": "q8_0"}))
            .answer::<PlanAnswer>(),
    ]
}

fn engine() -> Vec<Endpoint> {
    vec![
        Endpoint::get("/mlxr/v1/requests", "List the requests that have not finished")
            .answer::<RequestList>(),
        Endpoint::delete("/mlxr/v1/requests/{model}/{id}", "Cancel a request")
            .part("model", "The model that runs it.")
            .part("id", "The engine's number, or the id its client was given.")
            .answer::<CancelAnswer>()
            .refuses::<ErrorBody>(404, "It has finished, or never was."),
        Endpoint::get("/mlxr/v1/cache", "Show the prefix caches").answer::<CacheList>(),
        Endpoint::delete("/mlxr/v1/cache", "Forget what the prefix caches hold").answer::<ClearAnswer>(),
        Endpoint::post("/mlxr/v1/cache/explain", "Say how much of a prompt is cached, and why no more")
            .body::<ExplainRequest>()
            .example("plain", json!({"model": MODEL, "messages": question()}))
            .answer::<ExplainAnswer>(),
        Endpoint::get("/mlxr/v1/kv", "Show what the KV blocks hold, block by block")
            .query("model", "Only this model's.", text())
            .query("first", "The first block to show; 0 by default.", number(0, usize::MAX))
            .query("limit", "So many blocks at most; 4096 by default.", number(1, MAX_MAP_BLOCKS))
            .answer::<KvMaps>(),
        Endpoint::post("/mlxr/v1/integrity", "Balance the books of KV blocks")
            .body::<IntegrityRequest>()
            .optional()
            .example("plain", json!({"model": MODEL}))
            .answer::<IntegrityAnswer>(),
    ]
}

fn texts() -> Vec<Endpoint> {
    vec![
        Endpoint::post("/mlxr/v1/tokenize", "Cut a text into tokens")
            .body::<TokenizeRequest>()
            .example("plain", json!({"model": MODEL, "text": BEGINNING, "with_pieces": true}))
            .answer::<TokenizeAnswer>(),
        Endpoint::post("/mlxr/v1/detokenize", "Put tokens together to a text")
            .body::<DetokenizeRequest>()
            .example("plain", json!({"model": MODEL, "tokens": [400, 500, 600]}))
            .answer::<DetokenizeAnswer>(),
        Endpoint::post("/mlxr/v1/apply-template", "Show the prompt that a conversation becomes")
            .body::<TemplateRequest>()
            .example("plain", json!({"model": MODEL, "messages": question()}))
            .answer::<TemplateAnswer>(),
        Endpoint::post("/mlxr/v1/score", "Say how likely a text is, or choices behind a context")
            .body::<ScoreRequest>()
            .example(
                "plain",
                json!({"model": MODEL, "context": "Once upon a", "choices": [" time", " dime"]}),
            )
            .answer::<ScoreAnswer>()
            .queues::<ErrorBody>(),
    ]
}

fn server() -> Vec<Endpoint> {
    vec![
        Endpoint::get("/mlxr/v1/stats", "Show what the engines have done and hold").answer::<Stats>(),
        Endpoint::get("/mlxr/v1/metrics", "Show the numbers of /metrics as JSON").answer::<MetricList>(),
        Endpoint::get("/mlxr/v1/logs", "Show the last lines of the log, or follow it")
            .query("level", "The least important lines to show.", one_of(&Level::ALL.map(Level::name)))
            .query("limit", "The last so many lines; 100 by default.", number(0, MAX_LINES))
            .query("since", "Only lines with this number and later.", number(0, usize::MAX))
            .query("target", "Only lines of parts of the program whose names begin so.", text())
            .query("follow", "Go on with lines as they come.", one_of(&["true", "false"]))
            .answer::<LogLines>()
            .lines::<LogEvent>("With `follow`: one per line.")
            .events::<LogEvent>("With `follow`, to who accepts it: one per event."),
        Endpoint::get("/mlxr/v1/config", "Show the settings in effect and where each came from")
            .answer::<ConfigReport>(),
        Endpoint::new(HttpMethod::Patch, "/mlxr/v1/config", "Change settings, from the next start on")
            .about("In the file of settings, whose other lines stay as they are; all of the changes or none.")
            .body::<ConfigChange>()
            .example("plain", json!({"settings": {"limits.grace": "30s"}}))
            .answer::<ConfigChanged>(),
        Endpoint::get("/mlxr/v1/version", "Who answers").answer::<Version>(),
        Endpoint::post("/mlxr/v1/shutdown", "End the server")
            .body::<ShutdownRequest>()
            .example("plain", json!({"force": false}))
            .answer::<ShutdownAnswer>(),
    ]
}
