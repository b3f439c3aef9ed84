//! Making a model: its weights into a blob, converted and quantised as far as needed, then its file.
//!
//! Everything that takes long happens beside the blobs, under a name nobody looks for; what breaks off leaves nothing.

use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};

use mlxr_checkpoint::convert::{GgufOptions, Progress, hf_to_gguf};
use mlxr_checkpoint::quantize::{QuantizeOptions, quantize_gguf};
use mlxr_checkpoint::{Checkpoint, CheckpointError, CheckpointFormat, FileType};
use mlxr_models::DecoderConfig;
use mlxr_tensor::{DType, Format};

use super::{BlobError, Catalogue, CatalogueError, Digest, Entry, EntrySource, ModelName, ModelSettings};
use crate::files;
use crate::loaded::ModelSource;

/// Files of one model at most.
const MAX_FILES: usize = 1024;

/// Where the weights come from.
#[derive(Clone, Debug)]
pub enum Weights {
    /// Another model's.
    Model { source: EntrySource, files: ModelSource },
    /// Blobs that were sent here, by the names they had.
    Blobs(Vec<(String, Digest)>),
    /// Files of this machine, which are copied.
    Copy(PathBuf),
    /// Files of this machine, which stay where they are.
    Link(PathBuf),
}

/// What to make.
#[derive(Clone, Debug)]
pub struct Recipe {
    pub name: ModelName,
    pub weights: Weights,
    pub settings: ModelSettings,
    pub quantize: Option<FileType>,
}

/// What is being done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// In Ollama's words.
    Status(String),
    /// Of a long step: bytes done and in all.
    Bytes { status: String, done: u64, total: u64 },
}

/// Called for every step; `Break` stops the work.
pub type OnStep<'a> = &'a mut dyn FnMut(Step) -> ControlFlow<()>;

