//! The settings, where a server would listen by them, who listens there already, and the files it reads.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use mlxr_api::native::stats::Version;
use mlxr_server::config::{Loaded, ServerConfig, Socket};
use mlxr_server::{KeyFile, KeyFileError};
use serde_json::Value;

use super::Finding;
use crate::client::{Address, Client, ServerArgs, reachable};
use crate::folders;

/// The longest path a Unix socket can have, without the byte that ends it.
const MAX_SOCKET_PATH: usize = if cfg!(target_os = "macos") { 103 } else { 107 };

/// The settings and what is wrong with them.
pub fn settings(loaded: &anyhow::Result<Loaded>) -> Finding {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => return Finding::failed("settings", error, "`mlxr config check` shows the place"),
    };
    if let Some(warning) = loaded.warnings.first() {
        return Finding::note("settings", warning, "`mlxr config show` says what is in effect");
    }
    match &loaded.path {
        Some(path) if loaded.has_file => {
            Finding::ok("settings", format!("{} has no mistakes", path.display()))
        }
        _ => Finding::ok("settings", "there is no server.yaml: everything has its default"),
    }
}

/// Where a server would listen on TCP.
pub fn port(config: &ServerConfig) -> Option<Finding> {
    (config.tcp && config.port != 0).then(|| port_at(SocketAddr::new(config.host, config.port)))
}

fn port_at(address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok("port", format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken(address),
        Err(error) => Finding::problem(
            "port",
            format!("the system refuses {address}: {error}"),
            "choose another with --host and --port; ports below 1024 are for the superuser",
        ),
    }
}

/// Asks who has the port.
fn taken(address: SocketAddr) -> Finding {
    let (host, port) = (reachable(address.ip()).to_string(), address.port());
    let at = Address::Http { host, port };
    let ask = |path: &str| Client::anonymous(at.clone()).and_then(|client| client.get::<Value>(path));
    match ask("/mlxr/v1/version") {
        Ok(_) => return Finding::ok("port", format!("mlxr serves at {at}")),
        // Who refuses in our words is one of us.
        Err(error) if is_ours(&error) => {
            return Finding::ok("port", format!("mlxr serves at {at}, to who has a key"));
        }
        Err(_) => {}
    }
    let who = match ask("/api/version") {
        Ok(answer) if answer.get("version").is_some() => "Ollama",
        _ => "another program",
    };
    Finding::note(
        "port",
        format!("{who} has {at}"),
        format!("end it, or choose another port with `mlxr serve --port {}`", port.wrapping_add(1).max(1024)),
    )
}

fn is_ours(error: &anyhow::Error) -> bool {
    error.downcast_ref::<crate::client::Refusal>().is_some_and(|refusal| !refusal.code.is_empty())
}

/// The usual Unix socket.
#[cfg(unix)]
pub fn socket(config: &ServerConfig) -> Option<Finding> {
    Some(match &config.socket {
        Socket::At(path) => socket_at(path),
        Socket::Auto => default_socket(),
        Socket::Off => return None,
    })
}

#[cfg(unix)]
fn default_socket() -> Finding {
    match folders::socket() {
        Some(path) => socket_at(&path),
        None => Finding::note(
            "socket",
            "there is no folder for it: neither XDG_RUNTIME_DIR nor HOME is set",
            "name one with `mlxr serve --socket PATH`, or set one of them",
        ),
    }
}

#[cfg(unix)]
fn socket_at(path: &Path) -> Finding {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    let shown = path.display();
    if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        return Finding::problem(
            "socket",
            format!("{shown} is longer than the {MAX_SOCKET_PATH} bytes a socket's path may have"),
            "name a shorter one with `mlxr serve --socket PATH`",
        );
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => return Finding::ok("socket", format!("a server listens at {shown}")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let next = "nothing: the next `mlxr serve` replaces it";
            return Finding::note("socket", format!("{shown} is left from a server that was killed"), next);
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let next = format!("ls -l {shown}: it must be yours, and so must its folder");
            return Finding::problem("socket", format!("{shown} may not be opened: {error}"), next);
        }
        Err(_) => {}
    }
    // What is not there yet will be made in the first folder that is.
    let Some(folder) = path.ancestors().skip(1).find(|folder| folder.exists()) else {
        return Finding::problem("socket", format!("{shown} has no folder"), "make one");
    };
    let is_writable =
        tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o600)).tempfile_in(folder);
    match is_writable {
        Ok(_) => Finding::ok("socket", format!("{shown} is free")),
        Err(error) => Finding::problem(
            "socket",
            format!("nothing can be made in {}: {error}", folder.display()),
            "give yourself that folder, or name another with `mlxr serve --socket PATH`",
        ),
    }
}

