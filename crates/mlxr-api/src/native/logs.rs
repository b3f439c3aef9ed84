//! `GET /mlxr/v1/logs`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// How much something matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = native::Level)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    pub const ALL: [Level; 5] = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];

    pub const fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
            Level::Trace => "trace",
        }
    }
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::LogLine)]
pub struct LogLine {
    /// Its number since the start, without gaps.
    pub seq: u64,
    /// Seconds since 1970.
    pub time_s: f64,
    pub level: Level,
    /// The part of the program that speaks.
    pub target: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub fields: Map<String, Value>,
}

/// Lines, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::LogLines)]
pub struct LogLines {
    pub lines: Vec<LogLine>,
    /// Lines that matched but were older than what is kept or asked for.
    pub n_left_out: u64,
}

/// A piece of a log that is followed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = native::LogEvent)]
pub enum LogEvent {
    Line(LogLine),
    /// The reader was too slow for so many lines.
    Skipped {
        skipped: u64,
    },
}
