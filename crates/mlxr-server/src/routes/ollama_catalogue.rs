//! Ollama's routes that change which models there are.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Poll;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use axum::routing::{delete, head, post};
use bytes::Bytes;
use http_body_util::BodyExt;
use mlxr_api::ollama::create::{CopyRequest, CreateRequest, DeleteRequest, Progress, TransferRequest};
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{blocking, is_timeout, read_body};
use crate::app::App;
use crate::catalogue::create::{self, Recipe, Step};
use crate::catalogue::{BlobError, Catalogue, Digest, Entry, ModelName};
use crate::dialect::Dialect;
use crate::notices::Notices;
use crate::translate::ollama::create::{fixed, new_name, progress, recipe, source};
use crate::translate::ollama::{error_body, stream_response};
use crate::translate::openai::json_response;
use crate::{ServeError, ndjson};

/// Lines or pieces of a body on their way between a connection and the thread that works.
const MAX_BUFFERED: usize = 16;

pub fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/api/create", post(create_model))
        .route("/api/copy", post(copy))
        .route("/api/delete", delete(delete_model))
        .route("/api/blobs/{digest}", head(find_blob).post(send_blob))
        .route("/api/pull", post(async |state, request| transfer(state, request, PULL).await))
        .route("/api/push", post(async |state, request| transfer(state, request, PUSH).await))
}

fn or_error(answer: Result<Response, ServeError>) -> Response {
    answer.unwrap_or_else(|error| Dialect::Ollama.error(&error))
}

fn catalogue(app: &App) -> Result<Arc<Catalogue>, ServeError> {
    app.models.catalogue().cloned().ok_or_else(|| {
        let reason = "this server has no folder for models; start it with --data-dir FOLDER";
        ServeError::Invalid { field: None, reason: reason.to_owned() }
    })
}

fn unknown_fields(unknown: &Map<String, Value>, strict: bool) -> Result<Notices, ServeError> {
    let mut notices = Notices::default();
    for name in unknown.keys() {
        notices.add(name, "there is no such field");
    }
    notices.enforce(strict)?;
    Ok(notices)
}

/// An answer without a body, as Ollama gives it.
fn empty(status: StatusCode, notices: &Notices) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    notices.write_header(response.headers_mut());
    response
}

async fn create_model(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_create(app, request).await)
}

async fn answer_create(app: Arc<App>, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = CreateRequest::parse(&body)?;
    let is_stream = wire.stream != Some(false);
    let catalogue = catalogue(&app)?;
    let (strict, reader) = (app.limits.strict, app.clone());
    let (recipe, notices) = blocking(move || recipe(&wire, &reader.models, strict)).await?;
    let (send, mut steps) = mpsc::channel(MAX_BUFFERED);
    let making = tokio::task::spawn_blocking(move || make(&app, &catalogue, &recipe, &send));
    if is_stream {
        return Ok(stream_response(Body::from_stream(Steps { steps }), &notices));
    }
    let mut last = Err(ServeError::internal("the work ended without a word"));
    while let Some(step) = steps.recv().await {
        last = step;
    }
    making.await.map_err(ServeError::internal)?;
    Ok(json_response(&last?, &notices))
}

/// Makes the model and tells the steps; a client that is gone stops it. Blocks.
fn make(
    app: &App,
    catalogue: &Catalogue,
    recipe: &Recipe,
    send: &mpsc::Sender<Result<Progress, ServeError>>,
) {
    let mut tell = |step: Step| {
        if matches!(step, Step::Bytes { .. }) {
            // Counts come by the thousand: while one waits to be read, the next ones are not needed.
            let _ = send.try_send(Ok(progress(step)));
        } else if send.blocking_send(Ok(progress(step))).is_err() {
            return ControlFlow::Break(());
        }
        if send.is_closed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let made = create::create(catalogue, recipe, &mut tell);
    app.models.refresh();
    let last = made.map(|name| {
        tracing::info!(model = %name, "model created");
        Progress { status: "success".to_owned(), ..Progress::default() }
    });
    // Nobody may be there to hear it.
    let _ = send.blocking_send(last.map_err(ServeError::from));
}

/// Steps as lines.
struct Steps {
    steps: mpsc::Receiver<Result<Progress, ServeError>>,
}

impl futures_core::Stream for Steps {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        self.steps.poll_recv(cx).map(|step| {
            let mut out = Vec::new();
            match step? {
                Ok(progress) => ndjson::line(&mut out, &progress),
                Err(error) => {
                    error.log();
                    ndjson::line(&mut out, &error_body(&error));
                }
            }
            Some(Ok(out.into()))
        })
    }
}

async fn copy(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_copy(app, request).await)
}

