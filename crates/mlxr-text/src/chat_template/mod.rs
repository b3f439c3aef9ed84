//! Conversations to prompts, through the model's own Jinja template.
//!
//! The environment is the one `transformers` gives a template: blocks trimmed, `raise_exception`, `strftime_now`,
//! `tojson` as Python's `json.dumps`, `{% generation %}`, loop controls, Python's methods on strings and maps.

mod environment;
mod fallback;
mod json;
mod parts;
mod python;

use std::collections::HashSet;
use std::path::Path;
use std::sync::OnceLock;

use minijinja::Environment;
use minijinja::value::{Serde, Value as Jinja};
use mlxr_checkpoint::Checkpoint;
use serde_json::{Map, Value};

use self::parts::Contents;
use crate::{TextError, Tokenizer};

/// Longest template read from a file.
const MAX_TEMPLATE_BYTES: u64 = 4 << 20;

/// The texts of the special tokens a template may name; what is `None` is undefined in the template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

impl TemplateTokens {
    /// The texts of a tokenizer's own beginning and end.
    pub fn of(tokenizer: &Tokenizer) -> TemplateTokens {
        let text = |id: Option<u32>| {
            id.and_then(|id| tokenizer.token_bytes(id))
                .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        TemplateTokens { bos: text(tokenizer.bos()), eos: text(tokenizer.eos()), unk: None, pad: None }
    }
}

/// What a template renders.
#[derive(Debug, Clone, Default)]
pub struct ChatInput<'a> {
    /// Messages in OpenAI's shape: `role`, `content` (text or parts), `tool_calls`, ...
    pub messages: &'a [Value],
    /// Tools in OpenAI's shape, when there are any.
    pub tools: Option<&'a [Value]>,
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// More variables, such as `enable_thinking`, `documents` or `reasoning_effort`.
    pub extra: Map<String, Value>,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    env: Environment<'static>,
    variables: HashSet<String>,
    tokens: TemplateTokens,
    /// Found out when it is first asked for.
    contents: OnceLock<Contents>,
}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<ChatTemplate, TextError> {
        let env = environment::compile(source)?;
        let variables = environment::variables(&env);
        Ok(ChatTemplate { source: source.to_owned(), env, variables, tokens, contents: OnceLock::new() })
    }

    /// Compiles a template file.
    pub fn from_file(path: &Path, tokens: TemplateTokens) -> Result<ChatTemplate, TextError> {
        let failed = |reason: String| TextError::TemplateFile { path: path.to_owned(), reason };
        let len = std::fs::metadata(path).map_err(|e| failed(e.to_string()))?.len();
        if MAX_TEMPLATE_BYTES < len {
            return Err(failed(format!("{len} bytes, more than {MAX_TEMPLATE_BYTES}")));
        }
        let source = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
        ChatTemplate::new(&source, tokens)
    }

    /// The template for a checkpoint: the file named, else the checkpoint's own, else a built-in one.
    pub fn for_checkpoint(
        checkpoint: &Checkpoint,
        tokenizer: &Tokenizer,
        override_path: Option<&Path>,
    ) -> Result<ChatTemplate, TextError> {
        match (override_path, &checkpoint.chat_template) {
            (Some(path), _) => Self::from_file(path, TemplateTokens::of(tokenizer)),
            (None, Some(source)) => Self::new(source, TemplateTokens::of(tokenizer)),
            (None, None) => {
                let model_type = checkpoint.config.get("model_type").and_then(Value::as_str);
                Self::fallback(model_type.unwrap_or_default(), tokenizer)
            }
        }
    }

    /// The built-in template for a model without one: chosen by the tokens its vocabulary has, then by its family.
    pub fn fallback(model_type: &str, tokenizer: &Tokenizer) -> Result<ChatTemplate, TextError> {
        let source = fallback::choose(model_type, |token| tokenizer.id_of(token).is_some());
        ChatTemplate::new(source, TemplateTokens::of(tokenizer))
    }

    /// The same template with `strftime_now` fixed at a time (seconds since 1970, read as UTC).
    pub fn at_time(mut self, unix_s: i64) -> ChatTemplate {
        environment::fix_time(&mut self.env, unix_s);
        self
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether a variable of this name makes a difference.
    pub fn uses(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// The prompt for a conversation.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TextError> {
        let mut context: Map<String, Value> = Map::new();
        let tokens = &self.tokens;
        let named = [
            ("bos_token", &tokens.bos),
            ("eos_token", &tokens.eos),
            ("unk_token", &tokens.unk),
            ("pad_token", &tokens.pad),
        ];
        for (name, text) in named {
            if let Some(text) = text {
                context.insert(name.to_owned(), Value::String(text.clone()));
            }
        }
        context.insert("documents".to_owned(), Value::Null);
        context.extend(input.extra.clone());
        let messages = input.messages.iter().map(with_reasoning_names).collect();
        context.insert("messages".to_owned(), Value::Array(messages));
        context.insert(
            "tools".to_owned(),
            input.tools.map_or(Value::Null, |tools| Value::Array(tools.to_vec())),
        );
        context.insert("add_generation_prompt".to_owned(), Value::Bool(input.add_generation_prompt));
        environment::render(&self.env, Jinja::from(Serde(&context)))
    }
}

/// Reasoning goes by three names in messages; templates read any of two. As `transformers` does, all are filled.
fn with_reasoning_names(message: &Value) -> Value {
    let Value::Object(fields) = message else { return message.clone() };
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| fields.get(*name).filter(|v| !v.is_null()));
    let Some(reasoning) = reasoning.cloned() else { return message.clone() };
    let mut named = Map::new();
    named.insert("thinking".to_owned(), reasoning.clone());
    named.extend(fields.clone());
    named.insert("reasoning_content".to_owned(), reasoning);
    Value::Object(named)
}
