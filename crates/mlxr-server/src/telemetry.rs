//! Metrics, in Prometheus' text format. Each server has its own recorder, so nothing here is global.

use std::fmt;
use std::time::Duration;

use metrics::{
    Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use mlxr_tensor::KernelTime;

use crate::loaded::{Loaded, LoadedModel};
use crate::memory::process_bytes;
use crate::model_manager::{MemoryUse, Models};

/// Upper bounds of the latency buckets, in seconds.
const LATENCY_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Stop,
    Length,
    Loop,
    Cancelled,
    Error,
    /// It never began.
    Refused,
}

impl Outcome {
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Stop => "stop",
            Outcome::Length => "length",
            Outcome::Loop => "loop",
            Outcome::Cancelled => "cancelled",
            Outcome::Error => "error",
            Outcome::Refused => "refused",
        }
    }
}

/// How a request for vectors or scores ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbeddingOutcome {
    Done,
    Cancelled,
    Error,
    /// It never began.
    Refused,
}

impl EmbeddingOutcome {
    const ALL: [EmbeddingOutcome; 4] = [
        EmbeddingOutcome::Done,
        EmbeddingOutcome::Cancelled,
        EmbeddingOutcome::Error,
        EmbeddingOutcome::Refused,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            EmbeddingOutcome::Done => "done",
            EmbeddingOutcome::Cancelled => "cancelled",
            EmbeddingOutcome::Error => "error",
            EmbeddingOutcome::Refused => "refused",
        }
    }
}

/// A server's metrics.
pub struct Telemetry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
}

impl Telemetry {
    /// # Errors
    /// The buckets are malformed, which they are not.
    pub fn new() -> Result<Telemetry, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &LATENCY_BUCKETS)?
            .build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, describe);
        Ok(Telemetry { recorder, handle })
    }

    /// The metrics of one model.
    pub fn of_model(&self, model: &str) -> ModelMetrics {
        metrics::with_local_recorder(&self.recorder, || {
            let latency = |name: &'static str| histogram!(name, "model" => model.to_owned());
            let total = |name: &'static str| counter!(name, "model" => model.to_owned());
            let outcomes = [
                Outcome::Stop,
                Outcome::Length,
                Outcome::Loop,
                Outcome::Cancelled,
                Outcome::Error,
                Outcome::Refused,
            ];
            ModelMetrics {
                ttft: latency("mlxr_time_to_first_token_seconds"),
                itl: latency("mlxr_inter_token_latency_seconds"),
                queue: latency("mlxr_queue_time_seconds"),
                duration: latency("mlxr_generation_duration_seconds"),
                n_prompt: total("mlxr_prompt_tokens_total"),
                n_completion: total("mlxr_completion_tokens_total"),
                outcomes: outcomes.map(|outcome| {
                    let counter = counter!(
                        "mlxr_generations_total", "model" => model.to_owned(), "outcome" => outcome.name()
                    );
                    (outcome, counter)
                }),
            }
        })
    }

    /// The metrics of one model's vectors and scores.
    pub fn of_embedder(&self, model: &str) -> EmbeddingMetrics {
        metrics::with_local_recorder(&self.recorder, || {
            let total = |name: &'static str| counter!(name, "model" => model.to_owned());
            EmbeddingMetrics {
                duration: histogram!("mlxr_embedding_duration_seconds", "model" => model.to_owned()),
                n_texts: total("mlxr_embedding_texts_total"),
                n_tokens: total("mlxr_embedding_tokens_total"),
                outcomes: EmbeddingOutcome::ALL.map(|outcome| {
                    let (model, outcome_name) = (model.to_owned(), outcome.name());
                    let labels = [("model", model), ("outcome", outcome_name.to_owned())];
                    (outcome, counter!("mlxr_embeddings_total", &labels))
                }),
            }
        })
    }

    /// Counts an HTTP response.
    pub fn count_response(&self, route: &str, status: u16) {
        metrics::with_local_recorder(&self.recorder, || {
            let labels = [("route", route.to_owned()), ("status", status.to_string())];
            counter!("mlxr_http_responses_total", &labels).increment(1);
        });
    }

    /// The text Prometheus scrapes, with what the engines hold right now.
    pub fn render(&self, models: &Models, uptime: Duration) -> String {
        metrics::with_local_recorder(&self.recorder, || {
            let loaded = models.loaded();
            gauge!("mlxr_models_loaded").set(loaded.len() as f64);
            for model in &loaded {
                record_model(model);
            }
            record_server(models.memory_use(), uptime);
            for KernelTime { kernel, n_calls, time } in models.kernel_times() {
                counter!("mlxr_kernel_calls_total", "kernel" => kernel).absolute(n_calls);
                counter!("mlxr_kernel_microseconds_total", "kernel" => kernel)
                    .absolute(time.as_micros() as u64);
            }
        });
        self.handle.render()
    }

    /// Moves recorded values from buffers to buckets; without it, buffers grow until the next scrape.
    pub fn run_upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry")
    }
}

