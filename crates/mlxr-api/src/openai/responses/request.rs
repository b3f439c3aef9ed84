//! `POST /v1/responses`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::sampling::SamplingExtensions;
use super::super::tools::{GrammarSyntax, ToolChoiceMode};
use super::super::usage::StreamOptions;
use super::items::{Input, InputItem};
use crate::body::{self, BodyError};

/// The request. Fields are OpenAI's; see their API reference for what each means.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::ResponseRequest)]
pub struct ResponseRequest {
    pub model: String,
    pub input: Option<Input>,
    pub background: Option<bool>,
    pub context_management: Option<Value>,
    pub conversation: Option<Value>,
    pub include: Option<Vec<String>>,
    pub instructions: Option<String>,
    pub max_output_tokens: Option<usize>,
    pub max_tool_calls: Option<usize>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub moderation: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub previous_response_id: Option<String>,
    pub prompt: Option<Value>,
    pub prompt_cache_key: Option<String>,
    pub prompt_cache_options: Option<Value>,
    pub prompt_cache_retention: Option<String>,
    pub reasoning: Option<Reasoning>,
    pub safety_identifier: Option<String>,
    pub service_tier: Option<String>,
    pub store: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub temperature: Option<f32>,
    pub text: Option<TextConfig>,
    pub tool_choice: Option<ToolChoice>,
    pub tools: Option<Vec<FunctionTool>>,
    pub top_logprobs: Option<usize>,
    pub top_p: Option<f32>,
    pub truncation: Option<Truncation>,
    pub user: Option<String>,
    /// Not OpenAI's here.
    pub seed: Option<i64>,
    #[serde(skip)]
    #[schema(ignore)]
    pub extensions: SamplingExtensions,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl ResponseRequest {
    /// Reads a body. The items of `input` are read by [`Self::items`].
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        let mut request: Self = body::parse(body)?;
        request.extensions = body::parse_rest(std::mem::take(&mut request.unknown))?;
        request.unknown = std::mem::take(&mut request.extensions.unknown);
        Ok(request)
    }

    /// Takes the items out of a list of items; there are none in a text.
    ///
    /// # Errors
    /// [`BodyError`] names the item that is wrong and the part of it.
    pub fn take_items(&mut self) -> Result<Vec<InputItem>, BodyError> {
        let items = match &mut self.input {
            Some(Input::Items(items)) => std::mem::take(items),
            Some(Input::Text(_)) | None => Vec::new(),
        };
        let items = items.into_iter().enumerate();
        items.map(|(i, item)| InputItem::read(&format!("input[{i}]"), item)).collect()
    }
}

/// What to do with a conversation longer than the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = openai::Truncation)]
pub enum Truncation {
    /// Leave out its beginning.
    Auto,
    /// Refuse it.
    #[default]
    Disabled,
}

/// `reasoning`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::Reasoning)]
pub struct Reasoning {
    pub effort: Option<String>,
    pub summary: Option<String>,
    /// The older name of `summary`.
    #[serde(skip_serializing)]
    pub generate_summary: Option<String>,
    #[serde(flatten, skip_serializing)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// `text`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::TextConfig)]
pub struct TextConfig {
    #[serde(default, deserialize_with = "body::or_default")]
    pub format: TextFormat,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verbosity: Option<String>,
    #[serde(flatten, skip_serializing)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// `text.format`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = openai::TextFormat)]
pub enum TextFormat {
    #[default]
    Text,
    JsonObject,
    JsonSchema {
        name: String,
        schema: Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        strict: Option<bool>,
    },
    /// Not OpenAI's: a text that matches as a whole.
    Regex {
        pattern: String,
    },
    /// Not OpenAI's here: a text of a grammar in GBNF or Lark.
    Grammar {
        grammar: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        syntax: Option<GrammarSyntax>,
    },
}

/// A tool. Only functions can be called here, but the others are known by their type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ResponseTool)]
pub struct FunctionTool {
    /// `function`.
    pub r#type: String,
    /// Functions have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema.
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema.
    pub strict: Option<bool>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// `tool_choice`: a mode, a function by name, or some of the tools.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected \"none\", \"auto\", \"required\" or an object with a type")]
#[schema(as = openai::ResponseToolChoice)]
pub enum ToolChoice {
    Mode(ToolChoiceMode),
    Object(ToolChoiceObject),
}

/// `function` with `name`, or `allowed_tools` with `mode` and `tools`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ResponseToolChoiceObject)]
pub struct ToolChoiceObject {
    pub r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ToolChoiceMode>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Map<String, Value>>>,
}
