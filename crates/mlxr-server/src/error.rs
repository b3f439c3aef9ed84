//! Why a request was not served, before any dialect words it.

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use mlxr_api::BodyError;
use mlxr_engine::{EngineThreadError, SubmitError};
use mlxr_text::TextError;

use crate::clients::RateLimit;
use crate::keys::Denied;
use crate::memory::MemoryPlan;

/// Seconds after which a client that found the queue full may try again.
const RETRY_AFTER_S: u32 = 1;

/// What went wrong. The messages are for clients; causes that are none of their business are in `Internal` and only
/// logged.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A field that cannot be honoured as it is.
    #[error("{reason}")]
    Invalid { field: Option<String>, reason: String },
    /// Clients know this case by its words: LiteLLM by OpenAI's, LangChain by Anthropic's. Both are here.
    #[error(
        "prompt is too long: it has {n_prompt} tokens, and this model's maximum context length is {n_ctx} tokens"
    )]
    ContextLength { n_prompt: usize, n_ctx: usize },
    /// One of the texts that were to become vectors or scores.
    #[error(
        "{field} is too long: it has {n_tokens} tokens, and this model's maximum context length is {n_ctx} \
         tokens; with truncate it is cut"
    )]
    TextTooLong { field: String, n_tokens: usize, n_ctx: usize },
    /// Strict mode met fields that would otherwise have been reported.
    #[error("{}", reasons.join("; "))]
    NotHonoured { field: String, reasons: Vec<String> },
    #[error("the model {model:?} does not exist; known are {known}")]
    ModelNotFound { model: String, known: String },
    #[error("{model:?} is in use by {n_leases} requests")]
    ModelBusy { model: String, n_leases: usize },
    #[error("{model:?} runs no request {id:?}")]
    NoSuchRequest { model: String, id: String },
    /// By the path, or in a field.
    #[error("the response {id:?} is not stored here, or no longer")]
    NoSuchResponse { id: String, field: Option<&'static str> },
    #[error("no such route: {method} {path}")]
    NoRoute { method: String, path: String },
    #[error("{method} is not allowed for {path}")]
    MethodNotAllowed { method: String, path: String },
    /// The key, or its absence.
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("{reason}")]
    Forbidden { reason: String },
    #[error("the limit of {limit} {} is reached; try again in {retry_after_s} s", what.name())]
    RateLimited { what: RateLimit, limit: u32, retry_after_s: u32 },
    #[error("the body is larger than {max_bytes} bytes")]
    BodyTooLarge { max_bytes: usize },
    #[error("the body did not arrive in time")]
    BodyTimeout,
    #[error("the server is busy: {n_waiting} requests wait already, at most {max_waiting} may")]
    QueueFull { n_waiting: usize, max_waiting: usize },
    #[error(
        "{model:?} does not fit: {plan} needed, {used_bytes} of {limit_bytes} bytes of {device} are taken by models \
         in use"
    )]
    OutOfMemory { model: String, device: String, plan: Box<MemoryPlan>, used_bytes: u64, limit_bytes: u64 },
    /// There are no kernels for one of its formats, less memory than planned, or no device.
    #[error("{model:?} cannot be computed here: {reason}")]
    CannotCompute { model: String, reason: String },
    /// Its files are missing, broken or of a kind nobody here knows.
    #[error("cannot load {model:?}: {reason}")]
    CannotLoad { model: String, reason: String },
    /// While it ran.
    #[error("the device that computes failed: {reason}; the next request starts it anew")]
    DeviceLost { reason: String },
    #[error("{reason}")]
    DiskFull { reason: String },
    #[error("the server is shutting down")]
    ShuttingDown,
    /// While it ran: by whoever looks after the server, or because the server does not wait for it to finish.
    #[error("the request was cancelled by the server, which may be shutting down")]
    Cancelled,
    #[error("internal error")]
    Internal { cause: String },
}

impl ServeError {
    pub fn invalid(field: impl Into<String>, reason: impl Into<String>) -> ServeError {
        ServeError::Invalid { field: Some(field.into()), reason: reason.into() }
    }

    pub fn internal(cause: impl ToString) -> ServeError {
        ServeError::Internal { cause: cause.to_string() }
    }

    /// Whether another device might do better.
    pub const fn concerns_device(&self) -> bool {
        matches!(self, ServeError::OutOfMemory { .. } | ServeError::CannotCompute { .. })
    }

