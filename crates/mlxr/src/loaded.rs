//! A model on its backend, with an arena for keys and values: what measuring commands drive directly.

use std::sync::Arc;

use anyhow::Context;
use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{ModelRunner, Runner, Started};
use mlxr_models::{Model, ModelError, ModelOptions, Placement};
use mlxr_tensor::{Batch, BlockCopy, DType, Guess, KvSpec, RowsWanted};

use crate::failure::failure;

/// Tokens per KV block.
pub const BLOCK_TOKENS: usize = 16;

/// Whether a model generates, which one made for vectors or scores does not.
pub fn check_generates(ckpt: &Checkpoint) -> anyhow::Result<()> {
    if ckpt.is_embedder() {
        let message = format!("{} is an embedding model: it generates no text", ckpt.path.display());
        return Err(failure(message, "`mlxr embed` makes vectors of texts, `mlxr rerank` scores documents"));
    }
    Ok(())
}

/// Loads the weights of a checkpoint.
pub fn model(ckpt: &Checkpoint, placement: &Placement, n_ctx: Option<u32>) -> anyhow::Result<Model> {
    check_generates(ckpt)?;
    let hint = |error: &ModelError| match error {
        ModelError::ContextTooLong { n_ctx_max, .. } => format!("\nhint: give --ctx at most {n_ctx_max}"),
        _ => String::new(),
    };
    Model::load_at(ckpt, placement, &ModelOptions { n_ctx }).map_err(|error| {
        let context = format!("cannot load the model {}{}", ckpt.path.display(), hint(&error));
        anyhow::Error::from(error).context(context)
    })
}

/// Some sequences of a fixed length that grow by whole batches of rows, without a scheduler.
pub struct Sequences {
    pub model: Arc<Model>,
    runner: ModelRunner,
    kv_spec: KvSpec,
    /// The blocks of each sequence.
    tables: Vec<Vec<u32>>,
    /// Tokens stored of each sequence.
    n_stored: Vec<u32>,
}

impl Sequences {
    /// Room for `n_seqs` sequences of `n_ctx` tokens.
    pub fn new(model: Model, kv_type: DType, n_seqs: usize, n_ctx: u32) -> anyhow::Result<Sequences> {
        let n_blocks = (n_ctx as usize).div_ceil(BLOCK_TOKENS);
        let kv_spec = model.kv_spec(n_blocks * n_seqs, BLOCK_TOKENS, kv_type);
        let model = Arc::new(model);
        let runner = ModelRunner::new(model.clone(), &kv_spec)
            .context("cannot allocate the keys and values\nhint: try a smaller --ctx")?;
        let (tables, n_stored) = (vec![Vec::new(); n_seqs], vec![0; n_seqs]);
        let mut sequences = Sequences { model, runner, kv_spec, tables, n_stored };
        sequences.lay_out(false);
        Ok(sequences)
    }

    /// Forgets everything, and gives each sequence blocks that follow each other, or none that do.
    pub fn lay_out(&mut self, is_scattered: bool) {
        let n_seqs = self.tables.len();
        let n_blocks = self.kv_spec.n_blocks / n_seqs;
        for (seq, table) in self.tables.iter_mut().enumerate() {
            let block =
                |i: usize| if is_scattered { (n_blocks - 1 - i) * n_seqs + seq } else { seq * n_blocks + i };
            *table = (0..n_blocks).map(|i| block(i) as u32).collect();
        }
        self.truncate(0);
    }

    /// Forgets what is stored beyond the first `n_tokens` of every sequence.
    pub fn truncate(&mut self, n_tokens: u32) {
        for n_stored in &mut self.n_stored {
            *n_stored = n_tokens.min(*n_stored);
        }
    }

    /// A batch that appends `tokens` to sequence `seq`; more can be added before it runs.
    pub fn append(&mut self, batch: &mut Batch, seq: usize, tokens: &[u32]) {
        batch.push(tokens, self.n_stored[seq], &self.tables[seq], BLOCK_TOKENS);
        self.n_stored[seq] += tokens.len() as u32;
    }

