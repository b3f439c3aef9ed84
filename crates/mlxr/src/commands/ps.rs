//! `mlxr ps`: the models in memory and what they are doing.

use std::process::ExitCode;

use clap::Args;
use hyper::StatusCode;
use mlxr_api::native::models::{Model, ModelList};
use mlxr_api::native::requests::{RequestList, RunningRequest};
use serde_json::json;

use crate::client::{Client, Refusal, ServerArgs};
use crate::output;
use crate::units::{bytes, span};

/// List the models in memory and the requests that run.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// List also the models that are not in memory
    #[arg(short, long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub server: ServerArgs,
}

pub fn run(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&args.server)?;
    let mut list: ModelList = client.get("/mlxr/v1/models")?;
    if !args.all {
        list.models.retain(|model| model.loaded.is_some());
    }
    let requests = requests(&client)?;
    if args.json {
        let requests = requests.map(|list| list.requests);
        output::json(&json!({"models": list.models, "memory": list.memory, "requests": requests}))?;
        return Ok(ExitCode::SUCCESS);
    }
    models_table(&list)?;
    match requests {
        None => anstream::eprintln!("the key may not see the requests; that takes the scope admin"),
        Some(list) if list.requests.is_empty() => {}
        Some(list) => {
            output::raw("\n")?;
            requests_table(&list.requests)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `None` where the key may list models, but not what others ask for.
fn requests(client: &Client) -> anyhow::Result<Option<RequestList>> {
    match client.get("/mlxr/v1/requests") {
        Ok(list) => Ok(Some(list)),
        Err(error) => match error.downcast_ref::<Refusal>() {
            Some(refusal) if refusal.status == StatusCode::FORBIDDEN => Ok(None),
            _ => Err(error),
        },
    }
}

fn models_table(list: &ModelList) -> anyhow::Result<()> {
    if list.models.is_empty() {
        return output::raw("no model is in memory\n");
    }
    let mut rows = vec![["NAME", "MEMORY", "CONTEXT", "REQUESTS", "UNLOADED"].map(str::to_owned)];
    rows.extend(list.models.iter().map(model_row));
    output::table(&rows)
}

fn model_row(model: &Model) -> [String; 5] {
    let dash = || "-".to_owned();
    let Some(loaded) = &model.loaded else {
        return [model.name.clone(), dash(), dash(), dash(), dash()];
    };
    let unloaded = match (&loaded.failure, loaded.expires_in_s) {
        (Some(failure), _) => format!("broken down: {failure}"),
        (None, Some(seconds)) => format!("in {}", span(seconds as u64)),
        (None, None) if loaded.keep_alive_s.is_none() => "never".to_owned(),
        (None, None) => format!("{} after use", span(loaded.keep_alive_s.unwrap_or_default() as u64)),
    };
    let plan = &loaded.plan;
    [
        model.name.clone(),
        bytes(plan.total_bytes),
        plan.n_ctx.to_string(),
        loaded.n_leases.to_string(),
        unloaded,
    ]
}

fn requests_table(requests: &[RunningRequest]) -> anyhow::Result<()> {
    let mut rows =
        vec![["REQUEST", "MODEL", "STATE", "PROMPT", "CACHED", "GENERATED", "AGE"].map(str::to_owned)];
    rows.extend(requests.iter().map(|request| {
        [
            request.label.clone().unwrap_or_else(|| request.id.to_string()),
            request.model.clone(),
            request.state.clone(),
            format!("{}/{}", request.n_done_prompt, request.n_prompt),
            request.n_cached.to_string(),
            request.n_generated.to_string(),
            span(request.age_s as u64),
        ]
    }));
    output::table(&rows)
}
