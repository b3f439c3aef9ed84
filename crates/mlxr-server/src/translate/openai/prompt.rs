//! Messages as templates expect them.

use mlxr_api::openai::chat::{ChatMessage, Content, ContentPart, Role};
use mlxr_api::openai::tools::FunctionCall;
use mlxr_text::ChatTemplate;
use serde_json::{Map, Value, json};

use crate::ServeError;
use crate::translate::images::{self, SentImage};

/// The messages of a conversation for a template.
///
/// # Errors
/// A message the model cannot read.
pub fn messages(template: &ChatTemplate, messages: &[ChatMessage]) -> Result<Vec<Value>, ServeError> {
    let knows_developer = knows_developer(template);
    messages.iter().enumerate().map(|(i, message)| template_message(i, message, knows_developer)).collect()
}

/// A message as templates expect it: text in one piece, arguments of calls as objects.
fn template_message(i: usize, message: &ChatMessage, knows_developer: bool) -> Result<Value, ServeError> {
    let role = match message.role {
        Role::Developer if !knows_developer => Role::System,
        // What tools were called before.
        Role::Function => Role::Tool,
        role => role,
    };
    let mut fields = Map::new();
    fields.insert("role".to_owned(), json!(role.name()));
    let content = message.content.as_ref().map(|content| text_of(i, content)).transpose()?;
    let (text, images) = content.unzip();
    let may_be_silent = message.tool_calls.is_some() || message.role == Role::Assistant;
    if text.is_none() && !may_be_silent {
        return Err(ServeError::invalid(format!("messages[{i}].content"), "a message needs content"));
    }
    fields.insert("content".to_owned(), json!(text));
    let calls = message.tool_calls.iter().flatten();
    let calls =
        calls.map(|call| json!({"id": call.id, "type": call.r#type, "function": called(&call.function)}));
    let mut calls: Vec<Value> = calls.collect();
    if let Some(call) = &message.function_call {
        calls.push(json!({"id": "", "type": "function", "function": called(call)}));
    }
    if !calls.is_empty() {
        fields.insert("tool_calls".to_owned(), Value::Array(calls));
    }
    for (name, value) in &message.other {
        fields.insert(name.clone(), value.clone());
    }
    images::attach(&mut fields, images.unwrap_or_default());
    Ok(Value::Object(fields))
}

fn called(call: &FunctionCall) -> Value {
    json!({"name": call.name, "arguments": arguments(&call.arguments)})
}

/// Arguments as the object they are written as, or as they are where they are none.
pub fn arguments(text: &str) -> Value {
    let object: Option<Map<String, Value>> = serde_json::from_str(text).ok();
    object.map_or_else(|| json!(text), Value::Object)
}

/// Whether a template tells developers from the system.
pub fn knows_developer(template: &ChatTemplate) -> bool {
    template.source().contains("developer")
}

/// The text of a message, whose parts stand on lines of their own, and its images.
fn text_of(i: usize, content: &Content) -> Result<(String, Vec<SentImage>), ServeError> {
    let parts = match content {
        Content::Text(text) => return Ok((text.clone(), Vec::new())),
        Content::Parts(parts) => parts,
    };
    let (mut texts, mut images) = (Vec::with_capacity(parts.len()), Vec::new());
    for (j, part) in parts.iter().enumerate() {
        match part {
            ContentPart::Text { text } | ContentPart::Refusal { refusal: text } => texts.push(text.as_str()),
            other => {
                let field = format!("messages[{i}].content[{j}].type");
                let reason = format!("{field} is {:?}, but this model reads only text", other.kind());
                let ContentPart::ImageUrl { image_url } = other else {
                    return Err(ServeError::invalid(field, reason));
                };
                let url = image_url.as_str().or(image_url["url"].as_str()).unwrap_or_default();
                images.push(SentImage::from_url(field, reason, url));
            }
        }
    }
    Ok((texts.join("\n"), images))
}
