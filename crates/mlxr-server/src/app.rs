//! The service without a socket: state, limits, and the router every listener shares.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use mlxr_api::native::config::ConfigReport;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;

use crate::clients::{Client, Clients};
use crate::dialect::Dialect;
use crate::keys::{ClientLimits, Needs, Scope, needed};
use crate::log_ring::LogRing;
use crate::model_manager::Models;
use crate::response_store::ResponseStore;
use crate::stopping::Stopper;
use crate::telemetry::Telemetry;
use crate::{ServeError, rate_headers, routes};

/// What a request may cost before it is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_body_bytes: usize,
    /// Of a file sent to the catalogue, which goes to the disk as it comes.
    pub max_blob_bytes: u64,
    /// Silence inside a body after which the request is given up.
    pub body_timeout: Duration,
    /// Time for a whole body, however steadily it comes.
    pub body_deadline: Duration,
    /// From the end of a request, or the connection's beginning, to the end of the next one's headers: also how long
    /// an idle connection is kept.
    pub header_timeout: Duration,
    /// How long a client may leave unread what it is sent.
    pub write_timeout: Duration,
    pub max_connections: usize,
    /// What a client may ask for whose key says nothing else.
    pub client: ClientLimits,
    /// Refuse requests with fields that have no effect, whatever they say themselves.
    pub strict: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 32 << 20,
            max_blob_bytes: 256 << 30,
            body_timeout: Duration::from_secs(30),
            body_deadline: Duration::from_secs(300),
            header_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            max_connections: 4096,
            client: ClientLimits::default(),
            strict: false,
        }
    }
}

/// What the program around the service lends it.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Shared with the program's subscriber.
    pub logs: LogRing,
    /// The settings in effect, for clients that ask.
    pub config: ConfigReport,
    /// Where the file of settings is or would be.
    pub config_path: Option<PathBuf>,
}

/// What every handler works with.
#[derive(Debug)]
pub struct App {
    pub models: Arc<Models>,
    pub telemetry: Telemetry,
    pub limits: Limits,
    /// Ends the server from inside.
    pub stopper: Stopper,
    pub(crate) clients: Clients,
    pub(crate) responses: Arc<ResponseStore>,
    pub logs: LogRing,
    pub config: ConfigReport,
    pub config_path: Option<PathBuf>,
    pub started: Instant,
}

impl App {
    pub fn new(models: Arc<Models>, limits: Limits) -> Result<Arc<App>, ServeError> {
        App::within(Surroundings::default(), models, limits)
    }

    /// A service that shows what the program around it knows.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn within(
        Surroundings { logs, config, config_path }: Surroundings,
        models: Arc<Models>,
        limits: Limits,
    ) -> Result<Arc<App>, ServeError> {
        let telemetry = Telemetry::new().map_err(ServeError::internal)?;
        let (clients, stopper, started) = (Clients::new(limits.client), Stopper::default(), Instant::now());
        let responses = Arc::default();
        Ok(Arc::new(App {
            models,
            telemetry,
            limits,
            stopper,
            clients,
            responses,
            logs,
            config,
            config_path,
            started,
        }))
    }

    /// All routes. Access rules are the listeners'.
    pub fn router(self: &Arc<App>) -> Router {
        routes::all()
            .layer(DefaultBodyLimit::max(self.limits.max_body_bytes))
            .layer(RequestBodyTimeoutLayer::new(self.limits.body_timeout))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn_with_state(self.clone(), limit))
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

/// Holds a request that costs something to its client's limits.
async fn limit(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    if request.method() != Method::POST || needed(request.method(), route) != Needs::Scope(Scope::Inference) {
        return next.run(request).await;
    }
    let client = request.extensions().get::<Client>().cloned().unwrap_or_default();
    let dialect = Dialect::of_path(request.uri().path());
    match app.clients.enter(&client, Instant::now()) {
        Ok(entered) => {
            let mut response = entered.meter.clone().during(next.run(request)).await;
            rate_headers::write(&entered.standing, dialect, response.headers_mut());
            response.map(|body| entered.hold_for(body))
        }
        Err((error, standing)) => {
            let mut response = dialect.error(&error);
            rate_headers::write(&standing, dialect, response.headers_mut());
            response
        }
    }
}

/// A handler's bug is that request's problem alone.
fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    let error = ServeError::internal(format!("a handler panicked: {text}"));
    Dialect::OpenAi.error(&error).into_response()
}
