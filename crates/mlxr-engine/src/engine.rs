//! The engine of one model: requests in, events out, one step at a time.
//!
//! It is synchronous and belongs to one thread. [`Engine::step`] never waits for more than one forward; where a device
//! computes, the next one has begun by then (`ahead.rs`).
//! Invariant: every accepted request ends in exactly one [`Event::Finish`](crate::Event::Finish), also when it is
//! cancelled or its forward panics.

use std::any::Any;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mlxr_models::Model;
use mlxr_tensor::{DType, KvSpec, TensorError};
use mlxr_text::{Detokenizer, StopMatcher, Tokenizer};

use crate::ahead::InFlight;
use crate::choice::{Active, Choice};
use crate::event::{Event, FinishReason, PromptToken};
use crate::images::{self, ImageKeys, PlacedImage};
use crate::kv::{BlockTables, CacheStats, EvictionLimits, IntegrityError, OverflowStats, PoolStats};
use crate::loop_guard::LoopGuard;
use crate::pacing::{Pace, PaceStats, Pacer};
use crate::request::{Prompt, Request, SubmitError};
use crate::runner::{ModelRunner, Runner};
use crate::sampler::{Sampler, SamplingParams};
use crate::scheduler::{Limits, NewSequence, PromptLogits, Scheduler};
use crate::{RequestId, SeqId};

/// Sizes and limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens of one sequence at most; `None` is the model's context.
    pub n_ctx: Option<usize>,
    /// Bytes of the KV arena; `None` holds one sequence of `n_ctx`, which any number of shorter ones share.
    pub kv_bytes: Option<usize>,
    /// One of [`KvSpec::DTYPES`].
    pub kv_dtype: DType,
    /// Bytes of host memory for what sequences had stored whose blocks the arena needs for others; it then comes back in
    /// place of being computed again.
    pub host_kv_bytes: usize,
    /// 16 or 32.
    pub block_tokens: usize,
    /// Rows of one step. More prefill faster, fewer keep the time between tokens short.
    pub max_batch_tokens: usize,
    /// Rows of one step whose logits are read back: `max_logit_rows * n_vocab * 4` bytes.
    pub max_logit_rows: usize,
    /// Sequences that run at a time.
    pub max_seqs: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Steps of waiting that weigh as much as one level of priority.
    pub aging_steps: u32,
    /// The time between two tokens of a sequence that 95 of 100 should not exceed: the batch grows only while it holds.
    /// `None` lets every step take what the other limits allow.
    pub target_itl: Option<Duration>,
    /// Keep full blocks to be found again by requests that begin alike.
    pub prefix_cache: bool,
    /// When more of the arena than this is in use or cached, blocks that nobody uses are given up...
    pub cache_above_percent: u8,
    /// ...down to this.
    pub cache_down_to_percent: u8,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            n_ctx: None,
            kv_bytes: None,
            kv_dtype: DType::F16,
            host_kv_bytes: 0,
            block_tokens: 16,
            max_batch_tokens: 512,
            max_logit_rows: 64,
            max_seqs: 32,
            max_waiting: 256,
            aging_steps: 256,
            target_itl: None,
            prefix_cache: true,
            cache_above_percent: 90,
            cache_down_to_percent: 70,
        }
    }
}

/// Why an engine cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{field} is {value}, but must be {expected}")]
    Option { field: &'static str, value: String, expected: &'static str },
    #[error("{kv_bytes} bytes of KV cache hold {n_tokens} tokens, fewer than the context of {n_ctx}")]
    KvTooSmall { kv_bytes: usize, n_tokens: usize, n_ctx: usize },
    #[error("{dtype} cannot store this model's keys and values: a head is no whole number of quant blocks")]
    KvType { dtype: DType },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Why a text could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    #[error("the engine has other requests to run")]
    Busy,
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("the forward failed: {reason}")]
    Failed { reason: String },
}

