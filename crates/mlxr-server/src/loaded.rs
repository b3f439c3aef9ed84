//! One model in memory: its thread, tokenizer, template and defaults.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use mlxr_checkpoint::{Checkpoint, CheckpointError, EmbeddingFiles};
use mlxr_engine::{
    EmbedderHandle, EmbedderLimits, Engine, EngineError, EngineHandle, EngineOptions, Shutdown,
};
use mlxr_models::{Embedder, Model, ModelError, ModelOptions, Placement};
use mlxr_tensor::TensorError;
use mlxr_text::grammar::{GrammarError, GrammarFactory};
use mlxr_text::{ChatTemplate, TemplateTokens, TextError, Tokenizer};
use serde_json::{Map, Value};
use tokio::runtime::Handle;

use crate::catalogue::ModelSettings;
use crate::device::{self, Device, DeviceError};
use crate::images::{ImageReader, NoImages};
use crate::memory::{MemoryPlan, PlanError};
use crate::model_list::ModelSpec;
use crate::rehearsal::Place;
use crate::translate::defaults;

/// Where a model's files are.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A GGUF file or a folder.
    Path(PathBuf),
    /// A GGUF file in memory, such as the one in the binary.
    Bytes { name: String, bytes: Bytes },
}

impl ModelSource {
    /// Opens the files; reads no weights.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn open(&self) -> Result<Checkpoint, CheckpointError> {
        match self {
            ModelSource::Path(path) => Checkpoint::open(path),
            ModelSource::Bytes { name, bytes } => Checkpoint::from_gguf_bytes(Path::new(name), bytes),
        }
    }
}

/// How engines are set up.
#[derive(Clone, Debug)]
pub struct EngineSetup {
    pub device: Device,
    /// `n_ctx` and `kv_bytes` left open are chosen per model.
    pub options: EngineOptions,
}

impl EngineSetup {
    /// With what a model's own settings say.
    pub fn for_model(&self, settings: &ModelSettings) -> EngineSetup {
        let mut setup = self.clone();
        if let Some(n_ctx) = settings.n_ctx() {
            setup.options.n_ctx = Some(n_ctx as usize);
        }
        if let Some(kv_type) = settings.kv_type {
            setup.options.kv_dtype = kv_type;
        }
        setup
    }
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
}

impl LoadError {
    /// Whether the model would do with other settings of the server.
    pub const fn concerns_settings(&self) -> bool {
        matches!(self, LoadError::Plan(PlanError::KvType { .. }))
    }

    /// Whether the model may well run on another device.
    pub fn concerns_device(&self) -> bool {
        match self {
            LoadError::Device(_) => true,
            LoadError::Thread(error) => error.get_ref().is_some_and(|cause| cause.is::<TensorError>()),
            LoadError::Model(ModelError::Tensor(error)) | LoadError::Engine(EngineError::Tensor(error)) => {
                matches!(
                    error,
                    TensorError::Unsupported { .. }
                        | TensorError::OutOfMemory { .. }
                        | TensorError::DeviceLost { .. }
                )
            }
            _ => false,
        }
    }
}

/// A model in memory, of either kind.
#[derive(Clone, Debug)]
pub enum Loaded {
    Generator(Arc<LoadedModel>),
    Embedder(Arc<LoadedEmbedder>),
}

impl Loaded {
    pub fn name(&self) -> &str {
        match self {
            Loaded::Generator(model) => &model.name,
            Loaded::Embedder(model) => &model.name,
        }
    }

    pub fn plan(&self) -> &MemoryPlan {
        match self {
            Loaded::Generator(model) => &model.plan,
            Loaded::Embedder(model) => &model.plan,
        }
    }

    /// Bytes it takes now: a generating model takes more once it makes vectors too.
    pub fn total_bytes(&self) -> u64 {
        let more = match self {
            Loaded::Generator(model) if model.embeddings.running().is_some() => {
                model.embeddings_plan.total_bytes()
            }
            _ => 0,
        };
        self.plan().total_bytes() + more
    }

