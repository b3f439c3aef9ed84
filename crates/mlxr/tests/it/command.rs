//! How the tests start the binary.

use std::path::PathBuf;

use snapbox::cmd::Command;

/// A folder that is not there, where settings and models would be.
const NOWHERE: &str = "/nowhere";

/// `mlxr` with these arguments, without colours, a home, settings, models or a log filter of its own.
pub fn mlxr<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    Command::new(binary())
        .args(args)
        .env("NO_COLOR", "1")
        .env_remove("RUST_LOG")
        .env_remove("HOME")
        .env_remove("XDG_STATE_HOME")
        .env("XDG_CONFIG_HOME", NOWHERE)
        .env("XDG_DATA_HOME", NOWHERE)
        .stdin("")
}

pub fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_mlxr").into()
}

/// Standard output of a command that succeeds, as JSON.
pub fn json(command: Command) -> serde_json::Value {
    let output = command.assert().success().get_output().stdout.clone();
    serde_json::from_slice(&output).expect("--json prints JSON")
}

/// A file of the repository.
pub fn repo(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}
