//! Models by name: `models/<name>.yaml` says what each is, `blobs/` has the weights that were sent here.
//!
//! The folder is the truth: several programs may change it, each under the same lock, and a server reads what has
//! changed. Files are replaced at once, so that a crash leaves the old or the new.
//!
//! Invariant: a blob that a model refers to is not removed.

mod blobs;
pub mod create;
mod entry;
mod modelfile;
mod name;
mod parameters;

pub use blobs::{BlobError, BlobWriter, Blobs, Digest, DigestError};
pub use entry::{Entry, EntrySource, ModelSettings, StoredMessage, check_template, is_role};
pub use modelfile::Modelfile;
pub use name::{ModelName, NameError};
pub use parameters::{ParameterError, Parameters};

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::config::{ConfigError, Problem, yaml};
use crate::files;

/// Models in the folder at most.
const MAX_MODELS: usize = 10_000;

/// The folder of models and blobs.
#[derive(Debug)]
pub struct Catalogue {
    data: PathBuf,
    models: PathBuf,
    pub blobs: Blobs,
    /// What was found at the last look, by key.
    known: Mutex<BTreeMap<String, Arc<Found>>>,
}

/// A file in the folder of models.
#[derive(Debug)]
pub struct Found {
    pub name: ModelName,
    pub file: PathBuf,
    pub modified: SystemTime,
    n_bytes: u64,
    /// What it says, or what is wrong with it.
    pub entry: Result<Entry, Problem>,
}

/// Why the catalogue could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    #[error("there is no model {name:?}")]
    NotFound { name: String },
    #[error("the blob {digest} of {name:?} is not here; send it again")]
    BlobMissing { name: String, digest: Digest },
    #[error("the model {name:?} cannot be stored: {problem}")]
    Entry { name: String, problem: Box<Problem> },
    #[error("there are {MAX_MODELS} models already")]
    Full,
    #[error("no room on the disk for {}", path.display())]
    DiskFull { path: PathBuf },
    #[error("cannot change {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

impl Catalogue {
    /// The catalogue in this folder, which is made when something is put in. Old garbage is removed.
    pub fn open(data: &Path) -> Catalogue {
        let catalogue = Catalogue {
            data: data.to_owned(),
            models: data.join("models"),
            blobs: Blobs::new(data.join("blobs")),
            known: Mutex::default(),
        };
        if let Err(error) = catalogue.sweep() {
            tracing::warn!(%error, "abandoned blobs were not removed");
        }
        catalogue
    }

    /// The folder of models' files.
    pub fn folder(&self) -> &Path {
        &self.models
    }

