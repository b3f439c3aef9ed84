//! `mlxr doctor`: what may keep models or the server from working here.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{Args, ValueHint};
use mlxr_server::config::{Device, GpuLayers};
use serde_json::json;

use crate::client::ServerArgs;
use crate::doctor::{Finding, Level, machine, models, selftest, service};
use crate::failure::{EXIT_FAILURE, usage};
use crate::{device, output, settings};

/// Look for what may keep models or the server from working here.
///
/// Every finding comes with its next step. The exit code is 1 when something does not work, and 0 when all does or
/// could merely do better.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Models to look at
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub models: Vec<PathBuf>,
    /// Check every kernel of the GPU backend on this machine's GPU instead, and print a table for an issue
    #[arg(long, conflicts_with_all = ["models", "server"])]
    pub gpu_selftest: bool,
    /// The device the models are planned for [default: the setting engine.device], or the GPU to check [default: gpu]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<Device>,
    /// Layers of the models on the GPU, as for `mlxr serve` [default: the setting engine.gpu_layers]
    #[arg(long, value_name = "N", conflicts_with = "gpu_selftest")]
    pub gpu_layers: Option<GpuLayers>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    if args.gpu_selftest {
        let Some(choice) = device::adapter(args.device.unwrap_or(Device::Gpu)) else {
            return Err(usage("--gpu-selftest checks a GPU, and --device cpu is none", "try --device gpu"));
        };
        let is_ok = selftest::run(choice, args.json)?;
        return Ok(if is_ok { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) });
    }
    let findings = examine(args);
    if args.json {
        let is_ok = findings.iter().all(|finding| finding.level < Level::Problem);
        output::json(&json!({"ok": is_ok, "findings": findings}))?;
    } else {
        print(&findings)?;
    }
    let worst = findings.iter().map(|finding| finding.level).max();
    Ok(if worst == Some(Level::Problem) { ExitCode::from(EXIT_FAILURE) } else { ExitCode::SUCCESS })
}

fn examine(args: &DoctorArgs) -> Vec<Finding> {
    let loaded = settings::load(None, Vec::new());
    let config = loaded.as_ref().ok().map(|loaded| &loaded.config);
    let mut findings =
        vec![machine::program(), machine::processor(config), machine::memory(), models::arithmetic()];
    findings.extend(machine::adapters());
    let planner = models::Planner::new(args.device, args.gpu_layers, config);
    findings.extend(planner.models(args.models.iter().map(PathBuf::as_path)));
    findings.push(service::settings(&loaded));
    if let Ok(loaded) = &loaded {
        let config = &loaded.config;
        findings.extend(planner.models(config.files.iter().map(|file| file.path.as_path())));
        findings.extend(models::catalogue(loaded));
        #[cfg(unix)]
        findings.push(machine::open_files(config.max_connections));
        findings.push(service::keys(config));
        #[cfg(unix)]
        findings.extend(service::socket(config));
        findings.extend(service::port(config));
    }
    findings.push(service::server(&args.server));
    findings
}

fn print(findings: &[Finding]) -> anyhow::Result<()> {
    let mut out = output::styled();
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    for Finding { check, level, message, next } in findings {
        let (word, colour) = match level {
            Level::Ok => ("ok", AnsiColor::Green),
            Level::Note => ("note", AnsiColor::Yellow),
            Level::Problem => ("problem", AnsiColor::Red),
        };
        let style = Style::new().fg_color(Some(colour.into()));
        writeln!(out, "{style}{word:<7}{style:#}  {check:<width$}  {message}")?;
        if let Some(next) = next {
            writeln!(out, "{:<7}  {:<width$}  next: {next}", "", "")?;
        }
    }
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let n = |n: usize, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    writeln!(
        out,
        "\n{}, {}",
        n(count(Level::Problem), "problem", "problems"),
        n(count(Level::Note), "note", "notes")
    )?;
    Ok(())
}
