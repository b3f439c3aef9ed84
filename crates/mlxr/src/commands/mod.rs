//! One module per command: `run(&Args)` does it.

pub mod bench;
pub mod catalogue;
pub mod completions;
pub mod config;
pub mod convert;
pub mod doctor;
pub mod embed;
pub mod keys;
pub mod logs;
pub mod perplexity;
pub mod ps;
pub mod quantize;
pub mod rerank;
pub mod run;
pub mod serve;
pub mod show;
pub mod stop;
pub mod tokenize;
pub mod top;

/// Adds what this build computes with to `--version` (`-V` stays one line).
pub fn with_version(command: clap::Command) -> clap::Command {
    let isa = mlxr_kernels::Kernels::best().isa().name();
    let system = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    command.long_version(format!(
        "{}\nsystem: {system}\nbackend: cpu, {isa}\nbundled model: {}",
        env!("CARGO_PKG_VERSION"),
        crate::bundled::NAME
    ))
}
