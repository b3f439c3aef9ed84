//! Log-probabilities of an answer's tokens.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One token and its log-probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::TokenLogprob)]
pub struct TokenLogprob {
    pub token: String,
    pub logprob: f32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bytes: Vec<u8>,
}

/// A chosen token, and the likeliest ones in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::Logprob)]
pub struct Logprob {
    #[serde(flatten)]
    pub chosen: TokenLogprob,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top_logprobs: Vec<TokenLogprob>,
}