    /// Why the thread or the device behind it broke down, if one did; a failed batch of vectors is that batch's alone.
    pub fn failure(&self) -> Option<String> {
        let thread = match self {
            Loaded::Generator(model) => model.engine.failure().map(str::to_owned),
            Loaded::Embedder(_) => None,
        };
        thread.or_else(|| self.embeddings().embedder.backend().failure())
    }

    /// What it computes on, in one line.
    pub fn device(&self) -> String {
        device::describe_devices(self.embeddings().embedder.devices())
    }

    /// Takes no more requests: `Drain` lets those there are finish, `Cancel` does not.
    pub fn shut_down(&self, shutdown: Shutdown) {
        if let Loaded::Generator(model) = self {
            model.engine.shut_down(shutdown);
        }
        if let Some(embedder) = self.embeddings().running() {
            embedder.shut_down(shutdown);
        }
    }

    /// Waits until its threads have ended. Blocks.
    pub fn join(&self) {
        if let Loaded::Generator(model) = self {
            model.engine.join();
        }
        if let Some(embedder) = self.embeddings().running() {
            embedder.join();
        }
    }

    /// What makes vectors.
    pub fn embeddings(&self) -> &Embeddings {
        match self {
            Loaded::Generator(model) => &model.embeddings,
            Loaded::Embedder(model) => &model.embeddings,
        }
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        match self {
            Loaded::Generator(model) => &model.tokenizer,
            Loaded::Embedder(model) => &model.tokenizer,
        }
    }

