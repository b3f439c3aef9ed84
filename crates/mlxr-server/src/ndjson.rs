//! Lines of JSON, as Ollama streams them.

use axum::http::HeaderValue;
use serde::Serialize;

pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// Clients read every line as JSON, so silence cannot be broken.
pub const KEEP_ALIVE: &[u8] = b"";

/// Appends one line.
pub fn line(out: &mut Vec<u8>, value: &impl Serialize) {
    crate::sse::json(out, value);
    out.push(b'\n');
}
