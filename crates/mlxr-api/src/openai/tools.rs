//! Tools, calls of them, and the shape asked of an answer.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A tool the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::Tool)]
pub struct Tool {
    /// `function`.
    pub r#type: String,
    pub function: FunctionDefinition,
}

/// What a function is called with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::FunctionDefinition)]
pub struct FunctionDefinition {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// A JSON schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// `tool_choice`: a mode, or a tool by name.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected \"none\", \"auto\", \"required\" or an object that names a tool")]
#[schema(as = openai::ToolChoice)]
pub enum ToolChoice {
    Mode(ToolChoiceMode),
    Named(NamedToolChoice),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = openai::ToolChoiceMode)]
pub enum ToolChoiceMode {
    None,
    Auto,
    Required,
}

/// `{"type": "function", "function": {"name": ...}}`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = openai::NamedToolChoice)]
pub struct NamedToolChoice {
    pub r#type: String,
    pub function: FunctionName,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::FunctionName)]
pub struct FunctionName {
    pub name: String,
}

/// A call in a message or an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ToolCall)]
pub struct ToolCall {
    pub id: String,
    /// `function`.
    #[serde(default = "function")]
    pub r#type: String,
    pub function: FunctionCall,
}

fn function() -> String {
    "function".to_owned()
}

/// Name and arguments; the arguments are JSON in a string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::FunctionCall)]
pub struct FunctionCall {
    pub name: String,
    pub arguments: String,
}

/// `response_format`.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = openai::ResponseFormat)]
pub enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema {
        json_schema: JsonSchemaFormat,
    },
    /// Not OpenAI's: a text that matches as a whole.
    Regex {
        #[serde(alias = "value")]
        pattern: String,
    },
    /// Not OpenAI's: a text of a grammar in GBNF or Lark.
    Grammar {
        grammar: String,
        syntax: Option<GrammarSyntax>,
    },
}

/// How a grammar is written; GBNF unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::GrammarSyntax)]
#[serde(rename_all = "lowercase")]
pub enum GrammarSyntax {
    #[default]
    Gbnf,
    Lark,
}

/// `function_call` of a request in the manner before tools.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = openai::FunctionChoice)]
#[serde(untagged, expecting = "expected \"none\", \"auto\" or an object that names a function")]
pub enum FunctionChoice {
    Mode(FunctionMode),
    Named(FunctionName),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = openai::FunctionMode)]
#[serde(rename_all = "lowercase")]
pub enum FunctionMode {
    None,
    Auto,
}

/// The schema an answer must follow.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::JsonSchemaFormat)]
pub struct JsonSchemaFormat {
    pub name: String,
    pub description: Option<String>,
    pub schema: Option<Value>,
    pub strict: Option<bool>,
}
