//! `POST /mlxr/v1/score`: how likely a model finds a text, or choices behind a context.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::parsed;

/// Exactly one of `text`, `tokens` and `choices` is given.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::ScoreRequest)]
pub struct ScoreRequest {
    pub model: String,
    /// Scored from its second token, or from its first behind a beginning-of-sequence token.
    pub text: Option<String>,
    /// The same for tokens as they are.
    pub tokens: Option<Vec<u32>>,
    /// Texts to compare as continuations of `context`.
    pub choices: Option<Vec<String>>,
    /// What comes before each choice and is not scored itself.
    pub context: Option<String>,
    /// Show so many likeliest tokens in the place of each.
    pub top: Option<usize>,
    /// Put the beginning-of-sequence token in front; true by default.
    pub add_special: Option<bool>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Alternative)]
pub struct Alternative {
    pub id: u32,
    pub text: String,
    pub logprob: f32,
}

/// A token of a scored text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ScoredToken)]
pub struct ScoredToken {
    pub id: u32,
    pub text: String,
    /// Given everything before it.
    pub logprob: f32,
    /// With `top`, likeliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<Alternative>,
}

/// How likely a text is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Score)]
pub struct Score {
    pub text: String,
    /// Of the text as a whole: the sum over its tokens.
    pub logprob: f64,
    /// The mean over its tokens.
    pub logprob_per_token: f64,
    /// The mean over its bytes, which compares texts of different lengths and vocabularies.
    pub logprob_per_byte: f64,
    /// `exp(-logprob_per_token)`.
    pub perplexity: f64,
    /// Whether every token was the likeliest one: greedy decoding would say just this.
    pub is_greedy: bool,
    pub tokens: Vec<ScoredToken>,
}

/// The scores of what was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::ScoreAnswer)]
pub struct ScoreAnswer {
    pub model: String,
    /// One for a text, or one per choice in the order of the request.
    pub scores: Vec<Score>,
    /// The choice with the highest `logprob`; absent for a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<usize>,
    /// The choice with the highest `logprob_per_byte`; absent for a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_per_byte: Option<usize>,
    /// Tokens that were read.
    pub n_tokens: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

parsed!(ScoreRequest);
