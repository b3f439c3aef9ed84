//! `mlxr serve`: models behind HTTP.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueHint};
use mlxr_engine::EngineOptions;
#[cfg(unix)]
use mlxr_server::Inherited;
use mlxr_server::{
    App, ClientLimits, EngineSetup, KeepAlive, KeyFile, Keys, Limits, Listeners, LogRing, Memory,
    ModelSource, ModelSpec, Models, Phase, Surroundings, Tokens, serve,
};

use crate::args::LoadArgs;
use crate::failure::{EXIT_INTERRUPTED, failure, usage};
use crate::logging::LogArgs;
use crate::{bundled, folders, loaded, output, service_manager, units};

/// The name of the bundled model.
const BUNDLED: &str = "mlxr-27m";

/// Threads that serve connections; the work is the engines'.
const NETWORK_THREADS: usize = 2;

/// Answer requests over HTTP, in the OpenAI dialect.
///
/// Models are loaded when a request names them and stay for --keep-alive after the last one. Without --model, the
/// bundled one is served. Listeners on other addresses than loopback need a key (`mlxr keys create`). Sockets that a
/// service manager passes replace --host, --port and --socket.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr serve
  mlxr serve --model qwen=path/to/qwen.gguf --model path/to/folder
  mlxr keys create phone && mlxr serve --host 0.0.0.0")]
pub struct ServeArgs {
    /// A model to serve, under its file's name or NAME, may be given again [default: the bundled model]
    #[arg(short, long, value_name = "[NAME=]PATH", value_parser = parse_model, value_hint = ValueHint::AnyPath)]
    pub model: Vec<(String, PathBuf)>,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub listen: ListenArgs,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Listeners")]
pub struct ListenArgs {
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on; 0 lets the system choose
    #[arg(long, value_name = "PORT", default_value_t = 11434)]
    pub port: u16,
    /// Listen on no TCP port
    #[arg(long, conflicts_with_all = ["host", "port"])]
    pub no_tcp: bool,
    /// The Unix socket to listen on [default: mlxr/mlxr.sock in XDG_RUNTIME_DIR or in the user's state folder]
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub socket: Option<PathBuf>,
    /// Listen on no Unix socket
    #[arg(long, conflicts_with = "socket")]
    pub no_socket: bool,
    /// The keys to demand of clients, made by `mlxr keys` [default: keys.json in the user's configuration folder]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub keys: Option<PathBuf>,
    /// Tokens to accept beside the keys, one per line; the file must be its owner's alone
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// A name this machine is also known by, accepted as host and origin, may be given again
    #[arg(long, value_name = "NAME")]
    pub allow_host: Vec<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Sequences a model runs at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = parse_positive)]
    pub max_seqs: usize,
    /// Requests that may wait for a model; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = parse_positive)]
    pub max_waiting: usize,
    /// Tokens a model computes per step: more read prompts faster, fewer keep the time between tokens short
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = parse_positive)]
    pub max_batch_tokens: usize,
    /// Memory of a model's keys and values, such as 512M [default: as many as 8 full sequences]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub kv_size: Option<u64>,
    /// Memory of all models together, such as 12G [default: nine tenths of what there is]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    pub memory: Option<u64>,
    /// How long a model stays loaded after its last request, such as 90s, 5m, 1h or forever
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_keep_alive)]
    pub keep_alive: KeepAlive,
    /// The largest body of a request
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = units::parse_bytes)]
    pub max_body: u64,
    /// Connections at a time; more wait
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = parse_positive)]
    pub max_connections: usize,
    /// Requests a client may send in a minute; a key's own limit wins [default: any number]
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub requests_per_minute: Option<u32>,
    /// Tokens a client may use in a minute, prompts and answers together; a key's own limit wins [default: any number]
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub tokens_per_minute: Option<u32>,
    /// Requests a client may have at a time; a key's own limit wins [default: any number]
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub max_concurrent: Option<u32>,
    /// How long a stopping server waits for the requests that run
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_time)]
    pub grace: Duration,
    /// Refuse requests with fields that would have no effect, instead of reporting them
    #[arg(long)]
    pub strict: bool,
}

