//! `mlxr config`: what the server's settings are and where each comes from.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueHint};
use mlxr_server::config::{ConfigError, Layers, key, set_in_file};
use serde_json::json;

use crate::failure::{EXIT_FAILURE, failure, usage};
use crate::{output, settings};

/// Show, check and change the settings of `mlxr serve`.
///
/// A setting comes from a flag of `mlxr serve`, else from its environment variable (MLXR_ and its name in capitals),
/// else from server.yaml, else it has its default.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr config show
  mlxr config set listen.port 8080
  mlxr config set models.preload qwen mario
  mlxr config check")]
pub struct ConfigArgs {
    /// The file of settings [default: mlxr/server.yaml in XDG_CONFIG_HOME or in the user's configuration folder]
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub action: ConfigAction,
}

#[derive(Debug, Subcommand)]
pub enum ConfigAction {
    /// Every setting, its value and where it comes from
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Where server.yaml is or would be, and the folder of models
    Path {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look for mistakes in server.yaml and in the files of models
    Check {
        /// A file to check instead: settings, or a model when it is in a folder called models
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
    /// The value of a setting
    Get {
        /// Such as listen.port
        #[arg(value_name = "KEY")]
        key: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change a setting in server.yaml, whose other lines stay as they are
    Set {
        /// Such as listen.port
        #[arg(value_name = "KEY")]
        key: String,
        /// The value; a list may have several
        #[arg(value_name = "VALUE", required = true)]
        values: Vec<String>,
    },
}

pub fn run(args: &ConfigArgs) -> anyhow::Result<ExitCode> {
    let layers = settings::layers(args.config.clone(), Vec::new());
    match &args.action {
        ConfigAction::Show { json } => show(&layers, *json)?,
        ConfigAction::Path { json } => path(&layers, *json)?,
        ConfigAction::Check { file } => return check(&layers, file.as_deref()),
        ConfigAction::Get { key, json } => get(&layers, key, *json)?,
        ConfigAction::Set { key, values } => set(&layers, key, values)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(layers: &Layers<'_>, as_json: bool) -> anyhow::Result<()> {
    let loaded = layers.load()?;
    if as_json {
        return output::json(&serde_json::to_value(loaded.report())?);
    }
    let width = |texts: &mut dyn Iterator<Item = usize>| texts.max().unwrap_or(0);
    let names = width(&mut loaded.settings.iter().map(|setting| setting.key.name.len()));
    let values = width(&mut loaded.settings.iter().map(|setting| setting.text().chars().count())).min(40);
    for setting in &loaded.settings {
        let line = format!("{:names$}  {:values$}  {}", setting.key.name, setting.text(), setting.origin);
        output::raw(&format!("{line}\n"))?;
    }
    Ok(())
}

fn path(layers: &Layers<'_>, as_json: bool) -> anyhow::Result<()> {
    let file = layers.path().ok_or(ConfigError::NoPlace)?;
    let data = layers.load()?.data_folder();
    if as_json {
        let shown = |path: &Path| path.display().to_string();
        return output::json(&json!({
            "config": shown(&file),
            "exists": file.is_file(),
            "data_dir": data.as_deref().map(shown),
        }));
    }
    output::raw(&format!("{}\n", file.display()))?;
    if let Some(data) = data {
        output::raw(&format!("{}\n", data.display()))?;
    }
    Ok(())
}

fn get(layers: &Layers<'_>, name: &str, as_json: bool) -> anyhow::Result<()> {
    key(name)?;
    let loaded = layers.load()?;
    if as_json {
        let found = loaded.report().settings.into_iter().find(|setting| setting.key == name);
        return output::json(&serde_json::to_value(found)?);
    }
    let text = loaded.get(name).map(mlxr_server::config::Resolved::text).unwrap_or_default();
    output::raw(&format!("{text}\n"))
}

fn set(layers: &Layers<'_>, name: &str, values: &[String]) -> anyhow::Result<()> {
    if values.len() > 1 && !key(name)?.is_list {
        return Err(usage(
            format_args!("{name} is one value, not {}", values.len()),
            "put a value with spaces in quotes",
        ));
    }
    let path = layers.path().ok_or(ConfigError::NoPlace)?;
    Ok(set_in_file(&path, &[(name.to_owned(), values.to_vec())])?)
}

/// Prints what is wrong, all of it.
fn check(layers: &Layers<'_>, file: Option<&Path>) -> anyhow::Result<ExitCode> {
    if let Some(file) = file {
        let is_model =
            file.parent().is_some_and(|folder| folder.ancestors().any(|part| part.ends_with("models")));
        if is_model {
            mlxr_server::catalogue::read_entry(file)?;
        } else {
            Layers { file: Some(file.to_owned()), env: &|_| None, variables: Vec::new(), flags: Vec::new() }
                .load()?;
        }
        output::raw(&format!("{}: no mistakes\n", file.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let loaded = layers.load()?;
    for warning in &loaded.warnings {
        anstream::eprintln!("warning: {warning}");
    }
    let mut mistakes = Vec::new();
    if let Some(catalogue) = loaded.catalogue() {
        let all = catalogue.scan()?;
        mistakes.extend(all.iter().filter_map(|found| found.entry.as_ref().err().map(ToString::to_string)));
        output::raw(&format!("{}: {} models\n", catalogue.folder().display(), all.len()))?;
    }
    for (name, value) in [("models.preload", &loaded.config.preload), ("models.pin", &loaded.config.pin)] {
        for model in value {
            if let Err(error) = mlxr_server::catalogue::ModelName::parse(model) {
                mistakes.push(format!("{name}: {error}"));
            }
        }
    }
    match (&loaded.path, loaded.has_file) {
        (Some(path), true) => output::raw(&format!("{}: no mistakes\n", path.display()))?,
        (Some(path), false) => output::raw(&format!("{}: not there; defaults are used\n", path.display()))?,
        (None, _) => {}
    }
    output::flush()?;
    if mistakes.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let hint = "the server runs without the models whose files have mistakes";
    let error = failure(mistakes.join("\n"), hint);
    crate::failure::Report::new(&error).print(false);
    Ok(ExitCode::from(EXIT_FAILURE))
}
