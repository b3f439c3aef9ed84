//! Sockets: loopback or other TCP addresses, a Unix socket, and the way they close.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use mlxr_engine::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
#[cfg(unix)]
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::access::{Access, Peer};
use crate::app::App;
#[cfg(unix)]
use crate::inherited::{Inherited, Socket};
use crate::patient::Patient;
use crate::stopping::Phase;
use crate::{Keys, Limits};

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
    /// The same for Unix sockets, and their files where they are ours to remove.
    #[cfg(unix)]
    unix: Vec<(std::os::unix::net::UnixListener, Access, Option<SocketFile>)>,
    /// Running requests are cancelled when they take longer than this to finish.
    grace: Duration,
}

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error(
        "{address} can be reached from other machines\nhint: make a key with `mlxr keys create NAME`, or listen on 127.0.0.1"
    )]
    KeyNeeded { address: SocketAddr },
    #[error("cannot listen on {}: {source}", path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("cannot listen on the service manager's socket {name:?}: {source}")]
    Inherited { name: String, source: io::Error },
    #[error(
        "everybody on this machine can open the service manager's socket {name:?}\nhint: make a key with `mlxr keys create NAME`, or set SocketMode=0600"
    )]
    SocketOpen { name: String },
    #[error("another server listens on {}", path.display())]
    Taken { path: PathBuf },
}

impl Listeners {
    pub fn new(grace: Duration) -> Listeners {
        Listeners {
            tcp: Vec::new(),
            #[cfg(unix)]
            unix: Vec::new(),
            grace,
        }
    }

    /// Listens on a TCP address; anywhere else than on loopback a key is demanded. `hosts` are names this machine is
    /// also known by, and those of web pages that may use it. Returns the address, whose port the system chose if it
    /// was 0.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn tcp(
        &mut self,
        address: SocketAddr,
        hosts: &[String],
        keys: &Keys,
    ) -> Result<SocketAddr, ListenError> {
        let access = access_of(address, hosts, keys)?;
        let failed = |source| ListenError::Tcp { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        self.tcp.push((listener, access));
        Ok(bound)
    }

    /// The different sets of keys its listeners have.
    fn keys(&self) -> Vec<Keys> {
        let mut all: Vec<Keys> = Vec::new();
        let accesses = self.tcp.iter().map(|(_, access)| access);
        #[cfg(unix)]
        let accesses = accesses.chain(self.unix.iter().map(|(_, access, _)| access));
        for keys in accesses.filter_map(Access::keys) {
            if !all.iter().any(|known| known.is_same(keys)) {
                all.push(keys.clone());
            }
        }
        all
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
        self.unix.push((listener, Access::Socket, Some(SocketFile(path.to_owned()))));
        Ok(())
    }

    /// Listens on sockets the service manager opened. The same rules hold for them; a Unix socket that everybody may
    /// open is none that the file system protects, so a key is demanded there. Returns where they listen.
    ///
    /// # Errors
    /// [`ListenError`].
    #[cfg(unix)]
    pub fn adopt(
        &mut self,
        sockets: Inherited,
        hosts: &[String],
        keys: &Keys,
    ) -> Result<Vec<String>, ListenError> {
        let mut addresses = Vec::new();
        for (name, socket) in sockets.0 {
            let failed = |source| ListenError::Inherited { name: name.clone(), source };
            match socket {
                Socket::Tcp(listener) => {
                    let address = listener.local_addr().map_err(failed)?;
                    listener.set_nonblocking(true).map_err(failed)?;
                    self.tcp.push((listener, access_of(address, hosts, keys)?));
                    addresses.push(format!("http://{address}"));
                }
                Socket::Unix(listener) => {
                    let address = listener.local_addr().map_err(failed)?;
                    listener.set_nonblocking(true).map_err(failed)?;
                    let path = address.as_pathname();
                    let access = match path {
                        Some(path) if !is_open_to_all(path).map_err(failed)? => Access::Socket,
                        _ if keys.is_empty() => return Err(ListenError::SocketOpen { name }),
                        _ => Access::Keys { hosts: hosts.to_vec(), keys: keys.clone() },
                    };
                    addresses.push(path.map_or_else(|| name.clone(), |path| path.display().to_string()));
                    self.unix.push((listener, access, None));
                }
            }
        }
        Ok(addresses)
    }
}

