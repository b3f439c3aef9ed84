//! Token counts.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::Usage)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptTokensDetails,
    /// Only where the model reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

/// Of the prompt's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::PromptTokensDetails)]
pub struct PromptTokensDetails {
    /// Those that were not computed, because their keys and values were still there.
    pub cached_tokens: usize,
}

/// Of the answer's tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::CompletionTokensDetails)]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: usize,
}

impl Usage {
    pub fn new(prompt_tokens: usize, completion_tokens: usize) -> Usage {
        let total_tokens = prompt_tokens + completion_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens, ..Usage::default() }
    }

    pub fn with_cached(self, cached_tokens: usize) -> Usage {
        Usage { prompt_tokens_details: PromptTokensDetails { cached_tokens }, ..self }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Usage) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.total_tokens += other.total_tokens;
        self.prompt_tokens_details.cached_tokens += other.prompt_tokens_details.cached_tokens;
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = openai::StreamOptions)]
pub struct StreamOptions {
    /// Send the usage in a chunk of its own before the end.
    pub include_usage: Option<bool>,
    /// Pad the chunks so that their sizes say nothing.
    pub include_obfuscation: Option<bool>,
}
