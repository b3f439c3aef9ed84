//! What comes out of a step.

use std::time::Duration;

use crate::RequestId;
use crate::sampler::Logprobs;

/// News of a request. For every accepted request there come, in this order: prompt log-probabilities if asked for,
/// the tokens and one end of each choice, and exactly one finish.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The next prompt tokens' log-probabilities.
    Prompt { request: RequestId, tokens: Vec<PromptToken> },
    /// One more token. Its text may be empty, or be that of earlier tokens, when characters or possible stop strings
    /// were held back. A token that ends its choice comes only when log-probabilities are wanted, and has no text.
    Token { request: RequestId, choice: u32, id: u32, text: String, logprobs: Option<Logprobs> },
    /// A choice is done; `text` is what was still held back.
    ChoiceEnd { request: RequestId, choice: u32, reason: FinishReason, text: String },
    /// The request is done. `reason` is the first choice's.
    Finish { request: RequestId, reason: FinishReason, usage: Usage, timings: Timings },
}

impl Event {
    pub fn request(&self) -> RequestId {
        match self {
            Event::Prompt { request, .. }
            | Event::Token { request, .. }
            | Event::ChoiceEnd { request, .. }
            | Event::Finish { request, .. } => *request,
        }
    }

    /// Moves the event to another choice of its request.
    pub(crate) fn with_choice(mut self, new: u32) -> Self {
        if let Event::Token { choice, .. } | Event::ChoiceEnd { choice, .. } = &mut self {
            *choice = new;
        }
        self
    }
}

/// A prompt token with its log-probability given those before it; the first has none.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptToken {
    pub id: u32,
    pub logprobs: Option<Logprobs>,
}

/// Why a choice ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Stop(StopCause),
    /// `max_tokens` or the context was reached.
    Length,
    /// The model said the same thing over and over.
    Loop,
    Cancelled,
    /// The model failed on this sequence's batch, or gave no distribution.
    Error(String),
    /// The device failed: what the model had on it is gone, and it must be loaded anew.
    DeviceLost(String),
}

/// What said stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// One of the model's end-of-generation tokens.
    EndOfGeneration(u32),
    /// One of the request's stop ids.
    Id(u32),
    /// One of the request's stop strings.
    Text(String),
    /// The grammar allows nothing more.
    Grammar,
}

/// Tokens a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub n_prompt: usize,
    /// Prompt tokens whose keys and values were found in the prefix cache.
    pub n_cached: usize,
    /// Over all choices generated, ending tokens included.
    pub n_completion: usize,
    /// The seed that repeats the result.
    pub seed: u64,
}

/// Where a request's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission to the first step that had rows of it.
    pub queued: Duration,
    /// From then to the end of the prompt.
    pub prefill: Duration,
    /// From then to the finish.
    pub decode: Duration,
}
