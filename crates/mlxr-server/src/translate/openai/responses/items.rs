//! Items as templates read them.

use std::sync::Arc;

use mlxr_api::openai::chat::Role;
use mlxr_api::openai::responses::{
    FunctionCallItem, FunctionCallOutputItem, Input, InputItem, Item, ItemReference, ItemStatus, MessageItem,
    Part, PartContent, ReasoningItem, ReasoningPart, SummaryPart,
};
use serde_json::{Value, json};

use crate::ServeError;
use crate::ids;
use crate::notices::Notices;
use crate::response_store::{Owner, ResponseStore};
use crate::translate::images::{self, SentImage};
use crate::translate::openai::prompt::arguments;

/// Items a client sent, with those it only named.
///
/// # Errors
/// An item that is not kept here.
pub fn resolve(
    items: Vec<InputItem>,
    store: &ResponseStore,
    owner: &Owner,
) -> Result<Vec<Arc<Item>>, ServeError> {
    let resolved = items.into_iter().enumerate().map(|(i, item)| match item {
        InputItem::Item(item) => Ok(Arc::new(item)),
        InputItem::Reference(ItemReference { id, .. }) => store.item(&id, owner).ok_or_else(|| {
            let field = format!("input[{i}].id");
            let reason = format!("{field}: the item {id:?} is not stored here; send the item itself");
            ServeError::invalid(field, reason)
        }),
    });
    resolved.collect()
}

/// The new items of a conversation as they are kept: with ids, and texts as parts.
///
/// # Errors
/// What the model cannot read.
pub fn settle(
    input: Option<&Input>,
    items: Vec<Arc<Item>>,
    notices: &mut Notices,
) -> Result<Vec<Arc<Item>>, ServeError> {
    if let Some(Input::Text(text)) = input {
        let content = PartContent::Parts(vec![Part::InputText { text: text.clone() }]);
        return Ok(vec![Arc::new(Item::Message(message(Role::User, content)))]);
    }
    let settled = items.into_iter().enumerate().map(|(i, item)| {
        let field = format!("input[{i}]");
        for (name, value) in item.other() {
            // An item that was given back says so in fields of ours that are empty.
            if !value.is_null() {
                notices.add(format!("{field}.{name}"), "it is not shown to the model");
            }
        }
        let mut item = Arc::unwrap_or_clone(item);
        settle_item(&field, &mut item)?;
        Ok(Arc::new(item))
    });
    settled.collect()
}

fn message(role: Role, content: PartContent) -> MessageItem {
    let (id, status) = (Some(ids::unique("msg_")), Some(ItemStatus::Completed));
    MessageItem { id, status, role, content, other: Default::default() }
}

fn settle_item(field: &str, item: &mut Item) -> Result<(), ServeError> {
    let name = |id: &mut Option<String>, prefix: &str| {
        id.get_or_insert_with(|| ids::unique(prefix));
    };
    match item {
        Item::Message(message) => {
            if matches!(message.role, Role::Tool | Role::Function) {
                let field = format!("{field}.role");
                let reason = format!(
                    "{field} is {:?}, but must be user, system, developer or assistant; what a \
                                      function gave back is an item of type function_call_output",
                    message.role.name()
                );
                return Err(ServeError::invalid(field, reason));
            }
            name(&mut message.id, "msg_");
            settle_content(&format!("{field}.content"), message.role, &mut message.content)?;
        }
        Item::FunctionCall(call) => name(&mut call.id, "fc_"),
        Item::FunctionCallOutput(output) => {
            name(&mut output.id, "fco_");
            if let PartContent::Parts(parts) = &output.output {
                check_parts(&format!("{field}.output"), Role::Tool, parts)?;
            }
        }
        Item::Reasoning(reasoning) => name(&mut reasoning.id, "rs_"),
    }
    item.set_status(ItemStatus::Completed);
    Ok(())
}

fn settle_content(field: &str, role: Role, content: &mut PartContent) -> Result<(), ServeError> {
    match content {
        PartContent::Parts(parts) => check_parts(field, role, parts),
        PartContent::Text(text) => {
            let text = std::mem::take(text);
            let part = match role {
                Role::Assistant => Part::output(text, Vec::new()),
                _ => Part::InputText { text },
            };
            *content = PartContent::Parts(vec![part]);
            Ok(())
        }
    }
}

