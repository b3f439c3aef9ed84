//! The `mlxr` binary: the command line and the wiring of the libraries. The only crate that names a concrete backend.

mod app;
mod args;
mod bundled;
mod client;
mod commands;
mod conversation;
mod device;
mod doctor;
mod embedder;
mod failure;
mod first_check;
mod folders;
mod generate;
mod interrupt;
mod loaded;
mod logging;
mod model_source;
#[cfg(unix)]
mod open_files;
mod output;
mod progress;
mod repl;
mod sampling;
mod service_manager;
mod settings;
mod stdin;
mod structure;
mod text;
mod top;
mod units;

use std::process::ExitCode;

fn main() -> ExitCode {
    app::main()
}
