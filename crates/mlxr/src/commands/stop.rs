//! `mlxr stop`: models out of memory, or the server to its end.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use mlxr_api::native::models::UnloadAnswer;
use mlxr_api::native::shutdown::ShutdownAnswer;
use serde_json::json;
use sysinfo::{Pid, ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System};

use crate::client::{Client, Refusal, ServerArgs};
use crate::failure::failure;
use crate::output;

/// Pause between two looks at a process that ends.
const PAUSE: Duration = Duration::from_millis(20);

/// Stop the server, or take models out of its memory.
///
/// Without a model, the server ends: nobody new gets in, and what runs may finish within its --grace. The command waits
/// for the end where the server is on this machine. A server whose sockets belong to a service manager is started anew
/// by the next client; `systemctl stop mlxr.socket mlxr` keeps it away.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr stop
  mlxr stop qwen
  mlxr stop --force")]
pub struct StopArgs {
    /// Models to unload; the server goes on
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Cancel the requests that run
    #[arg(short, long)]
    pub force: bool,
    /// Do not wait for the server's end
    #[arg(long, conflicts_with = "models")]
    pub no_wait: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: &StopArgs) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&args.server)?;
    if args.models.is_empty() {
        end(&client, args)?;
    } else {
        unload(&client, args)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn unload(client: &Client, args: &StopArgs) -> anyhow::Result<()> {
    for name in &args.models {
        let body = json!({"model": name, "force": args.force});
        let answer: UnloadAnswer =
            client.post("/mlxr/v1/models/unload", &body).map_err(|error| {
                match error.downcast_ref::<Refusal>() {
                    Some(refusal) if refusal.code == "model_busy" => failure(
                        &refusal.message,
                        "wait for them (`mlxr ps` lists them), or cancel them with --force",
                    ),
                    _ => error,
                }
            })?;
        if args.json {
            output::json_line(&answer)?;
        } else if answer.was_loaded {
            output::raw(&format!("unloaded {}{}\n", answer.model, cancelled(answer.n_cancelled)))?;
        } else {
            output::raw(&format!("{} was not in memory\n", answer.model))?;
        }
    }
    Ok(())
}

fn cancelled(n: usize) -> String {
    match n {
        0 => String::new(),
        1 => "; 1 request was cancelled".to_owned(),
        n => format!("; {n} requests were cancelled"),
    }
}

fn end(client: &Client, args: &StopArgs) -> anyhow::Result<()> {
    let answer: ShutdownAnswer = client.post("/mlxr/v1/shutdown", &json!({"force": args.force}))?;
    let waits = client.address().is_local() && !args.no_wait;
    if waits && answer.n_running > 0 && !args.force && !args.json {
        anstream::eprintln!(
            "waiting for {} sequences to finish; `kill {}` cancels them",
            answer.n_running,
            answer.pid
        );
    }
    if waits {
        wait_for_end(answer.pid);
    }
    if args.json {
        return output::json(&answer);
    }
    output::raw(if waits { "the server has ended\n" } else { "the server ends\n" })
}

/// Waits until no process of ours has this number. A server in a container has numbers of its own, under which here is
/// nothing or something else.
fn wait_for_end(pid: u32) {
    let pid = Pid::from_u32(pid);
    let mut system = System::new();
    loop {
        system.refresh_processes_specifics(
            ProcessesToUpdate::Some(&[pid]),
            true,
            ProcessRefreshKind::nothing(),
        );
        let is_there = system.process(pid).is_some_and(|process| {
            let is_ours = process.name().to_string_lossy().starts_with("mlxr");
            is_ours && !matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead)
        });
        if !is_there {
            return;
        }
        thread::sleep(PAUSE);
    }
}