/// What an engine has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    pub n_waiting: usize,
    pub n_running: usize,
    pub n_steps: u64,
    /// Rows run, recomputed ones included.
    pub n_rows: u64,
    pub n_generated: u64,
    pub n_preemptions: u64,
    pub n_block_copies: u64,
    pub blocks: PoolStats,
    pub cache: CacheStats,
    /// What is kept of preempted sequences outside of the arena.
    pub overflow: OverflowStats,
    /// Where there is a target for the time between two tokens.
    pub pace: Option<PaceStats>,
}

/// See the module.
pub struct Engine {
    pub(crate) runner: Box<dyn Runner>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) scheduler: Scheduler,
    pub(crate) choices: BTreeMap<SeqId, Choice>,
    /// The next step, if it has begun.
    pub(crate) ahead: Option<InFlight>,
    image_keys: ImageKeys,
    /// What preempted sequences had stored.
    pub(crate) kept: BTreeMap<SeqId, Box<dyn Any + Send>>,
    pub(crate) active: BTreeMap<RequestId, Active>,
    pub(crate) events: Vec<Event>,
    pub(crate) n_rows: u64,
    pub(crate) n_generated: u64,
    pub(crate) n_steps: u64,
    /// Sequences in the queue, for whoever may not ask while a step runs.
    pub(crate) n_waiting: Arc<AtomicUsize>,
    /// When the last step ended, if there has been work since.
    pub(crate) last_step: Option<Instant>,
    pub(crate) pacer: Option<Pacer>,
    pub(crate) clock: Clock,
    next_id: u64,
    n_ctx: usize,
    max_waiting: usize,
}

/// Tells the time: [`Instant::now`], but for tests.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

impl Engine {
    /// An engine for `model`, with its KV arena allocated.
    ///
    /// # Errors
    /// [`EngineError`] when an option makes no sense or the arena cannot be had.
    pub fn new(
        model: Arc<Model>,
        tokenizer: Tokenizer,
        options: &EngineOptions,
    ) -> Result<Engine, EngineError> {
        let n_ctx_model = model.n_ctx() as usize;
        let n_ctx = options.n_ctx.unwrap_or(n_ctx_model);
        if n_ctx > n_ctx_model {
            return Err(bad_option("n_ctx", n_ctx, "at most the context the model was opened with"));
        }
        options.validate(n_ctx)?;
        let one = model.kv_spec(1, options.block_tokens, options.kv_dtype);
        let block_bytes = one.n_bytes().ok_or(EngineError::KvType { dtype: options.kv_dtype })?;
        let n_blocks = match options.kv_bytes {
            None => n_ctx.div_ceil(options.block_tokens),
            Some(kv_bytes) => kv_bytes / block_bytes.max(1),
        };
        let n_tokens = n_blocks * options.block_tokens;
        if n_tokens < n_ctx {
            let kv_bytes = options.kv_bytes.unwrap_or(0);
            return Err(EngineError::KvTooSmall { kv_bytes, n_tokens, n_ctx });
        }
        let spec = model.kv_spec(n_blocks, options.block_tokens, options.kv_dtype);
        let runner = Box::new(ModelRunner::new(model, &spec)?);
        let options = EngineOptions { n_ctx: Some(n_ctx), ..*options };
        let engine = Engine::with_runner(runner, tokenizer, n_blocks, &options)?;
        Ok(engine.with_overflow(options.host_kv_bytes / block_bytes.max(1)))
    }