    /// The models there are now, sorted by name; files that have not changed are not read again.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn scan(&self) -> Result<Vec<Arc<Found>>, CatalogueError> {
        let mut files = Vec::new();
        list(&self.models, 0, &mut files)
            .map_err(|source| CatalogueError::Read { path: self.models.clone(), source })?;
        let mut known = self.lock_known();
        let mut now = BTreeMap::new();
        for (file, modified, n_bytes) in files {
            let Some(name) = ModelName::of_file(&self.models, &file) else {
                tracing::debug!(file = %file.display(), "this is no model's file name");
                continue;
            };
            let key = name.key();
            if let Some(first) = now.get(&key) {
                let first: &Arc<Found> = first;
                tracing::warn!(file = %file.display(), first = %first.file.display(), "two files are the same model");
                continue;
            }
            let is_same =
                |old: &&Arc<Found>| old.file == file && old.modified == modified && old.n_bytes == n_bytes;
            let found = match known.get(&key).filter(is_same) {
                Some(old) => old.clone(),
                None => Arc::new(Found { entry: read_entry(&file), name, file, modified, n_bytes }),
            };
            now.insert(key, found);
        }
        *known = now;
        Ok(known.values().cloned().collect())
    }

    /// A model by its name, as the folder has it now.
    ///
    /// # Errors
    /// The folder cannot be read, or has no such model.
    pub fn find(&self, name: &ModelName) -> Result<Arc<Found>, CatalogueError> {
        let key = name.key();
        let found = self.scan()?.into_iter().find(|found| found.name.key() == key);
        found.ok_or_else(|| CatalogueError::NotFound { name: name.to_string() })
    }

    /// Stores a model, in place of one with the same name. Returns the name it goes by: a model keeps its case.
    ///
    /// # Errors
    /// Its blob is not here, or the folder cannot be written to.
    pub fn put(&self, name: &ModelName, entry: &Entry) -> Result<ModelName, CatalogueError> {
        let text = readable(entry).map_err(|problem| CatalogueError::Entry {
            name: name.to_string(),
            problem: Box::new(problem),
        })?;
        let _lock = self.lock()?;
        if let Some(digest) = entry.blob().filter(|digest| !self.blobs.has(*digest)) {
            return Err(CatalogueError::BlobMissing { name: name.to_string(), digest });
        }
        let all = self.scan()?;
        let key = name.key();
        let old = all.iter().find(|found| found.name.key() == key);
        if old.is_none() && all.len() >= MAX_MODELS {
            return Err(CatalogueError::Full);
        }
        let name = old.map_or(name, |old| &old.name).clone();
        let path = name.file(&self.models);
        let failed = |source: io::Error| write_error(source, &path);
        path.parent().map_or(Ok(()), files::create_private_folder).map_err(failed)?;
        files::write_file(&path, text.as_bytes()).map_err(failed)?;
        // The file's age may be too coarse to show the change.
        self.lock_known().remove(&key);
        if let Some(Ok(old)) = old.map(|old| &old.entry) {
            self.collect(old)?;
        }
        Ok(name)
    }

    /// Removes a model, and its blob when no other has it.
    ///
    /// # Errors
    /// There is none, or the folder cannot be written to.
    pub fn remove(&self, name: &ModelName) -> Result<ModelName, CatalogueError> {
        let _lock = self.lock()?;
        let found = self.find(name)?;
        let failed = |source: io::Error| write_error(source, &found.file);
        std::fs::remove_file(&found.file).and_then(|()| files::sync_folder(&found.file)).map_err(failed)?;
        if let Ok(entry) = &found.entry {
            self.collect(entry)?;
        }
        Ok(found.name.clone())
    }

    /// Removes the blob of an entry that is gone, unless a model still has it.
    fn collect(&self, gone: &Entry) -> Result<(), CatalogueError> {
        let Some(digest) = gone.blob() else { return Ok(()) };
        if self.is_needed(&self.scan()?, digest) {
            return Ok(());
        }
        let path = self.blobs.path(digest);
        tracing::info!(%digest, "removing a blob no model has");
        self.blobs.remove(digest).map_err(|source| CatalogueError::Write { path, source })
    }

    /// A file that cannot be read may refer to anything.
    fn is_needed(&self, all: &[Arc<Found>], digest: Digest) -> bool {
        all.iter().any(|found| found.entry.as_ref().map_or(true, |entry| entry.blob() == Some(digest)))
    }

    fn sweep(&self) -> Result<(), CatalogueError> {
        if !self.data.is_dir() {
            return Ok(());
        }
        let _lock = self.lock()?;
        let all = self.scan()?;
        match self.blobs.sweep(|digest| self.is_needed(&all, digest)) {
            0 => {}
            n => tracing::info!(n, "removed abandoned blobs"),
        }
        Ok(())
    }

    /// One program changes the folder at a time.
    fn lock(&self) -> Result<File, CatalogueError> {
        let path = self.data.join(".lock");
        let failed = |source| write_error(source, &path);
        files::create_private_folder(&self.data).map_err(failed)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    fn lock_known(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Found>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a model's file would say, if it could be read again.
fn readable(entry: &Entry) -> Result<String, Problem> {
    let text = entry.to_yaml();
    if text.len() as u64 > yaml::MAX_FILE_BYTES {
        return Err(Problem::new(format!("its texts are longer than {} bytes", yaml::MAX_FILE_BYTES)));
    }
    Entry::parse(&text, Path::new("/"))?;
    Ok(text)
}

fn write_error(source: io::Error, path: &Path) -> CatalogueError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CatalogueError::DiskFull { path },
        _ => CatalogueError::Write { path, source },
    }
}

/// Reads a model's file.
///
/// # Errors
/// What is wrong with it, and where.
pub fn read_entry(file: &Path) -> Result<Entry, Problem> {
    let text = crate::config::read_file(file, true).map_err(|error| match error {
        ConfigError::Read { source, .. } => Problem::new(format!("cannot be read: {source}")).of_file(file),
        ConfigError::TooLarge { .. } => {
            Problem::new(format!("is larger than {} bytes", yaml::MAX_FILE_BYTES)).of_file(file)
        }
        other => Problem::new(other.to_string()),
    })?;
    let folder = file.parent().unwrap_or(Path::new("."));
    Entry::parse(&text.unwrap_or_default(), folder).map_err(|problem| problem.of_file(file))
}