    /// Stores copies of what sequence `seq` has, whole blocks of it over and over, and then `last`, its `n_tokens`th token.
    pub fn repeat(&mut self, seq: usize, n_tokens: u32, last: u32) -> anyhow::Result<()> {
        let table = &self.tables[seq];
        let n_whole = self.n_stored[seq] as usize / BLOCK_TOKENS;
        assert!(n_whole > 0, "a whole block to copy");
        let blocks = n_whole..(n_tokens as usize).div_ceil(BLOCK_TOKENS);
        let copies: Vec<BlockCopy> =
            blocks.map(|i| BlockCopy { from: table[i % n_whole], to: table[i] }).collect();
        self.n_stored[seq] = n_tokens - 1;
        let mut batch = Batch::new();
        self.append(&mut batch, seq, &[last]);
        batch.want_last();
        self.runner.run_best(&copies, &batch)?;
        Ok(())
    }

    /// Runs a batch. Returns the logits `[n_output_rows, vocab]` once they are computed.
    pub fn forward(&mut self, batch: &Batch) -> anyhow::Result<Vec<f32>> {
        Ok(self.runner.run(&[], batch)?)
    }

    /// Runs a batch. Returns the most likely token of each output row, as the device finds it.
    pub fn best(&mut self, batch: &Batch) -> anyhow::Result<Vec<Option<u32>>> {
        Ok(self.runner.run_best(&[], batch)?)
    }

    /// Begins a batch that ends with the most likely token of each output row known, as the engine does: a device computes
    /// it while the host goes on, others have computed it when this returns.
    pub fn start_best(&mut self, batch: &Batch) -> anyhow::Result<Option<Started>> {
        let guesses = vec![Guess::BEST; batch.output_rows.len()];
        match self.runner.start(&[], batch, RowsWanted::Best, &guesses) {
            Some(started) => Ok(Some(started?)),
            None => {
                self.best(batch)?;
                Ok(None)
            }
        }
    }

    /// Bytes of keys and values that one decoded token reads when `n_tokens` are stored.
    pub fn kv_bytes_read(&self, n_tokens: f64) -> f64 {
        self.kv_spec.bytes_per_token().unwrap_or(0) as f64 * n_tokens
    }
}

#[cfg(test)]
mod tests {
    use mlxr_kernels::{CpuBackend, CpuOptions};
    use mlxr_models::SavedBlocks;

    use super::*;

    #[test]
    fn repeated_tokens_are_copies_of_the_computed_ones() {
        let ckpt = crate::bundled::open().expect("the bundled model");
        let backend = CpuBackend::new(CpuOptions { n_threads: Some(1), isa: None }).expect("a CPU");
        let model = model(&ckpt, &Placement::whole(Arc::new(backend)), Some(96)).expect("a model");
        let mut sequences = Sequences::new(model, DType::F16, 1, 96).expect("an arena");
        let mut batch = Batch::new();
        let tokens: Vec<u32> = (1..=36).collect();
        sequences.append(&mut batch, 0, &tokens);
        batch.want_last();
        sequences.forward(&batch).expect("logits");
        sequences.repeat(0, 70, 7).expect("a step");
        assert_eq!(sequences.n_stored, [70]);
        let mut block = |i: usize| {
            let saved = sequences.runner.save_blocks(&[sequences.tables[0][i]]).expect("a block");
            format!("{:?}", saved.downcast::<SavedBlocks>().expect("saved blocks"))
        };
        assert_ne!(block(0), block(1));
        // The third block was not whole, the fifth ends with the last token, and the sixth is not needed.
        assert_eq!([block(2), block(3)], [block(0), block(1)]);
        assert_ne!(block(4), block(0));
        assert_ne!(block(5), block(1));
    }
}