    /// An engine over `n_blocks` blocks that `runner` keeps; `options.n_ctx` defaults to all of them.
    ///
    /// # Errors
    /// [`EngineError`] when an option makes no sense.
    pub fn with_runner(
        runner: Box<dyn Runner>,
        tokenizer: Tokenizer,
        n_blocks: usize,
        options: &EngineOptions,
    ) -> Result<Engine, EngineError> {
        let n_tokens = n_blocks * options.block_tokens;
        let n_ctx = options.n_ctx.unwrap_or(n_tokens);
        options.validate(n_ctx)?;
        if n_tokens < n_ctx {
            return Err(EngineError::KvTooSmall { kv_bytes: options.kv_bytes.unwrap_or(0), n_tokens, n_ctx });
        }
        let limits = Limits {
            max_batch_tokens: options.max_batch_tokens,
            max_logit_rows: options.max_logit_rows,
            max_seqs: options.max_seqs,
            aging_steps: options.aging_steps,
        };
        let mut tables = BlockTables::new(n_blocks, options.block_tokens);
        if options.prefix_cache {
            let (above_percent, down_to_percent) =
                (options.cache_above_percent, options.cache_down_to_percent);
            tables = tables.with_cache(EvictionLimits { above_percent, down_to_percent });
        }
        Ok(Engine {
            runner,
            tokenizer,
            scheduler: Scheduler::new(limits, tables),
            choices: BTreeMap::new(),
            ahead: None,
            image_keys: ImageKeys::default(),
            kept: BTreeMap::new(),
            active: BTreeMap::new(),
            events: Vec::new(),
            n_rows: 0,
            n_generated: 0,
            n_steps: 0,
            n_waiting: Arc::default(),
            last_step: None,
            pacer: options.target_itl.map(|target| {
                let (max_prompt_rows, max_seqs) = (options.max_batch_tokens, options.max_seqs);
                Pacer::new(target, Pace { max_prompt_rows, max_seqs })
            }),
            clock: Arc::new(Instant::now),
            next_id: 0,
            n_ctx,
            max_waiting: options.max_waiting,
        })
    }

    /// The same engine with room for so many blocks of preempted sequences outside of the arena.
    pub fn with_overflow(self, max_blocks: usize) -> Engine {
        Engine { scheduler: self.scheduler.with_overflow(max_blocks), ..self }
    }

    /// The same engine by another clock.
    pub fn with_clock(self, clock: Clock) -> Engine {
        Engine { clock, ..self }
    }

    /// Tokens of one sequence at most.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Requests that may wait.
    pub fn max_waiting(&self) -> usize {
        self.max_waiting
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether there is nothing to run and nothing to report.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty() && self.events.is_empty()
    }

    /// Gives back memory kept for the next step, which may be a while off.
    pub(crate) fn rest(&mut self) {
        self.runner.rest();
    }

    pub fn stats(&self) -> EngineStats {
        EngineStats {
            n_waiting: self.scheduler.n_waiting(),
            n_running: self.scheduler.n_running(),
            n_steps: self.n_steps,
            n_rows: self.n_rows,
            n_generated: self.n_generated,
            n_preemptions: self.scheduler.n_preemptions(),
            n_block_copies: self.scheduler.tables().n_copies(),
            blocks: self.scheduler.tables().stats(),
            cache: self.scheduler.tables().cache_stats(),
            overflow: self.scheduler.overflow().stats(),
            pace: self.pacer.as_ref().map(Pacer::stats),
        }
    }

    /// Every KV block is owned exactly as often as it is referred to, and only by sequences that run.
    ///
    /// # Errors
    /// What does not balance: a bug.
    pub fn check_integrity(&self) -> Result<(), IntegrityError> {
        self.scheduler.check_integrity()
    }

