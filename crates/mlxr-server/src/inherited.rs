//! Sockets a service manager opened for us, by systemd's protocol: `LISTEN_FDS` of them, for the process `LISTEN_PID`,
//! called `LISTEN_FDNAMES`.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;

/// More sockets than this are a mistake.
const MAX_SOCKETS: usize = 64;

/// A socket that was opened for us.
#[derive(Debug)]
pub(crate) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The sockets that were opened for us, each with what the service manager calls it.
#[derive(Debug, Default)]
pub struct Inherited(pub(crate) Vec<(String, Socket)>);

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    #[error(
        "the service manager's socket {name:?} cannot be used: {source}\nhint: it must be a stream socket"
    )]
    Socket { name: String, source: io::Error },
    #[error("the service manager gave {found} sockets, at most {MAX_SOCKETS} are taken")]
    TooMany { found: usize },
}

impl Inherited {
    /// Takes what the environment promises, and the promise out of the environment, so that no child believes it. To
    /// be called before there are threads.
    ///
    /// # Errors
    /// [`InheritError`].
    pub fn take() -> Result<Inherited, InheritError> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let count = std::env::var("LISTEN_FDS").ok().and_then(|count| count.parse().ok()).unwrap_or(0);
        if count > MAX_SOCKETS {
            return Err(InheritError::TooMany { found: count });
        }
        let mut fds = listenfd::ListenFd::from_env();
        let mut names = names.split(':');
        let mut sockets = Vec::new();
        for idx in 0..fds.len() {
            let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
            let socket = match fds.take_tcp_listener(idx) {
                Ok(Some(listener)) => Socket::Tcp(listener),
                // Not TCP, then; or nothing at all, which the next line says.
                Ok(None) | Err(_) => match fds.take_unix_listener(idx) {
                    Ok(Some(listener)) => Socket::Unix(listener),
                    Ok(None) => continue,
                    Err(source) => return Err(InheritError::Socket { name, source }),
                },
            };
            sockets.push((name, socket));
        }
        Ok(Inherited(sockets))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
