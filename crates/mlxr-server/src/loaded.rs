//! One model in memory: its engine's thread, tokenizer, template and defaults.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use mlxr_checkpoint::{Checkpoint, CheckpointError};
use mlxr_engine::{Engine, EngineError, EngineHandle, EngineOptions};
use mlxr_models::{Model, ModelError, ModelOptions};
use mlxr_tensor::Backend;
use mlxr_text::grammar::{GrammarError, GrammarFactory};
use mlxr_text::{ChatTemplate, TextError, Tokenizer};
use serde_json::{Map, Value};

use crate::memory::{MemoryPlan, PlanError};

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
    pub backend: Arc<dyn Backend>,
    /// `n_ctx` and `kv_bytes` left open are chosen per model.
    pub options: EngineOptions,
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
    #[error("cannot start the engine's thread: {0}")]
    Thread(std::io::Error),
}

/// See the module.
#[derive(Debug)]
pub struct LoadedModel {
    pub name: String,
    pub engine: EngineHandle,
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
    /// `generation_config.json`.
    pub generation: Map<String, Value>,
    pub plan: MemoryPlan,
    grammars: OnceLock<Result<GrammarFactory, GrammarError>>,
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
    pub fn load(
        name: &str,
        ckpt: &Checkpoint,
        plan: MemoryPlan,
        setup: &EngineSetup,
    ) -> Result<LoadedModel, LoadError> {
        let tokenizer = Tokenizer::from_source(&ckpt.tokenizer)?.with_generation_config(&ckpt.generation);
        let template = ChatTemplate::for_checkpoint(ckpt, &tokenizer, None)?;
        let model = Model::load(ckpt, setup.backend.clone(), &ModelOptions { n_ctx: Some(plan.n_ctx) })?;
        let options = EngineOptions {
            n_ctx: Some(plan.n_ctx as usize),
            kv_bytes: Some(usize::try_from(plan.kv_bytes).unwrap_or(usize::MAX)),
            ..setup.options
        };
        let engine = Engine::new(Arc::new(model), tokenizer.clone(), &options)?;
        let engine = EngineHandle::spawn(engine).map_err(LoadError::Thread)?;
        Ok(LoadedModel {
            name: name.to_owned(),
            engine,
            tokenizer,
            template,
            generation: ckpt.generation.clone(),
            plan,
            grammars: OnceLock::new(),
        })
    }
}