    /// Takes a request in. Its events come from the following [`Self::step`]s.
    ///
    /// # Errors
    /// [`SubmitError`] when it is malformed, can never fit, or too many wait.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let n_waiting = self.scheduler.n_waiting();
        if n_waiting >= self.max_waiting {
            return Err(SubmitError::QueueFull { n_waiting, max_waiting: self.max_waiting });
        }
        request.validate(self.scheduler.limits().max_seqs)?;
        let tokens = match &request.prompt {
            Prompt::Text(text, options) => self.tokenizer.encode(text, *options)?,
            Prompt::Tokens(ids) => ids.clone(),
        };
        let (tokens, images) = images::place(tokens, &request.images, self.runner.images())?;
        let n_prompt = tokens.len();
        if n_prompt == 0 {
            return Err(SubmitError::EmptyPrompt);
        }
        let n_answer = request.max_tokens.unwrap_or(usize::MAX).min(1);
        if n_prompt + n_answer > self.n_ctx {
            return Err(SubmitError::PromptTooLong { n_prompt, n_ctx: self.n_ctx });
        }
        self.check_ids("prompt", tokens.iter().copied())?;
        self.check_ids("logit_bias", request.sampling.logit_bias.iter().map(|&(id, _)| id))?;
        self.check_ids("stop_token_ids", request.stop_ids.iter().copied())?;
        Ok(self.accept(request, tokens, images))
    }

    fn check_ids(&self, field: &'static str, mut ids: impl Iterator<Item = u32>) -> Result<(), SubmitError> {
        let n_vocab = self.runner.n_vocab();
        match ids.find(|&id| id as usize >= n_vocab) {
            Some(id) => Err(SubmitError::NoSuchToken { field, id, n_vocab }),
            None => Ok(()),
        }
    }

    fn accept(&mut self, request: Request, tokens: Vec<u32>, images: Vec<PlacedImage>) -> RequestId {
        let (id, seq) = (RequestId(self.next_id), self.new_seq());
        let seed = request.sampling.seed.unwrap_or_else(random_seed);
        let params: Arc<SamplingParams> = Arc::new(request.sampling.clone());
        let mut sampler =
            Sampler::new(params, seed, self.tokenizer.eog_ids()).with_constraint(request.constraint.clone());
        for &token in &tokens {
            sampler.accept(self.tokenizer.token_bytes(token).unwrap_or_default());
        }
        let n_prompt = tokens.len();
        let max_tokens = request.max_tokens.unwrap_or(usize::MAX).min(self.n_ctx - n_prompt);
        let all = request.prompt_logprobs.is_some();
        self.scheduler.submit(NewSequence {
            seq,
            priority: request.priority,
            n_prompt,
            n_forks: request.n_choices() - 1,
            logits: if all { PromptLogits::All } else { PromptLogits::Last },
        });
        let choice = Choice {
            request: id,
            choice: 0,
            text: Detokenizer::after(&self.tokenizer, &tokens).showing(request.shown_ids.clone()),
            loops: request.loop_limits.map(LoopGuard::new),
            stops: StopMatcher::new(request.stop.iter().cloned()),
            keys: self.image_keys.keys(&tokens, &images),
            tokens,
            sampler,
        };
        self.choices.insert(seq, choice);
        let mut active = Active::new(id, Arc::new(request), seed, n_prompt, max_tokens);
        active.seqs[0] = Some(seq);
        active.images = images;
        tracing::debug!(request = id.0, n_prompt, max_tokens, seed, "accepted");
        self.active.insert(id, active);
        self.publish_waiting();
        id
    }

    pub(crate) fn publish_waiting(&self) {
        self.n_waiting.store(self.scheduler.n_waiting(), Ordering::Release);
    }

    pub(crate) fn new_seq(&mut self) -> SeqId {
        let seq = SeqId(self.next_id);
        self.next_id += 1;
        seq
    }

    /// Ends a request now; what is left of its events comes with the next [`Self::step`]. Returns whether it was
    /// still there.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        self.end_request(id, &FinishReason::Cancelled)
    }

    /// Ends every choice of a request that has not ended.
    pub(crate) fn end_request(&mut self, id: RequestId, reason: &FinishReason) -> bool {
        let Some(active) = self.active.get(&id) else { return false };
        for choice in 0..active.seqs.len() as u32 {
            self.end_choice(id, choice, reason.clone());
        }
        true
    }

    /// Ends one choice: its sequence, its text, and with the last one the request.
    pub(crate) fn end_choice(&mut self, id: RequestId, choice: u32, reason: FinishReason) {
        let Some(active) = self.active.get_mut(&id) else { return };
        let (mut reason, mut text) = (reason, String::new());
        if let Some(seq) = active.seqs[choice as usize] {
            self.scheduler.finish(seq);
            self.kept.remove(&seq);
            let state = self.choices.remove(&seq).expect("a sequence has its state");
            let stop_idx;
            (text, stop_idx) = state.flush();
            if let Some(stop_idx) = stop_idx {
                reason = active.stop_text(stop_idx);
            }
        }
        tracing::debug!(request = id.0, choice, ?reason, "choice ended");
        if active.end_choice(choice, reason, text, &mut self.events) {
            self.active.remove(&id);
        }
    }

    /// Log-probabilities of a text, handed to `on_chunk` as they come, so that memory stays bounded whatever the
    /// length. `n_top` likeliest alternatives come with each. Needs an idle engine: beside other requests, submit one
    /// with `prompt_logprobs` and no tokens to generate, and take its [`Event::Prompt`]s.
    ///
    /// # Errors
    /// [`ScoreError`] when the engine is busy, the text does not fit, or the forward fails.
    pub fn score(
        &mut self,
        tokens: Vec<u32>,
        n_top: usize,
        mut on_chunk: impl FnMut(&[PromptToken]),
    ) -> Result<(), ScoreError> {
        if !self.is_idle() {
            return Err(ScoreError::Busy);
        }
        self.submit(Request {
            max_tokens: Some(0),
            prompt_logprobs: Some(n_top),
            ..Request::new(Prompt::Tokens(tokens))
        })?;
        let mut result = Ok(());
        while !self.is_idle() {
            for event in self.step() {
                match event {
                    Event::Prompt { tokens, .. } => on_chunk(&tokens),
                    Event::Finish {
                        reason: FinishReason::Error(reason) | FinishReason::DeviceLost(reason),
                        ..
                    } => {
                        result = Err(ScoreError::Failed { reason });
                    }
                    _ => {}
                }
            }
        }
        result
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("n_ctx", &self.n_ctx).field("stats", &self.stats()).finish()
    }
}

