//! Texts on their way through an embedder, and at the end one line of log and the metrics.
//!
//! Dropping the future of [`run`] cancels what has not been computed.

use std::time::{Duration, Instant};

use mlxr_models::Text;

use crate::ServeError;
use crate::clients::Meter;
use crate::model_manager::EmbedderLease;
use crate::telemetry::{EmbeddingMetrics, EmbeddingOutcome, Telemetry};
use crate::translate::embeddings::{FieldName, refusal};

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    /// One per text, in order.
    pub results: Vec<Vec<f32>>,
    pub n_tokens: usize,
}

/// Runs texts; `field` names them in errors.
///
/// # Errors
/// A text cannot run, the queue is full, or the model failed.
pub async fn run(
    lease: &EmbedderLease,
    texts: Vec<Text>,
    field: FieldName,
    telemetry: &Telemetry,
) -> Result<Embedded, ServeError> {
    let n_tokens = texts.iter().map(|text| text.tokens.len()).sum();
    let mut journal = Journal {
        lease,
        metrics: telemetry.of_embedder(lease.name()),
        meter: Meter::current(),
        submitted: Instant::now(),
        n_texts: texts.len(),
        n_tokens,
        outcome: EmbeddingOutcome::Cancelled,
    };
    journal.meter.charge(n_tokens);
    let found = lease.handle.run(texts).await;
    let results = found.map_err(|error| refusal(error, field)).inspect_err(|error| {
        let is_ours = matches!(error, ServeError::Internal { .. });
        journal.outcome = if is_ours { EmbeddingOutcome::Error } else { EmbeddingOutcome::Refused };
    })?;
    journal.outcome = EmbeddingOutcome::Done;
    Ok(Embedded { results, n_tokens })
}

/// What is remembered of a request for the log and the metrics.
struct Journal<'a> {
    lease: &'a EmbedderLease,
    metrics: EmbeddingMetrics,
    meter: Meter,
    submitted: Instant,
    n_texts: usize,
    n_tokens: usize,
    outcome: EmbeddingOutcome,
}

impl Drop for Journal<'_> {
    fn drop(&mut self) {
        let total = self.submitted.elapsed();
        self.metrics.count(self.outcome);
        match self.outcome {
            EmbeddingOutcome::Done => {
                self.metrics.duration.record(total);
                self.metrics.n_texts.increment(self.n_texts as u64);
                self.metrics.n_tokens.increment(self.n_tokens as u64);
            }
            // Nothing was computed.
            EmbeddingOutcome::Refused => self.meter.settle(self.n_tokens, 0),
            EmbeddingOutcome::Cancelled | EmbeddingOutcome::Error => {}
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        tracing::info!(
            model = self.lease.name(),
            client = self.meter.client(),
            outcome = self.outcome.name(),
            n_texts = self.n_texts,
            n_tokens = self.n_tokens,
            total_ms = ms(total),
            "embedding"
        );
    }
}
