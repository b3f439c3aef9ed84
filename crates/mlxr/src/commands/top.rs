//! `mlxr top`: a live view of a running server.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::client::{Client, ServerArgs};
use crate::failure::usage;
use crate::top;

/// Watch a running server: models, requests, tokens per second, latencies.
///
/// The key, where one is demanded, needs the scope metrics, and admin to see requests.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval)]
    pub interval: Duration,
    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(usage("top draws on a terminal", "scripts have `mlxr ps --json` and /mlxr/v1/metrics"));
    }
    top::show(Client::connect(&args.server)?, args.interval)?;
    Ok(ExitCode::SUCCESS)
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected seconds from 0.1 to 60".to_owned())
}