/// The rule for a TCP listener.
fn access_of(address: SocketAddr, hosts: &[String], keys: &Keys) -> Result<Access, ListenError> {
    if address.ip().is_loopback() {
        return Ok(Access::Loopback { hosts: hosts.to_vec(), keys: keys.clone() });
    }
    if keys.is_empty() {
        return Err(ListenError::KeyNeeded { address });
    }
    Ok(Access::Keys { hosts: hosts.to_vec(), keys: keys.clone() })
}

/// Whether others than the owner and the group may connect.
#[cfg(unix)]
fn is_open_to_all(path: &Path) -> io::Result<bool> {
    Ok(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path)?) & 0o007 != 0)
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

/// Serves until `stop` is done or the app's [`Stopper`](crate::Stopper) says so, then lets requests finish; after the
/// grace period, or when the stopper moves on, cancels them.
///
/// # Errors
/// The runtime cannot take the listeners.
pub async fn serve(app: Arc<App>, listeners: Listeners, stop: impl Future<Output = ()>) -> io::Result<()> {
    let router = app.router();
    let graceful = Arc::new(GracefulShutdown::new());
    let slots = Arc::new(Semaphore::new(app.limits.max_connections));
    let (closing, is_closing) = watch::channel(false);
    let keys = listeners.keys();
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
    let mut socket_files = Vec::new();
    #[cfg(unix)]
    for (listener, access, file) in listeners.unix {
        let listener = UnixListener::from_std(listener)?;
        acceptors.spawn(acceptor(access).run(Source::Unix(listener)));
        socket_files.push(file);
    }
    let models = app.models.clone();
    let watching = tokio::spawn(async move { models.watch_keep_alive().await });
    let upkeep = tokio::spawn(run_upkeep(app.clone(), keys.clone()));

    tokio::select! {
        () = stop => app.stopper.enter(Phase::Finishing),
        () = app.stopper.wait_for(Phase::Finishing) => {}
    }
    // From here on nobody new gets in; the acceptors end because someone still listens to this channel.
    closing.send_replace(true);
    while acceptors.join_next().await.is_some() {}
    #[cfg(unix)]
    drop(socket_files);
    watching.abort();
    upkeep.abort();
    keys.iter().for_each(save_used);
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
    tokio::select! {
        () = &mut closed => return,
        () = tokio::time::sleep(grace) => {}
        () = app.stopper.wait_for(Phase::Cancelling) => {}
    }
    tracing::warn!("cancelling the requests that still run");
    app.models.shut_down(Shutdown::Cancel);
    // Cancelled requests still have their last frames to write; a client that does not read them is left alone.
    let _ = tokio::time::timeout(LAST_FRAMES, closed).await;
}

async fn run_upkeep(app: Arc<App>, keys: Vec<Keys>) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        app.telemetry.run_upkeep();
        keys.iter().for_each(save_used);
    }
}

fn save_used(keys: &Keys) {
    if let Err(error) = keys.save_used() {
        tracing::warn!(%error, "when keys were last used cannot be written down");
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
                Ok(Stream::Tcp(stream, peer)) => self.serve(stream, Some(peer), slot),
                #[cfg(unix)]
                Ok(Stream::Unix(stream)) => self.serve(stream, None, slot),
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
        peer: Option<Peer>,
        slot: OwnedSemaphorePermit,
    ) {
        let router = self.router.clone();
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            if let Some(peer) = peer {
                request.extensions_mut().insert(peer);
            }
            router.clone().oneshot(request.map(Body::new))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .serve_connection(TokioIo::new(Patient::new(stream, self.limits.write_timeout)), service);
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
    Tcp(TcpStream, Peer),
    #[cfg(unix)]
    Unix(UnixStream),
}

async fn accept(source: &Source) -> io::Result<Stream> {
    match source {
        Source::Tcp(listener) => {
            let (stream, address) = listener.accept().await?;
            // Tokens go out as they come.
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream, Peer(address.ip())))
        }
        #[cfg(unix)]
        Source::Unix(listener) => Ok(Stream::Unix(listener.accept().await?.0)),
    }
}