/// Why a model could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    #[error("{0}")]
    Files(String),
    #[error("the files cannot be used: {0}")]
    Weights(#[source] CheckpointError),
    #[error("the weights cannot be converted: {0}")]
    Convert(#[source] CheckpointError),
    #[error("the weights cannot be quantised to {to}: {source}")]
    Quantize { to: &'static str, source: CheckpointError },
    #[error("num_ctx is {n_ctx}, but the model was made for contexts of at most {n_ctx_max} tokens")]
    Context { n_ctx: u32, n_ctx_max: u32 },
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("stopped; nothing was made")]
    Stopped,
}

/// Makes a model and puts it into the catalogue. Returns the name it goes by.
///
/// # Errors
/// [`CreateError`]; the catalogue is then as it was.
pub fn create(catalogue: &Catalogue, recipe: &Recipe, on_step: OnStep<'_>) -> Result<ModelName, CreateError> {
    let mut maker = Maker { catalogue, on_step, folder: None };
    let source = maker.weights(recipe)?;
    maker.check(&source, recipe)?;
    maker.say("writing manifest")?;
    let entry = Entry { source, settings: recipe.settings.clone() };
    Ok(catalogue.put(&recipe.name, &entry)?)
}

struct Maker<'a, 'b> {
    catalogue: &'a Catalogue,
    on_step: OnStep<'b>,
    /// Where files are made, on the blobs' disk.
    folder: Option<tempfile::TempDir>,
}

impl Maker<'_, '_> {
    fn say(&mut self, status: impl Into<String>) -> Result<(), CreateError> {
        match (self.on_step)(Step::Status(status.into())) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(CreateError::Stopped),
        }
    }

    fn folder(&mut self) -> Result<&Path, CreateError> {
        if self.folder.is_none() {
            self.folder = Some(self.catalogue.blobs.workshop()?);
        }
        self.folder.as_ref().map(tempfile::TempDir::path).ok_or(CreateError::Stopped)
    }

    fn weights(&mut self, recipe: &Recipe) -> Result<EntrySource, CreateError> {
        let source = match &recipe.weights {
            Weights::Model { source, files } => match recipe.quantize {
                None => source.clone(),
                Some(to) => {
                    let gguf = self.gguf_of_source(files)?;
                    self.quantize(&gguf, to)?
                }
            },
            Weights::Blobs(named) => {
                let files = self.stage(named)?;
                self.import(&files, recipe.quantize)?
            }
            Weights::Link(path) if recipe.quantize.is_none() => {
                let path = path.canonicalize().map_err(|error| unreadable(path, &error))?;
                EntrySource::Path(path)
            }
            Weights::Copy(path) | Weights::Link(path) => {
                if !path.exists() {
                    return Err(CreateError::Files(format!("there is no file or folder {}", path.display())));
                }
                self.import(path, recipe.quantize)?
            }
        };
        if let EntrySource::Blob(digest) = source {
            self.say(format!("using existing layer {digest}"))?;
        }
        Ok(source)
    }

    /// A file or folder to a blob.
    fn import(&mut self, path: &Path, quantize: Option<FileType>) -> Result<EntrySource, CreateError> {
        if path.is_dir() {
            let gguf = self.convert(path)?;
            return match quantize {
                Some(to) => self.quantize(&gguf, to),
                None => Ok(EntrySource::Blob(self.catalogue.blobs.adopt(&gguf)?)),
            };
        }
        self.say("parsing GGUF")?;
        Checkpoint::open(path).map_err(CreateError::Weights)?;
        if let Some(to) = quantize {
            return self.quantize(path, to);
        }
        let own = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        match own.filter(|digest| self.catalogue.blobs.path(*digest) == path) {
            Some(digest) => Ok(EntrySource::Blob(digest)),
            None => {
                self.say("copying file")?;
                Ok(EntrySource::Blob(self.catalogue.blobs.import(path)?))
            }
        }
    }

    /// A model's files as a GGUF file.
    fn gguf_of_source(&mut self, source: &ModelSource) -> Result<PathBuf, CreateError> {
        match source {
            ModelSource::Path(path) if path.is_dir() => self.convert(path),
            ModelSource::Path(path) => Ok(path.clone()),
            ModelSource::Bytes { bytes, .. } => {
                let path = self.folder()?.join("bundled.gguf");
                let failed = |source| CatalogueError::Write { path: path.clone(), source };
                std::fs::write(&path, bytes).map_err(failed)?;
                Ok(path)
            }
        }
    }

    fn convert(&mut self, folder: &Path) -> Result<PathBuf, CreateError> {
        self.say("converting model")?;
        let ckpt = Checkpoint::open(folder).map_err(CreateError::Weights)?;
        let to = self.folder()?.join("converted.gguf");
        let options = GgufOptions { dtype: stored_type(&ckpt), ..GgufOptions::default() };
        drop(ckpt);
        let done = hf_to_gguf(folder, &to, &options, &mut bytes_of("converting model", self.on_step));
        done.map_err(|error| stopped_or(error, CreateError::Convert))?;
        Ok(to)
    }

    fn quantize(&mut self, gguf: &Path, to: FileType) -> Result<EntrySource, CreateError> {
        let ckpt = Checkpoint::open(gguf).map_err(CreateError::Weights)?;
        let from = ckpt.summary().formats.first().map_or_else(String::new, |share| share.format.name());
        drop(ckpt);
        let status = format!("quantizing {from} model to {}", to.name());
        self.say(status.clone())?;
        let made = self.folder()?.join("quantised.gguf");
        let options = QuantizeOptions::default();
        let done = quantize_gguf(gguf, &made, to, None, &options, &mut bytes_of(&status, self.on_step));
        done.map_err(|error| stopped_or(error, |source| CreateError::Quantize { to: to.name(), source }))?;
        let digest = self.catalogue.blobs.adopt(&made)?;
        self.say(format!("creating new layer {digest}"))?;
        Ok(EntrySource::Blob(digest))
    }

    /// Blobs under the names they had: one GGUF file, or a folder.
    fn stage(&mut self, named: &[(String, Digest)]) -> Result<PathBuf, CreateError> {
        let refuse = |reason: String| Err(CreateError::Files(reason));
        if named.is_empty() {
            return refuse("no files were named".to_owned());
        }
        if named.len() > MAX_FILES {
            return refuse(format!("{} files were named, at most {MAX_FILES} may be", named.len()));
        }
        let mut n_gguf = 0;
        for (name, digest) in named {
            if !is_inside(name) {
                return refuse(format!("{name:?} is no path below a folder"));
            }
            let path = self.catalogue.blobs.path(*digest);
            if !path.is_file() {
                let reason =
                    format!("{name:?}: the blob {digest} is not here; send it to /api/blobs/{digest}");
                return refuse(reason);
            }
            n_gguf += usize::from(is_gguf(&path));
        }
        match (n_gguf, named) {
            (1, [(_, digest)]) => return Ok(self.catalogue.blobs.path(*digest)),
            (0, _) if !named.iter().any(|(name, _)| name.ends_with(".safetensors")) => {
                return refuse("none of the files is GGUF or safetensors".to_owned());
            }
            (0, _) => {}
            (n, _) if n == named.len() => {
                return refuse(format!("{n} GGUF files were named; join the parts of a split model first"));
            }
            _ => return refuse("GGUF files and others were named; one model is one or the other".to_owned()),
        }
        let folder = self.folder()?.join("model");
        for (name, digest) in named {
            let (from, to) = (self.catalogue.blobs.path(*digest), folder.join(name));
            let linked = files::create_private_folder(to.parent().unwrap_or(&folder))
                .and_then(|()| std::fs::hard_link(&from, &to))
                // Not every file system has links.
                .or_else(|_| std::fs::copy(&from, &to).map(drop));
            linked.map_err(|source| CatalogueError::Write { path: to.clone(), source })?;
        }
        Ok(folder)
    }

    /// What would only show when the model is loaded.
    fn check(&self, source: &EntrySource, recipe: &Recipe) -> Result<(), CreateError> {
        let ckpt = match (source, &recipe.weights) {
            (EntrySource::Blob(digest), _) => Checkpoint::open(&self.catalogue.blobs.path(*digest)),
            (EntrySource::Path(path), _) => Checkpoint::open(path),
            (EntrySource::Bundled, Weights::Model { files, .. }) => files.open(),
            (EntrySource::Bundled, _) => return Ok(()),
        };
        let ckpt = ckpt.map_err(CreateError::Weights)?;
        // Models that are no decoders have contexts of their own.
        if let (Some(n_ctx), Ok(config)) = (recipe.settings.n_ctx(), DecoderConfig::for_checkpoint(&ckpt))
            && config.n_ctx_train < n_ctx
        {
            return Err(CreateError::Context { n_ctx, n_ctx_max: config.n_ctx_train });
        }
        Ok(())
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> CreateError {
    CreateError::Files(format!("cannot read {}: {error}", path.display()))
}

fn stopped_or(error: CheckpointError, other: impl FnOnce(CheckpointError) -> CreateError) -> CreateError {
    match error {
        CheckpointError::Cancelled => CreateError::Stopped,
        error => other(error),
    }
}

/// Reports the bytes of a long step.
fn bytes_of<'a>(status: &'a str, on_step: OnStep<'a>) -> impl FnMut(Progress<'_>) -> ControlFlow<()> + 'a {
    move |progress| {
        let Progress { bytes_done: done, bytes_total: total, .. } = progress;
        on_step(Step::Bytes { status: status.to_owned(), done, total })
    }
}

/// A relative path that stays below where it starts.
fn is_inside(name: &str) -> bool {
    let path = Path::new(name);
    !name.is_empty()
        && name.len() <= 1024
        && !name.contains(['\\', '\0'])
        && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn is_gguf(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok_and(|()| &magic == b"GGUF")
}

/// The type that keeps a folder's matrices as they are: F16 or BF16 where they are that, else F32.
pub fn stored_type(ckpt: &Checkpoint) -> DType {
    if ckpt.format == CheckpointFormat::Gguf {
        return DType::F16;
    }
    let matrices = || ckpt.tensors().filter(|tensor| tensor.shape().len() > 1);
    let all = |dtype| matrices().all(|tensor| tensor.format() == Format::Plain(dtype));
    [DType::F16, DType::BF16].into_iter().find(|&dtype| all(dtype)).unwrap_or(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_stay_below_their_folder() {
        for good in ["a", "a/b.safetensors", "a..b"] {
            assert!(is_inside(good), "{good}");
        }
        for bad in ["", "/a", "../a", "a/../b", "./a", "a\\b", "a\0"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }
}
