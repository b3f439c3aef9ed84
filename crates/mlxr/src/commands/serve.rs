//! `mlxr serve`: models behind HTTP.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueHint};
use mlxr_engine::EngineOptions;
use mlxr_kernels::CpuOptions;
#[cfg(unix)]
use mlxr_server::Inherited;
use mlxr_server::config::{Bytes, Loaded, NamedPath, ServerConfig, Socket, Span};
use mlxr_server::{
    App, ClientLimits, EngineSetup, KeyFile, Keys, Limits, Listeners, Memory, ModelList, ModelSource,
    ModelSpec, Models, Phase, Surroundings, Tokens, serve,
};

use crate::device::{self, Devices, Wanted};
use crate::failure::{EXIT_INTERRUPTED, failure, usage};
#[cfg(unix)]
use crate::open_files;
use crate::settings::{self, SettingArgs};
use crate::{bundled, folders, logging, output, service_manager};

/// Threads that serve connections; the work is the engines'.
const NETWORK_THREADS: usize = 2;

/// Answer requests over HTTP, in the dialects of OpenAI, Ollama and Anthropic.
///
/// Models are loaded when a request names them and stay for --keep-alive after the last one. Beside those named with
/// --model, or else the bundled one, the catalogue's are served. Every flag can also be set in server.yaml or by an
/// environment variable: `mlxr config show` has their names. Listeners on other addresses than loopback need a key
/// (`mlxr keys create`). Sockets that a service manager passes replace --host, --port and --socket.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr serve
  mlxr serve --model qwen=path/to/qwen.gguf --model path/to/folder
  mlxr keys create phone && mlxr serve --host 0.0.0.0")]
