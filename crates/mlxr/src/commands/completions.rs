//! `mlxr completions`: a script for the shell, made from the argument definitions.

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::output;

pub fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mlxr", &mut script);
    output::raw(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}
