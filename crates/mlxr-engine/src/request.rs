//! What a client asks of the engine, and why it may be refused.

use std::sync::Arc;

use mlxr_tensor::Pixels;
use mlxr_text::grammar::ConstraintState;
use mlxr_text::{EncodeOptions, TextError};

use crate::loop_guard::LoopLimits;

use crate::sampler::{ParamError, SamplingParams};

/// The most stop strings of a request, and the longest in bytes: the text held back is bounded by them.
pub const MAX_STOPS: usize = 32;
pub const MAX_STOP_BYTES: usize = 1024;
/// The most stop ids of a request.
pub const MAX_STOP_IDS: usize = 256;
/// The longest passage the loop guard compares.
pub const MAX_LOOP_PERIOD: usize = 4096;
/// The longest label in bytes.
pub const MAX_LABEL_BYTES: usize = 256;
/// The most alternatives reported per token.
pub const MAX_TOP_LOGPROBS: usize = 100;

/// The tokens to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String, EncodeOptions),
    Tokens(Vec<u32>),
}

/// One request: a prompt and how to go on from it.
#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Prompt,
    /// Images in the order of their placeholders in the prompt, prepared as the model reads them.
    pub images: Vec<Arc<Pixels>>,
    pub sampling: SamplingParams,
    /// Tokens to generate per choice at most; also bounded by the context. 0 only reads the prompt.
    pub max_tokens: Option<usize>,
    /// Texts that end a choice; they are not part of its text.
    pub stop: Vec<String>,
    /// Tokens that end a choice, beside the model's own end-of-generation ids.
    pub stop_ids: Vec<u32>,
    /// Choices to return.
    pub n: usize,
    /// Choices to generate, of which the `n` with the best mean log-probability are returned, at the end and ranked.
    /// `None` is `n`.
    pub best_of: Option<usize>,
    /// Report each token's log-probability and those of so many likeliest ones.
    pub logprobs: Option<usize>,
    /// The same for the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Higher goes first.
    pub priority: i32,
    /// What the output is held to, from the start: reasoning budget, grammar.
    pub constraint: Option<ConstraintState>,
    /// Control tokens that are spelt out in the text instead of hidden: the markers of tool calls and reasoning.
    pub shown_ids: Vec<u32>,
    /// A name the client knows it by, for lists of requests; it changes nothing.
    pub label: Option<String>,
    /// End a choice that repeats itself.
    pub loop_limits: Option<LoopLimits>,
}

impl Request {
    /// A request with the defaults of sampling and no limit but the context.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            images: Vec::new(),
            sampling: SamplingParams::default(),
            max_tokens: None,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            n: 1,
            best_of: None,
            logprobs: None,
            prompt_logprobs: None,
            priority: 0,
            constraint: None,
            shown_ids: Vec::new(),
            label: None,
            loop_limits: None,
        }
    }

    /// Choices that are generated.
    pub(crate) fn n_choices(&self) -> usize {
        self.best_of.unwrap_or(self.n)
    }

    /// Checks what does not depend on the model.
    pub(crate) fn validate(&self, max_seqs: usize) -> Result<(), SubmitError> {
        self.sampling.validate()?;
        let (n, n_choices) = (self.n, self.n_choices());
        if n == 0 || n_choices < n {
            return Err(SubmitError::Choices { n, best_of: n_choices });
        }
        if n_choices > max_seqs {
            return Err(SubmitError::TooManyChoices { n_choices, max_seqs });
        }
        let check = |field, found: usize, max: usize| {
            if found > max { Err(SubmitError::FieldTooLong { field, found, max }) } else { Ok(()) }
        };
        check("stop", self.stop.len(), MAX_STOPS)?;
        for stop in &self.stop {
            if stop.is_empty() {
                return Err(SubmitError::EmptyStop);
            }
            check("stop string", stop.len(), MAX_STOP_BYTES)?;
        }
        check("label", self.label.as_ref().map_or(0, String::len), MAX_LABEL_BYTES)?;
        check("stop_token_ids", self.stop_ids.len(), MAX_STOP_IDS)?;
        check("loop period", self.loop_limits.map_or(0, |limits| limits.max_period), MAX_LOOP_PERIOD)?;
        check("logprobs", self.logprobs.unwrap_or(0), MAX_TOP_LOGPROBS)?;
        check("prompt_logprobs", self.prompt_logprobs.unwrap_or(0), MAX_TOP_LOGPROBS)
    }
}

/// Why a request was refused. Nothing of it was kept.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("prompt is empty")]
    EmptyPrompt,
    #[error("prompt has {n_prompt} tokens, but the context holds {n_ctx} with the answer")]
    PromptTooLong { n_prompt: usize, n_ctx: usize },
    #[error("{field} names token {id}, but the vocabulary has {n_vocab}")]
    NoSuchToken { field: &'static str, id: u32, n_vocab: usize },
    #[error("{} given, but the model reads only text", n_of(*.n_images))]
    NoImages { n_images: usize },
    #[error("{} given, but the prompt has {n_places} places for images", n_of(*.n_images))]
    ImagePlaces { n_images: usize, n_places: usize },
    #[error("image {index} is {found:?}, but the model reads {expected:?} (channels, lines, columns)")]
    ImageShape { index: usize, found: [usize; 3], expected: [usize; 3] },
    #[error("n is {n} and best_of {best_of}, but 1 <= n <= best_of must hold")]
    Choices { n: usize, best_of: usize },
    #[error("{n_choices} choices asked for, but at most {max_seqs} sequences run at a time")]
    TooManyChoices { n_choices: usize, max_seqs: usize },
    #[error("{field} is {found} long, but at most {max} are allowed")]
    FieldTooLong { field: &'static str, found: usize, max: usize },
    #[error("stop contains an empty string")]
    EmptyStop,
    #[error("{n_waiting} requests wait already, at most {max_waiting} may")]
    QueueFull { n_waiting: usize, max_waiting: usize },
    #[error(transparent)]
    Sampling(#[from] ParamError),
    #[error(transparent)]
    Text(#[from] TextError),
}

fn n_of(n_images: usize) -> String {
    if n_images == 1 { "1 image is".to_owned() } else { format!("{n_images} images are") }
}
