//! What the engine asks of a model: run a batch, give the logits of each row, or the largest of them.

use std::any::Any;
use std::sync::Arc;

use mlxr_models::{Model, ModelKv, SavedBlocks};
use mlxr_tensor::{
    Act, Backend, Batch, BlockCopy, DeviceTokens, Guess, GuessedToken, KvCache, KvSpec, MAX_LARGEST, Pixels,
    Ranked, Rows, RowsWanted, TensorError, argmax, largest,
};

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

    /// As [`Self::run`], for a step in which nobody needs more of a row than where [`argmax`] finds its largest value:
    /// a device then hands out one number per row and keeps the rest.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_best(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<Option<u32>>, TensorError> {
        let logits = self.run(copies, batch)?;
        Ok(logits.chunks_exact(self.n_vocab()).map(argmax).collect())
    }

    /// As [`Self::run_best`], for a step in which nobody needs more of a row than what [`largest`] gives of it; nothing
    /// of rows that are no distribution. `n` is at most [`MAX_LARGEST`].
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_largest(
        &mut self,
        copies: &[BlockCopy],
        batch: &Batch,
        n: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        let logits = self.run(copies, batch)?;
        let of_row = |row: &[f32]| argmax(row).map_or_else(Vec::new, |_| largest(row, n));
        Ok(logits.chunks_exact(self.n_vocab()).map(of_row).collect())
    }

    /// As [`Self::run_largest`], for a step in which most need no more of a row than what [`Ranked`] says, and some may
    /// need the logits after all. How many of the largest are worth finding is the runner's to know.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn run_ranked(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<RankedLogits, TensorError> {
        let logits = self.run(copies, batch)?;
        let n_vocab = self.n_vocab();
        let rows = logits.chunks_exact(n_vocab).map(|row| Ranked::of(row, MAX_LARGEST)).collect();
        let of_rows = move |rows: &[u32]| {
            let row = |&row: &u32| &logits[row as usize * n_vocab..][..n_vocab];
            Ok(rows.iter().flat_map(row).copied().collect())
        };
        Ok(RankedLogits { rows, logits: Box::new(of_rows) })
    }

    /// Starts a step that a device computes while the host goes on, and does not wait for it. Where the batch is fed, the
    /// tokens are those of the step before. `None` from a runner that computes while it is asked: nothing has happened.
    fn start(
        &mut self,
        copies: &[BlockCopy],
        batch: &Batch,
        wanted: RowsWanted,
        guesses: &[Guess],
    ) -> Option<Result<Started, TensorError>> {
        let _ = (copies, batch, wanted, guesses);
        None
    }

    /// The images that the model reads, if it does.
    fn images(&self) -> Option<ImageSpec> {
        None
    }

    /// The rows that take an image's place in a prompt, as wide as the model. Asked only of a runner that reads images.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn image_rows(&mut self, image: &Pixels) -> Result<Vec<f32>, TensorError> {
        let reason = format!("{image:?} was to be read");
        Err(TensorError::DeviceLost { backend: "runner", reason })
    }

    /// Copies blocks out of the arena, for [`Self::load_blocks`]. A runner that cannot says so; the engine asks only
    /// where blocks are to be kept.
    ///
    /// # Errors
    /// As [`Self::run`].
    fn save_blocks(&mut self, blocks: &[u32]) -> Result<Box<dyn Any + Send>, TensorError> {
        let reason = format!("{} blocks were to be kept", blocks.len());
        Err(TensorError::DeviceLost { backend: "runner", reason })
    }

    /// Gives `blocks` what was saved, from the saved block `first` on.
    ///
    /// # Panics
    /// When `saved` is not from this runner's [`Self::save_blocks`].
    fn load_blocks(&mut self, blocks: &[u32], saved: &(dyn Any + Send), first: usize) {
        let _ = (saved, first);
        panic!("{} blocks were not saved by this runner", blocks.len());
    }

    /// Takes back logits that nobody reads any more, for their memory.
    fn recycle(&mut self, logits: Vec<f32>) {
        drop(logits);
    }

    /// Says that there is nothing to run for now: memory kept for the next step may go.
    fn rest(&mut self) {}

    /// Calls `work` for every number below `n`, on several threads if it has them.
    fn parallel(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        (0..n).for_each(work);
    }
}

/// What a model reads as an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// The placeholder in a prompt.
    pub token: u32,
    /// Rows of a prompt that an image takes.
    pub n_rows: usize,
    /// Channels, lines and columns.
    pub shape: [usize; 3],
}

/// What [`Runner::run_ranked`] gives.
pub struct RankedLogits {
    pub rows: Vec<Ranked>,
    pub logits: Box<ReadRows>,
}

/// What a step gave, row after row.
pub enum Output {
    Logits(Vec<f32>),
    Best(Vec<Option<u32>>),
    Largest(Vec<Vec<(u32, f32)>>),
    Ranked(RankedLogits),
}

/// A step that a device computes. Dropping it gives up what comes of it.
pub struct Started {
    /// The tokens the device guesses for the output rows.
    pub tokens: DeviceTokens,
    finish: Box<dyn FnOnce() -> Result<Finished, TensorError> + Send>,
}

/// What a started step gave.
pub struct Finished {
    pub output: Output,
    /// What the device guessed of each output row.
    pub guesses: Vec<GuessedToken>,
}

impl Started {
    /// A step that `finish` waits for.
    pub fn new(
        tokens: DeviceTokens,
        finish: impl FnOnce() -> Result<Finished, TensorError> + Send + 'static,
    ) -> Started {
        Started { tokens, finish: Box::new(finish) }
    }

