//! The JSON twin of `/metrics`, read from its text, so that both always say the same.

use std::collections::BTreeMap;

use mlxr_api::native::metrics::{Bucket, HistogramSample, Metric, MetricData, MetricList, Sample};

/// Labels of a sample.
type Labels = BTreeMap<String, String>;

/// Reads what the exporter writes: `# HELP`, `# TYPE` and samples.
pub fn read(text: &str) -> MetricList {
    let mut help: BTreeMap<&str, String> = BTreeMap::new();
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').unwrap_or((rest, ""));
            help.insert(name, unescape(words));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let data = match kind {
                "counter" => MetricData::Counter { samples: Vec::new() },
                "histogram" => MetricData::Histogram { samples: Vec::new() },
                _ => MetricData::Gauge { samples: Vec::new() },
            };
            let help = help.get(name).cloned().unwrap_or_default();
            metrics.insert(name.to_owned(), Metric { name: name.to_owned(), help, data });
        } else if let Some((name, labels, value)) = sample(line) {
            add(&mut metrics, name, labels, value);
        }
    }
    let mut list: Vec<Metric> = metrics.into_values().collect();
    for metric in &mut list {
        if let MetricData::Histogram { samples } = &mut metric.data {
            samples.iter_mut().for_each(estimate);
        }
    }
    MetricList { metrics: list }
}

/// `name{label="value",...} 1.5`.
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while !rest.starts_with('}') {
            let (label, tail) = rest.trim_start_matches(',').split_once("=\"")?;
            let end = closing_quote(tail)?;
            labels.insert(label.to_owned(), unescape(&tail[..end]));
            rest = &tail[end + 1..];
        }
        rest = &rest[1..];
    }
    Some((name, labels, rest.trim().parse().ok()?))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    text.char_indices().find_map(|(i, c)| {
        let found = (c == '"' && !is_escaped).then_some(i);
        is_escaped = c == '\\' && !is_escaped;
        found
    })
}

fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some(other) => other,
                None => '\\',
            },
            c => c,
        });
    }
    out
}

fn add(metrics: &mut BTreeMap<String, Metric>, name: &str, mut labels: Labels, value: f64) {
    if let Some(Metric { data: MetricData::Counter { samples } | MetricData::Gauge { samples }, .. }) =
        metrics.get_mut(name)
    {
        samples.push(Sample { labels, value });
        return;
    }
    let Some((base, part)) = name.rsplit_once('_') else { return };
    let Some(Metric { data: MetricData::Histogram { samples }, .. }) = metrics.get_mut(base) else { return };
    let le = labels.remove("le").and_then(|le| le.parse::<f64>().ok());
    let place = samples.iter().position(|known| known.labels == labels).unwrap_or_else(|| {
        let (count, sum, buckets) = (0, 0.0, Vec::new());
        samples.push(HistogramSample { labels, count, sum, p50: None, p95: None, p99: None, buckets });
        samples.len() - 1
    });
    let found = &mut samples[place];
    match (part, le) {
        ("count", _) => found.count = value as u64,
        ("sum", _) => found.sum = value,
        ("bucket", Some(le)) if le.is_finite() => found.buckets.push(Bucket { le, count: value as u64 }),
        _ => {}
    }
}

fn estimate(sample: &mut HistogramSample) {
    sample.p50 = quantile(0.5, sample);
    sample.p95 = quantile(0.95, sample);
    sample.p99 = quantile(0.99, sample);
}

/// The value below which a share `q` of the observations lies, if they are spread evenly within their bucket; the last
/// bound when it lies above all of them.
fn quantile(q: f64, sample: &HistogramSample) -> Option<f64> {
    if sample.count == 0 {
        return None;
    }
    let rank = q * sample.count as f64;
    let (mut lower, mut n_below) = (0.0, 0);
    for &Bucket { le, count } in &sample.buckets {
        if count as f64 >= rank && count > n_below {
            let share = (rank - n_below as f64) / (count - n_below) as f64;
            return Some(lower + (le - lower) * share);
        }
        (lower, n_below) = (le, count);
    }
    sample.buckets.last().map(|last| last.le)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# HELP mlxr_a_total What is \\n counted
# TYPE mlxr_a_total counter
mlxr_a_total{model=\"m\",note=\"a \\\"b\\\", c}\"} 3
mlxr_a_total{model=\"n\"} 4

# TYPE mlxr_b gauge
mlxr_b 1.5

# HELP mlxr_c_seconds Times
# TYPE mlxr_c_seconds histogram
mlxr_c_seconds_bucket{model=\"m\",le=\"1\"} 2
mlxr_c_seconds_bucket{model=\"m\",le=\"2\"} 8
mlxr_c_seconds_bucket{model=\"m\",le=\"4\"} 8
mlxr_c_seconds_bucket{model=\"m\",le=\"+Inf\"} 10
mlxr_c_seconds_sum{model=\"m\"} 17.5
mlxr_c_seconds_count{model=\"m\"} 10
";

    #[test]
    fn every_number_of_the_text_is_there() {
        let MetricList { metrics } = read(TEXT);
        let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["mlxr_a_total", "mlxr_b", "mlxr_c_seconds"]);
        assert_eq!(metrics[0].help, "What is \n counted");
        let MetricData::Counter { samples } = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        assert_eq!((samples[0].labels["note"].as_str(), samples[0].value), ("a \"b\", c}", 3.0));
        assert_eq!((samples[1].labels["model"].as_str(), samples[1].value), ("n", 4.0));
        let MetricData::Gauge { samples } = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        assert_eq!((samples.len(), samples[0].value), (1, 1.5));
        let MetricData::Histogram { samples } = &metrics[2].data else { panic!("{:?}", metrics[2]) };
        assert_eq!((samples.len(), samples[0].count, samples[0].sum), (1, 10, 17.5));
        let bounds: Vec<(f64, u64)> =
            samples[0].buckets.iter().map(|bucket| (bucket.le, bucket.count)).collect();
        assert_eq!(bounds, [(1.0, 2), (2.0, 8), (4.0, 8)]);
    }

    #[test]
    fn quantiles_lie_within_their_buckets() {
        let MetricList { metrics } = read(TEXT);
        let MetricData::Histogram { samples } = &metrics[2].data else { panic!("{:?}", metrics[2]) };
        // The fifth of ten: the third of six between 1 and 2.
        assert_eq!(samples[0].p50, Some(1.5));
        assert_eq!((samples[0].p95, samples[0].p99), (Some(4.0), Some(4.0)));
        let none = HistogramSample { count: 0, ..samples[0].clone() };
        assert_eq!(quantile(0.5, &none), None);
    }
}
