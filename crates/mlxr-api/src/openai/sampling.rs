//! Sampling fields OpenAI does not document but its clients send through `extra_body`, named as vLLM and llama.cpp name
//! them. Chat completions and completions take the same ones.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::text_list::TextList;

/// Known fields beyond the dialect; what is left is in `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::SamplingExtensions)]
pub struct SamplingExtensions {
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    #[serde(alias = "typ_p")]
    pub typical_p: Option<f32>,
    pub top_n_sigma: Option<f32>,
    #[serde(alias = "repeat_penalty")]
    pub repetition_penalty: Option<f32>,
    /// Tokens the penalties look back; -1 is all.
    pub repeat_last_n: Option<i64>,
    pub xtc_probability: Option<f32>,
    pub xtc_threshold: Option<f32>,
    pub dynatemp_range: Option<f32>,
    pub dynatemp_exponent: Option<f32>,
    pub mirostat: Option<u8>,
    pub mirostat_tau: Option<f32>,
    pub mirostat_eta: Option<f32>,
    pub dry_multiplier: Option<f32>,
    pub dry_base: Option<f32>,
    pub dry_allowed_length: Option<usize>,
    /// -1 is all.
    pub dry_penalty_last_n: Option<i64>,
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// Names of samplers in the order they run.
    pub samplers: Option<TextList>,
    pub ignore_eos: Option<bool>,
    pub stop_token_ids: Option<Vec<u32>>,
    /// Higher goes first.
    pub priority: Option<i32>,
    /// Variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Tokens of reasoning at most.
    #[serde(alias = "reasoning_budget", alias = "thinking_token_budget")]
    pub thinking_budget: Option<usize>,
    /// Whether an answer that repeats itself is ended.
    pub loop_guard: Option<bool>,
    // The form of the answer, as vLLM spells it,
    pub guided_json: Option<Value>,
    pub guided_regex: Option<String>,
    pub guided_choice: Option<Vec<String>>,
    pub guided_grammar: Option<String>,
    pub structured_outputs: Option<StructuredOutputs>,
    // and llama.cpp.
    pub json_schema: Option<Value>,
    pub grammar: Option<String>,
    /// Refuse what cannot be honoured instead of reporting it.
    pub strict: Option<bool>,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// `structured_outputs`: one of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::StructuredOutputs)]
pub struct StructuredOutputs {
    pub json: Option<Value>,
    pub json_object: Option<bool>,
    pub regex: Option<String>,
    pub choice: Option<Vec<String>>,
    pub grammar: Option<String>,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}
