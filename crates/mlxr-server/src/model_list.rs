//! Which models there are: those named when the server started, and those of the catalogue, which come and go.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::ServeError;
use crate::catalogue::{Catalogue, EntrySource, Found, ModelName, ModelSettings};
use crate::loaded::ModelSource;

/// How long a look at the catalogue's folder counts.
const FRESH: Duration = Duration::from_secs(1);

/// A model that can be loaded.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub name: String,
    pub source: ModelSource,
    pub settings: ModelSettings,
    /// Where the weights are in the catalogue's words; a model that was named at the start has none.
    pub entry_source: Option<EntrySource>,
    /// When the catalogue's file was written; a model that was named at the start has none.
    pub modified: Option<SystemTime>,
}

impl ModelSpec {
    /// A model as its files are.
    pub fn new(name: impl Into<String>, source: ModelSource) -> ModelSpec {
        let settings = ModelSettings::default();
        ModelSpec { name: name.into(), source, settings, entry_source: None, modified: None }
    }

    /// Whether it is a file of the catalogue's, which may be changed and removed.
    pub const fn is_in_catalogue(&self) -> bool {
        self.modified.is_some()
    }
}

/// A list of models that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ModelsError {
    #[error("no model to serve")]
    None,
    #[error("two models are called {name:?}")]
    Twice { name: String },
}

/// All models of a server.
#[derive(Debug)]
pub struct ModelList {
    /// Named at the start, by key.
    fixed: BTreeMap<String, Arc<ModelSpec>>,
    default: String,
    catalogue: Option<Arc<Catalogue>>,
    /// The model in the binary, which the catalogue's may be made from.
    bundled: Option<ModelSource>,
    listed: Mutex<Listed>,
}

/// The catalogue's models at the last look, by key.
#[derive(Debug, Default)]
struct Listed {
    at: Option<Instant>,
    models: BTreeMap<String, Listing>,
}

#[derive(Clone, Debug)]
struct Listing {
    found: Arc<Found>,
    /// `None` when the file has a mistake.
    spec: Option<Arc<ModelSpec>>,
}

/// What names that mean the same have in common.
fn key(name: &str) -> String {
    ModelName::parse(name).map_or_else(|_| name.to_lowercase(), |name| name.key())
}

impl ModelList {
    /// # Errors
    /// There is none, or two have the same name.
    pub fn new(specs: Vec<ModelSpec>) -> Result<ModelList, ModelsError> {
        let default = specs.first().ok_or(ModelsError::None)?.name.clone();
        let mut fixed = BTreeMap::new();
        for spec in specs {
            let name = spec.name.clone();
            if fixed.insert(key(&name), Arc::new(spec)).is_some() {
                return Err(ModelsError::Twice { name });
            }
        }
        Ok(ModelList { fixed, default, catalogue: None, bundled: None, listed: Mutex::default() })
    }

    /// With the models of a catalogue; `bundled` is what its files call that.
    pub fn with_catalogue(self, catalogue: Arc<Catalogue>, bundled: Option<ModelSource>) -> ModelList {
        let list = ModelList { catalogue: Some(catalogue), bundled, ..self };
        list.refresh();
        list
    }

    pub fn catalogue(&self) -> Option<&Arc<Catalogue>> {
        self.catalogue.as_ref()
    }

    pub fn default_name(&self) -> &str {
        &self.default
    }

    pub fn bundled(&self) -> Option<&ModelSource> {
        self.bundled.as_ref()
    }

    /// Whether the last look at the catalogue's folder is too long ago.
    pub fn is_stale(&self) -> bool {
        self.catalogue.is_some() && self.lock().at.is_none_or(|at| at.elapsed() > FRESH)
    }

    /// Looks at the catalogue's folder. Blocks. Returns whether a model has changed or gone.
    pub fn refresh(&self) -> bool {
        let Some(catalogue) = &self.catalogue else { return false };
        // Held during the look, so that an older one does not replace a newer.
        let mut listed = self.lock();
        listed.at = Some(Instant::now());
        let all = match catalogue.scan() {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(%error, "the catalogue stays as it was");
                return false;
            }
        };
        let mut now = BTreeMap::new();
        for found in all {
            let key = found.name.key();
            if self.fixed.contains_key(&key) {
                tracing::debug!(name = %found.name, "a model named at the start hides one of the catalogue");
                continue;
            }
            let old = listed.models.get(&key).filter(|old| Arc::ptr_eq(&old.found, &found));
            let listing = old.cloned().unwrap_or_else(|| Listing { spec: self.spec(&found), found });
            now.insert(key, listing);
        }
        let has_changed = listed
            .models
            .iter()
            .any(|(key, old)| now.get(key).is_none_or(|new| !Arc::ptr_eq(&old.found, &new.found)));
        listed.models = now;
        has_changed
    }

    fn spec(&self, found: &Found) -> Option<Arc<ModelSpec>> {
        let entry = found.entry.as_ref().inspect_err(|problem| tracing::warn!("{problem}")).ok()?;
        let source = match &entry.source {
            EntrySource::Blob(digest) => ModelSource::Path(self.catalogue.as_ref()?.blobs.path(*digest)),
            EntrySource::Path(path) => ModelSource::Path(path.clone()),
            EntrySource::Bundled => self.bundled.clone()?,
        };
        let (name, settings) = (found.name.to_string(), entry.settings.clone());
        let (entry_source, modified) = (Some(entry.source.clone()), Some(found.modified));
        Some(Arc::new(ModelSpec { name, source, settings, entry_source, modified }))
    }

    /// A model by any name it goes by.
    ///
    /// # Errors
    /// There is none, or its file has a mistake.
    pub fn find(&self, name: &str) -> Result<Arc<ModelSpec>, ServeError> {
        let key = key(name);
        if let Some(spec) = self.fixed.get(&key) {
            return Ok(spec.clone());
        }
        let listing = self.lock().models.get(&key).cloned();
        match listing {
            Some(Listing { spec: Some(spec), .. }) => Ok(spec),
            Some(Listing { found, .. }) => Err(broken(name, &found)),
            None => {
                let known = self.specs().iter().map(|spec| spec.name.clone()).collect::<Vec<_>>().join(", ");
                Err(ServeError::ModelNotFound { model: name.to_owned(), known })
            }
        }
    }

    /// Every model that can be loaded, sorted by name.
    pub fn specs(&self) -> Vec<Arc<ModelSpec>> {
        let mut all = self.fixed.clone();
        let listed = self.lock();
        let ready =
            listed.models.iter().filter_map(|(key, listing)| Some((key.clone(), listing.spec.clone()?)));
        all.extend(ready);
        all.into_values().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Listed> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn broken(name: &str, found: &Found) -> ServeError {
    let reason = match &found.entry {
        Err(problem) => format!("the model {name:?} cannot be used: {problem}"),
        Ok(_) => format!("the model {name:?} cannot be used: this program has no bundled model"),
    };
    ServeError::invalid("model", reason)
}
