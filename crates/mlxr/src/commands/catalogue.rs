//! `mlxr list`, `create`, `cp` and `rm`: the models of the catalogue, with or without a running server, which notices.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueHint};
use mlxr_checkpoint::{Checkpoint, FileType};
use mlxr_server::ModelSource;
use mlxr_server::catalogue::create::{CreateError, Recipe, Step, Weights, create};
use mlxr_server::catalogue::{
    Catalogue, CatalogueError, Entry, EntrySource, Found, ModelName, ModelSettings, Modelfile, check_template,
};
use mlxr_server::config::FlagValue;
use serde_json::{Value, json};

use crate::failure::{EXIT_INTERRUPTED, failure, usage};
use crate::{bundled, interrupt, model_source, output, progress, settings, units};

/// Where the catalogue is.
#[derive(Clone, Debug, Args)]
pub struct CatalogueArgs {
    /// The folder of models [default: as storage.data_dir says, see `mlxr config`]
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub data_dir: Option<PathBuf>,
}

impl CatalogueArgs {
    pub fn open(&self) -> anyhow::Result<Catalogue> {
        let flag = self.data_dir.as_ref().map(|folder| FlagValue {
            key: "storage.data_dir",
            long: "data-dir",
            texts: vec![folder.display().to_string()],
        });
        settings::load(None, flag.into_iter().collect())?.catalogue().ok_or_else(|| {
            failure("there is no folder for models: HOME is not set", "name one with --data-dir")
        })
    }
}

/// List the models that `mlxr serve` would serve: the catalogue's and the bundled one
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Make a model of the catalogue: from another model or from files, with a system prompt, a template, parameters.
///
/// Files are copied into the catalogue, folders become GGUF files; --link leaves them where they are. A running server
/// notices.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr create mario --from mlxr-27m --system \"You are Mario.\" --parameter temperature=0.5
  mlxr create qwen --from path/to/qwen.gguf
  mlxr create small --from path/to/folder --quantize q4_k_m
  mlxr create mario -f Modelfile")]
pub struct CreateArgs {
    /// What to call it: letters, digits, dots, dashes, underscores; NAME:TAG and OWNER/NAME work too
    pub name: String,
    /// A Modelfile as Ollama has it [default without --from: Modelfile in this folder]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "from")]
    pub file: Option<PathBuf>,
    /// A model's name, a .gguf file, or a folder with config.json and *.safetensors
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub from: Option<String>,
    /// The system prompt of conversations that have none
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,
    /// A Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub template: Option<PathBuf>,
    /// A default of requests, by the names of Ollama's PARAMETER, may be given again
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub parameter: Vec<String>,
    /// Store the matrices in this type, such as q8_0 or q4_k_m
    #[arg(short, long, value_name = "TYPE")]
    pub quantize: Option<FileType>,
    /// Leave the files where they are, instead of copying them
    #[arg(long, conflicts_with = "quantize")]
    pub link: bool,
    /// Keep the model in memory once a server has loaded it
    #[arg(long)]
    pub pin: bool,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
}

/// Give a model a second name
#[derive(Debug, Args)]
pub struct CopyArgs {
    pub source: String,
    pub destination: String,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
}

/// Remove models from the catalogue, and their weights when no other model has them
#[derive(Debug, Args)]
pub struct RemoveArgs {
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
}

pub fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let catalogue = args.catalogue.open()?;
    let found = catalogue.scan()?;
    let mut rows = vec![Row::bundled()?];
    rows.extend(found.iter().map(|found| Row::of(&catalogue, found)));
    if args.json {
        output::json(&json!({"models": rows.iter().map(Row::to_json).collect::<Vec<_>>()}))?;
        return Ok(ExitCode::SUCCESS);
    }
    let heading = ["name", "size", "type", "note"].map(str::to_owned);
    let cells = rows.into_iter().map(|row| {
        let size = row.n_bytes.map_or_else(|| "-".to_owned(), units::bytes);
        [row.name, size, row.stored_as, row.note]
    });
    output::table(&std::iter::once(heading).chain(cells).collect::<Vec<_>>())?;
    Ok(ExitCode::SUCCESS)
}

/// A model in the list.
struct Row {
    name: String,
    n_bytes: Option<u64>,
    /// Such as `Q8_0`.
    stored_as: String,
    note: String,
}

impl Row {
    fn bundled() -> anyhow::Result<Row> {
        Ok(Row::described(bundled::MODEL, Ok(bundled::open()?), "in the program"))
    }

    fn of(catalogue: &Catalogue, found: &Found) -> Row {
        let name = found.name.to_string();
        let entry = match &found.entry {
            Ok(entry) => entry,
            Err(problem) => {
                let note = format!("broken: {problem}").replace('\n', "; ");
                return Row { name, n_bytes: None, stored_as: String::new(), note };
            }
        };
        let parent = entry.settings.parent.as_ref().map(|parent| format!("from {parent}"));
        let note = parent.unwrap_or_else(|| match &entry.source {
            EntrySource::Path(path) => path.display().to_string(),
            _ => String::new(),
        });
        Row::described(&name, weights(catalogue, entry), &note)
    }

