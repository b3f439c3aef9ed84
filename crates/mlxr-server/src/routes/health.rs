//! Whether the service is up, and its metrics.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mlxr_api::native::health::Health;

use crate::app::App;
use crate::translate::openai::json_response;

pub fn routes() -> Router<Arc<App>> {
    Router::new().route("/health", get(health)).route("/metrics", get(metrics))
}

async fn health() -> Response {
    json_response(&Health { status: "ok".to_owned() }, &Default::default())
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    let text = app.telemetry.render(&app.models, app.started.elapsed());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
