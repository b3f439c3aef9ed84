//! What the engine asks of a model: run a batch, give the logits.

use std::sync::Arc;

use mlxr_models::Model;
use mlxr_tensor::{Backend, Batch, BlockCopy, KvCache, KvSpec, TensorError};

/// Owns the model's KV arena and runs one step on it.
///
/// The engine is tested against a runner that computes nothing but checks every slot it is given.
pub trait Runner: Send {
    /// Columns of a row of logits.
    fn n_vocab(&self) -> usize;

    /// Runs the copies in order, then the batch. Returns the logits of `batch.output_rows`, row after row.
    ///
    /// # Errors
    /// The device failed; the sequences of this batch are lost.
    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError>;

    /// Takes back logits that nobody reads any more, for their memory.
    fn recycle(&mut self, logits: Vec<f32>) {
        drop(logits);
    }

    /// Calls `work` for every number below `n`, on several threads if it has them.
    fn parallel(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(work);
    }
}

/// A decoder on its backend.
pub struct ModelRunner {
    model: Arc<Model>,
    kv: KvCache,
    /// Where the next logits go: fresh memory would be cleared page by page in every step.
    spare: Vec<f32>,
}

impl ModelRunner {
    /// Allocates the arena.
    ///
    /// # Errors
    /// [`TensorError`] when the backend cannot hold it.
    pub fn new(model: Arc<Model>, spec: &KvSpec) -> Result<Self, TensorError> {
        let kv = model.backend().kv_cache(spec)?;
        Ok(Self { model, kv, spare: Vec::new() })
    }
}

impl Runner for ModelRunner {
    fn n_vocab(&self) -> usize {
        self.model.config().vocab
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        let backend: &dyn Backend = &**self.model.backend();
        if !copies.is_empty() {
            backend.copy_blocks(&mut self.kv, copies);
        }
        let logits = self.model.forward(batch, &mut self.kv);
        // A step of silent chunks has nothing to read, but its failure must not surface in a later step.
        let mut values = std::mem::take(&mut self.spare);
        backend.read_into(&logits, &mut values)?;
        Ok(values)
    }

    fn recycle(&mut self, logits: Vec<f32>) {
        self.spare = logits;
    }

    fn parallel(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        self.model.backend().parallel(n, work);
    }
}
