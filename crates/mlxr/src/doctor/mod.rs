//! What may keep models or the server from working here: one finding per thing looked at, each with its next step.

pub mod machine;
pub mod models;
pub mod selftest;
pub mod service;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not everything does.
    Note,
    /// It does not work.
    Problem,
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    pub level: Level,
    pub message: String,
    /// What to do about it.
    pub next: Option<String>,
}

impl Finding {
    pub fn ok(check: &'static str, message: impl Into<String>) -> Finding {
        Finding { check, level: Level::Ok, message: message.into(), next: None }
    }

    pub fn note(check: &'static str, message: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding { check, level: Level::Note, message: message.into(), next: Some(next.into()) }
    }

    pub fn problem(check: &'static str, message: impl Into<String>, next: impl Into<String>) -> Finding {
        Finding { check, level: Level::Problem, message: message.into(), next: Some(next.into()) }
    }

    /// A problem in the words of an error, whose hint is the next step.
    pub fn failed(check: &'static str, error: &anyhow::Error, next: &str) -> Finding {
        let report = crate::failure::Report::new(error);
        let causes = report.causes.iter().map(|cause| format!(": {cause}")).collect::<String>();
        let next = report.hints.first().map_or(next, String::as_str);
        Finding::problem(check, report.message + &causes, next)
    }
}
