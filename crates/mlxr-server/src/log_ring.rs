//! The last lines of the log, for `GET /mlxr/v1/logs`.
//!
//! A layer of the subscriber keeps what the others write somewhere else. Bounds: [`MAX_LINES`] lines, whose texts are
//! cut at [`MAX_TEXT_BYTES`]; a reader that is too slow is told how many lines it missed.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use mlxr_api::native::logs::{Level, LogLine};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines that are kept.
pub const MAX_LINES: usize = 2000;

/// The longest text of a message or a field.
const MAX_TEXT_BYTES: usize = 2048;

/// See the module. Clones share their lines.
#[derive(Clone)]
pub struct LogRing(Arc<Shared>);

struct Shared {
    lines: Mutex<VecDeque<Arc<LogLine>>>,
    /// The number of the next line.
    next_seq: watch::Sender<u64>,
}

/// Lines from the ring.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub lines: Vec<Arc<LogLine>>,
    /// Lines that were asked for and are gone.
    pub n_gone: u64,
    /// Where to go on.
    pub next_seq: u64,
}

impl LogRing {
    /// What is there from line `seq` on.
    pub fn since(&self, seq: u64) -> Batch {
        let lines = self.lock();
        let next_seq = *self.0.next_seq.borrow();
        let oldest = next_seq - lines.len() as u64;
        let n_gone = oldest.saturating_sub(seq);
        let n_known = usize::try_from(seq.saturating_sub(oldest)).unwrap_or(usize::MAX);
        Batch { lines: lines.iter().skip(n_known).cloned().collect(), n_gone, next_seq }
    }

    /// Changes with every line.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.next_seq.subscribe()
    }

    fn push(&self, level: Level, target: &str, found: Found) {
        let time_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut lines = self.lock();
        // Under the lock, so that numbers and places go together.
        let seq = *self.0.next_seq.borrow();
        let (target, Found { message, fields }) = (target.to_owned(), found);
        if lines.len() == MAX_LINES {
            lines.pop_front();
        }
        lines.push_back(Arc::new(LogLine { seq, time_s, level, target, message, fields }));
        self.0.next_seq.send_replace(seq + 1);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<LogLine>>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for LogRing {
    fn default() -> Self {
        LogRing(Arc::new(Shared { lines: Mutex::default(), next_seq: watch::Sender::new(0) }))
    }
}

impl fmt::Debug for LogRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogRing").field("n_lines", &self.lock().len()).finish()
    }
}

impl<S: Subscriber> Layer<S> for LogRing {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut found = Found::default();
        event.record(&mut found);
        self.push(level(*metadata.level()), metadata.target(), found);
    }
}

fn level(level: tracing::Level) -> Level {
    match level {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::INFO => Level::Info,
        tracing::Level::DEBUG => Level::Debug,
        tracing::Level::TRACE => Level::Trace,
    }
}

/// What an event says.
#[derive(Default)]
struct Found {
    message: String,
    fields: Map<String, Value>,
}

impl Found {
    fn text(&mut self, field: &Field, mut text: String) {
        if text.len() > MAX_TEXT_BYTES {
            let is_end = |&end: &usize| text.is_char_boundary(end);
            text.truncate((0..=MAX_TEXT_BYTES).rev().find(is_end).unwrap_or(0));
            text.push('\u{2026}');
        }
        match field.name() {
            "message" => self.message = text,
            name => self.value(name, text),
        }
    }

    fn value(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_owned(), value.into());
    }
}

impl Visit for Found {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.value(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.value(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.value(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.value(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn logged(work: impl FnOnce()) -> LogRing {
        let ring = LogRing::default();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(ring.clone()), work);
        ring
    }

    #[test]
    fn a_line_keeps_what_was_said_and_how() {
        let ring = logged(
            || tracing::warn!(target: "there", n = 3, ok = true, name = "a", path = ?"b", "so {}", "it is"),
        );
        let batch = ring.since(0);
        assert_eq!((batch.n_gone, batch.next_seq, batch.lines.len()), (0, 1, 1));
        let line = &batch.lines[0];
        assert_eq!(
            (line.level, line.target.as_str(), line.message.as_str()),
            (Level::Warn, "there", "so it is")
        );
        assert_eq!(
            serde_json::to_string(&line.fields).unwrap(),
            r#"{"n":3,"ok":true,"name":"a","path":"\"b\""}"#
        );
        assert!(line.time_s > 1.7e9);
    }

    #[test]
    fn old_lines_go_and_are_counted() {
        let ring = logged(|| (0..MAX_LINES + 5).for_each(|i| tracing::info!(i, "x")));
        let all = ring.since(0);
        assert_eq!((all.lines.len(), all.n_gone, all.lines[0].seq), (MAX_LINES, 5, 5));
        let last = ring.since(all.next_seq - 2);
        assert_eq!((last.lines.len(), last.n_gone, last.lines[0].seq), (2, 0, all.next_seq - 2));
        assert!(ring.since(all.next_seq).lines.is_empty() && ring.since(u64::MAX).lines.is_empty());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let ring = logged(|| tracing::info!(text = "\u{e4}".repeat(MAX_TEXT_BYTES), "x"));
        let text = ring.since(0).lines[0].fields["text"].as_str().unwrap().to_owned();
        assert_eq!(text.chars().count(), MAX_TEXT_BYTES / 2 + 1);
    }
}
