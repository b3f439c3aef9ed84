//! Ollama's requests that make models, to recipes of the catalogue.

use mlxr_api::ollama::create::{CreateRequest, Progress, SeedMessage};

use crate::ServeError;
use crate::catalogue::create::{CreateError, Recipe, Step, Weights};
use crate::catalogue::{
    CatalogueError, EntrySource, ModelName, ModelSettings, Modelfile, StoredMessage, check_template, is_role,
};
use crate::loaded::ModelSource;
use crate::model_list::ModelSpec;
use crate::model_manager::Models;
use crate::notices::Notices;

/// A name for a new model, which none of those named at the start has.
///
/// # Errors
/// It is no name, or is taken.
pub fn new_name(models: &Models, field: &str, text: &str) -> Result<ModelName, ServeError> {
    let name = ModelName::parse(text).map_err(|error| ServeError::invalid(field, error.to_string()))?;
    match models.find(text) {
        Ok(spec) if !spec.is_in_catalogue() => Err(ServeError::invalid(field, fixed(&spec))),
        _ => Ok(name),
    }
}

/// Why a model that was named at the start is not changed.
pub fn fixed(spec: &ModelSpec) -> String {
    format!(
        "the model {:?} belongs to the server's own settings (--model, models.files) or to the program; choose another name",
        spec.name
    )
}

/// What a request asks for.
///
/// # Errors
/// A value that makes no sense, a model that is not there, or in strict mode a field without effect.
pub fn recipe(wire: &CreateRequest, models: &Models, strict: bool) -> Result<(Recipe, Notices), ServeError> {
    let name = new_name(models, "model", &wire.model)?;
    if wire.adapters.as_ref().is_some_and(|adapters| !adapters.is_empty()) {
        let reason =
            "adapters are not applied yet; merge the adapter into the weights and send those as files";
        return Err(ServeError::invalid("adapters", reason));
    }
    let mut notices = Notices::default();
    for (name, value) in &wire.unknown {
        let reason = match name.as_str() {
            "renderer" | "parser" => "the chat template decides it",
            "requires" => "it is about another program's versions",
            "insecure" => "nothing is fetched",
            _ => "there is no such field",
        };
        if !value.is_null() {
            notices.add(name, reason);
        }
    }
    let (weights, settings) = parts(wire, models)?;
    for (name, reason) in settings.parameters.without_effect() {
        notices.add(format!("parameters.{name}"), reason);
    }
    notices.enforce(strict)?;
    let quantize = wire.quantize.as_deref().filter(|text| !text.is_empty()).map(|text| {
        text.parse().map_err(|error: mlxr_checkpoint::UnknownFileType| {
            ServeError::invalid("quantize", error.to_string())
        })
    });
    let quantize = quantize.transpose()?;
    Ok((Recipe { name, weights, settings, quantize }, notices))
}

fn parts(wire: &CreateRequest, models: &Models) -> Result<(Weights, ModelSettings), ServeError> {
    if let Some(text) = wire.modelfile.as_ref().filter(|text| !text.is_empty()) {
        if wire.from.is_some() || wire.files.is_some() {
            let reason = "either modelfile is given, or from or files, not both";
            return Err(ServeError::invalid("modelfile", reason));
        }
        let file =
            Modelfile::parse(text).map_err(|error| ServeError::invalid("modelfile", error.to_string()))?;
        let (weights, parent) = from(&file.from, models)?;
        return Ok((weights, inherited(settings(wire, file.settings)?, parent.as_deref())));
    }
    let settings = settings(wire, ModelSettings::default())?;
    let files = wire.files.as_ref().filter(|files| !files.is_empty());
    match (wire.from.as_deref().filter(|from| !from.is_empty()), files) {
        (Some(_), Some(_)) => {
            let reason = "from and files are both given; a model is made from one or the other";
            Err(ServeError::invalid("files", reason))
        }
        (Some(name), None) => {
            let (weights, parent) = from(name, models)?;
            Ok((weights, inherited(settings, parent.as_deref())))
        }
        (None, Some(files)) => {
            let read = |(name, digest): (&String, &String)| {
                let field = format!("files[{name:?}]");
                let digest = digest.parse().map_err(|error: crate::catalogue::DigestError| {
                    ServeError::invalid(field, error.to_string())
                })?;
                Ok((name.clone(), digest))
            };
            let blobs = files.iter().map(read).collect::<Result<_, ServeError>>()?;
            Ok((Weights::Blobs(blobs), inherited(settings, None)))
        }
        (None, None) => {
            let reason = "neither from nor files is given: name a model to make this one from, or files sent to /api/blobs";
            Err(ServeError::invalid("from", reason))
        }
    }
}

/// The weights of a model by its name, or of a blob by its digest.
fn from(text: &str, models: &Models) -> Result<(Weights, Option<std::sync::Arc<ModelSpec>>), ServeError> {
    if let Ok(digest) = text.trim_start_matches('@').parse() {
        return Ok((Weights::Blobs(vec![("model.gguf".to_owned(), digest)]), None));
    }
    if ModelName::parse(text).is_err() {
        let reason = format!(
            "{text:?} is no model's name; send files to /api/blobs and name them in files, or run `mlxr create` on this machine"
        );
        return Err(ServeError::invalid("from", reason));
    }
    let spec = models.find(text)?;
    Ok((Weights::Model { source: source(&spec, models)?, files: spec.source.clone() }, Some(spec)))
}