    fn described(name: &str, ckpt: anyhow::Result<Checkpoint>, note: &str) -> Row {
        let name = name.to_owned();
        match ckpt {
            Ok(ckpt) => {
                let summary = ckpt.summary();
                let stored_as = summary.formats.first().map_or_else(String::new, |share| share.format.name());
                Row { name, n_bytes: Some(summary.n_bytes), stored_as, note: note.to_owned() }
            }
            Err(error) => {
                let note = format!("broken: {error:#}").replace('\n', "; ");
                Row { name, n_bytes: None, stored_as: String::new(), note }
            }
        }
    }

    fn to_json(&self) -> Value {
        json!({"name": self.name, "n_bytes": self.n_bytes, "stored_as": self.stored_as, "note": self.note})
    }
}

/// Opens a model's weights.
fn weights(catalogue: &Catalogue, entry: &Entry) -> anyhow::Result<Checkpoint> {
    match &entry.source {
        EntrySource::Blob(digest) => model_source::open(&catalogue.blobs.path(*digest)),
        EntrySource::Path(path) => model_source::open(path),
        EntrySource::Bundled => bundled::open(),
    }
}

/// A model of the catalogue, if `word` is the name of one and no path.
pub fn named(args: &CatalogueArgs, word: &Path) -> anyhow::Result<Option<NamedModel>> {
    let name = word.to_str().filter(|_| !word.exists()).map(ModelName::parse);
    let Some(Ok(name)) = name else { return Ok(None) };
    if name.key() == bundled::MODEL {
        let entry = Entry { source: EntrySource::Bundled, settings: ModelSettings::default() };
        return Ok(Some(NamedModel {
            name: name.to_string(),
            entry,
            source: model_source::ModelSource::Bundled,
        }));
    }
    let catalogue = args.open()?;
    let found = match catalogue.find(&name) {
        Err(CatalogueError::NotFound { .. }) => return Ok(None),
        found => found?,
    };
    let entry = found.entry.clone()?;
    let source = match &entry.source {
        EntrySource::Blob(digest) => model_source::ModelSource::Path(catalogue.blobs.path(*digest)),
        EntrySource::Path(path) => model_source::ModelSource::Path(path.clone()),
        EntrySource::Bundled => model_source::ModelSource::Bundled,
    };
    Ok(Some(NamedModel { name: found.name.to_string(), entry, source }))
}

/// A model by its name.
pub struct NamedModel {
    pub name: String,
    pub entry: Entry,
    /// Where its weights are.
    pub source: model_source::ModelSource,
}

