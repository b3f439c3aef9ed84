//! Messages to the tokens of a prompt.

use mlxr_api::openai::chat::{ChatMessage, Content, ContentPart, Role};
use mlxr_text::{ChatInput, EncodeOptions};
use serde_json::{Map, Value, json};

use crate::ServeError;
use crate::loaded::LoadedModel;

/// Renders the conversation through the model's template and cuts it into tokens. `variables` are the template's.
///
/// # Errors
/// A message the model cannot read, or that its template refuses.
pub fn chat_tokens(
    model: &LoadedModel,
    messages: &[ChatMessage],
    variables: Map<String, Value>,
) -> Result<Vec<u32>, ServeError> {
    let knows_developer = model.template.source().contains("developer");
    let messages: Vec<Value> = messages
        .iter()
        .enumerate()
        .map(|(i, message)| template_message(i, message, knows_developer))
        .collect::<Result<_, _>>()?;
    let input = ChatInput { messages: &messages, tools: None, add_generation_prompt: true, extra: variables };
    let text = model.template.render(&input)?;
    // Templates write the beginning-of-sequence token themselves, and the markers around messages.
    Ok(model.tokenizer.encode(&text, EncodeOptions { add_special: false, parse_special: true })?)
}

/// A message as templates expect it: text in one piece, arguments of calls as objects.
fn template_message(i: usize, message: &ChatMessage, knows_developer: bool) -> Result<Value, ServeError> {
    let role = match message.role {
        Role::Developer if !knows_developer => Role::System,
        role => role,
    };
    let mut fields = Map::new();
    fields.insert("role".to_owned(), json!(role.name()));
    let text = message.content.as_ref().map(|content| text_of(i, content)).transpose()?;
    let may_be_silent = message.tool_calls.is_some() || message.role == Role::Assistant;
    if text.is_none() && !may_be_silent {
        return Err(ServeError::invalid(format!("messages[{i}].content"), "a message needs content"));
    }
    fields.insert("content".to_owned(), json!(text));
    if let Some(calls) = &message.tool_calls {
        let calls: Vec<Value> = calls
            .iter()
            .map(|call| {
                let text = &call.function.arguments;
                let arguments: Option<Map<String, Value>> = serde_json::from_str(text).ok();
                let arguments = arguments.map_or_else(|| json!(text), Value::Object);
                let function = json!({ "name": call.function.name, "arguments": arguments });
                json!({ "id": call.id, "type": call.r#type, "function": function })
            })
            .collect();
        fields.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    for (name, value) in &message.other {
        fields.insert(name.clone(), value.clone());
    }
    Ok(Value::Object(fields))
}

/// The text of a message; its parts stand on lines of their own.
fn text_of(i: usize, content: &Content) -> Result<String, ServeError> {
    let parts = match content {
        Content::Text(text) => return Ok(text.clone()),
        Content::Parts(parts) => parts,
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (j, part) in parts.iter().enumerate() {
        match part {
            ContentPart::Text { text } | ContentPart::Refusal { refusal: text } => texts.push(text.as_str()),
            other => {
                let field = format!("messages[{i}].content[{j}].type");
                let reason = format!("{field} is {:?}, but this model reads only text", other.kind());
                return Err(ServeError::invalid(field, reason));
            }
        }
    }
    Ok(texts.join("\n"))
}
