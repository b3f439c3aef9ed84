//! Sockets: loopback or other TCP addresses, a Unix socket, and the way they close.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use mlxr_engine::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::access::Access;
use crate::app::App;
use crate::{Limits, Tokens};

/// Time for cancelled requests to say so.
const LAST_FRAMES: Duration = Duration::from_secs(2);

/// Pause after `accept` failed, which it does when the process runs out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often recorded latencies move to their buckets.
const UPKEEP: Duration = Duration::from_secs(10);

/// Where to listen and how to stop.
#[derive(Debug)]
pub struct Listeners {
    /// Opened TCP listeners, each with its rule.
    tcp: Vec<(std::net::TcpListener, Access)>,
    #[cfg(unix)]
    unix: Option<(std::os::unix::net::UnixListener, SocketFile)>,
    /// Running requests are cancelled when they take longer than this to finish.
    grace: Duration,
}

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("{address} can be reached from other machines\nhint: give --token-file, or listen on 127.0.0.1")]
    TokenNeeded { address: SocketAddr },
    #[error("cannot listen on {}: {source}", path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("another server listens on {}", path.display())]
    Taken { path: PathBuf },
}

impl Listeners {
    pub fn new(grace: Duration) -> Listeners {
        Listeners {
            tcp: Vec::new(),
            #[cfg(unix)]
            unix: None,
            grace,
        }
    }

    /// Listens on a TCP address. On loopback, `hosts` are names this machine is also known by; anywhere else a token is
    /// demanded. Returns the address, whose port the system chose if it was 0.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn tcp(
        &mut self,
        address: SocketAddr,
        hosts: &[String],
        tokens: &Tokens,
    ) -> Result<SocketAddr, ListenError> {
        let access = if address.ip().is_loopback() {
            Access::Loopback { hosts: hosts.to_vec(), tokens: tokens.clone() }
        } else if tokens.is_empty() {
            return Err(ListenError::TokenNeeded { address });
        } else {
            Access::Tokens(tokens.clone())
        };
        let failed = |source| ListenError::Tcp { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        self.tcp.push((listener, access));
        Ok(bound)
    }

    /// Listens on a Unix socket that only its owner can open.
    ///
    /// # Errors
    /// [`ListenError`].
    #[cfg(unix)]
    pub fn unix(&mut self, path: &Path) -> Result<(), ListenError> {
        let failed = |source| ListenError::Unix { path: path.to_owned(), source };
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::Taken { path: path.to_owned() });
        }
        // What is left of a server that did not close its socket.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = bind_private(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.unix = Some((listener, SocketFile(path.to_owned())));
        Ok(())
    }
}

/// Binds under a name in a private folder and moves the socket to its place, so that there is no moment at which
/// others could connect to it.
#[cfg(unix)]
fn bind_private(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let folder = path.with_file_name(format!(".{name}.{}", std::process::id()));
    std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
    let inside = folder.join("s");
    let bound = std::os::unix::net::UnixListener::bind(&inside).and_then(|listener| {
        std::fs::set_permissions(&inside, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&inside, path)?;
        Ok(listener)
    });
    let removed = std::fs::remove_dir_all(&folder);
    bound.and_then(|listener| removed.map(|()| listener))
}

/// Removes the socket from the file system when the server ends.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the socket could not be removed");
        }
    }
}

/// Serves until `stop` is done, then lets requests finish or, after the grace period, cancels them.
///
/// # Errors
/// The runtime cannot take the listeners.
pub async fn serve(app: Arc<App>, listeners: Listeners, stop: impl Future<Output = ()>) -> io::Result<()> {
    let router = app.router();
    let graceful = Arc::new(GracefulShutdown::new());
    let slots = Arc::new(Semaphore::new(app.limits.max_connections));
    let (closing, is_closing) = watch::channel(false);
    let mut acceptors = JoinSet::new();
    let acceptor = |access: Access| Acceptor {
        router: access.guard(router.clone()),
        graceful: graceful.clone(),
        limits: app.limits,
        slots: slots.clone(),
        is_closing: is_closing.clone(),
    };
    for (listener, access) in listeners.tcp {
        let listener = TcpListener::from_std(listener)?;
        acceptors.spawn(acceptor(access).run(Source::Tcp(listener)));
    }
    #[cfg(unix)]
    let mut socket_file = None;
    #[cfg(unix)]
    if let Some((listener, file)) = listeners.unix {
        let listener = UnixListener::from_std(listener)?;
        acceptors.spawn(acceptor(Access::Socket).run(Source::Unix(listener)));
        socket_file = Some(file);
    }
    let models = app.models.clone();
    let watching = tokio::spawn(async move { models.watch_keep_alive().await });
    let upkeep = tokio::spawn(run_upkeep(app.clone()));

    stop.await;
    // From here on nobody new gets in; the acceptors end because someone still listens to this channel.
    closing.send_replace(true);
    while acceptors.join_next().await.is_some() {}
    #[cfg(unix)]
    drop(socket_file);
    watching.abort();
    upkeep.abort();
    // The acceptors had the other references.
    if let Some(graceful) = Arc::into_inner(graceful) {
        finish(&app, graceful, listeners.grace).await;
    }
    app.models.close().await;
    Ok(())
}

/// Lets requests finish within the grace period, then cancels them.
async fn finish(app: &App, graceful: GracefulShutdown, grace: Duration) {
    let mut closed = pin!(graceful.shutdown());
    if tokio::time::timeout(grace, &mut closed).await.is_err() {
        tracing::warn!(grace_s = grace.as_secs(), "cancelling the requests that still run");
        app.models.shut_down(Shutdown::Cancel);
        // Cancelled requests still have their last frames to write; a client that does not read them is left alone.
        let _ = tokio::time::timeout(LAST_FRAMES, closed).await;
    }
}

async fn run_upkeep(app: Arc<App>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        app.telemetry.run_upkeep();
    }
}

enum Source {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// Takes connections of one listener and serves each on a task.
struct Acceptor {
    router: Router,
    graceful: Arc<GracefulShutdown>,
    limits: Limits,
    slots: Arc<Semaphore>,
    is_closing: watch::Receiver<bool>,
}

impl Acceptor {
    async fn run(mut self, source: Source) {
        loop {
            // Beyond the limit connections wait in the system's queue.
            let slots = self.slots.clone();
            let next = async { (slots.acquire_owned().await, accept(&source).await) };
            let (slot, accepted) = tokio::select! {
                next = next => next,
                _ = self.is_closing.wait_for(|is_closing| *is_closing) => return,
            };
            let Ok(slot) = slot else { return };
            match accepted {
                Ok(Stream::Tcp(stream)) => self.serve(stream, slot),
                #[cfg(unix)]
                Ok(Stream::Unix(stream)) => self.serve(stream, slot),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        &self,
        stream: S,
        slot: OwnedSemaphorePermit,
    ) {
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection");
            }
            drop(slot);
        });
    }
}

enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(UnixStream),
}

async fn accept(source: &Source) -> io::Result<Stream> {
    match source {
        Source::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            // Tokens go out as they come.
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        }
        #[cfg(unix)]
        Source::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
    }
}
