//! The log on stderr: warnings by default, more by `--log-level` or `RUST_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Who reads the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The person who waits for the command: only what went wrong.
    Waiting,
    /// Whoever looks after a service: what it does, and when.
    Later,
}

/// Starts the log; `level`, from `--log-level`, wins over `RUST_LOG`.
pub fn init(level: Option<&str>, reader: Reader) {
    let default = if reader == Reader::Later { "info" } else { "warn" };
    let filter = match level {
        Some(level) => EnvFilter::new(level),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)),
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    // Only a second call could fail, and there is none.
    let _ = match reader {
        Reader::Later => tracing::subscriber::set_global_default(log.finish()),
        Reader::Waiting => tracing::subscriber::set_global_default(log.without_time().finish()),
    };
}

/// Checks a filter such as `debug` or `mlxr_engine=trace,info` for clap.
pub fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}
