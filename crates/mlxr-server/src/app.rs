//! The service without a socket: state, limits, and the router every listener shares.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::ServeError;
use crate::dialect::Dialect;
use crate::model_manager::Models;
use crate::routes;
use crate::telemetry::Telemetry;

/// What a request may cost before it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_body_bytes: usize,
    /// Silence inside a body after which the request is given up.
    pub body_timeout: Duration,
    /// From the first byte of a request to the end of its headers.
    pub header_timeout: Duration,
    pub max_connections: usize,
    /// Refuse requests with fields that have no effect, whatever they say themselves.
    pub strict: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            body_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(10),
            max_connections: 4096,
            strict: false,
        }
    }
}

/// What every handler works with.
#[derive(Debug)]
pub struct App {
    pub models: Arc<Models>,
    pub telemetry: Telemetry,
    pub limits: Limits,
}

impl App {
    pub fn new(models: Arc<Models>, limits: Limits) -> Result<Arc<App>, ServeError> {
        let telemetry = Telemetry::new().map_err(ServeError::internal)?;
        Ok(Arc::new(App { models, telemetry, limits }))
    }

    /// All routes. Access rules are the listeners'.
    pub fn router(self: &Arc<App>) -> Router {
        routes::all()
            .layer(DefaultBodyLimit::max(self.limits.max_body_bytes))
            .layer(RequestBodyTimeoutLayer::new(self.limits.body_timeout))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn_with_state(self.clone(), observe))
            .with_state(self.clone())
    }
}

/// Counts responses and logs those that went wrong.
async fn observe(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    let status = response.status();
    app.telemetry.count_response(&route, status.as_u16());
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(%method, route, status = status.as_u16(), "response");
    } else {
        tracing::debug!(%method, route, status = status.as_u16(), "response");
    }
    response
}

/// A handler's bug is that request's problem alone.
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let error = ServeError::internal(format!("a handler panicked: {text}"));
    Dialect::OpenAi.error(&error).into_response()
}