/// Whether templates are shown all parts: images are not the assistant's.
fn check_parts(field: &str, role: Role, parts: &[Part]) -> Result<(), ServeError> {
    let may_show = role != Role::Assistant;
    let is_readable =
        |part: &Part| part_text(part).is_some() || may_show && matches!(part, Part::InputImage(_));
    let unreadable = parts.iter().position(|part| !is_readable(part));
    let Some(i) = unreadable else { return Ok(()) };
    let field = format!("{field}[{i}].type");
    let reason =
        format!("{field} is {:?}, which a message of the {} cannot have", parts[i].kind(), role.name());
    Err(ServeError::invalid(field, reason))
}

fn part_text(part: &Part) -> Option<&str> {
    match part {
        Part::InputText { text } | Part::OutputText { text, .. } | Part::Refusal { refusal: text } => {
            Some(text)
        }
        Part::ReasoningText { .. } | Part::InputImage(_) | Part::InputFile(_) | Part::InputAudio(_) => None,
    }
}

/// The text of some content; its parts stand on lines of their own.
fn text_of(content: &PartContent) -> String {
    match content {
        PartContent::Text(text) => text.clone(),
        PartContent::Parts(parts) => parts.iter().filter_map(part_text).collect::<Vec<_>>().join("\n"),
    }
}

/// A message with the images of some content, which stands at `field` of the request.
fn with_images(mut message: Value, field: &str, content: &PartContent) -> Value {
    let (PartContent::Parts(parts), Some(fields)) = (content, message.as_object_mut()) else {
        return message;
    };
    let images = parts.iter().enumerate().filter_map(|(i, part)| {
        let Part::InputImage(image) = part else { return None };
        let field = format!("{field}[{i}].type");
        let refusal = format!("{field} is {:?}, but this model reads only text", part.kind());
        let url = image.get("image_url").and_then(Value::as_str).unwrap_or_default();
        Some(SentImage::from_url(field, refusal, url))
    });
    images::attach(fields, images.collect());
    message
}

/// The messages a conversation's items are, in OpenAI's older shape, which templates read. The first `n_before` are of earlier
/// requests.
///
/// # Errors
/// A function's output without its call.
pub fn messages(
    items: &[Arc<Item>],
    n_before: usize,
    knows_developer: bool,
) -> Result<Vec<Value>, ServeError> {
    let mut messages = Messages { list: Vec::with_capacity(items.len()), thought: None, calls: Vec::new() };
    for (i, item) in items.iter().enumerate() {
        let field = i.checked_sub(n_before).map_or_else(|| "input".to_owned(), |i| format!("input[{i}]"));
        match &**item {
            Item::Message(message) => messages.say(&format!("{field}.content"), message, knows_developer),
            Item::FunctionCall(call) => messages.call(call),
            Item::FunctionCallOutput(output) => messages.give_back(&format!("{field}.output"), output)?,
            Item::Reasoning(reasoning) => messages.thought = Some(thought(reasoning)),
        }
    }
    Ok(messages.list)
}

/// Messages as they are put together.
struct Messages<'a> {
    list: Vec<Value>,
    /// Reasoning that belongs to the assistant's next message.
    thought: Option<String>,
    calls: Vec<&'a FunctionCallItem>,
}

impl<'a> Messages<'a> {
    fn say(&mut self, field: &str, message: &MessageItem, knows_developer: bool) {
        let content = text_of(&message.content);
        let role = match message.role {
            Role::Assistant => return self.answer(json!(content), None),
            Role::Developer if !knows_developer => "system",
            role => role.name(),
        };
        let said = json!({"role": role, "content": content});
        self.list.push(with_images(said, field, &message.content));
    }

    fn answer(&mut self, content: Value, call: Option<Value>) {
        let mut message = json!({"role": "assistant", "content": content});
        if let Some(thought) = self.thought.take() {
            message["reasoning_content"] = json!(thought);
        }
        if let Some(call) = call {
            message["tool_calls"] = json!([call]);
        }
        self.list.push(message);
    }

    /// Calls are part of the message before them, if that is the assistant's too.
    fn call(&mut self, call: &'a FunctionCallItem) {
        self.calls.push(call);
        let function = json!({"name": call.name, "arguments": arguments(&call.arguments)});
        let written = json!({"id": call.call_id, "type": "function", "function": function});
        let last = self.list.last_mut().filter(|last| last["role"] == "assistant" && self.thought.is_none());
        match last {
            Some(last) => match last["tool_calls"].as_array_mut() {
                Some(calls) => calls.push(written),
                None => last["tool_calls"] = json!([written]),
            },
            None => self.answer(json!(""), Some(written)),
        }
    }