async fn answer_copy(app: Arc<App>, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = CopyRequest::parse(&body)?;
    let notices = unknown_fields(&wire.unknown, app.limits.strict)?;
    let catalogue = catalogue(&app)?;
    blocking(move || {
        let destination = new_name(&app.models, "destination", &wire.destination)?;
        let spec = app.models.find(&wire.source)?;
        let entry = Entry { source: source(&spec, &app.models)?, settings: spec.settings.clone() };
        let name = catalogue.put(&destination, &entry)?;
        app.models.refresh();
        tracing::info!(model = %name, source = spec.name, "model copied");
        Ok(())
    })
    .await?;
    Ok(empty(StatusCode::OK, &notices))
}

async fn delete_model(State(app): State<Arc<App>>, request: Request) -> Response {
    or_error(answer_delete(app, request).await)
}

async fn answer_delete(app: Arc<App>, request: Request) -> Result<Response, ServeError> {
    let body = read_body(request, &app.limits).await?;
    let wire = DeleteRequest::parse(&body)?;
    let notices = unknown_fields(&wire.unknown, app.limits.strict)?;
    blocking(move || remove(&app, &wire.model)).await?;
    Ok(empty(StatusCode::OK, &notices))
}

/// Takes a model out of the catalogue.
///
/// # Errors
/// It is not there, or does not belong to the catalogue.
pub(super) fn remove(app: &App, model: &str) -> Result<ModelName, ServeError> {
    // One whose file has a mistake is not found here, but can be removed.
    if let Ok(spec) = app.models.find(model)
        && !spec.is_in_catalogue()
    {
        return Err(ServeError::invalid("model", fixed(&spec)));
    }
    let catalogue = catalogue(app)?;
    let name = ModelName::parse(model).map_err(|error| ServeError::invalid("model", error.to_string()))?;
    let removed = catalogue.remove(&name)?;
    app.models.refresh();
    tracing::info!(model = %removed, "model deleted");
    Ok(removed)
}

fn digest(text: &str) -> Result<Digest, ServeError> {
    text.parse()
        .map_err(|error: crate::catalogue::DigestError| ServeError::invalid("digest", error.to_string()))
}

async fn find_blob(State(app): State<Arc<App>>, Path(text): Path<String>) -> Response {
    let found = digest(&text).and_then(|digest| Ok(catalogue(&app)?.blobs.has(digest)));
    or_error(found.map(|is_there| {
        let status = if is_there { StatusCode::OK } else { StatusCode::NOT_FOUND };
        empty(status, &Notices::default())
    }))
}

async fn send_blob(State(app): State<Arc<App>>, Path(text): Path<String>, request: Request) -> Response {
    or_error(answer_blob(&app, &text, request).await)
}

async fn answer_blob(app: &App, text: &str, request: Request) -> Result<Response, ServeError> {
    let (digest, catalogue) = (digest(text)?, catalogue(app)?);
    if catalogue.blobs.has(digest) {
        return Ok(empty(StatusCode::OK, &Notices::default()));
    }
    let max_bytes = app.limits.max_blob_bytes;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|n_bytes: u64| n_bytes > max_bytes) {
        return Err(BlobError::TooLarge { max_bytes }.into());
    }
    let (send, pieces) = mpsc::channel(MAX_BUFFERED);
    let writing = tokio::task::spawn_blocking(move || write_blob(&catalogue, digest, max_bytes, pieces));
    let mut body = request.into_body();
    let broken = loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                let Ok(piece) = frame.into_data() else { continue };
                // The writer has given up; it says why.
                if send.send(Some(piece)).await.is_err() {
                    break None;
                }
            }
            Some(Err(error)) if is_timeout(&error) => break Some(ServeError::BodyTimeout),
            Some(Err(_)) => break Some(BlobError::Unfinished.into()),
            None => {
                let _ = send.send(None).await;
                break None;
            }
        }
    };
    drop(send);
    let written = writing.await.map_err(ServeError::internal)?;
    match broken {
        Some(error) => return Err(error),
        None => written?,
    }
    Ok(empty(StatusCode::CREATED, &Notices::default()))
}

/// Writes the pieces of a blob as they come; `None` is the end. Blocks.
fn write_blob(
    catalogue: &Catalogue,
    digest: Digest,
    max_bytes: u64,
    mut pieces: mpsc::Receiver<Option<Bytes>>,
) -> Result<(), ServeError> {
    let mut writer = catalogue.blobs.writer(max_bytes)?;
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Some(piece) => writer.write(&piece)?,
            None => {
                writer.finish(Some(digest))?;
                return Ok(());
            }
        }
    }
    Err(BlobError::Unfinished.into())
}

const PULL: &str = "there is no store of models to pull from yet: put the model's files on this machine and run \
                    `mlxr create`, or send them to /api/blobs and make a model of them with /api/create";
const PUSH: &str = "there is no store of models to push to yet: the model's file is on this machine, \
                    `mlxr show` says where";

async fn transfer(State(app): State<Arc<App>>, request: Request, reason: &str) -> Response {
    let refused = async {
        let body = read_body(request, &app.limits).await?;
        let wire = TransferRequest::parse(&body)?;
        Err(ServeError::invalid("model", format!("{:?}: {reason}", wire.model)))
    };
    or_error(refused.await)
}
