//! From the arguments to an exit code: parse, set up the terminal and the log, run one command, tell what went wrong.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, ColorWhen, Command};
use crate::failure::{self, Report};
use crate::{commands, logging, output};

pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let json_errors = asks_for_json(&args);
    let matches = match commands::with_version(Cli::command()).try_get_matches_from(args) {
        Ok(matches) => matches,
        Err(error) => return usage_error(&error, json_errors),
    };
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => return usage_error(&error, json_errors),
    };
    if let Some(choice) = cli.global.color.map(ColorWhen::choice) {
        choice.write_global();
    }
    let result = run(cli);
    match result.and_then(|code| output::flush().map(|()| code)) {
        Ok(code) => code,
        Err(error) if failure::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let report = Report::new(&error);
            report.print(json_errors);
            ExitCode::from(report.exit_code)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let log_level = cli.global.log_level.as_deref();
    // Where a server's log goes is one of its settings.
    if !matches!(cli.command, Command::Serve(_)) {
        logging::init(log_level, None)?;
    }
    match cli.command {
        Command::Show(args) => commands::show::run(&args),
        Command::Tokenize(args) => commands::tokenize::run(&args),
        Command::Embed(args) => commands::embed::run(&args),
        Command::Rerank(args) => commands::rerank::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Perplexity(args) => commands::perplexity::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::Keys(args) => commands::keys::run(&args),
        Command::Serve(args) => commands::serve::run(&args, log_level),
        Command::List(args) => commands::catalogue::list(&args),
        Command::Create(args) => commands::catalogue::create_model(&args),
        Command::Copy(args) => commands::catalogue::copy(&args),
        Command::Remove(args) => commands::catalogue::remove(&args),
        Command::Config(args) => commands::config::run(&args),
        Command::Ps(args) => commands::ps::run(&args),
        Command::Stop(args) => commands::stop::run(&args),
        Command::Logs(args) => commands::logs::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Top(args) => commands::top::run(&args),
        Command::Quantize(args) => commands::quantize::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Completions(args) => commands::completions::run(&args),
    }
}

/// Whether `--json` stands among the arguments, known before they parse.
fn asks_for_json(args: &[OsString]) -> bool {
    args.iter().skip(1).take_while(|arg| *arg != "--").any(|arg| arg == "--json")
}

/// Prints what clap has to say: help and version on stdout, usage errors on stderr with exit code 2.
fn usage_error(error: &clap::Error, json: bool) -> ExitCode {
    let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if json && !is_answer {
        Report::of_usage(&error.to_string()).print(true);
        return ExitCode::from(failure::EXIT_USAGE);
    }
    // A terminal that is gone cannot be told anything.
    let _ = error.print();
    let _ = std::io::stdout().flush();
    if is_answer { ExitCode::SUCCESS } else { ExitCode::from(failure::EXIT_USAGE) }
}