/// Where the events of one model's generations are counted.
#[derive(Clone)]
pub struct ModelMetrics {
    pub ttft: Histogram,
    pub itl: Histogram,
    pub queue: Histogram,
    pub duration: Histogram,
    pub n_prompt: Counter,
    pub n_completion: Counter,
    outcomes: [(Outcome, Counter); 6],
}

impl ModelMetrics {
    pub fn count(&self, outcome: Outcome) {
        if let Some((_, counter)) = self.outcomes.iter().find(|(known, _)| *known == outcome) {
            counter.increment(1);
        }
    }
}

/// Where the requests for one model's vectors and scores are counted.
#[derive(Clone)]
pub struct EmbeddingMetrics {
    pub duration: Histogram,
    pub n_texts: Counter,
    pub n_tokens: Counter,
    outcomes: [(EmbeddingOutcome, Counter); 4],
}

impl EmbeddingMetrics {
    pub fn count(&self, outcome: EmbeddingOutcome) {
        if let Some((_, counter)) = self.outcomes.iter().find(|(known, _)| *known == outcome) {
            counter.increment(1);
        }
    }
}

fn record_model(model: &Loaded) {
    let name = model.name();
    gauge!("mlxr_model_memory_bytes", "model" => name.to_owned()).set(model.total_bytes() as f64);
    if let Loaded::Generator(model) = model {
        record_engine(model);
    }
    if let Some(embedder) = model.embeddings().running() {
        let stats = embedder.stats();
        gauge!("mlxr_embeddings_waiting", "model" => name.to_owned()).set(stats.n_waiting as f64);
        counter!("mlxr_embedding_batches_total", "model" => name.to_owned()).absolute(stats.n_batches);
    }
}

fn record_engine(model: &LoadedModel) {
    let (name, stats) = (&model.name, model.engine.stats());
    let set = |metric: &'static str, value: usize| {
        gauge!(metric, "model" => name.clone()).set(value as f64);
    };
    set("mlxr_requests_waiting", stats.n_waiting);
    set("mlxr_requests_running", stats.n_running);
    set("mlxr_kv_blocks", stats.blocks.n_blocks);
    set("mlxr_kv_blocks_used", stats.blocks.n_blocks - stats.blocks.n_free);
    set("mlxr_kv_blocks_used_peak", stats.blocks.peak_used);
    let total = |metric: &'static str, value: u64| {
        counter!(metric, "model" => name.clone()).absolute(value);
    };
    total("mlxr_engine_steps_total", stats.n_steps);
    total("mlxr_engine_rows_total", stats.n_rows);
    total("mlxr_engine_preemptions_total", stats.n_preemptions);
    set("mlxr_kv_host_blocks", stats.overflow.n_blocks);
    total("mlxr_kv_blocks_swapped_out_total", stats.overflow.n_out);
    total("mlxr_kv_blocks_swapped_in_total", stats.overflow.n_in);
    if stats.n_steps > 0 {
        let rows = stats.n_rows as f64 / stats.n_steps as f64;
        gauge!("mlxr_engine_rows_per_step", "model" => name.clone()).set(rows);
    }
    if let Some(pace) = stats.pace {
        set("mlxr_pace_max_prompt_rows", pace.max_prompt_rows);
        set("mlxr_pace_max_seqs", pace.max_seqs);
        let seconds = |metric: &'static str, time: Duration| {
            gauge!(metric, "model" => name.clone()).set(time.as_secs_f64());
        };
        seconds("mlxr_pace_target_seconds", pace.target);
        if let Some(p95) = pace.p95 {
            seconds("mlxr_pace_p95_seconds", p95);
        }
    }
    total("mlxr_prefix_cache_lookups_total", stats.cache.n_lookups);
    total("mlxr_prefix_cache_lookup_tokens_total", stats.cache.n_lookup_tokens);
    total("mlxr_prefix_cache_hit_tokens_total", stats.cache.n_hit_tokens);
    total("mlxr_prefix_cache_evictions_total", stats.cache.n_evictions);
    set("mlxr_prefix_cache_blocks", stats.cache.n_blocks);
    set("mlxr_prefix_cache_idle_blocks", stats.cache.n_idle_blocks);
}

