//! A generation as the body of a response: events become a dialect's frames as they come.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep};

use crate::generation::{Generation, IndexedEvent};

/// Silence after which a keep-alive goes out.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A dialect's way to write a stream.
pub trait Frames: Send + Unpin + 'static {
    /// Appends what an event leads to, possibly nothing.
    fn event(&mut self, event: IndexedEvent, out: &mut Vec<u8>);

    /// Appends what comes after the last event.
    fn end(&mut self, out: &mut Vec<u8>);

    /// What breaks a long silence.
    fn keep_alive(&self) -> &'static [u8];
}

/// The body of a streamed answer. The client going away drops it, and with it the generation.
pub fn body(generation: Generation, frames: impl Frames) -> Body {
    Body::from_stream(EventStream {
        generation,
        frames,
        silence: Box::pin(sleep(KEEP_ALIVE)),
        is_done: false,
    })
}

struct EventStream<F> {
    generation: Generation,
    frames: F,
    silence: Pin<Box<Sleep>>,
    is_done: bool,
}

impl<F: Frames> Stream for EventStream<F> {
    type Item = Result<Bytes, Infallible>;

    /// Everything that is ready goes out in one piece.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_done {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        loop {
            match this.generation.poll_next(cx) {
                Poll::Ready(Some(event)) => this.frames.event(event, &mut out),
                Poll::Ready(None) => {
                    this.frames.end(&mut out);
                    this.is_done = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        if out.is_empty() && !this.is_done {
            if this.silence.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            out.extend_from_slice(this.frames.keep_alive());
        }
        this.silence.as_mut().reset(Instant::now() + KEEP_ALIVE);
        Poll::Ready(Some(Ok(Bytes::from(out))))
    }
}