    pub fn status(&self) -> StatusCode {
        match self {
            ServeError::Invalid { .. }
            | ServeError::ContextLength { .. }
            | ServeError::TextTooLong { .. }
            | ServeError::NoSuchResponse { field: Some(_), .. }
            | ServeError::NotHonoured { .. } => StatusCode::BAD_REQUEST,
            ServeError::ModelNotFound { .. }
            | ServeError::NoSuchRequest { .. }
            | ServeError::NoSuchResponse { field: None, .. }
            | ServeError::NoRoute { .. } => StatusCode::NOT_FOUND,
            ServeError::ModelBusy { .. } => StatusCode::CONFLICT,
            ServeError::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            ServeError::Denied(Denied::Scope { .. }) | ServeError::Forbidden { .. } => StatusCode::FORBIDDEN,
            ServeError::Denied(_) => StatusCode::UNAUTHORIZED,
            ServeError::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ServeError::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            ServeError::QueueFull { .. } | ServeError::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            ServeError::OutOfMemory { .. }
            | ServeError::CannotCompute { .. }
            | ServeError::DeviceLost { .. }
            | ServeError::ShuttingDown
            | ServeError::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            ServeError::DiskFull { .. } => StatusCode::INSUFFICIENT_STORAGE,
            ServeError::CannotLoad { .. } | ServeError::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// When to try again, in seconds, where that helps.
    pub const fn retry_after_s(&self) -> Option<u32> {
        match self {
            ServeError::QueueFull { .. } | ServeError::OutOfMemory { .. } | ServeError::DeviceLost { .. } => {
                Some(RETRY_AFTER_S)
            }
            ServeError::RateLimited { retry_after_s, .. } => Some(*retry_after_s),
            _ => None,
        }
    }

    /// The headers that go with the error, whatever the dialect.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        if let Some(seconds) = self.retry_after_s() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        // As RFC 6750 has it: no error code for those who showed nothing.
        let challenge = match self {
            ServeError::Denied(Denied::NoKey) => Some(r#"Bearer realm="mlxr""#.to_owned()),
            ServeError::Denied(Denied::Scope { scope, .. }) => {
                Some(format!(r#"Bearer realm="mlxr", error="insufficient_scope", scope="{scope}""#))
            }
            ServeError::Denied(_) => Some(r#"Bearer realm="mlxr", error="invalid_token""#.to_owned()),
            _ => None,
        };
        if let Some(Ok(challenge)) = challenge.map(HeaderValue::try_from) {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
    }

    /// For the log: also what clients do not see.
    pub fn cause(&self) -> String {
        match self {
            ServeError::Internal { cause } => cause.clone(),
            other => other.to_string(),
        }
    }

    /// Writes what is the server's to mend to the log.
    pub fn log(&self) {
        if let ServeError::CannotLoad { .. } | ServeError::Internal { .. } = self {
            tracing::error!(cause = self.cause(), "request failed");
        }
    }
}

impl From<BodyError> for ServeError {
    fn from(error: BodyError) -> Self {
        ServeError::Invalid { reason: error.to_string(), field: error.field }
    }
}

impl From<EngineThreadError> for ServeError {
    fn from(error: EngineThreadError) -> Self {
        match error {
            EngineThreadError::Submit(error) => error.into(),
            EngineThreadError::Busy { n_commands } => {
                ServeError::QueueFull { n_waiting: n_commands, max_waiting: n_commands }
            }
            EngineThreadError::Stopping => ServeError::ShuttingDown,
            EngineThreadError::Failed { reason } => ServeError::Internal { cause: reason },
        }
    }
}

impl From<SubmitError> for ServeError {
    fn from(error: SubmitError) -> Self {
        let field = match &error {
            SubmitError::PromptTooLong { n_prompt, n_ctx } => {
                return ServeError::ContextLength { n_prompt: *n_prompt, n_ctx: *n_ctx };
            }
            SubmitError::QueueFull { n_waiting, max_waiting } => {
                return ServeError::QueueFull { n_waiting: *n_waiting, max_waiting: *max_waiting };
            }
            SubmitError::EmptyPrompt | SubmitError::Text(_) | SubmitError::ImagePlaces { .. } => "prompt",
            SubmitError::NoImages { .. } | SubmitError::ImageShape { .. } => "images",
            SubmitError::NoSuchToken { field, .. } | SubmitError::FieldTooLong { field, .. } => field,
            SubmitError::Choices { .. } => "best_of",
            SubmitError::TooManyChoices { .. } => "n",
            SubmitError::EmptyStop => "stop",
            SubmitError::Sampling(error) => error.field,
        };
        ServeError::invalid(field, error.to_string())
    }
}

/// The chat template or the tokenizer refused the conversation.
impl From<TextError> for ServeError {
    fn from(error: TextError) -> Self {
        match &error {
            TextError::Refused { .. } | TextError::Template { .. } | TextError::Encode { .. } => {
                ServeError::invalid("messages", error.to_string())
            }
            _ => ServeError::internal(error),
        }
    }
}
