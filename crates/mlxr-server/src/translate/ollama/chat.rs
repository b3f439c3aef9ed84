//! `/api/chat`: a conversation to an engine request.

use mlxr_api::ollama::chat::{ChatRequest, Message};
use mlxr_engine::Request;
use mlxr_text::tool_calls::ToolSpec;
use serde_json::{Map, Value, json};

use super::generate::{Task, form, note_context_fields, set_thinking, top_logprobs};
use super::line::{Answer, Clock, Endpoint, Outcome};
use super::options;
use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::conversation::Conversation;
use crate::translate::images::{self, SentImage};
use crate::translate::parts::Parts;
use crate::translate::structure::Structure;

/// Whether there is nothing to answer: the request is about the model itself.
pub fn has_no_messages(wire: &ChatRequest) -> bool {
    wire.messages.as_ref().is_none_or(Vec::is_empty)
}

/// Whether reading the request takes longer than its size tells: a grammar is compiled.
pub fn is_structured(wire: &ChatRequest) -> bool {
    wire.format.is_some() || wire.tools.is_some() || wire.think.is_some()
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(wire: &ChatRequest, model: &LoadedModel, strict: bool, clock: Clock) -> Result<Task, ServeError> {
    let mut notices = Notices::default();
    let wire_options = wire.options.clone().unwrap_or_default();
    options::note(&wire_options, model, &mut notices);
    note_context_fields(wire.truncate, wire.shift, &mut notices);
    for name in wire.unknown.keys() {
        notices.add(name, "there is no such field");
    }
    let mut conversation = Conversation { goes_on: true, ..Conversation::default() };
    for (i, message) in wire.messages.iter().flatten().enumerate() {
        conversation.messages.push(template_message(i, message, &mut notices)?);
    }
    conversation.tools = tools(wire)?;
    let reasoning_budget = set_thinking(&mut conversation, wire.think.as_ref(), model, &mut notices)?;
    let structure = Structure { form: form(wire.format.as_ref())?, reasoning_budget, ..Structure::default() };
    notices.enforce(strict)?;

    let prompt = conversation.prompt(model, true)?;
    let n_prompt = prompt.n_tokens();
    let mut request = Request {
        logprobs: top_logprobs(wire.logprobs, wire.top_logprobs)?,
        ..structure.request(model, &prompt)?
    };
    options::apply(&mut request, n_prompt, &wire_options, model)?;
    let answer = Answer {
        model: wire.model.clone(),
        endpoint: Endpoint::Chat,
        parts: Parts::new(prompt.output),
        tokenizer: model.tokenizer.clone(),
        has_logprobs: request.logprobs.is_some(),
        clock,
        warnings: notices.warnings(),
        n_calls: 0,
        outcome: Outcome::default(),
    };
    Ok(Task { request, answer, notices, is_stream: wire.stream != Some(false) })
}

/// # Errors
/// A tool that cannot be called as it is described.
fn tools(wire: &ChatRequest) -> Result<Vec<Value>, ServeError> {
    let tools = wire.tools.clone().unwrap_or_default();
    let mut specs = Vec::with_capacity(tools.len());
    for (i, tool) in tools.iter().enumerate() {
        let Some(spec) = tool.get("function").and_then(ToolSpec::from_openai) else {
            let field = format!("tools[{i}].function.name");
            return Err(ServeError::invalid(&field, format!("{field}: a tool needs a name")));
        };
        specs.push(spec);
    }
    Structure::check_tools(&specs, |i| format!("tools[{i}].function.parameters"))?;
    Ok(tools)
}

/// Images as Ollama's clients send them.
pub(super) fn sent_images(field: &str, images: Option<&[String]>) -> Vec<SentImage> {
    let refusal = format!("{field} cannot be read: this model reads only text");
    let image = |base64: &String| SentImage {
        field: field.to_owned(),
        refusal: refusal.clone(),
        data: Ok(base64.clone()),
    };
    images.unwrap_or_default().iter().map(image).collect()
}

/// A message as templates expect it.
fn template_message(i: usize, message: &Message, notices: &mut Notices) -> Result<Value, ServeError> {
    if !matches!(message.role.as_str(), "system" | "user" | "assistant" | "tool") {
        let field = format!("messages[{i}].role");
        let reason = format!("{field} is {:?}, but must be system, user, assistant or tool", message.role);
        return Err(ServeError::invalid(field, reason));
    }
    for name in message.unknown.keys() {
        notices.add(format!("messages[{i}].{name}"), "there is no such field");
    }
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    set("role", json!(message.role));
    set("content", json!(message.content));
    if let Some(thinking) = &message.thinking {
        set("thinking", json!(thinking));
    }
    if let Some(name) = &message.tool_name {
        set("name", json!(name));
        set("tool_name", json!(name));
    }
    if let Some(id) = &message.tool_call_id {
        set("tool_call_id", json!(id));
    }
    if let Some(calls) = message.tool_calls.as_ref().filter(|calls| !calls.is_empty()) {
        let call = |call: &mlxr_api::ollama::chat::ToolCall| {
            let function = json!({"name": call.function.name, "arguments": call.function.arguments});
            json!({"id": call.id, "type": "function", "function": function})
        };
        set("tool_calls", calls.iter().map(call).collect());
    }
    images::attach(&mut fields, sent_images(&format!("messages[{i}].images"), message.images.as_deref()));
    Ok(Value::Object(fields))
}