/// Where the weights of a model are, in the catalogue's words.
///
/// # Errors
/// They are nowhere that a file could name.
pub fn source(spec: &ModelSpec, models: &Models) -> Result<EntrySource, ServeError> {
    if let Some(source) = &spec.entry_source {
        return Ok(source.clone());
    }
    match (&spec.source, models.bundled()) {
        (ModelSource::Path(path), _) => {
            Ok(EntrySource::Path(path.canonicalize().map_err(ServeError::internal)?))
        }
        (ModelSource::Bytes { .. }, Some(_)) => Ok(EntrySource::Bundled),
        (ModelSource::Bytes { .. }, None) => {
            let reason = format!("the model {:?} is only in this server's memory", spec.name);
            Err(ServeError::invalid("from", reason))
        }
    }
}

fn inherited(settings: ModelSettings, parent: Option<&ModelSpec>) -> ModelSettings {
    match parent {
        Some(spec) => settings.made_from(&spec.name, &spec.settings),
        None => ModelSettings { system: settings.system.filter(|text| !text.is_empty()), ..settings },
    }
}

/// `base` with what the request says laid over it.
fn settings(wire: &CreateRequest, base: ModelSettings) -> Result<ModelSettings, ServeError> {
    let mut settings = base;
    if let Some(template) = wire.template.as_ref().filter(|text| !text.is_empty()) {
        check_template(template).map_err(|reason| ServeError::invalid("template", reason))?;
        settings.template = Some(template.clone());
    }
    if let Some(system) = &wire.system {
        settings.system = Some(system.clone());
    }
    if let Some(licenses) = &wire.license {
        settings.licenses.extend(licenses.0.iter().filter(|text| !text.is_empty()).cloned());
    }
    for (name, value) in wire.parameters.iter().flatten() {
        settings.parameters.set_json(name, value).map_err(|error| {
            let hint = error.hint.as_ref().map_or_else(String::new, |hint| format!("; {hint}"));
            ServeError::invalid(format!("parameters.{name}"), format!("{}{hint}", error.message))
        })?;
    }
    if let Some(messages) = &wire.messages {
        settings.messages = messages.iter().enumerate().map(message).collect::<Result<_, _>>()?;
    }
    Ok(settings)
}

fn message((i, wire): (usize, &SeedMessage)) -> Result<StoredMessage, ServeError> {
    let SeedMessage { role, content, unknown } = wire;
    if !is_role(role) {
        let reason = format!("role is {role:?}, but must be system, user or assistant");
        return Err(ServeError::invalid(format!("messages[{i}].role"), reason));
    }
    let is_said = |value: &serde_json::Value| {
        !(value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value.as_str() == Some(""))
    };
    if let Some((name, _)) = unknown.iter().find(|(_, value)| is_said(value)) {
        let reason = format!("a stored message has role and content, not {name}");
        return Err(ServeError::invalid(format!("messages[{i}].{name}"), reason));
    }
    Ok(StoredMessage { role: role.clone(), content: content.clone() })
}

/// A step as a line of the answer.
pub fn progress(step: Step) -> Progress {
    match step {
        Step::Status(status) => Progress { status, ..Progress::default() },
        Step::Bytes { status, done, total } => Progress { status, total: Some(total), completed: Some(done) },
    }
}

impl From<CreateError> for ServeError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Blob(error) => error.into(),
            CreateError::Catalogue(error) => error.into(),
            CreateError::Context { .. } => ServeError::invalid("parameters.num_ctx", error.to_string()),
            CreateError::Quantize { .. } => ServeError::invalid("quantize", error.to_string()),
            CreateError::Files(_) | CreateError::Weights(_) | CreateError::Convert(_) => {
                ServeError::invalid("files", error.to_string())
            }
            CreateError::Stopped => ServeError::ShuttingDown,
        }
    }
}

impl From<CatalogueError> for ServeError {
    fn from(error: CatalogueError) -> Self {
        match error {
            CatalogueError::NotFound { name } => {
                ServeError::ModelNotFound { model: name, known: "those that /api/tags lists".to_owned() }
            }
            CatalogueError::BlobMissing { .. } => ServeError::invalid("files", error.to_string()),
            CatalogueError::Entry { .. } => ServeError::invalid("model", error.to_string()),
            CatalogueError::Full => ServeError::invalid("model", format!("{error}; delete one first")),
            CatalogueError::DiskFull { .. } => ServeError::DiskFull { reason: error.to_string() },
            CatalogueError::Write { .. } | CatalogueError::Read { .. } => ServeError::internal(error),
        }
    }
}

impl From<crate::catalogue::BlobError> for ServeError {
    fn from(error: crate::catalogue::BlobError) -> Self {
        use crate::catalogue::BlobError;

        match error {
            BlobError::WrongDigest { .. } => ServeError::invalid("digest", error.to_string()),
            BlobError::TooLarge { max_bytes } => {
                ServeError::BodyTooLarge { max_bytes: usize::try_from(max_bytes).unwrap_or(usize::MAX) }
            }
            BlobError::DiskFull { .. } => ServeError::DiskFull { reason: error.to_string() },
            BlobError::Unfinished => ServeError::Invalid { field: None, reason: error.to_string() },
            BlobError::Write { .. } | BlobError::Read { .. } => ServeError::internal(error),
        }
    }
}