/// The key file, if there is one.
pub fn keys(config: &ServerConfig) -> Finding {
    match config.keys.clone().or_else(folders::keys) {
        Some(path) => keys_in(&path),
        None => Finding::note(
            "keys",
            "there is no folder for them: HOME is not set",
            "name a file with `mlxr serve --keys FILE`",
        ),
    }
}

fn keys_in(path: &Path) -> Finding {
    let shown = path.display();
    let keys = match KeyFile::new(path).read() {
        Ok(keys) => keys,
        Err(KeyFileError::Missing { .. }) => {
            return Finding::ok("keys", "there are none: the server answers this machine, and no other");
        }
        Err(error) => return Finding::failed("keys", &error.into(), "move the file away and make new keys"),
    };
    let now_s = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let n_valid = keys.iter().filter(|key| !key.is_expired(now_s)).count();
    if n_valid == 0 {
        let next =
            "make one with `mlxr keys create NAME`, or remove the file to open the server to this machine";
        return Finding::note(
            "keys",
            format!("none of those in {shown} is valid: nobody gets in over TCP"),
            next,
        );
    }
    Finding::ok("keys", format!("{n_valid} valid in {shown}"))
}

/// The server that runs, if one does.
pub fn server(args: &ServerArgs) -> Finding {
    let client = match Client::connect(args) {
        Ok(client) => client,
        Err(_) if args.server.is_none() => {
            return Finding::ok("server", "none runs; `mlxr serve` starts one");
        }
        Err(error) => return Finding::failed("server", &error, "start it"),
    };
    match client.get::<Version>("/mlxr/v1/version") {
        Ok(version) => describe_server(&version, client.address()),
        Err(error) => Finding::failed("server", &error, "see what it says: `mlxr logs`"),
    }
}

fn describe_server(version: &Version, address: &Address) -> Finding {
    let Version { version, backend, .. } = version;
    let ours = env!("CARGO_PKG_VERSION");
    if version != ours {
        return Finding::note(
            "server",
            format!("mlxr {version} answers at {address}, and this program is {ours}"),
            "`mlxr stop`, and start it anew",
        );
    }
    Finding::ok("server", format!("mlxr {version} answers at {address}, on {backend}"))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_free_port_and_a_taken_one_are_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // Whoever connects is sent away.
        let stranger = std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                drop(stream);
            }
            listener
        });
        let finding = port_at(address);
        assert_eq!((finding.level, finding.message.starts_with("another program has")), (Level::Note, true));
        drop(stranger.join().unwrap());
        assert_eq!(port_at(address).level, Level::Ok);
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_free_left_behind_or_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/mlxr.sock");
        assert_eq!(socket_at(&path), Finding::ok("socket", format!("{} is free", path.display())));
        let path = dir.path().join("mlxr.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(socket_at(&path).message.starts_with("a server listens"));
        drop(listener);
        assert!(socket_at(&path).message.ends_with("left from a server that was killed"));
        assert_eq!(socket_at(&dir.path().join("x".repeat(200))).level, Level::Problem);
    }

    #[cfg(unix)]
    #[test]
    fn keys_that_others_can_read_are_a_problem() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        assert_eq!(keys_in(&path).level, Level::Ok);
        std::fs::write(&path, "{}").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let finding = keys_in(&path);
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.next.unwrap().starts_with("chmod 600"));
    }

    #[test]
    fn another_version_is_noted() {
        let version = |text: &str| Version {
            version: text.to_owned(),
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            backend: "cpu".to_owned(),
        };
        let at = Address::Socket("/x".into());
        assert_eq!(describe_server(&version(env!("CARGO_PKG_VERSION")), &at).level, Level::Ok);
        assert_eq!(describe_server(&version("0.0.1"), &at).level, Level::Note);
    }
}
