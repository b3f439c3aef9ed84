//! `GET` and `DELETE /mlxr/v1/cache`, `POST /mlxr/v1/cache/explain`, `POST /mlxr/v1/integrity`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::parsed;
use crate::openai::chat::ChatMessage;
use crate::openai::tools::Tool;

/// What the prefix cache of one model has done and holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::CacheStats)]
pub struct CacheStats {
    pub model: String,
    pub is_on: bool,
    pub block_tokens: usize,
    /// Times a sequence was looked for.
    pub n_lookups: u64,
    /// Tokens looked for.
    pub n_lookup_tokens: u64,
    /// Tokens found, which were not computed again.
    pub n_hit_tokens: u64,
    /// `n_hit_tokens / n_lookup_tokens`; null before the first look-up.
    pub hit_rate: Option<f64>,
    /// Blocks that can be found, in use or not.
    pub n_blocks: usize,
    /// Those of them that no sequence uses.
    pub n_idle_blocks: usize,
    /// Blocks given up for others.
    pub n_evictions: u64,
}

/// The prefix caches of all models in memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::CacheList)]
pub struct CacheList {
    pub models: Vec<CacheStats>,
}

/// What was forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ClearAnswer)]
pub struct ClearAnswer {
    pub models: Vec<ClearedModel>,
}

/// What was forgotten of one model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ClearedModel)]
pub struct ClearedModel {
    pub model: String,
    pub n_blocks: usize,
}

/// Asks how much of a prompt is cached, and why no more. Exactly one of `prompt`, `messages` and `tokens` is given.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::ExplainRequest)]
pub struct ExplainRequest {
    pub model: String,
    /// As completions read it.
    pub prompt: Option<String>,
    /// In OpenAI's shape.
    pub messages: Option<Vec<ChatMessage>>,
    pub tokens: Option<Vec<u32>>,
    /// In OpenAI's shape, with `messages`.
    pub tools: Option<Vec<Tool>>,
    /// Go on from an assistant's message at the end of `messages`; false by default.
    pub continue_final_message: Option<bool>,
    /// Variables for the template, with `messages`.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A token and what it reads as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::TokenText)]
pub struct TokenText {
    pub id: u32,
    pub text: String,
}

/// Why no more of a prompt is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = native::ExplainReason)]
pub enum ExplainReason {
    /// The cache is switched off.
    Off,
    /// What is left does not fill a block, and only full blocks are cached.
    BlockNotFull,
    /// Everything is cached; the last token of a prompt is always computed.
    LastToken,
    /// Nothing cached begins like this.
    NeverSeen,
    /// The prompt goes on beyond what is cached.
    CachedTextEnds,
    /// What is cached has another token at this place.
    Diverges,
    /// It was cached and has been given up.
    Evicted,
}

/// How much of a prompt is cached, and why no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ExplainAnswer)]
pub struct ExplainAnswer {
    pub model: String,
    pub n_prompt: usize,
    /// Tokens that would be reused: whole blocks.
    pub n_matched: usize,
    pub block_tokens: usize,
    /// Where the comparison ended: the first token that differs, or the first that is not cached.
    pub token_idx: usize,
    /// Characters of the prompt's text before that token.
    pub char_idx: usize,
    pub reason: ExplainReason,
    /// The reason in words.
    pub explanation: String,
    /// With `diverges`: the token that is cached in this place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<TokenText>,
    /// With `diverges`: the prompt's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<TokenText>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Asks whether the books of KV blocks balance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = native::IntegrityRequest)]
pub struct IntegrityRequest {
    /// Absent is every model in memory.
    pub model: Option<String>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Whether the books of one model balance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ModelIntegrity)]
pub struct ModelIntegrity {
    pub model: String,
    pub is_ok: bool,
    /// What does not balance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    pub n_blocks: usize,
    pub n_free: usize,
}

/// Whether the books balance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::IntegrityAnswer)]
pub struct IntegrityAnswer {
    pub is_ok: bool,
    pub models: Vec<ModelIntegrity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

parsed!(ExplainRequest, IntegrityRequest);