pub fn run(args: &ServeArgs, logs: LogRing) -> anyhow::Result<ExitCode> {
    // First of all, while there are no threads.
    #[cfg(unix)]
    let inherited = Inherited::take()?;
    let surroundings = Surroundings { logs, ..Surroundings::default() };
    let app = App::within(surroundings, models(args)?, limits(&args.limits))?;
    #[cfg(unix)]
    let (listeners, addresses) = match inherited.is_empty() {
        true => listeners(args)?,
        false => adopt(args, inherited)?,
    };
    #[cfg(not(unix))]
    let (listeners, addresses) = listeners(args)?;
    on_interrupt(&app)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .enable_all()
        .build()
        .context("cannot start the network threads")?;
    for address in addresses {
        output::raw(&format!("listening on {address}\n"))?;
    }
    output::flush()?;
    runtime.block_on(serve_until_told(app, listeners)).context("the server broke down")?;
    Ok(ExitCode::SUCCESS)
}

async fn serve_until_told(app: Arc<App>, listeners: Listeners) -> std::io::Result<()> {
    let alive = tokio::spawn(service_manager::keep_alive());
    let told = app.clone();
    let farewell = tokio::spawn(async move {
        told.stopper.wait_for(Phase::Finishing).await;
        tracing::info!("stopping; a second signal cancels the requests that run");
        service_manager::stopping();
    });
    service_manager::ready();
    // The stopper alone says when.
    serve(app, listeners, std::future::pending()).await?;
    alive.abort();
    farewell.await.map_err(std::io::Error::other)
}

fn models(args: &ServeArgs) -> anyhow::Result<std::sync::Arc<Models>> {
    let mut specs = Vec::new();
    for (name, path) in &args.model {
        if !path.exists() {
            let hint = "name a .gguf file, or a folder with config.json and *.safetensors";
            return Err(failure(format_args!("no model at {}", path.display()), hint));
        }
        specs.push(ModelSpec { name: name.clone(), source: ModelSource::Path(path.clone()) });
    }
    if specs.is_empty() {
        let source = ModelSource::Bytes { name: bundled::NAME.to_owned(), bytes: bundled::bytes() };
        specs.push(ModelSpec { name: BUNDLED.to_owned(), source });
    }
    let LimitArgs { max_seqs, max_waiting, max_batch_tokens, .. } = args.limits;
    let defaults = EngineOptions::default();
    let options = EngineOptions {
        n_ctx: args.load.n_ctx.map(|n| n as usize),
        kv_bytes: args.limits.kv_size.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
        kv_dtype: args.load.kv_type,
        max_batch_tokens: max_batch_tokens.max(max_seqs),
        max_logit_rows: defaults.max_logit_rows.max(max_seqs),
        max_seqs,
        max_waiting,
        ..defaults
    };
    let setup = EngineSetup { backend: loaded::backend(args.load.threads)?, options };
    let memory = args.limits.memory.map_or_else(Memory::detect, |limit_bytes| Memory { limit_bytes });
    Ok(Models::new(specs, setup, memory, args.limits.keep_alive)?)
}

fn limits(args: &LimitArgs) -> Limits {
    Limits {
        max_body_bytes: usize::try_from(args.max_body).unwrap_or(usize::MAX),
        max_connections: args.max_connections,
        client: ClientLimits {
            requests_per_minute: args.requests_per_minute,
            tokens_per_minute: args.tokens_per_minute,
            concurrent: args.max_concurrent,
        },
        strict: args.strict,
        ..Limits::default()
    }
}

/// Opens the listeners. Returns them and where they listen.
fn listeners(args: &ServeArgs) -> anyhow::Result<(Listeners, Vec<String>)> {
    let ListenArgs { host, port, no_tcp, socket, no_socket, allow_host, .. } = &args.listen;
    let keys = keys(&args.listen)?;
    let mut listeners = Listeners::new(args.limits.grace);
    let mut addresses = Vec::new();
    if !no_tcp {
        let bound = listeners.tcp(SocketAddr::new(*host, *port), allow_host, &keys)?;
        addresses.push(format!("http://{bound}"));
    }
    if !no_socket && cfg!(unix) {
        match socket.clone().or_else(folders::socket) {
            Some(path) => {
                open_socket(&mut listeners, &path, socket.is_none())?;
                addresses.push(path.display().to_string());
            }
            None => tracing::warn!(
                "no Unix socket: neither XDG_RUNTIME_DIR nor HOME is set (--socket PATH names one)"
            ),
        }
    }
    if addresses.is_empty() {
        return Err(usage("nothing to listen on", "leave out --no-tcp or --no-socket"));
    }
    Ok((listeners, addresses))
}

