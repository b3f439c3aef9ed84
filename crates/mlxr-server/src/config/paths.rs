//! Where settings and models are kept: the XDG folders on Linux, Application Support on macOS.

use std::ffi::OsString;
use std::path::PathBuf;

/// The folder of `server.yaml`.
pub fn config_folder(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    folder(env, "XDG_CONFIG_HOME", ".config")
}

/// The folder of models and blobs.
pub fn data_folder(env: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    folder(env, "XDG_DATA_HOME", ".local/share")
}

fn folder(env: &dyn Fn(&str) -> Option<OsString>, variable: &str, below_home: &str) -> Option<PathBuf> {
    let path = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    // The XDG specification has relative paths ignored.
    if let Some(base) = path(variable).filter(|base| base.is_absolute()) {
        return Some(base.join("mlxr"));
    }
    let home = path("HOME")?;
    let base = if cfg!(target_os = "macos") { "Library/Application Support" } else { below_home };
    Some(home.join(base).join("mlxr"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_where_the_system_wants_them() {
        let env = |name: &str| match name {
            "HOME" => Some(OsString::from("/h")),
            "XDG_DATA_HOME" => Some(OsString::from("/d")),
            "XDG_CONFIG_HOME" => Some(OsString::from("relative")),
            _ => None,
        };
        let config =
            if cfg!(target_os = "macos") { "/h/Library/Application Support/mlxr" } else { "/h/.config/mlxr" };
        assert_eq!(config_folder(&env), Some(PathBuf::from(config)));
        assert_eq!(data_folder(&env), Some(PathBuf::from("/d/mlxr")));
        assert_eq!(data_folder(&|_| None), None);
    }
}
