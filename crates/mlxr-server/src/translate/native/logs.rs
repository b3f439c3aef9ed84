//! What a reader of the log asks for, and how it is written while it goes on.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::Uri;
use bytes::Bytes;
use futures_core::Stream;
use mlxr_api::native::logs::{Level, LogEvent, LogLine, LogLines};
use tokio::sync::mpsc;

use super::query_pairs;
use crate::ServeError;
use crate::log_ring::{Batch, LogRing, MAX_LINES};
use crate::stopping::Phase;
use crate::{App, ndjson, sse};

/// Lines shown when nobody says.
const DEFAULT_LINES: usize = 100;

/// Silence after which a keep-alive goes out.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Pieces that wait for a client that does not read; beyond them the ring's own bound counts.
const MAX_PENDING: usize = 4;

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// The least important lines wanted.
    pub level: Level,
    /// The last lines, so many.
    pub limit: usize,
    /// Lines with this number and later.
    pub since: u64,
    /// Beginnings of targets.
    pub target: Option<String>,
    pub follow: bool,
}

/// The forms a followed log can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Events,
    Lines,
}

impl LogQuery {
    /// # Errors
    /// A parameter nobody knows, or a value it cannot have.
    pub fn read(uri: &Uri) -> Result<LogQuery, ServeError> {
        let mut query =
            LogQuery { level: Level::Trace, limit: DEFAULT_LINES, since: 0, target: None, follow: false };
        for (name, value) in query_pairs(uri)? {
            let wrong = |expected: &str| {
                ServeError::invalid(&name, format!("{name} is {value:?}, but must be {expected}"))
            };
            match name.as_str() {
                "level" => {
                    let level = Level::ALL.into_iter().find(|level| level.name() == value);
                    query.level = level.ok_or_else(|| wrong("error, warn, info, debug or trace"))?;
                }
                "limit" => {
                    let expected = format!("a number up to {MAX_LINES}");
                    let limit = value.parse().ok().filter(|&n| n <= MAX_LINES);
                    query.limit = limit.ok_or_else(|| wrong(&expected))?;
                }
                "since" => query.since = value.parse().map_err(|_| wrong("the number of a line"))?,
                "follow" => query.follow = value.parse().map_err(|_| wrong("true or false"))?,
                "target" => query.target = Some(value),
                _ => {
                    let reason = format!(
                        "there is no parameter {name}: known are level, limit, since, target, follow"
                    );
                    return Err(ServeError::invalid(name, reason));
                }
            }
        }
        Ok(query)
    }

    fn wants(&self, line: &LogLine) -> bool {
        line.level <= self.level && self.target.as_ref().is_none_or(|target| line.target.starts_with(target))
    }

    /// The lines wanted of a batch, and how many of them the limit leaves out.
    fn last(&self, batch: &Batch) -> (Vec<Arc<LogLine>>, usize) {
        let mut lines: Vec<Arc<LogLine>> =
            batch.lines.iter().filter(|line| self.wants(line)).cloned().collect();
        let n_left_out = lines.len().saturating_sub(self.limit);
        lines.drain(..n_left_out);
        (lines, n_left_out)
    }
}

/// The lines there are.
pub fn lines(ring: &LogRing, query: &LogQuery) -> LogLines {
    let batch = ring.since(query.since);
    let (lines, n_left_out) = query.last(&batch);
    let n_left_out = n_left_out as u64 + batch.n_gone;
    LogLines { lines: lines.iter().map(|line| LogLine::clone(line)).collect(), n_left_out }
}

/// The lines there are and those that come, until the client goes or the server closes.
pub fn follow(app: Arc<App>, query: LogQuery, form: Form) -> Body {
    let (send, pieces) = mpsc::channel(MAX_PENDING);
    tokio::spawn(write(app, query, form, send));
    Body::from_stream(Pieces(pieces))
}

async fn write(app: Arc<App>, query: LogQuery, form: Form, send: mpsc::Sender<Bytes>) {
    let ring = &app.logs;
    let mut newest = ring.watch();
    let mut next_seq = query.since;
    let mut is_first = true;
    loop {
        newest.borrow_and_update();
        let batch = ring.since(next_seq);
        next_seq = batch.next_seq;
        let mut out = Vec::new();
        if is_first {
            query.last(&batch).0.iter().for_each(|line| frame(form, line.as_ref(), &mut out));
        } else {
            if batch.n_gone > 0 {
                frame(form, &LogEvent::Skipped { skipped: batch.n_gone }, &mut out);
            }
            let wanted = batch.lines.iter().filter(|line| query.wants(line));
            wanted.for_each(|line| frame(form, line.as_ref(), &mut out));
        }
        is_first = false;
        if !out.is_empty() && send.send(out.into()).await.is_err() {
            return;
        }
        tokio::select! {
            _ = newest.changed() => {}
            () = app.stopper.wait_for(Phase::Finishing) => return,
            () = send.closed() => return,
            () = tokio::time::sleep(KEEP_ALIVE), if form == Form::Events => {
                if send.send(Bytes::from_static(sse::KEEP_ALIVE)).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn frame(form: Form, value: &impl serde::Serialize, out: &mut Vec<u8>) {
    match form {
        Form::Events => sse::data(out, value),
        Form::Lines => ndjson::line(out, value),
    }
}

struct Pieces(mpsc::Receiver<Bytes>);

impl Stream for Pieces {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|piece| piece.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<LogQuery, ServeError> {
        LogQuery::read(&format!("/mlxr/v1/logs?{query}").parse().unwrap())
    }

    #[test]
    fn parameters_are_read_or_refused_by_name() {
        let all = LogQuery { level: Level::Trace, limit: 100, since: 0, target: None, follow: false };
        assert_eq!(read("").unwrap(), all);
        let query = read("level=warn&limit=5&since=7&target=mlxr%5Fengine&follow=true").unwrap();
        let target = Some("mlxr_engine".to_owned());
        assert_eq!(query, LogQuery { level: Level::Warn, limit: 5, since: 7, target, follow: true });
        for (bad, name) in [
            ("level=loud", "level"),
            ("limit=-1", "limit"),
            ("limit=2001", "limit"),
            ("since=x", "since"),
            ("follow=1", "follow"),
            ("colour=red", "colour"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(
                matches!(&error, ServeError::Invalid { field: Some(field), .. } if field == name),
                "{bad}: {error}"
            );
        }
    }
}