pub struct ServeArgs {
    /// The file of settings [default: mlxr/server.yaml in XDG_CONFIG_HOME or in the user's configuration folder]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// Serves until told to stop; `log_level` is what `--log-level` says.
pub fn run(args: &ServeArgs, log_level: Option<&str>) -> anyhow::Result<ExitCode> {
    // First of all, while there are no threads.
    #[cfg(unix)]
    let inherited = Inherited::take()?;
    let loaded = settings::load(args.config.clone(), args.settings.0.clone())?;
    let config = &loaded.config;
    let logs = logging::init(log_level, Some(config))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    #[cfg(unix)]
    make_room_for_connections(config.max_connections);
    let models = models(&loaded)?;
    let (preloaded, preload) = (models.clone(), config.preload.clone());
    // A name nobody knows is told now, not when it would be loaded.
    for name in &preload {
        models.find(name).map_err(|error| {
            failure(format_args!("models.preload: {error}"), "`mlxr config show` says where it is set")
        })?;
    }
    let surroundings = Surroundings { logs, config: loaded.report(), config_path: loaded.path.clone() };
    let app = App::within(surroundings, models, limits(config))?;
    #[cfg(unix)]
    let (listeners, addresses) = match inherited.is_empty() {
        true => listeners(config)?,
        false => adopt(config, inherited)?,
    };
    #[cfg(not(unix))]
    let (listeners, addresses) = listeners(config)?;
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
    runtime.spawn(async move { preloaded.preload(&preload).await });
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

fn models(loaded: &Loaded) -> anyhow::Result<Arc<Models>> {
    let config = &loaded.config;
    let mut specs = Vec::new();
    for NamedPath { name, path } in &config.files {
        if !path.exists() {
            let hint = "name a .gguf file, or a folder with config.json and *.safetensors";
            return Err(failure(format_args!("no model at {}", path.display()), hint));
        }
        specs.push(ModelSpec::new(name, ModelSource::Path(path.clone())));
    }
    let bundled = ModelSource::Bytes { name: bundled::NAME.to_owned(), bytes: bundled::bytes() };
    if specs.is_empty() {
        specs.push(ModelSpec::new(bundled::MODEL, bundled.clone()));
    }
    let mut list = ModelList::new(specs)?;
    match loaded.catalogue() {
        Some(catalogue) => list = list.with_catalogue(Arc::new(catalogue), Some(bundled)),
        None => tracing::warn!(
            "no catalogue of models: neither XDG_DATA_HOME nor HOME is set (--data-dir FOLDER names a folder)"
        ),
    }
    let defaults = EngineOptions::default();
    let options = EngineOptions {
        n_ctx: config.n_ctx.map(|n| n as usize),
        kv_bytes: config.kv_size.map(|Bytes(bytes)| usize::try_from(bytes).unwrap_or(usize::MAX)),
        kv_dtype: config.kv_type,
        host_kv_bytes: config
            .kv_host_size
            .map_or(0, |Bytes(bytes)| usize::try_from(bytes).unwrap_or(usize::MAX)),
        max_batch_tokens: config.max_batch_tokens.max(config.max_seqs),
        max_logit_rows: defaults.max_logit_rows.max(config.max_seqs),
        max_seqs: config.max_seqs,
        max_waiting: config.max_waiting,
        target_itl: config.target_itl.map(|Span(time)| time),
        prefix_cache: config.prefix_cache,
        ..defaults
    };
    let cpu = CpuOptions { n_threads: config.threads, isa: Some(device::kernels(config)?.isa()) };
    let wanted = Wanted::new(config.device, cpu, device::products(config.bf16_products));
    let wanted = wanted.with_gpu_layers(config.gpu_layers).profiled(config.profile);
    let set = config.memory.map(|Bytes(limit_bytes)| Memory { limit_bytes });
    let Devices { first, memory, fallback } = wanted.open()?.limited_to(set);
    // Whatever stands against it is told now, not to the first client.
    first.backend()?;
    let setup = EngineSetup { device: first, options };
    let models = Models::with_list(list, setup, memory, config.keep_alive).with_fallback(fallback);
    let models = models.with_pins(&config.pin).map_err(|error| {
        failure(format_args!("models.pin: {error}"), "`mlxr config show` says where it is set")
    })?;
    Ok(Arc::new(models))
}

/// Systems grant few open files at first, and more to those who ask.
#[cfg(unix)]
fn make_room_for_connections(max_connections: usize) {
    let needed = open_files::needed(max_connections);
    if let Some(limit) = open_files::raise_limit(needed) {
        tracing::warn!(
            "this process may have {limit} open files, {max_connections} connections need {needed}: the last wait \
             until others have ended"
        );
    }
}

fn limits(config: &ServerConfig) -> Limits {
    Limits {
        max_body_bytes: usize::try_from(config.max_body.0).unwrap_or(usize::MAX),
        max_blob_bytes: config.max_blob.0,
        body_timeout: config.body_timeout,
        body_deadline: config.body_deadline,
        header_timeout: config.header_timeout,
        write_timeout: config.write_timeout,
        max_connections: config.max_connections,
        client: ClientLimits {
            requests_per_minute: config.requests_per_minute,
            tokens_per_minute: config.tokens_per_minute,
            concurrent: config.max_concurrent,
        },
        strict: config.strict,
    }
}

/// Opens the listeners. Returns them and where they listen.
fn listeners(config: &ServerConfig) -> anyhow::Result<(Listeners, Vec<String>)> {
    let ServerConfig { host, port, socket, allow_hosts, .. } = config;
    let keys = keys(config)?;
    let mut listeners = Listeners::new(config.grace);
    let mut addresses = Vec::new();
    if config.tcp {
        let bound = listeners.tcp(SocketAddr::new(*host, *port), allow_hosts, &keys)?;
        addresses.push(format!("http://{bound}"));
    }
    let is_default = *socket == Socket::Auto;
    let path = match socket {
        Socket::At(path) => Some(path.clone()),
        Socket::Auto => folders::socket(),
        Socket::Off => None,
    };
    match path.filter(|_| cfg!(unix)) {
        Some(path) => {
            open_socket(&mut listeners, &path, is_default)?;
            addresses.push(path.display().to_string());
        }
        None if is_default && cfg!(unix) => tracing::warn!(
            "no Unix socket: neither XDG_RUNTIME_DIR nor HOME is set (--socket PATH names one)"
        ),
        None => {}
    }
    if addresses.is_empty() {
        return Err(usage("nothing to listen on", "leave out --no-tcp or --no-socket"));
    }
    Ok((listeners, addresses))
}

/// Listens on what the service manager opened. Returns the listeners and where they listen.
#[cfg(unix)]
fn adopt(config: &ServerConfig, inherited: Inherited) -> anyhow::Result<(Listeners, Vec<String>)> {
    let mut listeners = Listeners::new(config.grace);
    let addresses = listeners.adopt(inherited, &config.allow_hosts, &keys(config)?)?;
    Ok((listeners, addresses))
}

/// What clients must show. A file that is named must be there; the usual one may come later.
fn keys(config: &ServerConfig) -> anyhow::Result<Keys> {
    let tokens = config.token_file.as_deref().map(Tokens::from_file).transpose()?.unwrap_or_default();
    let file = match &config.keys {
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