    /// Waits for the step.
    ///
    /// # Errors
    /// As [`Runner::run`].
    pub fn finish(self) -> Result<Finished, TensorError> {
        (self.finish)()
    }
}

/// Reads the logits of these rows, one after the other.
pub type ReadRows = dyn Fn(&[u32]) -> Result<Vec<f32>, TensorError> + Send;

/// How many of the largest logits the host looks for first: they nearly always hold what top-p keeps, and more would take
/// as long to sort as the rest is worth.
const N_RANKED_ON_HOST: usize = 64;

/// A decoder on its devices.
pub struct ModelRunner {
    model: Arc<Model>,
    kv: ModelKv,
    /// Where images are computed, once there has been one.
    image_scratch: Option<KvCache>,
    /// Where the next logits go: fresh memory would be cleared page by page in every step.
    spare: Vec<f32>,
}

impl ModelRunner {
    /// Allocates the arena.
    ///
    /// # Errors
    /// [`TensorError`] when a device cannot hold it.
    pub fn new(model: Arc<Model>, spec: &KvSpec) -> Result<Self, TensorError> {
        let kv = model.kv_cache(spec)?;
        Ok(Self { model, kv, image_scratch: None, spare: Vec::new() })
    }

    fn forward(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Act, TensorError> {
        if !copies.is_empty() {
            self.kv.copy_blocks(copies);
        }
        self.model.forward(batch, &mut self.kv)
    }
}

/// Rows with the logits behind them, which are read where they are needed.
fn ranked_logits(rows: Vec<Ranked>, backend: Arc<dyn Backend>, logits: Act) -> RankedLogits {
    let of_rows = move |rows: &[u32]| backend.read(&backend.gather_rows(&logits, rows));
    RankedLogits { rows, logits: Box::new(of_rows) }
}

impl Runner for ModelRunner {
    fn n_vocab(&self) -> usize {
        self.model.config().vocab
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        let logits = self.forward(copies, batch)?;
        // A step of silent chunks has nothing to read, but its failure must not surface in a later step.
        let mut values = std::mem::take(&mut self.spare);
        self.model.backend().read_into(&logits, &mut values)?;
        Ok(values)
    }

    fn run_best(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<Option<u32>>, TensorError> {
        let logits = self.forward(copies, batch)?;
        self.model.backend().argmax(&logits)
    }

    fn run_largest(
        &mut self,
        copies: &[BlockCopy],
        batch: &Batch,
        n: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>, TensorError> {
        let logits = self.forward(copies, batch)?;
        self.model.backend().largest(&logits, n)
    }

    fn run_ranked(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<RankedLogits, TensorError> {
        let logits = self.forward(copies, batch)?;
        let backend = self.model.backend().clone();
        // What a device finds is there for the asking, while to read a row takes as long as a small step.
        let n = if backend.memory().is_some() { MAX_LARGEST } else { N_RANKED_ON_HOST };
        let rows = backend.ranked(&logits, n)?;
        Ok(ranked_logits(rows, backend, logits))
    }

    fn start(
        &mut self,
        copies: &[BlockCopy],
        batch: &Batch,
        wanted: RowsWanted,
        guesses: &[Guess],
    ) -> Option<Result<Started, TensorError>> {
        // Between two devices the rows of a step pass through the host, which waits for them.
        let is_whole = self.model.devices().count() == 1;
        let backend = self.model.backend().clone();
        backend.ahead().filter(|_| is_whole)?;
        let started = self.forward(copies, batch).and_then(|logits| {
            let ahead = backend.ahead().expect("seen above");
            let rows = ahead.start_rows(&logits, wanted, guesses)?;
            Ok((logits, rows))
        });
        Some(started.map(|(logits, rows)| {
            Started::new(rows.tokens.clone(), move || {
                let ahead = backend.ahead().expect("it has started the step");
                let (rows, guesses) = ahead.finish_rows(rows)?;
                let output = match rows {
                    Rows::Best(best) => Output::Best(best),
                    Rows::Largest(rows) => Output::Largest(rows),
                    Rows::All(logits) => Output::Logits(logits),
                    Rows::Ranked(rows) => Output::Ranked(ranked_logits(rows, backend.clone(), logits)),
                };
                Ok(Finished { output, guesses })
            })
        }))
    }

    fn images(&self) -> Option<ImageSpec> {
        let config = self.model.vision()?.config();
        Some(ImageSpec { token: config.image_token, n_rows: config.n_rows(), shape: config.image_shape() })
    }

    fn image_rows(&mut self, image: &Pixels) -> Result<Vec<f32>, TensorError> {
        let tower = self.model.vision().expect("asked of a model that reads images");
        let scratch = match &mut self.image_scratch {
            Some(scratch) => scratch,
            none => none.insert(tower.scratch()?),
        };
        tower.rows(image, scratch)
    }

    fn save_blocks(&mut self, blocks: &[u32]) -> Result<Box<dyn Any + Send>, TensorError> {
        Ok(Box::new(self.kv.read_blocks(blocks)?))
    }

    fn load_blocks(&mut self, blocks: &[u32], saved: &(dyn Any + Send), first: usize) {
        let saved = saved.downcast_ref::<SavedBlocks>().expect("what this runner has saved");
        self.kv.write_blocks(blocks, saved, first);
    }

    fn recycle(&mut self, logits: Vec<f32>) {
        self.spare = logits;
    }

    fn rest(&mut self) {
        self.spare = Vec::new();
        self.model.devices().for_each(|(backend, _)| backend.rest());
    }

    fn parallel(&self, n: usize, work: &(dyn Fn(usize) + Sync)) {
        // Of a model on two devices, the first is the one with threads of the host.
        if let Some((backend, _)) = self.model.devices().next() {
            backend.parallel(n, work);
        }
    }
}
