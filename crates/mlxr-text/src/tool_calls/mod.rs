//! What a model says, taken apart: content, reasoning and tool calls, in every wire format in common use.
//!
//! [`OutputParser`] reads text as it comes and is the only parser, for streams and for whole answers. Invariants: how
//! the text was cut into pieces never shows in the concatenated events; a call that breaks its format comes out as
//! content, character by character; only text that could still become a marker is held back.

mod calls;
mod format;
mod harmony;
mod json;
mod params;
mod parser;
mod python;
mod reader;

pub use format::{ToolFormat, UnknownToolFormat};
pub use parser::{OutputOptions, OutputParser, ParsedCall, ParsedOutput};

use serde_json::{Value, json};

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputEvent {
    Content(String),
    Reasoning(String),
    /// A call begins: its function is known to be one of the tools, its arguments follow.
    ToolCallStart {
        index: usize,
        id: String,
        name: String,
    },
    /// More of a call's arguments; together they are a JSON object.
    ToolCallArguments {
        index: usize,
        delta: String,
    },
    /// A call ends. One that is not complete broke off or broke its format: it is no call, and all of its text follows
    /// as content.
    ToolCallEnd {
        index: usize,
        is_complete: bool,
    },
}

/// A function a model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    pub name: String,
    /// JSON schema of the arguments.
    pub parameters: Value,
    /// Refuse what of the schema cannot be enforced, instead of enforcing the rest.
    pub strict: bool,
}

impl ToolSpec {
    /// Reads a tool in OpenAI's shape, with or without the `function` around it. `None` if it has no name.
    pub fn from_openai(tool: &Value) -> Option<ToolSpec> {
        let function = tool.get("function").unwrap_or(tool);
        let name = function.get("name")?.as_str()?.to_owned();
        let parameters = function.get("parameters").filter(|p| !p.is_null()).cloned();
        let strict = function.get("strict").and_then(Value::as_bool).unwrap_or(false);
        let parameters = parameters
            .unwrap_or_else(|| json!({"type": "object", "properties": {}, "additionalProperties": false}));
        Some(ToolSpec { name, parameters, strict })
    }

    /// The schema of one argument.
    pub(crate) fn parameter(&self, key: &str) -> Option<&Value> {
        let schema = self.parameters.get("properties")?.get(key)?;
        match schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#')) {
            Some(pointer) => self.parameters.pointer(pointer),
            None => Some(schema),
        }
    }
}