    fn give_back(&mut self, field: &str, output: &FunctionCallOutputItem) -> Result<(), ServeError> {
        let Some(call) = self.calls.iter().find(|call| call.call_id == output.call_id) else {
            let reason = format!(
                "input: no function call {:?} comes before its output; send it too, or name the response it is in \
                 as previous_response_id",
                output.call_id
            );
            return Err(ServeError::invalid("input", reason));
        };
        let content = text_of(&output.output);
        let message =
            json!({"role": "tool", "tool_call_id": output.call_id, "name": call.name, "content": content});
        self.list.push(with_images(message, field, &output.output));
        Ok(())
    }
}

/// The text of a reasoning item, or its summary where that is all there is.
fn thought(item: &ReasoningItem) -> String {
    let summary = item.summary.iter().map(|SummaryPart::SummaryText { text }| text.as_str());
    let content = item.content.iter().flatten().map(|ReasoningPart::ReasoningText { text }| text.as_str());
    let content: Vec<&str> = content.collect();
    if content.is_empty() { summary.collect::<Vec<_>>().join("\n") } else { content.join("\n") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use super::*;

    fn read(items: Value) -> Result<Vec<Arc<Item>>, ServeError> {
        let items = items.as_array().unwrap().iter().cloned();
        let items = items.map(|item| InputItem::read("input", item).unwrap()).collect();
        let items = resolve(items, &ResponseStore::default(), &None)?;
        settle(None, items, &mut Notices::default())
    }

    #[test]
    fn a_conversation_with_functions_becomes_what_templates_read() {
        let items = read(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "1 + 2,"}, {"type": "input_text", "text": "3 + 4?"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Adding."}]},
            {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{\"x\": 1}"},
            {"type": "function_call", "call_id": "b", "name": "add", "arguments": "{\"x\": 3}"},
            {"type": "function_call_output", "call_id": "a", "output": "3"},
            {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "7"}]},
            {"type": "function_call", "call_id": "c", "name": "stop", "arguments": "{}"},
        ]))
        .unwrap();
        assert!(items.iter().all(|item| item.id().is_some()));
        let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let calls = [call("a", "add", json!({"x": 1})), call("b", "add", json!({"x": 3}))];
        let expected = [
            json!({"role": "system", "content": "Be brief."}),
            json!({"role": "user", "content": "1 + 2,\n3 + 4?"}),
            json!({"role": "assistant", "content": "Adding.", "reasoning_content": "hm", "tool_calls": calls}),
            json!({"role": "tool", "tool_call_id": "a", "name": "add", "content": "3"}),
            json!({"role": "tool", "tool_call_id": "b", "name": "add", "content": "7"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call("c", "stop", json!({}))]}),
        ];
        assert_eq!(messages(&items, 0, false).unwrap(), expected);
        assert_eq!(messages(&items, 0, true).unwrap()[0]["role"], "developer");
    }

    #[test]
    fn images_go_with_the_message_or_the_result_that_they_are_of() {
        let parts = json!([
            {"type": "input_image", "image_url": "data:image/png;base64,AA"},
            {"type": "input_text", "text": "What?"},
        ]);
        let items = read(json!([
            {"role": "user", "content": parts},
            {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": parts},
        ]))
        .unwrap();
        let messages = messages(&items, 0, false).unwrap();
        let expected = json!([{"type": "image"}, {"type": "text", "text": "What?"}]);
        let shown = images::shown(&messages);
        assert_eq!([&shown[0]["content"], &shown[2]["content"]], [&expected, &expected]);
        assert_eq!(shown[2]["role"], "tool");
    }

    #[test]
    fn what_cannot_be_read_is_named_by_its_place() {
        let check = |item: Value, field: &str| {
            let refused = read(json!([item])).unwrap_err();
            assert!(
                matches!(&refused, ServeError::Invalid { field: Some(f), .. } if f == field),
                "{refused:?}"
            );
        };
        let file = json!([{"type": "input_text", "text": "?"}, {"type": "input_file", "file_id": "x"}]);
        check(json!({"role": "user", "content": file}), "input[0].content[1].type");
        check(
            json!({"type": "function_call_output", "call_id": "c", "output": file}),
            "input[0].output[1].type",
        );
        let image = json!([{"type": "input_image", "image_url": "data:image/png;base64,AA"}]);
        check(json!({"role": "assistant", "content": image}), "input[0].content[0].type");
        check(json!({"role": "tool", "content": "3"}), "input[0].role");
        check(json!({"type": "item_reference", "id": "msg_1"}), "input[0].id");
        let stray = read(json!([{"type": "function_call_output", "call_id": "c", "output": "3"}])).unwrap();
        assert!(messages(&stray, 0, false).unwrap_err().to_string().contains("\"c\""));
    }
}
