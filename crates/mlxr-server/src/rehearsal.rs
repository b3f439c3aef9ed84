//! What steps take beside weights and the arena: steps of all sizes are gone through on a stand-in of the device, whose
//! allocator counts what the device's would give out.

use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::EngineOptions;
use mlxr_models::{Model, ModelError, ModelKv, ModelOptions};
use mlxr_tensor::{Act, Backend, Batch, MAX_LARGEST, Pixels, TensorError};

/// Bytes that `device` takes for a model beside the arena once it has computed steps of all sizes, those of its weights
/// included where it has memory of its own; `None` where it has no stand-in.
///
/// # Errors
/// The model's files make no sense, or the device has no buffers of such sizes.
pub(crate) fn rehearsed_bytes(
    device: &dyn Backend,
    ckpt: &Checkpoint,
    options: &EngineOptions,
    n_ctx: u32,
) -> Result<Option<u64>, ModelError> {
    let Some(stand_in) = device.rehearsal() else { return Ok(None) };
    let taken = || stand_in.allocated_bytes().unwrap_or_default();
    let at_first = taken();
    let model = Model::load(ckpt, stand_in.clone(), &ModelOptions { n_ctx: Some(n_ctx) })?;
    let without_arena = taken();
    // One block stands for all: nothing is stored.
    let kv = model.kv_cache(&model.kv_spec(1, options.block_tokens, options.kv_dtype))?;
    let arena = taken() - without_arena;
    let n_ctx = n_ctx.max(1) as usize;
    Rehearsal { model: &model, device: &stand_in, options, n_ctx, kv }.run()?;
    let vocab = model.config().vocab;
    // The host reads logits into memory of its own.
    let read =
        if stand_in.memory().is_some() { 0 } else { options.max_logit_rows * vocab * size_of::<f32>() };
    Ok(Some(taken() - at_first - arena + read as u64))
}

struct Rehearsal<'a> {
    model: &'a Model,
    device: &'a Arc<dyn Backend>,
    options: &'a EngineOptions,
    n_ctx: usize,
    kv: ModelKv,
}

impl Rehearsal<'_> {
    /// Scratch comes in powers of two, so steps of as many rows meet all that those between them do.
    fn run(mut self) -> Result<(), TensorError> {
        let sizes = |most: usize| (0..).map(|n| 1usize << n).take_while(move |n| *n < most).chain([most]);
        let (n_rows, n_seqs) = (self.options.max_batch_tokens.max(1), self.options.max_seqs.max(1));
        let prompts = sizes(n_rows).map(|n| (self.n_ctx, n)).collect::<Vec<_>>();
        let decode = sizes(n_seqs.min(n_rows)).map(|n| (1, n)).collect::<Vec<_>>();
        // The logits of a step are still there while the next is recorded.
        let mut before = None;
        for (seq_rows, n_rows) in prompts.into_iter().chain(decode) {
            let logits = self.step(seq_rows, n_rows)?;
            drop(before.replace(logits));
        }
        if let Some(tower) = self.model.vision() {
            let shape = tower.config().image_shape();
            let blank = Pixels::new(shape, vec![0.0; shape.iter().product()]);
            tower.rows(&blank, &mut tower.scratch()?)?;
        }
        Ok(())
    }

    /// A step of `n_rows`, at most `seq_rows` of each sequence, at the end of the context.
    fn step(&mut self, seq_rows: usize, n_rows: usize) -> Result<Act, TensorError> {
        let block_tokens = self.options.block_tokens;
        let table = vec![0; self.n_ctx.div_ceil(block_tokens)];
        let mut batch = Batch::new();
        for first in (0..n_rows).step_by(seq_rows) {
            let n = seq_rows.min(n_rows - first);
            batch.push(&vec![0; n], (self.n_ctx - n) as u32, &table, block_tokens);
        }
        let n_outputs = n_rows.min(self.options.max_logit_rows.max(1));
        batch.output_rows = ((n_rows - n_outputs) as u32..n_rows as u32).collect();
        let logits = self.model.forward(&batch, &mut self.kv)?;
        if self.device.memory().is_some() {
            self.device.ranked(&logits, MAX_LARGEST)?;
        }
        self.device.read(&logits)?;
        Ok(logits)
    }
}
