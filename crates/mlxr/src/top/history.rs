//! The last minute of a server: rates and quantiles from differences of counters.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mlxr_api::native::metrics::{HistogramSample, MetricData, MetricList};

use super::Sample;

/// How long samples are remembered: latencies are of this time.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The time a rate is taken over, at least, when there are samples enough.
const RATE_SPAN: Duration = Duration::from_secs(3);

/// Samples, oldest first. Only the latest one keeps its requests.
#[derive(Debug, Default)]
pub struct History(VecDeque<Sample>);

/// A counter of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Total {
    Generated,
    Rows,
    Steps,
    CacheLookups,
    CacheHits,
}

impl History {
    pub fn push(&mut self, sample: Sample) {
        if let Some(last) = self.0.back_mut() {
            last.requests = None;
        }
        while self.0.front().is_some_and(|oldest| sample.at - oldest.at > WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    pub fn latest(&self) -> Option<&Sample> {
        self.0.back()
    }

    /// How much of a counter came in a second, lately.
    pub fn rate(&self, model: &str, total: Total) -> Option<f64> {
        let last = self.0.back()?;
        let lately = |sample: &&Sample| last.at - sample.at <= RATE_SPAN;
        let before =
            self.0.iter().find(lately).filter(|sample| sample.at < last.at).or_else(|| self.before_last())?;
        Some(difference(before, last, model, total)? / seconds(before.at, last.at))
    }

    fn before_last(&self) -> Option<&Sample> {
        self.0.iter().rev().nth(1)
    }

    /// `numerator / denominator` of what came within the window; of all time where nothing came.
    pub fn share(&self, model: &str, numerator: Total, denominator: Total) -> Option<f64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        let within = |total| difference(first, last, model, total);
        let ratio = |numerator: f64, denominator: f64| (denominator > 0.0).then(|| numerator / denominator);
        ratio(within(numerator)?, within(denominator)?)
            .or_else(|| ratio(value(last, model, numerator)?, value(last, model, denominator)?))
    }

    /// Tokens of all models per second, between each two samples.
    pub fn generated(&self) -> Vec<f64> {
        let all = |before: &Sample, after: &Sample| -> f64 {
            let of = |model: &str| difference(before, after, model, Total::Generated).unwrap_or(0.0);
            after.stats.models.iter().map(|model| of(&model.model)).sum()
        };
        let pairs = self.0.iter().zip(self.0.iter().skip(1));
        pairs.map(|(before, after)| all(before, after) / seconds(before.at, after.at)).collect()
    }

    /// A quantile of a latency within the window, in seconds.
    pub fn quantile(&self, model: &str, metric: &str, q: f64) -> Option<f64> {
        let last = histogram(&self.0.back()?.metrics, model, metric)?;
        let first = self.0.front().filter(|_| self.0.len() > 1);
        let first = first.and_then(|sample| histogram(&sample.metrics, model, metric));
        quantile(first, last, q)
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    (to - from).as_secs_f64().max(1e-3)
}

/// What was added between two samples. A counter that is smaller than before began anew.
fn difference(before: &Sample, after: &Sample, model: &str, total: Total) -> Option<f64> {
    let after = value(after, model, total)?;
    let before = value(before, model, total).filter(|before| *before <= after).unwrap_or(0.0);
    Some(after - before)
}

fn value(sample: &Sample, model: &str, total: Total) -> Option<f64> {
    let stats = || sample.stats.models.iter().find(|stats| stats.model == model);
    match total {
        Total::Generated => Some(stats()?.n_generated as f64),
        Total::Rows => Some(stats()?.n_rows as f64),
        Total::Steps => Some(stats()?.n_steps as f64),
        Total::CacheLookups => counter(&sample.metrics, model, "mlxr_prefix_cache_lookup_tokens_total"),
        Total::CacheHits => counter(&sample.metrics, model, "mlxr_prefix_cache_hit_tokens_total"),
    }
}

fn counter(metrics: &MetricList, model: &str, name: &str) -> Option<f64> {
    match &metrics.metrics.iter().find(|metric| metric.name == name)?.data {
        MetricData::Counter { samples } | MetricData::Gauge { samples } => {
            let is_wanted = |labels: &std::collections::BTreeMap<String, String>| {
                labels.get("model").is_some_and(|name| name == model)
            };
            Some(samples.iter().find(|sample| is_wanted(&sample.labels))?.value)
        }
        MetricData::Histogram { .. } => None,
    }
}

fn histogram<'a>(metrics: &'a MetricList, model: &str, name: &str) -> Option<&'a HistogramSample> {
    match &metrics.metrics.iter().find(|metric| metric.name == name)?.data {
        MetricData::Histogram { samples } => {
            samples.iter().find(|sample| sample.labels.get("model").is_some_and(|name| name == model))
        }
        MetricData::Counter { .. } | MetricData::Gauge { .. } => None,
    }
}

/// Estimated within the bucket it falls into; above the last one it is that one's bound. `None` without observations.
fn quantile(first: Option<&HistogramSample>, last: &HistogramSample, q: f64) -> Option<f64> {
    let first = first.filter(|first| first.count <= last.count && first.buckets.len() == last.buckets.len());
    let n_before = |i: usize| first.map_or(0, |first| first.buckets[i].count);
    let count = last.count - first.map_or(0, |first| first.count);
    if count == 0 {
        return None;
    }
    let rank = q * count as f64;
    let (mut low, mut below) = (0.0, 0.0);
    for (i, bucket) in last.buckets.iter().enumerate() {
        let up_to = bucket.count.saturating_sub(n_before(i)) as f64;
        if rank <= up_to {
            let within = if up_to > below { (rank - below) / (up_to - below) } else { 1.0 };
            return Some(low + (bucket.le - low) * within);
        }
        (low, below) = (bucket.le, up_to);
    }
    Some(low)
}