    pub(crate) fn is_same(&self, other: &Loaded) -> bool {
        match (self, other) {
            (Loaded::Generator(a), Loaded::Generator(b)) => Arc::ptr_eq(a, b),
            (Loaded::Embedder(a), Loaded::Embedder(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// A model that makes vectors or scores and generates nothing.
#[derive(Debug)]
pub struct LoadedEmbedder {
    pub name: String,
    pub embeddings: Embeddings,
    pub tokenizer: Tokenizer,
    pub plan: MemoryPlan,
}

/// What makes vectors of a model's hidden states: its thread starts with the first request.
#[derive(Debug)]
pub struct Embeddings {
    embedder: Arc<Embedder>,
    /// Prompts and lengths, as the model's files say.
    pub files: EmbeddingFiles,
    handle: Mutex<Option<EmbedderHandle>>,
}

impl Embeddings {
    fn new(embedder: Embedder, files: EmbeddingFiles) -> Embeddings {
        Embeddings { embedder: Arc::new(embedder), files, handle: Mutex::default() }
    }

    /// The thread, if it runs.
    pub fn running(&self) -> Option<EmbedderHandle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The thread, started if it does not run.
    ///
    /// # Errors
    /// There is no thread or no memory for one.
    pub fn start(&self, limits: EmbedderLimits) -> Result<EmbedderHandle, LoadError> {
        let mut handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = &*handle {
            return Ok(handle.clone());
        }
        let started = EmbedderHandle::spawn(self.embedder.clone(), limits).map_err(LoadError::Thread)?;
        Ok(handle.insert(started).clone())
    }

    /// Tokens of one text at most: those the model has positions for, or fewer where its files say so.
    pub fn n_ctx(&self) -> usize {
        let n_ctx = self.embedder.n_ctx() as usize;
        self.files.max_tokens.map_or(n_ctx, |max_tokens| max_tokens.min(n_ctx))
    }
}

impl LoadedEmbedder {
    /// Loads the weights as planned and starts the thread. Takes seconds; blocks.
    ///
    /// # Errors
    /// [`LoadError`] says what stood in the way.
    pub fn load(
        name: &str,
        ckpt: &Checkpoint,
        plan: MemoryPlan,
        setup: &EngineSetup,
        placement: &Placement,
    ) -> Result<LoadedEmbedder, LoadError> {
        let tokenizer = Tokenizer::from_source(&ckpt.tokenizer)?;
        let embedder = Embedder::load(ckpt, placement, &ModelOptions { n_ctx: Some(plan.n_ctx) })?;
        let embeddings = Embeddings::new(embedder, ckpt.embedding.clone());
        embeddings.start(setup.embedder_limits())?;
        Ok(LoadedEmbedder { name: name.to_owned(), embeddings, tokenizer, plan })
    }
}

impl EngineSetup {
    /// What the queue and the batches of an embedder may hold: the queue is as long as an engine's.
    pub fn embedder_limits(&self) -> EmbedderLimits {
        EmbedderLimits { max_waiting: self.options.max_waiting, ..EmbedderLimits::default() }
    }
}

/// A model that generates.
#[derive(Debug)]
pub struct LoadedModel {
    pub name: String,
    pub engine: EngineHandle,
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
    /// `generation_config.json`, with the model's own parameters laid over it: see [`defaults`].
    pub generation: Map<String, Value>,
    /// What the catalogue says of it.
    pub settings: ModelSettings,
    pub plan: MemoryPlan,
    grammars: OnceLock<Result<GrammarFactory, GrammarError>>,
    /// How images are prepared, where it reads any.
    pub images: Result<ImageReader, NoImages>,
    pub embeddings: Embeddings,
    /// What it takes more once it makes vectors too.
    pub embeddings_plan: MemoryPlan,
}

impl LoadedModel {
    /// What compiles grammars for this vocabulary. The first call builds it, which takes a second for a large one;
    /// blocks.
    ///
    /// # Errors
    /// No grammar can work with this vocabulary.
    pub fn grammars(&self) -> Result<&GrammarFactory, GrammarError> {
        let built = self.grammars.get_or_init(|| GrammarFactory::for_tokenizer(&self.tokenizer));
        built.as_ref().map_err(Clone::clone)
    }

    /// Loads the weights as planned and starts the engine. Takes seconds; blocks.
    ///
    /// # Errors
    /// [`LoadError`] says what stood in the way.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn load(
        spec: &ModelSpec,
        ckpt: &Checkpoint,
        plan: MemoryPlan,
        setup: &EngineSetup,
        placement: &Placement,
    ) -> Result<LoadedModel, LoadError> {
        let tokenizer = Tokenizer::from_source(&ckpt.tokenizer)?.with_generation_config(&ckpt.generation);
        let template = template(ckpt, &tokenizer, &spec.settings)?;
        let model = Model::load_at(ckpt, placement, &ModelOptions { n_ctx: Some(plan.n_ctx) })?;
        let options = EngineOptions {
            n_ctx: Some(plan.n_ctx as usize),
            kv_bytes: Some(usize::try_from(plan.kv_bytes).unwrap_or(usize::MAX)),
            ..setup.options
        };
        let model = Arc::new(model);
        let embedder = Embedder::of_decoder(model.clone(), ckpt)?;
        let limits = setup.embedder_limits();
        let embeddings_plan = {
            let devices = embedder.devices();
            let first = devices.first().filter(|_| devices.len() > 1);
            let first = first.map(|(backend, n_layers)| (&***backend, *n_layers));
            let place = Place { first, last: &**embedder.backend() };
            MemoryPlan::for_embeddings_of(ckpt, plan.n_ctx, &setup.options, &limits, place)?
        };
        let engine = Engine::new(model, tokenizer.clone(), &options)?;
        let engine = EngineHandle::spawn(engine, &Handle::current()).map_err(LoadError::Thread)?;
        Ok(LoadedModel {
            name: spec.name.clone(),
            engine,
            template,
            generation: defaults(&ckpt.generation, &spec.settings.parameters),
            settings: spec.settings.clone(),
            plan,
            grammars: OnceLock::new(),
            images: ImageReader::of(ckpt, &tokenizer),
            tokenizer,
            embeddings: Embeddings::new(embedder, ckpt.embedding.clone()),
            embeddings_plan,
        })
    }
}

/// A model's own template, or the checkpoint's.
///
/// # Errors
/// It cannot be compiled.
pub fn template(
    ckpt: &Checkpoint,
    tokenizer: &Tokenizer,
    settings: &ModelSettings,
) -> Result<ChatTemplate, TextError> {
    match &settings.template {
        Some(source) => ChatTemplate::new(source, TemplateTokens::of(tokenizer)),
        None => ChatTemplate::for_checkpoint(ckpt, tokenizer, None),
    }
}
