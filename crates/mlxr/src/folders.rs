//! Where this program keeps things when nobody says: the XDG folders on Linux, Application Support on macOS.

use std::path::PathBuf;

/// The folder of settings and keys.
pub fn config() -> Option<PathBuf> {
    below("XDG_CONFIG_HOME", ".config")
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

fn below(name: &str, below_home: &str) -> Option<PathBuf> {
    // The XDG specification has relative paths ignored.
    if let Some(base) = variable(name).filter(|base| base.is_absolute()) {
        return Some(base.join("mlxr"));
    }
    let base = if cfg!(target_os = "macos") { "Library/Application Support" } else { below_home };
    Some(variable("HOME")?.join(base).join("mlxr"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
