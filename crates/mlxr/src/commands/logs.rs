//! `mlxr logs`: what a running server has to say.

use std::io::Write;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::Args;
use jiff::Timestamp;
use mlxr_api::native::logs::{Level, LogEvent, LogLine, LogLines};
use serde_json::Value;

use crate::client::{Client, ServerArgs};
use crate::output::{self, DIM};

/// Show the last lines of a server's log, and those that come.
///
/// A server keeps the last 2000 lines in memory, whether it writes them to a file or not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr logs -f
  mlxr logs --level warn -n 1000")]
pub struct LogsArgs {
    /// Go on with lines as they come, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// The last so many lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(0..=2000))]
    pub lines: u16,
    /// The least important lines to show: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "trace", value_parser = parse_level)]
    pub level: Level,
    /// Only lines of parts of the program whose names begin so, such as mlxr_engine
    #[arg(long, value_name = "NAME", value_parser = parse_target)]
    pub target: Option<String>,
    /// Print JSON, one object per line
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&args.server)?;
    let mut path = format!("/mlxr/v1/logs?limit={}&level={}", args.lines, args.level.name());
    if let Some(target) = &args.target {
        path += &format!("&target={target}");
    }
    if !args.follow {
        let list: LogLines = client.get(&path)?;
        list.lines.iter().try_for_each(|line| show(line, args.json))?;
        return Ok(ExitCode::SUCCESS);
    }
    client.lines(&(path + "&follow=true"), &mut |line| match serde_json::from_slice(line)? {
        LogEvent::Line(line) => show(&line, args.json),
        LogEvent::Skipped { skipped } => {
            anstream::eprintln!("{skipped} lines came faster than they could be shown");
            Ok(())
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn show(line: &LogLine, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json_line(line);
    }
    let mut out = output::styled();
    writeln!(out, "{}", text(line))?;
    out.flush()?;
    Ok(())
}

/// As the server's own log has it.
fn text(line: &LogLine) -> String {
    let colour = match line.level {
        Level::Error => AnsiColor::Red,
        Level::Warn => AnsiColor::Yellow,
        Level::Info => AnsiColor::Green,
        Level::Debug => AnsiColor::Blue,
        Level::Trace => AnsiColor::Magenta,
    };
    let colour = Style::new().fg_color(Some(colour.into()));
    let level = line.level.name().to_uppercase();
    let LogLine { target, message, .. } = line;
    let mut text =
        format!("{DIM}{}{DIM:#} {colour}{level:>5}{colour:#} {DIM}{target}:{DIM:#}", time(line.time_s));
    if !message.is_empty() {
        text += &format!(" {}", printable(message));
    }
    for (name, value) in &line.fields {
        let value = match value {
            Value::String(text) => printable(text),
            value => value.to_string(),
        };
        text += &format!(" {DIM}{name}={DIM:#}{value}");
    }
    text
}

/// What controls the terminal or ends the line is shown, not done.
fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

fn time(time_s: f64) -> String {
    let millis = Timestamp::from_millisecond((time_s * 1e3) as i64).unwrap_or_default();
    format!("{millis:.3}")
}

fn parse_level(text: &str) -> Result<Level, String> {
    let known = Level::ALL.into_iter().find(|level| level.name() == text);
    known.ok_or_else(|| "expected error, warn, info, debug or trace".to_owned())
}

fn parse_target(text: &str) -> Result<String, String> {
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
    if is_plain && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err("expected a name such as mlxr_engine".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_like_the_log_itself() {
        let line = LogLine {
            seq: 1,
            time_s: 1_700_000_000.25,
            level: Level::Warn,
            target: "mlxr_server::x".to_owned(),
            message: "a\u{1b}[31m bang".to_owned(),
            fields: serde_json::from_str(r#"{"n": 3, "why": "a\nb"}"#).unwrap(),
        };
        let plain = anstream::adapter::strip_str(&text(&line)).to_string();
        assert_eq!(plain, "2023-11-14T22:13:20.250Z  WARN mlxr_server::x: a\\u{1b}[31m bang n=3 why=a\\nb");
    }

    #[test]
    fn targets_cannot_change_the_question() {
        assert!(parse_target("mlxr_server::generation").is_ok());
        assert!(parse_target("a&follow=true").is_err() && parse_target("").is_err());
    }
}
