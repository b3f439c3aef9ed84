//! `POST /mlxr/v1/tokenize`, `/detokenize` and `/apply-template`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::parsed;
use crate::openai::chat::ChatMessage;
use crate::openai::tools::Tool;

/// Asks for a text's tokens.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::TokenizeRequest)]
pub struct TokenizeRequest {
    pub model: String,
    pub text: String,
    /// Put the beginning-of-sequence token (and whatever else the tokenizer adds) around the text; true by default.
    pub add_special: Option<bool>,
    /// Read the names of control tokens in the text as those tokens; true by default.
    pub parse_special: Option<bool>,
    /// Show what each token reads as.
    pub with_pieces: Option<bool>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A token and what it reads as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::Piece)]
pub struct Piece {
    pub id: u32,
    /// Bytes that are no text by themselves read as U+FFFD.
    pub text: String,
    pub bytes: Vec<u8>,
    /// A control token, not text.
    pub is_special: bool,
}

/// A text's tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::TokenizeAnswer)]
pub struct TokenizeAnswer {
    pub model: String,
    pub tokens: Vec<u32>,
    pub n_tokens: usize,
    /// With `with_pieces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Vec<Piece>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Asks for the text of tokens.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::DetokenizeRequest)]
pub struct DetokenizeRequest {
    pub model: String,
    pub tokens: Vec<u32>,
    /// Leave control tokens out; false by default.
    pub skip_special: Option<bool>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The text of tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::DetokenizeAnswer)]
pub struct DetokenizeAnswer {
    pub model: String,
    pub text: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Asks for the prompt a conversation becomes.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = native::TemplateRequest)]
pub struct TemplateRequest {
    pub model: String,
    /// In OpenAI's shape.
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    /// In OpenAI's shape.
    pub tools: Option<Vec<Tool>>,
    /// Go on from an assistant's message at the end, as Ollama's and Anthropic's routes do; false by default.
    pub continue_final_message: Option<bool>,
    /// Variables for the template.
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The prompt a conversation becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = native::TemplateAnswer)]
pub struct TemplateAnswer {
    pub model: String,
    pub prompt: String,
    pub tokens: Vec<u32>,
    pub n_tokens: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

parsed!(TokenizeRequest, DetokenizeRequest, TemplateRequest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_named_by_its_place() {
        let error = DetokenizeRequest::parse(br#"{"model": "m", "tokens": [1, -2]}"#).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("tokens[1]"));
        let error = TemplateRequest::parse(br#"{"model": "m", "messages": ["Hi"]}"#).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("messages[0]"));
        let error = TokenizeRequest::parse(br#"{"model": "m"}"#).unwrap_err();
        assert!(error.reason.contains("missing field `text`"), "{error}");
    }
}
