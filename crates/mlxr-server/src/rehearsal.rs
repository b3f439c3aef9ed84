//! What steps take beside weights and the arena: steps of all sizes are gone through on stand-ins of the devices, whose
//! allocators count what those of the devices would give out.

use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{EmbedderLimits, EngineOptions};
use mlxr_models::{Embedder, Model, ModelError, ModelKv, ModelOptions, Placement, Text};
use mlxr_tensor::{Act, Backend, Batch, MAX_LARGEST, Pixels, TensorError};

/// The devices a model is to be on.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The device of the first layers and how many these are, where it is another one.
    pub first: Option<(&'a dyn Backend, usize)>,
    /// That of all others.
    pub last: &'a dyn Backend,
}

/// Bytes of each device of a [`Place`]: those beside the arena, with weights where the device has memory of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub first: u64,
    pub last: u64,
}

/// What a model takes once it has computed steps of all sizes; `None` where a device has no stand-in.
///
/// # Errors
/// The model's files make no sense, or a device has no buffers of such sizes.
pub(crate) fn of_decoder(
    place: Place<'_>,
    ckpt: &Checkpoint,
    options: &EngineOptions,
    n_ctx: u32,
) -> Result<Option<Taken>, ModelError> {
    let Some(mut stand_ins) = StandIns::of(place) else { return Ok(None) };
    let model = Model::load_at(ckpt, &stand_ins.placement(), &ModelOptions { n_ctx: Some(n_ctx) })?;
    // One block stands for all: nothing is stored.
    let spec = model.kv_spec(1, options.block_tokens, options.kv_dtype);
    let kv = stand_ins.uncounted(|| model.kv_cache(&spec))?;
    Rehearsal { model: &model, device: model.backend(), options, n_ctx: n_ctx.max(1) as usize, kv }.run()?;
    let (vocab, hidden) = (model.config().vocab, model.config().hidden);
    let mut taken = stand_ins.taken();
    // The host reads logits, and rows that change devices, into memory of its own.
    let logits = (options.max_logit_rows * vocab * size_of::<f32>()) as u64;
    match stand_ins.first {
        Some(_) => taken.first += logits + (options.max_batch_tokens * hidden * size_of::<f32>()) as u64,
        None if stand_ins.last.device.memory().is_none() => taken.last += logits,
        None => {}
    }
    Ok(Some(taken))
}

/// What a model that makes vectors takes once it has computed batches of all sizes; `None` where there is no stand-in.
///
/// # Errors
/// As [`of_decoder`].
pub(crate) fn of_embedder(
    device: &dyn Backend,
    ckpt: &Checkpoint,
    limits: &EmbedderLimits,
    n_ctx: u32,
) -> Result<Option<u64>, ModelError> {
    let Some(mut stand_ins) = StandIns::of(Place { first: None, last: device }) else { return Ok(None) };
    let embedder = Embedder::load(ckpt, &stand_ins.placement(), &ModelOptions { n_ctx: Some(n_ctx) })?;
    run_batches(&embedder, &mut stand_ins, limits)?;
    Ok(Some(stand_ins.taken().last))
}

/// What a generating model takes more once it makes vectors too: the most of any of its devices.
///
/// # Errors
/// As [`of_decoder`].
pub(crate) fn of_embeddings_of(
    place: Place<'_>,
    ckpt: &Checkpoint,
    limits: &EmbedderLimits,
    n_ctx: u32,
) -> Result<Option<u64>, ModelError> {
    let Some(mut stand_ins) = StandIns::of(place) else { return Ok(None) };
    let placement = stand_ins.placement();
    let load = || {
        let model = Model::load_at(ckpt, &placement, &ModelOptions { n_ctx: Some(n_ctx) })?;
        Embedder::of_decoder(Arc::new(model), ckpt)
    };
    let embedder = stand_ins.uncounted(load)?;
    run_batches(&embedder, &mut stand_ins, limits)?;
    let Taken { first, last } = stand_ins.taken();
    Ok(Some(first.max(last)))
}

struct StandIn {
    device: Arc<dyn Backend>,
    uncounted: u64,
}

impl StandIn {
    fn of(device: &dyn Backend) -> Option<StandIn> {
        let device = device.rehearsal()?;
        let uncounted = device.allocated_bytes()?;
        Some(StandIn { device, uncounted })
    }

    fn allocated(&self) -> u64 {
        self.device.allocated_bytes().unwrap_or_default()
    }
}

struct StandIns {
    first: Option<(StandIn, usize)>,
    last: StandIn,
}

impl StandIns {
    fn of(place: Place<'_>) -> Option<StandIns> {
        let first = match place.first {
            Some((device, n_layers)) => Some((StandIn::of(device)?, n_layers)),
            None => None,
        };
        Some(StandIns { first, last: StandIn::of(place.last)? })
    }

    fn placement(&self) -> Placement {
        let whole = Placement::whole(self.last.device.clone());
        match &self.first {
            Some((first, n_layers)) => whole.with_first(*n_layers, first.device.clone()),
            None => whole,
        }
    }

    /// What `make` allocates does not count.
    fn uncounted<T>(&mut self, make: impl FnOnce() -> T) -> T {
        let of_each = |stand_ins: &StandIns| {
            [stand_ins.first.as_ref().map_or(0, |(first, _)| first.allocated()), stand_ins.last.allocated()]
        };
        let before = of_each(self);
        let made = make();
        let [first, last] = of_each(self);
        if let Some((stand_in, _)) = &mut self.first {
            stand_in.uncounted += first - before[0];
        }
        self.last.uncounted += last - before[1];
        made
    }

    fn taken(&self) -> Taken {
        let of = |stand_in: &StandIn| stand_in.allocated() - stand_in.uncounted;
        Taken { first: self.first.as_ref().map_or(0, |(first, _)| of(first)), last: of(&self.last) }
    }
}

/// Scratch comes in powers of two, so steps of as many rows meet all that those between them do.
fn sizes(most: usize) -> impl Iterator<Item = usize> {
    (0..).map(|n| 1usize << n).take_while(move |n| *n < most).chain([most])
}

/// Batches of all sizes, each with as few and with as many texts as can be.
fn run_batches(
    embedder: &Embedder,
    stand_ins: &mut StandIns,
    limits: &EmbedderLimits,
) -> Result<(), TensorError> {
    let n_ctx = embedder.n_ctx().max(1) as usize;
    let (most, n_texts) = (limits.max_batch_tokens.max(n_ctx), limits.max_batch_texts.max(1));
    let mut scratch = stand_ins.uncounted(|| embedder.scratch(most, n_texts))?;
    for n_tokens in sizes(most) {
        for len in [n_ctx.min(n_tokens), n_tokens.div_ceil(n_texts)] {
            // A text with kinds of tokens takes more than one without.
            let text = |n: usize| Text { tokens: vec![0; n], types: vec![0; n] };
            let texts = (0..n_tokens).step_by(len).map(|first| text(len.min(n_tokens - first)));
            let texts: Vec<Text> = texts.take(n_texts).collect();
            embedder.run(&texts, &mut scratch)?;
        }
    }
    Ok(())
}

struct Rehearsal<'a> {
    model: &'a Model,
    /// Of the last layer.
    device: &'a Arc<dyn Backend>,
    options: &'a EngineOptions,
    n_ctx: usize,
    kv: ModelKv,
}

impl Rehearsal<'_> {
    fn run(mut self) -> Result<(), TensorError> {
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