/// Files that end in `.yaml`, as deep as names have parts, sorted.
fn list(folder: &Path, depth: usize, out: &mut Vec<(PathBuf, SystemTime, u64)>) -> io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.sort();
    for path in paths {
        // Removed since, perhaps.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if metadata.is_dir() && depth < 2 {
            list(&path, depth + 1, out)?;
        } else if metadata.is_file()
            && path.extension().is_some_and(|extension| extension == "yaml")
            && out.len() < MAX_MODELS
        {
            out.push((path, metadata.modified()?, metadata.len()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ModelName {
        ModelName::parse(text).unwrap()
    }

    fn entry_of(digest: Digest) -> Entry {
        Entry { source: EntrySource::Blob(digest), settings: ModelSettings::default() }
    }

    fn blob(catalogue: &Catalogue, content: &[u8]) -> Digest {
        let mut writer = catalogue.blobs.writer(100).unwrap();
        writer.write(content).unwrap();
        writer.finish(None).unwrap()
    }

    fn names(catalogue: &Catalogue) -> Vec<String> {
        catalogue.scan().unwrap().iter().map(|found| found.name.to_string()).collect()
    }

    #[test]
    fn models_come_and_go_and_take_their_blobs_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(dir.path());
        assert!(names(&catalogue).is_empty());
        let (one, two) = (blob(&catalogue, b"one"), blob(&catalogue, b"two"));
        catalogue.put(&name("a"), &entry_of(one)).unwrap();
        catalogue.put(&name("me/b:7b"), &entry_of(one)).unwrap();
        assert_eq!(catalogue.put(&name("A"), &entry_of(two)).unwrap(), name("a"), "a model keeps its case");
        assert_eq!(names(&catalogue), ["a", "me/b:7b"]);
        assert!(catalogue.blobs.has(one) && catalogue.blobs.has(two));
        catalogue.remove(&name("ME/B:7b")).unwrap();
        assert!(!catalogue.blobs.has(one) && catalogue.blobs.has(two));
        assert!(matches!(catalogue.remove(&name("b")), Err(CatalogueError::NotFound { .. })));
        let missing = catalogue.put(&name("c"), &entry_of(one));
        assert!(matches!(missing, Err(CatalogueError::BlobMissing { .. })));
        // Another program sees the same.
        assert_eq!(names(&Catalogue::open(dir.path())), ["a"]);
    }

    #[test]
    fn a_file_with_a_mistake_is_known_as_that_and_keeps_every_blob() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(dir.path());
        let one = blob(&catalogue, b"one");
        catalogue.put(&name("a"), &entry_of(one)).unwrap();
        std::fs::write(catalogue.folder().join("b.yaml"), "sauce: x\n").unwrap();
        std::fs::write(catalogue.folder().join("not a name.yaml"), "").unwrap();
        std::fs::write(catalogue.folder().join("A.yaml"), "source: x\n").unwrap();
        let all = catalogue.scan().unwrap();
        assert_eq!(all.len(), 2);
        let problem = all[1].entry.as_ref().unwrap_err().to_string();
        assert!(problem.contains("b.yaml:1:1: there is no setting \"sauce\""), "{problem}");
        std::fs::remove_file(catalogue.folder().join("A.yaml")).unwrap();
        catalogue.remove(&name("a")).unwrap();
        assert!(catalogue.blobs.has(one), "b might have had it");
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::open(dir.path());
        std::fs::create_dir_all(catalogue.folder()).unwrap();
        let file = catalogue.folder().join("a.yaml");
        std::fs::write(&file, "source: bundled\n").unwrap();
        let first = catalogue.scan().unwrap();
        assert!(Arc::ptr_eq(&first[0], &catalogue.scan().unwrap()[0]));
        std::fs::write(&file, "source: bundled\nsystem: x\n").unwrap();
        let second = catalogue.scan().unwrap();
        assert_eq!(second[0].entry.as_ref().unwrap().settings.system.as_deref(), Some("x"));
    }
}
