//! Server-sent events.

use std::io::Write;

use axum::http::HeaderValue;
use serde::Serialize;

pub const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Sent when nothing else has been for a while, so that nobody between us and the client gives up.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// Appends one event with `value` as its data.
pub fn data(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    json(out, value);
    out.extend_from_slice(b"\n\n");
}

/// Appends one event with a name and `value` as its data.
pub fn event(out: &mut Vec<u8>, name: &str, value: &impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.push(b'\n');
    data(out, value);
}

/// Appends the end that OpenAI's clients wait for.
pub fn done(out: &mut Vec<u8>) {
    out.extend_from_slice(b"data: [DONE]\n\n");
}

/// Appends `value`.
pub fn json(out: &mut Vec<u8>, value: &impl Serialize) {
    let start = out.len();
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        // Our own types always serialise; were one not to, a half-written value must not go out.
        tracing::error!(%error, "an event could not be written");
        out.truncate(start);
        let _ = out.write_all(b"{}");
    }
}