fn record_server(memory: MemoryUse, uptime: Duration) {
    gauge!("mlxr_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("mlxr_uptime_seconds").set(uptime.as_secs_f64());
    gauge!("mlxr_memory_limit_bytes").set(memory.limit_bytes as f64);
    gauge!("mlxr_memory_used_bytes").set(memory.used_bytes as f64);
    if let Some(bytes) = process_bytes() {
        gauge!("mlxr_process_resident_bytes").set(bytes as f64);
    }
}

fn describe() {
    describe_histogram!("mlxr_time_to_first_token_seconds", "From submission to the first token");
    describe_histogram!("mlxr_inter_token_latency_seconds", "Between two tokens of one choice");
    describe_histogram!(
        "mlxr_queue_time_seconds",
        "From submission to the first step with rows of the request"
    );
    describe_histogram!("mlxr_generation_duration_seconds", "From submission to the end");
    describe_counter!("mlxr_prompt_tokens_total", "Prompt tokens of finished requests");
    describe_counter!("mlxr_completion_tokens_total", "Tokens generated for finished requests");
    describe_counter!("mlxr_generations_total", "Generations by how they ended");
    describe_histogram!("mlxr_embedding_duration_seconds", "From submission to all vectors or scores");
    describe_counter!("mlxr_embeddings_total", "Requests for vectors or scores by how they ended");
    describe_counter!("mlxr_embedding_texts_total", "Texts and pairs of finished requests");
    describe_counter!("mlxr_embedding_tokens_total", "Tokens of texts and pairs of finished requests");
    describe_counter!("mlxr_embedding_batches_total", "Forwards of whole texts since the model was loaded");
    describe_gauge!("mlxr_embeddings_waiting", "Requests that have not got all their vectors or scores");
    describe_counter!("mlxr_http_responses_total", "HTTP responses by route and status");
    describe_counter!("mlxr_engine_steps_total", "Steps since the model was loaded");
    describe_counter!("mlxr_engine_rows_total", "Rows run since the model was loaded; per step: the batch");
    describe_counter!(
        "mlxr_engine_preemptions_total",
        "Sequences that lost their blocks, which came back from host memory or were computed again"
    );
    describe_gauge!("mlxr_kv_host_blocks", "KV blocks of sequences that wait, in host memory");
    describe_counter!("mlxr_kv_blocks_swapped_out_total", "KV blocks copied to host memory");
    describe_counter!(
        "mlxr_kv_blocks_swapped_in_total",
        "KV blocks copied back in place of being computed again"
    );
    describe_gauge!("mlxr_pace_max_prompt_rows", "Rows of prompts that a step may take beside who generates");
    describe_gauge!("mlxr_pace_max_seqs", "Sequences up to which new ones may start");
    describe_gauge!("mlxr_pace_target_seconds", "The time between two tokens that is aimed at");
    describe_gauge!("mlxr_pace_p95_seconds", "What 95 of 100 times between two tokens were at most lately");
    describe_counter!("mlxr_prefix_cache_lookups_total", "Sequences looked for in the prefix cache");
    describe_counter!("mlxr_prefix_cache_lookup_tokens_total", "Tokens looked for in the prefix cache");
    describe_counter!("mlxr_prefix_cache_hit_tokens_total", "Tokens found there and not computed again");
    describe_counter!("mlxr_prefix_cache_evictions_total", "Cached blocks given up");
    describe_gauge!("mlxr_prefix_cache_blocks", "Blocks that can be found again, in use or not");
    describe_gauge!("mlxr_prefix_cache_idle_blocks", "Those of them that no sequence uses");
    describe_gauge!("mlxr_requests_waiting", "Sequences in the queue");
    describe_gauge!("mlxr_requests_running", "Sequences in the batch");
    describe_gauge!("mlxr_kv_blocks", "KV blocks of the arena");
    describe_gauge!("mlxr_kv_blocks_used", "KV blocks in use");
    describe_gauge!("mlxr_kv_blocks_used_peak", "The most KV blocks in use so far");
    describe_gauge!("mlxr_engine_rows_per_step", "The mean batch since the model was loaded");
    describe_gauge!("mlxr_build_info", "The server's version; always 1");
    describe_gauge!("mlxr_uptime_seconds", "Since the server started");
    describe_gauge!("mlxr_memory_limit_bytes", "What all models together may take");
    describe_gauge!("mlxr_memory_used_bytes", "What the models in memory were planned to take");
    describe_gauge!(
        "mlxr_process_resident_bytes",
        "The process in memory, cached pages of mapped files included"
    );
    describe_counter!("mlxr_kernel_calls_total", "Calls of a GPU's kernel while its time is measured");
    // Counters are whole numbers.
    describe_counter!("mlxr_kernel_microseconds_total", "What these calls took");
    describe_gauge!("mlxr_models_loaded", "Models in memory");
    describe_gauge!("mlxr_model_memory_bytes", "Planned memory of the model");
}
