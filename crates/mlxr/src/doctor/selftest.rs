//! `mlxr doctor --gpu-selftest`: every kernel of the GPU backend against a plain reference, on this machine's adapter.
//!
//! The checks are the conformance suite that the tests run; the table is meant to be pasted into an issue.

use std::fmt;
use std::io::{self, Write};
use std::panic;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use mlxr_gpu::{AdapterChoice, AdapterInfo, GpuBackend};
use mlxr_tensor::conformance::{self, Outcome};
use serde_json::{Value, json};

use super::machine::describe_adapter_memory;
use crate::output::{self, DIM, HEADING};
use crate::units;

/// The longest message of a failed check that is shown.
const MAX_MESSAGE: usize = 400;

/// Runs the suite on an adapter and prints the table. Returns whether every check passed.
///
/// # Errors
/// There is no such adapter, or it gives no device.
pub fn run(choice: AdapterChoice, as_json: bool) -> anyhow::Result<bool> {
    let backend = GpuBackend::new(choice)?;
    let report = Report { adapter: backend.adapter().clone(), checks: Vec::new() };
    if as_json {
        let report = report.examine(&backend, |_, _| Ok(()))?;
        output::json(&report.to_json())?;
        return Ok(report.n_failed() == 0);
    }
    report.write_facts(&mut output::styled())?;
    let report = report.examine(&backend, print_row)?;
    report.write_end(&mut output::styled())?;
    Ok(report.n_failed() == 0)
}