pub fn create_model(args: &CreateArgs) -> anyhow::Result<ExitCode> {
    let name = own_name(&args.name)?;
    let catalogue = args.catalogue.open()?;
    let (from, folder, mut settings) = description(args)?;
    if let Some(system) = &args.system {
        settings.system = Some(system.clone());
    }
    if let Some(path) = &args.template {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        check_template(&text)
            .map_err(|reason| failure(format_args!("{}: {reason}", path.display()), "see docs/config.md"))?;
        settings.template = Some(text);
    }
    for parameter in &args.parameter {
        let (name, value) = parameter.split_once('=').ok_or_else(|| {
            usage(format_args!("{parameter:?} is no parameter"), "write NAME=VALUE, such as temperature=0.5")
        })?;
        let hint = |hint: Option<String>| hint.unwrap_or_else(|| "see docs/config.md".to_owned());
        settings
            .parameters
            .set_text(name, value)
            .map_err(|error| usage(format_args!("--parameter: {error}"), hint(error.hint.clone())))?;
    }
    let (weights, parent) = source(&catalogue, &from, &folder, args.link)?;
    let pin = args.pin || settings.pin;
    let settings = match parent {
        Some((parent, entry)) => settings.made_from(&parent, &entry),
        None => ModelSettings { system: settings.system.filter(|text| !text.is_empty()), ..settings },
    };
    for (name, reason) in settings.parameters.without_effect() {
        tracing::warn!("the parameter {name} has no effect: {reason}");
    }
    let recipe =
        Recipe { name, weights, settings: ModelSettings { pin, ..settings }, quantize: args.quantize };
    interrupt::install(interrupt::JOB_PATIENCE)?;
    let bar = progress::byte_bar("creating");
    let made = create(&catalogue, &recipe, &mut |step| tell(&bar, step));
    bar.finish_and_clear();
    match made {
        Ok(name) => output::raw(&format!("created {name}\n"))?,
        Err(CreateError::Stopped) => {
            anstream::eprintln!("stopped; nothing was made");
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
        Err(error) => return Err(error).with_context(|| format!("cannot make the model {}", recipe.name)),
    }
    Ok(ExitCode::SUCCESS)
}

fn tell(bar: &indicatif::ProgressBar, step: Step) -> ControlFlow<()> {
    match step {
        Step::Status(status) => bar.set_message(status),
        Step::Bytes { status, done, total } => {
            bar.set_message(status);
            bar.set_length(total);
            bar.set_position(done);
        }
    }
    if interrupt::is_pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// A name for a new model.
fn own_name(text: &str) -> anyhow::Result<ModelName> {
    let name =
        ModelName::parse(text).map_err(|error| usage(error, "a name looks like mario or me/mario:7b"))?;
    if name.key() == bundled::MODEL {
        return Err(failure(
            format_args!("{text} is the name of the model in the program"),
            "choose another name",
        ));
    }
    Ok(name)
}

/// What to make it from, where relative paths start, and the settings.
fn description(args: &CreateArgs) -> anyhow::Result<(String, PathBuf, ModelSettings)> {
    if let Some(from) = &args.from {
        return Ok((from.clone(), PathBuf::new(), ModelSettings::default()));
    }
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from("Modelfile"));
    if args.file.is_none() && !path.exists() {
        return Err(usage(
            "what is the model to be made from? there is no Modelfile in this folder",
            "name it with --from MODEL, or a Modelfile with -f FILE",
        ));
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = Modelfile::parse(&text).map_err(|problem| problem.of_file(&path))?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    Ok((file.from, folder, file.settings))
}

type Parent = (String, ModelSettings);

/// A model of the catalogue by its name, the bundled one, or files.
fn source(
    catalogue: &Catalogue,
    from: &str,
    folder: &Path,
    link: bool,
) -> anyhow::Result<(Weights, Option<Parent>)> {
    let path = folder.join(from);
    let looks_like_path = from.starts_with(['.', '/', '~']) || from.ends_with(".gguf");
    if !looks_like_path && let Ok(name) = ModelName::parse(from) {
        if name.key() == bundled::MODEL {
            let files = ModelSource::Bytes { name: bundled::NAME.to_owned(), bytes: bundled::bytes() };
            let weights = Weights::Model { source: EntrySource::Bundled, files };
            return Ok((weights, Some((bundled::MODEL.to_owned(), ModelSettings::default()))));
        }
        match catalogue.find(&name) {
            Ok(found) => {
                let entry = found.entry.as_ref().map_err(Clone::clone)?;
                let weights = Weights::Model { source: entry.source.clone(), files: files(catalogue, entry) };
                return Ok((weights, Some((found.name.to_string(), entry.settings.clone()))));
            }
            Err(CatalogueError::NotFound { .. }) if path.exists() => {}
            Err(CatalogueError::NotFound { .. }) => {
                let hint = "`mlxr list` shows the models there are; files are named by their paths";
                return Err(failure(format_args!("there is no model and no file {from:?}"), hint));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if !path.exists() {
        let hint = "name a .gguf file, or a folder with config.json and *.safetensors";
        return Err(failure(format_args!("no model at {}", path.display()), hint));
    }
    Ok((if link { Weights::Link(path) } else { Weights::Copy(path) }, None))
}

fn files(catalogue: &Catalogue, entry: &Entry) -> ModelSource {
    match &entry.source {
        EntrySource::Blob(digest) => ModelSource::Path(catalogue.blobs.path(*digest)),
        EntrySource::Path(path) => ModelSource::Path(path.clone()),
        EntrySource::Bundled => {
            ModelSource::Bytes { name: bundled::NAME.to_owned(), bytes: bundled::bytes() }
        }
    }
}

pub fn copy(args: &CopyArgs) -> anyhow::Result<ExitCode> {
    let catalogue = args.catalogue.open()?;
    let destination = own_name(&args.destination)?;
    let source =
        ModelName::parse(&args.source).map_err(|error| usage(error, "`mlxr list` shows the models"))?;
    let entry = if source.key() == bundled::MODEL {
        Entry { source: EntrySource::Bundled, settings: ModelSettings::default() }
    } else {
        let found = catalogue.find(&source).map_err(with_list_hint)?;
        found.entry.clone()?
    };
    let name = catalogue.put(&destination, &entry)?;
    output::raw(&format!("copied {} to {name}\n", args.source))?;
    Ok(ExitCode::SUCCESS)
}

pub fn remove(args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let catalogue = args.catalogue.open()?;
    for text in &args.names {
        let name = ModelName::parse(text).map_err(|error| usage(error, "`mlxr list` shows the models"))?;
        if name.key() == bundled::MODEL {
            let hint = "a server started with --model does not serve it";
            return Err(failure(format_args!("{text} is in the program and stays"), hint));
        }
        let removed = catalogue.remove(&name).map_err(with_list_hint)?;
        output::raw(&format!("removed {removed}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn with_list_hint(error: CatalogueError) -> anyhow::Error {
    match error {
        CatalogueError::NotFound { .. } => failure(error, "`mlxr list` shows the models there are"),
        error => error.into(),
    }
}
