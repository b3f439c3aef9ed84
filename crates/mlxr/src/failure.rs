//! How errors reach the person: `error:` message, causes, `hint:` lines; or one JSON object.
//!
//! A message may carry its advice on a line of its own that begins with `hint: `, as the libraries' errors do;
//! wherever such a line stands in the chain of causes, it is printed last.

use std::fmt;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde_json::json;

/// Anything that went wrong while doing what was asked.
pub const EXIT_FAILURE: u8 = 1;
/// The arguments make no sense.
pub const EXIT_USAGE: u8 = 2;
/// Stopped by Ctrl-C, as shells report it.
pub const EXIT_INTERRUPTED: u8 = 130;

const ERROR: Style = AnsiColor::Red.on_default().bold();
const HINT: Style = AnsiColor::Cyan.on_default().bold();

/// An error in the arguments that only shows once they are looked at together.
#[derive(Debug)]
pub struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// An error of usage with the next step.
pub fn usage(message: impl fmt::Display, hint: impl fmt::Display) -> anyhow::Error {
    UsageError(format!("{message}\nhint: {hint}")).into()
}

/// An error with the next step.
pub fn failure(message: impl fmt::Display, hint: impl fmt::Display) -> anyhow::Error {
    anyhow::anyhow!("{message}\nhint: {hint}")
}

/// Whether the reader of our output has gone away, which is no error.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// An error taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Report {
    pub message: String,
    pub causes: Vec<String>,
    pub hints: Vec<String>,
    pub exit_code: u8,
}

impl Report {
    pub fn new(error: &anyhow::Error) -> Report {
        let is_usage = error.chain().any(|cause| cause.is::<UsageError>());
        let exit_code = if is_usage { EXIT_USAGE } else { EXIT_FAILURE };
        let mut report = Report { message: String::new(), causes: Vec::new(), hints: Vec::new(), exit_code };
        for (i, cause) in error.chain().enumerate() {
            let text = report.take_hints(&cause.to_string());
            if i == 0 {
                report.message = text;
            } else if !report.says(&text) {
                report.causes.push(text);
            }
        }
        report
    }

    /// What clap says: the message first, then tips.
    pub fn of_usage(text: &str) -> Report {
        let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let tips = text.lines().filter_map(|line| line.trim().strip_prefix("tip: "));
        Report {
            message: message.lines().map(str::trim).collect::<Vec<_>>().join(" "),
            causes: Vec::new(),
            hints: tips.map(str::to_owned).collect(),
            exit_code: EXIT_USAGE,
        }
    }

    /// The text without its hint lines, which are kept for the end.
    fn take_hints(&mut self, text: &str) -> String {
        let mut kept = Vec::new();
        for line in text.lines() {
            match line.trim_start().strip_prefix("hint: ") {
                Some(hint) if self.hints.iter().any(|known| known == hint) => {}
                Some(hint) => self.hints.push(hint.to_owned()),
                None => kept.push(line),
            }
        }
        kept.join("\n").trim_end().to_owned()
    }

    /// Whether a line above already says this; errors often repeat their source.
    fn says(&self, text: &str) -> bool {
        text.is_empty() || self.message.contains(text) || self.causes.iter().any(|cause| cause.contains(text))
    }

    /// Prints to stderr. What cannot be printed there has no other place to go.
    pub fn print(&self, json: bool) {
        let mut stderr = anstream::stderr().lock();
        let _ = if json { writeln!(stderr, "{}", self.to_json()) } else { self.write(&mut stderr) };
    }

    fn to_json(&self) -> serde_json::Value {
        json!({ "error": {
            "message": self.message,
            "causes": self.causes,
            "hints": self.hints,
            "exit_code": self.exit_code,
        } })
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{ERROR}error:{ERROR:#} {}", indented(&self.message))?;
        for cause in &self.causes {
            writeln!(out, "  caused by: {}", indented(cause))?;
        }
        for hint in &self.hints {
            writeln!(out, "{HINT}hint:{HINT:#} {hint}")?;
        }
        Ok(())
    }
}

/// Further lines of a message, set in under the first.
fn indented(text: &str) -> String {
    text.replace('\n', "\n       ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn hints_come_last_and_once() {
        let error = Err::<(), _>(failure("cannot read x.gguf", "fetch it again"))
            .context("cannot load the model\nhint: fetch it again")
            .unwrap_err();
        let report = Report::new(&error);
        assert_eq!(report.message, "cannot load the model");
        assert_eq!(report.causes, ["cannot read x.gguf"]);
        assert_eq!(report.hints, ["fetch it again"]);
        assert_eq!(report.exit_code, EXIT_FAILURE);
    }

    #[test]
    fn a_cause_that_the_message_repeats_is_not_printed_again() {
        let source = io::Error::other("disk on fire");
        let error = anyhow::Error::from(source).context("x.gguf: cannot read: disk on fire");
        assert_eq!(Report::new(&error).causes, Vec::<String>::new());
    }

    #[test]
    fn tips_of_clap_are_hints() {
        let report =
            Report::of_usage("error: unexpected argument '--x' found\n\n  tip: try '--y'\n\nUsage: mlxr\n");
        assert_eq!(report.message, "unexpected argument '--x' found");
        assert_eq!(report.hints, ["try '--y'"]);
    }

    #[test]
    fn usage_errors_exit_with_2_and_json_says_the_same() {
        let report = Report::new(&usage("no text", "name a file"));
        assert_eq!(report.exit_code, EXIT_USAGE);
        assert_eq!(report.to_json()["error"]["hints"][0], "name a file");
    }
}