struct Report {
    adapter: AdapterInfo,
    checks: Vec<(&'static str, Outcome)>,
}

impl Report {
    /// Runs every check; `seen` is told of each as it ends.
    fn examine(
        mut self,
        backend: &GpuBackend,
        seen: impl Fn(&'static str, &Outcome) -> anyhow::Result<()>,
    ) -> anyhow::Result<Report> {
        // A failed check panics; what it says is part of the report and not the end of the program.
        let hook = panic::take_hook();
        panic::set_hook(Box::new(|_| {}));
        let result = conformance::CHECKS.iter().try_for_each(|check| {
            let outcome = conformance::examine(backend, check);
            seen(check.name, &outcome)?;
            self.checks.push((check.name, outcome));
            Ok(())
        });
        panic::set_hook(hook);
        result.map(|()| self)
    }

    fn n_failed(&self) -> usize {
        self.checks.iter().filter(|(_, outcome)| outcome.failure.is_some()).count()
    }

    fn time(&self) -> Duration {
        self.checks.iter().map(|(_, outcome)| outcome.time).sum()
    }

    /// The adapter, and the heading of the table.
    fn write_facts(&self, out: &mut impl Write) -> io::Result<()> {
        let AdapterInfo { index, name, api, driver, memory, features, .. } = &self.adapter;
        let facts: [(&str, &dyn fmt::Display); 7] = [
            ("program", &program()),
            ("adapter", &format_args!("{index}: {name}")),
            ("api", api),
            ("driver", driver),
            ("memory", &describe_adapter_memory(*memory)),
            ("subgroups", &self.adapter.describe_subgroups()),
            ("features", &features.join(", ")),
        ];
        for (fact, value) in facts {
            writeln!(out, "{DIM}{fact:<11}{DIM:#}{value}")?;
        }
        let heading = Row { check: "check", error: "worst error", tolerance: "tolerance", time: "time" };
        writeln!(out, "\n{HEADING}{:<8}{heading}{HEADING:#}", "result")
    }

    /// What failed, in words, and the sum of it all.
    fn write_end(&self, out: &mut impl Write) -> io::Result<()> {
        for (check, outcome) in &self.checks {
            if let Some(failure) = &outcome.failure {
                writeln!(out, "\n{check}: {}", first(failure, MAX_MESSAGE))?;
            }
        }
        let (n_checks, n_failed) = (self.checks.len(), self.n_failed());
        let time = units::seconds(self.time().as_secs_f64());
        writeln!(out, "\n{n_checks} checks, {n_failed} failed, {time}")?;
        if n_failed > 0 {
            writeln!(out, "next: run on the CPU (--device cpu), and paste this table into an issue")?;
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let AdapterInfo { index, name, api, driver, memory, features, is_software, .. } = &self.adapter;
        let checks = self.checks.iter().map(|(check, outcome)| {
            json!({
                "check": check,
                "ok": outcome.failure.is_none(),
                "failure": outcome.failure,
                "worst_error": outcome.worst.map(|worst| worst.error),
                "tolerance": outcome.worst.map(|worst| worst.tolerance),
                "seconds": outcome.time.as_secs_f64(),
            })
        });
        json!({
            "ok": self.n_failed() == 0,
            "program": program(),
            "adapter": {
                "index": index,
                "name": name,
                "api": api,
                "driver": driver,
                "is_software": is_software,
                "memory_bytes": memory.map(|memory| memory.total_bytes),
                "usable_bytes": memory.map(|memory| memory.usable_bytes),
                "is_shared": memory.map(|memory| memory.is_shared),
                "subgroup": self.adapter.subgroup,
                "driver_subgroups": self.adapter.driver_subgroups,
                "features": features,
            },
            "checks": checks.collect::<Vec<_>>(),
        })
    }
}

fn program() -> String {
    let build = if cfg!(debug_assertions) { ", built without optimisation" } else { "" };
    let (system, machine) = (std::env::consts::OS, std::env::consts::ARCH);
    format!("mlxr {} on {system} {machine}{build}", env!("CARGO_PKG_VERSION"))
}

/// A line of the table behind the result.
struct Row<'a> {
    check: &'a str,
    error: &'a str,
    tolerance: &'a str,
    time: &'a str,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { check, error, tolerance, time } = self;
        write!(f, "{check:<30}{error:>12}{tolerance:>12}{time:>12}")
    }
}

/// One check's line, printed as soon as the check has ended: the next one may end the machine.
fn print_row(check: &'static str, outcome: &Outcome) -> anyhow::Result<()> {
    let (word, colour) = match outcome.failure {
        None => ("ok", AnsiColor::Green),
        Some(_) => ("FAILED", AnsiColor::Red),
    };
    let style = Style::new().fg_color(Some(colour.into()));
    let (error, tolerance) = match outcome.worst {
        Some(worst) => (format!("{:.1e}", worst.error), format!("{:.1e}", worst.tolerance)),
        None => ("-".to_owned(), "bit for bit".to_owned()),
    };
    let time = units::seconds(outcome.time.as_secs_f64());
    let row = Row { check, error: &error, tolerance: &tolerance, time: &time };
    writeln!(output::styled(), "{style}{word:<8}{style:#}{row}")?;
    output::flush()
}

/// The first `n` characters of the first line.
fn first(text: &str, n: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    let cut: String = line.chars().take(n).collect();
    if cut.len() < line.len() { cut + "..." } else { cut }
}

#[cfg(test)]
mod tests {
    use mlxr_tensor::conformance::Deviation;

    use super::*;

    #[test]
    fn a_failed_check_is_counted_and_told_in_words() {
        let adapter = AdapterInfo {
            index: 0,
            name: "Card".to_owned(),
            api: "vulkan",
            driver: "1.2".to_owned(),
            is_software: false,
            memory: None,
            subgroup: 32,
            driver_subgroups: [32; 2],
            features: Vec::new(),
            is_best: true,
            unusable: None,
        };
        let outcome = |failure: Option<&str>| Outcome {
            failure: failure.map(str::to_owned),
            worst: Some(Deviation { error: f64::NAN, tolerance: 1e-6 }),
            time: Duration::from_millis(1500),
        };
        let broken = outcome(Some("row 3: relative error 1e-1\nand more"));
        let report = Report { adapter, checks: vec![("rope", outcome(None)), ("norms", broken)] };
        let mut text = Vec::new();
        report.write_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("norms: row 3: relative error 1e-1\n\n2 checks, 1 failed, 3.00 s\nnext: "),
            "{text}"
        );
        let json = report.to_json();
        assert_eq!((&json["ok"], &json["checks"][1]["ok"]), (&json!(false), &json!(false)));
    }
}