impl EngineOptions {
    fn validate(&self, n_ctx: usize) -> Result<(), EngineError> {
        let check = |ok, field, value: usize, expected| {
            if ok { Ok(()) } else { Err(bad_option(field, value, expected)) }
        };
        check(matches!(self.block_tokens, 16 | 32), "block_tokens", self.block_tokens, "16 or 32")?;
        check(n_ctx > 1, "n_ctx", n_ctx, "2 or more")?;
        check(n_ctx <= u32::MAX as usize, "n_ctx", n_ctx, "at most 4294967295")?;
        check(self.max_seqs > 0, "max_seqs", self.max_seqs, "1 or more")?;
        check(self.max_waiting > 0, "max_waiting", self.max_waiting, "1 or more")?;
        let per_step = "at least max_seqs";
        check(self.max_batch_tokens >= self.max_seqs, "max_batch_tokens", self.max_batch_tokens, per_step)?;
        check(self.max_logit_rows >= self.max_seqs, "max_logit_rows", self.max_logit_rows, per_step)?;
        let (above, down_to) = (self.cache_above_percent, self.cache_down_to_percent);
        check(above <= 100, "cache_above_percent", above.into(), "at most 100")?;
        check(down_to <= above, "cache_down_to_percent", down_to.into(), "at most cache_above_percent")?;
        let is_time = self.target_itl.is_none_or(|target| !target.is_zero());
        if !is_time {
            return Err(bad_option("target_itl", "0", "more than 0"));
        }
        if !KvSpec::DTYPES.contains(&self.kv_dtype) {
            return Err(bad_option("kv_dtype", self.kv_dtype, KvSpec::DTYPE_NAMES));
        }
        Ok(())
    }
}

fn bad_option(field: &'static str, value: impl ToString, expected: &'static str) -> EngineError {
    EngineError::Option { field, value: value.to_string(), expected }
}

/// A seed nobody chose, from the operating system's entropy behind the standard library's hash keys.
fn random_seed() -> u64 {
    RandomState::new().hash_one(0u8)
}