/// Listens on what the service manager opened. Returns the listeners and where they listen.
#[cfg(unix)]
fn adopt(args: &ServeArgs, inherited: Inherited) -> anyhow::Result<(Listeners, Vec<String>)> {
    let mut listeners = Listeners::new(args.limits.grace);
    let addresses = listeners.adopt(inherited, &args.listen.allow_host, &keys(&args.listen)?)?;
    Ok((listeners, addresses))
}

/// What clients must show. A file that is named must be there; the usual one may come later.
fn keys(args: &ListenArgs) -> anyhow::Result<Keys> {
    let tokens = args.token_file.as_deref().map(Tokens::from_file).transpose()?.unwrap_or_default();
    let file = match &args.keys {
        Some(path) => {
            let file = KeyFile::new(path);
            file.read()?;
            Some(file)
        }
        None => folders::keys().map(KeyFile::new),
    };
    Ok(Keys::new(tokens, file)?)
}

#[cfg(unix)]
fn open_socket(listeners: &mut Listeners, path: &Path, is_default: bool) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    if let (true, Some(folder)) = (is_default, path.parent()) {
        let created = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        created.with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(listeners.unix(path)?)
}

#[cfg(not(unix))]
fn open_socket(_listeners: &mut Listeners, _path: &Path, _is_default: bool) -> anyhow::Result<()> {
    Ok(())
}

/// The first Ctrl-C or termination signal lets requests finish, the second one cancels them, the third one ends the
/// program.
fn on_interrupt(app: &Arc<App>) -> anyhow::Result<()> {
    let app = app.clone();
    let mut phases = [Phase::Finishing, Phase::Cancelling].into_iter();
    ctrlc::set_handler(move || match phases.next() {
        Some(phase) => app.stopper.enter(phase),
        None => std::process::exit(EXIT_INTERRUPTED.into()),
    })?;
    Ok(())
}

fn parse_model(text: &str) -> Result<(String, PathBuf), String> {
    if let Some((name, path)) = text.split_once('=') {
        let is_name = !name.is_empty() && !name.contains(['/', '\\']) && !name.contains(char::is_whitespace);
        return match is_name && !path.is_empty() {
            true => Ok((name.to_owned(), PathBuf::from(path))),
            false => Err("expected NAME=PATH with a name without slashes and spaces".to_owned()),
        };
    }
    let path = PathBuf::from(text);
    let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
    match stem.and_then(|stem| stem.to_str()) {
        Some(name) => Ok((name.to_owned(), path)),
        None => Err("the path has no name; give one as NAME=PATH".to_owned()),
    }
}

fn parse_positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

fn parse_limit(text: &str) -> Result<u32, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number above 0".to_owned())
}

/// `90`, `90s`, `5m`, `1h`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let (digits, factor) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(digits) if text.ends_with('m') => (digits, 60),
        Some(digits) if text.ends_with('h') => (digits, 3600),
        Some(digits) => (digits, 1),
        None => (text, 1),
    };
    let parsed = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    parsed.map(Duration::from_secs).ok_or_else(|| "expected a time such as 90s, 5m or 1h".to_owned())
}

fn parse_keep_alive(text: &str) -> Result<KeepAlive, String> {
    match text {
        "forever" => Ok(KeepAlive::Forever),
        _ => parse_time(text).map(KeepAlive::For).map_err(|reason| format!("{reason}, or forever")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_the_name_given_or_its_file_s() {
        let path = PathBuf::from;
        assert_eq!(parse_model("a=b/c.gguf"), Ok(("a".to_owned(), path("b/c.gguf"))));
        assert_eq!(parse_model("b/c.d.gguf"), Ok(("c.d".to_owned(), path("b/c.d.gguf"))));
        assert_eq!(parse_model("src"), Ok(("src".to_owned(), path("src"))));
        for bad in ["=x", "a=", "a/b=c", "a b=c", ".."] {
            assert!(parse_model(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_keep_alive("0"), Ok(KeepAlive::For(Duration::ZERO)));
        assert_eq!(parse_keep_alive("forever"), Ok(KeepAlive::Forever));
        assert!(parse_keep_alive("soon").is_err() && parse_time("5d").is_err());
    }
}
