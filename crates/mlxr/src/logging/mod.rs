//! The log: warnings by default, more by `--log-level` or `RUST_LOG`; on stderr, or in files that `--log-file` names.

mod rotating;

use std::io::IsTerminal;

use anyhow::Context;
use mlxr_server::LogRing;
use mlxr_server::config::{LogFormat, ServerConfig};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use self::rotating::{RotatingFile, Rotation};

/// Starts the log; `level`, from `--log-level`, wins over `RUST_LOG`. A command that somebody waits for says only what
/// went wrong, on stderr; a service, which has `settings`, also what it does, and when. Returns its last lines, which a
/// service keeps for those who ask it.
///
/// # Errors
/// The log file cannot be opened.
pub fn init(level: Option<&str>, settings: Option<&ServerConfig>) -> anyhow::Result<LogRing> {
    let default = if settings.is_some() { "info" } else { "warn" };
    let filter = match level {
        Some(level) => EnvFilter::new(level),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default)),
    };
    let ring = LogRing::default();
    let kept = settings.map(|_| ring.clone());
    let log = tracing_subscriber::registry().with(lines(settings)?.and_then(kept).with_filter(filter));
    // Only a second call could fail, and there is none.
    let _ = tracing::subscriber::set_global_default(log);
    Ok(ring)
}

/// What writes lines where they are wanted, as they are wanted.
fn lines(settings: Option<&ServerConfig>) -> anyhow::Result<Box<dyn Layer<Registry> + Send + Sync>> {
    let is_json = settings.is_some_and(|settings| settings.log_format == LogFormat::Json);
    let plain = tracing_subscriber::fmt::layer();
    if let Some(settings) = settings
        && let Some(path) = &settings.log_file
    {
        let rotation = Rotation {
            max_bytes: settings.log_max_size.0,
            max_age: settings.log_max_age.0,
            n_files: settings.log_files,
        };
        let opened = RotatingFile::open(path, rotation);
        let file = opened.with_context(|| format!("cannot open the log file {}", path.display()))?;
        let layer = plain.with_writer(file).with_ansi(false);
        return Ok(if is_json { layer.json().flatten_event(true).boxed() } else { layer.boxed() });
    }
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let layer = plain.with_writer(std::io::stderr).with_ansi(colour && !is_json);
    Ok(match settings {
        Some(_) if is_json => layer.json().flatten_event(true).boxed(),
        Some(_) => layer.boxed(),
        None => layer.without_time().boxed(),
    })
}

/// Checks a filter such as `debug` or `mlxr_engine=trace,info` for clap.
pub fn parse_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}
