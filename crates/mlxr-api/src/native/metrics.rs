//! `GET /mlxr/v1/metrics`: what `/metrics` says, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// All metrics, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::MetricList)]
pub struct MetricList {
    pub metrics: Vec<Metric>,
}

/// One metric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Metric)]
pub struct Metric {
    /// Begins with `mlxr_`.
    pub name: String,
    pub help: String,
    #[serde(flatten)]
    pub data: MetricData,
}

/// Its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
#[schema(as = native::MetricData)]
pub enum MetricData {
    /// Only grows.
    Counter {
        samples: Vec<Sample>,
    },
    Gauge {
        samples: Vec<Sample>,
    },
    Histogram {
        samples: Vec<HistogramSample>,
    },
}

/// One number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Sample)]
pub struct Sample {
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// How many observations fell where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::HistogramSample)]
pub struct HistogramSample {
    pub labels: BTreeMap<String, String>,
    pub count: u64,
    pub sum: f64,
    /// Estimated within the bucket it falls into, null without observations.
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    /// Upper bounds ascending; observations above the last one are only in `count`.
    pub buckets: Vec<Bucket>,
}

/// One bucket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Bucket)]
pub struct Bucket {
    /// The upper bound.
    pub le: f64,
    /// Observations up to it, those of smaller buckets included.
    pub count: u64,
}
