//! Requests on their way through the engine: their events, and at the end one line of log and the metrics.
//!
//! Dropping a [`Generation`] cancels what has not finished.

use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use mlxr_engine::{Event, EventReceiver, FinishReason, Prompt, Request, RequestId, Usage, event_channel};

use crate::ServeError;
use crate::clients::Meter;
use crate::model_manager::Lease;
use crate::telemetry::{ModelMetrics, Outcome, Telemetry};

/// Events and the prompt (by its place in the HTTP request) they belong to.
pub type IndexedEvent = (usize, Event);

/// The requests that one HTTP request became, in one stream of events.
pub struct Generation {
    events: EventReceiver,
    /// By prompt.
    ids: Vec<RequestId>,
    n_unfinished: usize,
    journal: Journal,
}

impl Generation {
    /// Submits `requests`; when one is refused none is run.
    ///
    /// # Errors
    /// Why the engine refused.
    pub async fn start(
        lease: Lease,
        requests: Vec<Request>,
        telemetry: &Telemetry,
    ) -> Result<Generation, ServeError> {
        // Before the engine is asked: it may be done with the first step before its answer is here.
        let submitted = Instant::now();
        let metrics = telemetry.of_model(&lease.name);
        let n_choices = requests.iter().map(|request| request.n).sum();
        let (send, events) = event_channel();
        let mut ids = Vec::with_capacity(requests.len());
        let meter = Meter::current();
        let n_expected = requests.iter().map(expected_tokens).sum();
        for request in requests {
            match lease.engine.submit(request, send.clone()).await {
                Ok(id) => ids.push(id),
                Err(error) => {
                    metrics.count(Outcome::Refused);
                    return Err(error.into());
                }
            }
        }
        let mut journal = Journal::new(lease, metrics, meter, submitted, n_choices);
        journal.charge(n_expected);
        Ok(Generation { events, n_unfinished: ids.len(), ids, journal })
    }

    /// The next event, or `None` after the last finish.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<IndexedEvent>> {
        if self.n_unfinished == 0 {
            return Poll::Ready(None);
        }
        // The engine sends a finish for every request, so the channel does not end before.
        let Some(event) = ready!(self.events.poll_recv(cx)) else { return Poll::Ready(None) };
        let id = event.request();
        let prompt_idx = self.ids.iter().position(|known| *known == id).unwrap_or(0);
        self.n_unfinished -= usize::from(matches!(event, Event::Finish { .. }));
        self.journal.note(&event, self.n_unfinished == 0);
        Poll::Ready(Some((prompt_idx, event)))
    }

    /// The next event, or `None` after the last finish.
    pub async fn next(&mut self) -> Option<IndexedEvent> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// What a prompt costs its client until the engine has said how many tokens it has; a client that leaves before pays
/// this.
fn expected_tokens(request: &Request) -> usize {
    const BYTES_PER_TOKEN: usize = 4;
    match &request.prompt {
        Prompt::Tokens(ids) => ids.len(),
        Prompt::Text(text, _) => text.len().div_ceil(BYTES_PER_TOKEN),
    }
}

/// What is remembered of a generation for the log and the metrics.
struct Journal {
    lease: Lease,
    metrics: ModelMetrics,
    meter: Meter,
    submitted: Instant,
    first_token: Option<Instant>,
    /// When each choice of each prompt got its last token; tokens of one request arrive interleaved.
    last_tokens: Vec<((RequestId, u32), Instant)>,
    itl_sum: Duration,
    n_itl: u32,
    usage: Usage,
    /// Tokens its client has paid for.
    n_charged: usize,
    queued: Duration,
    prefill: Duration,
    end: Option<FinishReason>,
}

impl Journal {
    fn new(
        lease: Lease,
        metrics: ModelMetrics,
        meter: Meter,
        submitted: Instant,
        n_choices: usize,
    ) -> Journal {
        Journal {
            lease,
            metrics,
            meter,
            submitted,
            first_token: None,
            last_tokens: Vec::with_capacity(n_choices),
            itl_sum: Duration::ZERO,
            n_itl: 0,
            usage: Usage::default(),
            n_charged: 0,
            queued: Duration::ZERO,
            prefill: Duration::ZERO,
            end: None,
        }
    }

    fn charge(&mut self, n_tokens: usize) {
        self.meter.charge(n_tokens);
        self.n_charged += n_tokens;
    }

    fn note(&mut self, event: &Event, is_last: bool) {
        match event {
            Event::Token { request, choice, .. } => self.note_token((*request, *choice)),
            Event::Finish { reason, usage, timings, .. } => {
                self.usage.n_prompt += usage.n_prompt;
                self.usage.n_completion += usage.n_completion;
                self.usage.n_cached += usage.n_cached;
                self.queued = self.queued.max(timings.queued);
                self.prefill = self.prefill.max(timings.prefill);
                if is_last {
                    self.end = Some(reason.clone());
                }
            }
            Event::Prompt { .. } | Event::ChoiceEnd { .. } => {}
        }
    }

    fn note_token(&mut self, stream: (RequestId, u32)) {
        let now = Instant::now();
        self.charge(1);
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.metrics.ttft.record(now - self.submitted);
        }
        match self.last_tokens.iter_mut().find(|(known, _)| *known == stream) {
            Some((_, last)) => {
                let itl = now - std::mem::replace(last, now);
                self.metrics.itl.record(itl);
                self.itl_sum += itl;
                self.n_itl += 1;
            }
            None => self.last_tokens.push((stream, now)),
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let outcome = match &self.end {
            Some(FinishReason::Stop(_)) => Outcome::Stop,
            Some(FinishReason::Length) => Outcome::Length,
            Some(FinishReason::Loop) => Outcome::Loop,
            Some(FinishReason::Error(_) | FinishReason::DeviceLost(_)) => Outcome::Error,
            Some(FinishReason::Cancelled) | None => Outcome::Cancelled,
        };
        if self.end.is_some() {
            self.meter.settle(self.n_charged, self.usage.n_prompt + self.usage.n_completion);
        }
        let metrics = &self.metrics;
        metrics.count(outcome);
        metrics.n_prompt.increment(self.usage.n_prompt as u64);
        metrics.n_completion.increment(self.usage.n_completion as u64);
        metrics.queue.record(self.queued);
        metrics.duration.record(self.submitted.elapsed());
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let ttft_ms = self.first_token.map(|first| ms(first - self.submitted));
        let itl_ms = (self.n_itl > 0).then(|| ms(self.itl_sum) / f64::from(self.n_itl));
        tracing::info!(
            model = self.lease.name,
            client = self.meter.client(),
            outcome = outcome.name(),
            n_prompt = self.usage.n_prompt,
            n_cached = self.usage.n_cached,
            n_completion = self.usage.n_completion,
            queued_ms = ms(self.queued),
            prefill_ms = ms(self.prefill),
            ttft_ms,
            itl_ms,
            total_ms = ms(self.submitted.elapsed()),
            "generation"
        );
    }
}
