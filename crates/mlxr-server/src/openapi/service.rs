//! Routes that belong to no client.

use mlxr_api::native::error::ErrorBody;
use mlxr_api::native::health::Health;

use super::Section;
use super::endpoint::Endpoint;

pub fn section() -> Section {
    let endpoints = vec![
        Endpoint::get("/", "Somebody is at home").answer_text("text/plain; charset=utf-8"),
        Endpoint::get("/health", "Whether the server is up").answer::<Health>(),
        Endpoint::get("/metrics", "Metrics for Prometheus")
            .answer_text("text/plain; version=0.0.4; charset=utf-8"),
        Endpoint::get("/openapi.json", "This document").answer_object(),
        Endpoint::get("/docs", "This document as a page").answer_text("text/html; charset=utf-8"),
    ];
    Section {
        tag: "service",
        about: "Health, metrics and this description.",
        endpoints: endpoints.into_iter().map(Endpoint::errors::<ErrorBody>).collect(),
    }
}
