//! Where this program keeps things when nobody says: the XDG folders on Linux, Application Support on macOS.

use std::path::PathBuf;

/// The folder of settings and keys.
pub fn config() -> Option<PathBuf> {
    mlxr_server::config::config_folder(&|name| std::env::var_os(name))
}

/// The keys a server accepts.
pub fn keys() -> Option<PathBuf> {
    Some(config()?.join("keys.json"))
}

/// Where a server listens and clients on this machine find it.
pub fn socket() -> Option<PathBuf> {
    let folder = variable("XDG_RUNTIME_DIR")
        .or_else(|| variable("XDG_STATE_HOME"))
        .or_else(|| Some(variable("HOME")?.join(".local/state")))?;
    Some(folder.join("mlxr/mlxr.sock"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
