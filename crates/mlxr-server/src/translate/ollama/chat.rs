//! `/api/chat`: a conversation to an engine request.

use mlxr_api::ollama::chat::{ChatRequest, Message};
use mlxr_engine::{Prompt, Request};
use serde_json::{Map, Value, json};

use super::generate::{Task, note_context_fields, refuse_format, set_thinking, top_logprobs};
use super::line::{Answer, Clock, Endpoint, Outcome};
use super::options;
use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::conversation::{Abilities, Conversation};
use crate::translate::parts::Parts;

/// Whether there is nothing to answer: the request is about the model itself.
pub fn has_no_messages(wire: &ChatRequest) -> bool {
    wire.messages.as_ref().is_none_or(Vec::is_empty)
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(wire: &ChatRequest, model: &LoadedModel, strict: bool, clock: Clock) -> Result<Task, ServeError> {
    refuse_format(wire.format.as_ref())?;
    let mut notices = Notices::default();
    let wire_options = wire.options.clone().unwrap_or_default();
    options::note(&wire_options, model, &mut notices);
    note_context_fields(wire.truncate, wire.shift, &mut notices);
    for name in wire.unknown.keys() {
        notices.add(name, "there is no such field");
    }
    let mut conversation = Conversation::default();
    for (i, message) in wire.messages.iter().flatten().enumerate() {
        conversation.messages.push(template_message(i, message, &mut notices)?);
    }
    conversation.tools = tools(wire, model)?;
    let reads_thinking = set_thinking(&mut conversation, wire.think.as_ref(), model, &mut notices)?;
    notices.enforce(strict)?;

    let prompt = conversation.prompt(model, reads_thinking)?;
    let n_prompt = prompt.tokens.len();
    let mut request = Request {
        logprobs: top_logprobs(wire.logprobs, wire.top_logprobs)?,
        ..Request::new(Prompt::Tokens(prompt.tokens))
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

/// The tools, for a model whose calls can be read.
fn tools(wire: &ChatRequest, model: &LoadedModel) -> Result<Vec<Value>, ServeError> {
    let tools = wire.tools.clone().unwrap_or_default();
    if tools.is_empty() {
        return Ok(tools);
    }
    if Abilities::of(&model.template, &model.tokenizer).tools.is_none() {
        return Err(ServeError::invalid("tools", format!("{:?} does not support tools", model.name)));
    }
    for (i, tool) in tools.iter().enumerate() {
        if tool["function"]["name"].as_str().is_none() {
            let field = format!("tools[{i}].function.name");
            return Err(ServeError::invalid(&field, format!("{field}: a tool needs a name")));
        }
    }
    Ok(tools)
}

/// A message as templates expect it.
fn template_message(i: usize, message: &Message, notices: &mut Notices) -> Result<Value, ServeError> {
    if !matches!(message.role.as_str(), "system" | "user" | "assistant" | "tool") {
        let field = format!("messages[{i}].role");
        let reason = format!("{field} is {:?}, but must be system, user, assistant or tool", message.role);
        return Err(ServeError::invalid(field, reason));
    }
    if message.images.as_ref().is_some_and(|images| !images.is_empty()) {
        let field = format!("messages[{i}].images");
        return Err(ServeError::invalid(
            &field,
            format!("{field} cannot be read: this model reads only text"),
        ));
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
    Ok(Value::Object(fields))
}
