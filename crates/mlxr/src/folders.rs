//! Where this program keeps things when nobody says: the XDG folders on Linux, Application Support and Caches on macOS.

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

/// What was measured of the GPUs here.
pub fn gpu_tuning() -> Option<PathBuf> {
    Some(caches()?.join("gpu-tuning.json"))
}

/// What drivers have made of kernels.
pub fn gpu_pipelines() -> Option<PathBuf> {
    Some(caches()?.join("gpu-pipelines"))
}

/// Which GPUs were found to compute what the CPU does.
pub fn gpu_checks() -> Option<PathBuf> {
    Some(caches()?.join("gpu-checked"))
}

/// Where what is kept of GPUs lies.
pub fn gpu_caches() -> impl Iterator<Item = PathBuf> {
    caches().into_iter().chain(gpu_pipelines())
}

/// The folder of what can be made again.
fn caches() -> Option<PathBuf> {
    let folder = if cfg!(target_os = "macos") {
        variable("HOME")?.join("Library/Caches")
    } else {
        variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?
    };
    Some(folder.join("mlxr"))
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