#[cfg(test)]
pub mod tests {
    use mlxr_api::native::metrics::{Bucket, Metric};
    use mlxr_api::native::stats::Stats;
    use serde_json::json;

    use super::*;

    pub const MODEL: &str = "qwen";

    /// A sample of a server with one model that has generated so many tokens, each after 30 ms.
    pub fn sample(at: Instant, n_generated: u64) -> Sample {
        let engine = json!({
            "model": MODEL, "n_waiting": 3, "n_running": 2, "n_steps": n_generated / 2, "n_rows": n_generated,
            "n_generated": n_generated, "n_preemptions": 1, "n_block_copies": 0, "n_blocks": 100, "n_blocks_free": 25,
            "n_blocks_shared": 5, "n_blocks_used_peak": 90, "n_ctx": 4096, "memory_bytes": 3_221_225_472_u64,
            "n_leases": 5,
        });
        let memory = json!({"limit_bytes": 8_589_934_592_u64, "used_bytes": 3_221_225_472_u64, "free_bytes": 5_368_709_120_u64});
        let stats: Stats = serde_json::from_value(json!({
            "version": "1.2.3", "uptime_s": 3700.0, "memory": memory, "process_bytes": 1_073_741_824, "models": [engine],
            "embedders": [],
        }))
        .unwrap();
        let labels = || [("model".to_owned(), MODEL.to_owned())].into();
        let count = |name: &str, value: f64| Metric {
            name: name.to_owned(),
            help: String::new(),
            data: MetricData::Counter {
                samples: vec![mlxr_api::native::metrics::Sample { labels: labels(), value }],
            },
        };
        let latency = |name: &str| {
            let buckets = [(0.02, 0), (0.04, n_generated), (1.0, n_generated)];
            let buckets = buckets.map(|(le, count)| Bucket { le, count }).to_vec();
            let (count, sum) = (n_generated, 0.03 * n_generated as f64);
            let sample =
                HistogramSample { labels: labels(), count, sum, p50: None, p95: None, p99: None, buckets };
            Metric {
                name: name.to_owned(),
                help: String::new(),
                data: MetricData::Histogram { samples: vec![sample] },
            }
        };
        let metrics = MetricList {
            metrics: vec![
                count("mlxr_prefix_cache_lookup_tokens_total", 1000.0),
                count("mlxr_prefix_cache_hit_tokens_total", 400.0),
                latency("mlxr_time_to_first_token_seconds"),
                latency("mlxr_inter_token_latency_seconds"),
            ],
        };
        Sample { at, stats, metrics, requests: Some(Vec::new()) }
    }

    #[test]
    fn rates_are_of_the_last_seconds_and_survive_a_new_beginning() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut history = History::default();
        history.push(sample(at(0), 1000));
        assert_eq!(history.rate(MODEL, Total::Generated), None);
        history.push(sample(at(10), 2000));
        assert_eq!(history.rate(MODEL, Total::Generated), Some(100.0));
        for (s, n) in [(11, 2010), (12, 2020), (13, 2030), (14, 2040)] {
            history.push(sample(at(s), n));
        }
        assert_eq!(history.rate(MODEL, Total::Generated), Some(10.0));
        assert_eq!(history.rate("nobody", Total::Generated), None);
        assert_eq!(history.generated(), [100.0, 10.0, 10.0, 10.0, 10.0]);
        history.push(sample(at(15), 30));
        assert_eq!(history.generated().last(), Some(&30.0), "the model was loaded anew");
        assert_eq!(history.share(MODEL, Total::CacheHits, Total::CacheLookups), Some(0.4));
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let start = Instant::now();
        let mut history = History::default();
        for s in 0..200 {
            history.push(sample(start + Duration::from_secs(s), s));
        }
        assert_eq!(history.0.len(), 61);
        assert_eq!(history.0.iter().filter(|sample| sample.requests.is_some()).count(), 1);
    }

    #[test]
    fn quantiles_are_of_what_came_in_between() {
        let buckets = |counts: [u64; 3]| {
            let les = [0.1, 0.2, 0.4];
            let buckets = les.iter().zip(counts).map(|(&le, count)| Bucket { le, count }).collect();
            let labels = Default::default();
            HistogramSample {
                labels,
                count: counts[2] + 1,
                sum: 0.0,
                p50: None,
                p95: None,
                p99: None,
                buckets,
            }
        };
        // 100 before, all small; then ten between 0.1 and 0.2 s.
        let (first, last) = (buckets([100, 100, 100]), buckets([100, 110, 110]));
        let close = |found: Option<f64>, expected: f64| {
            let found = found.unwrap();
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        };
        close(quantile(Some(&first), &last, 0.5), 0.15);
        close(quantile(Some(&first), &last, 1.0), 0.2);
        assert_eq!(quantile(Some(&last), &last, 0.5), None);
        close(quantile(None, &buckets([0, 0, 0]), 0.5), 0.4);
        // A server that began anew has fewer than before.
        close(quantile(Some(&last), &buckets([9, 9, 9]), 0.5), 0.1 * 5.0 / 9.0);
    }
}
