//! The log: warnings by default, more by `--log-level` or `RUST_LOG`; on stderr, or in files that `--log-file` names.

mod rotating;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum, ValueHint};
use mlxr_server::LogRing;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use self::rotating::{RotatingFile, Rotation};

/// Who reads the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The person who waits for the command: only what went wrong.
    Waiting,
    /// Whoever looks after a service: what it does, and when.
    Later,
}

/// Where a service's log goes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Write the log to this file instead of stderr; when it is full or old it becomes FILE.1, and so on
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub log_file: Option<PathBuf>,
    /// How lines are written
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// The size at which a log file ends
    #[arg(long, value_name = "SIZE", default_value = "16M", value_parser = crate::units::parse_bytes)]
    pub log_max_size: u64,
    /// The age at which a log file ends, such as 12h or 7d
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = crate::units::parse_span)]
    pub log_max_age: Duration,
    /// Log files that are kept, the one that is written among them
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..))]
    pub log_files: u16,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts the log; `level`, from `--log-level`, wins over `RUST_LOG`. Without `args` it goes to stderr as text. Returns
/// its last lines, which a service keeps for those who ask it.
///
/// # Errors
/// The log file cannot be opened.
pub fn init(level: Option<&str>, reader: Reader, args: Option<&LogArgs>) -> anyhow::Result<LogRing> {
    let default = if reader == Reader::Later { "info" } else { "warn" };
    let filter = match level {
        Some(level) => EnvFilter::new(level),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)),
    };
    let ring = LogRing::default();
    let kept = (reader == Reader::Later).then(|| ring.clone());
    let log = tracing_subscriber::registry().with(lines(reader, args)?.and_then(kept).with_filter(filter));
    // Only a second call could fail, and there is none.
    let _ = tracing::subscriber::set_global_default(log);
    Ok(ring)
}

/// What writes lines where they are wanted, as they are wanted.
fn lines(reader: Reader, args: Option<&LogArgs>) -> anyhow::Result<Box<dyn Layer<Registry> + Send + Sync>> {
    let is_json = args.is_some_and(|args| args.log_format == LogFormat::Json);
    let plain = tracing_subscriber::fmt::layer();
    if let Some(args) = args
        && let Some(path) = &args.log_file
    {
        let rotation = Rotation {
            max_bytes: args.log_max_size,
            max_age: args.log_max_age,
            n_files: args.log_files.into(),
        };
        let opened = RotatingFile::open(path, rotation);
        let file = opened.with_context(|| format!("cannot open the log file {}", path.display()))?;
        let layer = plain.with_writer(file).with_ansi(false);
        return Ok(if is_json { layer.json().flatten_event(true).boxed() } else { layer.boxed() });
    }
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let layer = plain.with_writer(std::io::stderr).with_ansi(colour && !is_json);
    Ok(match reader {
        _ if is_json => layer.json().flatten_event(true).boxed(),
        Reader::Later => layer.boxed(),
        Reader::Waiting => layer.without_time().boxed(),
    })
}

/// Checks a filter such as `debug` or `mlxr_engine=trace,info` for clap.
pub fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}
