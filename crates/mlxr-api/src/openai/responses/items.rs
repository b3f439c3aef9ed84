//! What a conversation consists of here: messages, calls of functions, what they gave back, and reasoning.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::super::chat::{ChatTokenLogprob, Role};
use crate::body::{self, BodyError};
use crate::schema::{self, schema_of};

/// `input`: a text of the user's, or items that are read one by one, so that a mistake is named by its place.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    Text(String),
    Items(Vec<Value>),
}

schema_of!(
    Input,
    "openai.ResponseInput",
    schema::any_of([schema::text(), schema::list(schema::reference::<InputItem>())]),
    InputItem
);

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyInput;

        impl<'de> Visitor<'de> for AnyInput {
            type Value = Input;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of items")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
                Ok(Input::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Input, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Input::Items)
            }
        }

        deserializer.deserialize_any(AnyInput)
    }
}

/// An item a client sends.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum InputItem {
    Item(Item),
    Reference(ItemReference),
}

schema_of!(
    InputItem,
    "openai.ResponseInputItem",
    // Messages need not say that they are some.
    schema::any_of([
        schema::reference::<Item>(),
        schema::reference::<MessageItem>(),
        schema::reference::<ItemReference>(),
    ]),
    Item,
    MessageItem,
    ItemReference
);

/// An item of an earlier response, by its id.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ItemReference)]
pub struct ItemReference {
    /// `item_reference`.
    pub r#type: Option<String>,
    pub id: String,
}

/// Kinds of items that can be read; without a kind it is a message.
const KINDS: [&str; 5] = ["message", "function_call", "function_call_output", "reasoning", "item_reference"];

impl InputItem {
    /// Reads the item at `field`.
    ///
    /// # Errors
    /// [`BodyError`] names the part that is wrong.
    pub fn read(field: &str, mut value: Value) -> Result<InputItem, BodyError> {
        let wrong = |part: &str, reason: String| BodyError { field: Some(format!("{field}{part}")), reason };
        let Some(fields) = value.as_object_mut() else {
            return Err(wrong("", "expected an object".to_owned()));
        };
        let is_message = fields.contains_key("role");
        let kind = match fields.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            None | Some(Value::Null) if is_message => "message".to_owned(),
            None | Some(Value::Null) if fields.contains_key("id") => "item_reference".to_owned(),
            None | Some(Value::Null) => return Err(wrong("", "missing field `role`".to_owned())),
            Some(_) => return Err(wrong(".type", "expected a string".to_owned())),
        };
        if !KINDS.contains(&kind.as_str()) {
            let reason = format!("{kind:?} cannot be read here, only {}", KINDS.join(", "));
            return Err(wrong(".type", reason));
        }
        if kind == "item_reference" {
            let id = fields.get("id").and_then(Value::as_str);
            let id = id.ok_or_else(|| wrong(".id", "expected a string".to_owned()))?.to_owned();
            return Ok(InputItem::Reference(ItemReference { r#type: Some(kind), id }));
        }
        fields.remove("type");
        let item = match kind.as_str() {
            "function_call" => Item::FunctionCall(body::parse_at(field, value)?),
            "function_call_output" => Item::FunctionCallOutput(body::parse_at(field, value)?),
            "reasoning" => Item::Reasoning(body::parse_at(field, value)?),
            _ => Item::Message(body::parse_at(field, value)?),
        };
        Ok(InputItem::Item(item))
    }
}

/// One item.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = openai::ResponseItem)]
pub enum Item {
    Message(MessageItem),
    FunctionCall(FunctionCallItem),
    FunctionCallOutput(FunctionCallOutputItem),
    Reasoning(ReasoningItem),
}

impl Item {
    pub fn id(&self) -> Option<&str> {
        let id = match self {
            Item::Message(item) => &item.id,
            Item::FunctionCall(item) => &item.id,
            Item::FunctionCallOutput(item) => &item.id,
            Item::Reasoning(item) => &item.id,
        };
        id.as_deref()
    }

    /// Fields that nobody reads.
    pub fn other(&self) -> &Map<String, Value> {
        match self {
            Item::Message(item) => &item.other,
            Item::FunctionCall(item) => &item.other,
            Item::FunctionCallOutput(item) => &item.other,
            Item::Reasoning(item) => &item.other,
        }
    }

    pub fn set_status(&mut self, status: ItemStatus) {
        let field = match self {
            Item::Message(item) => &mut item.status,
            Item::FunctionCall(item) => &mut item.status,
            Item::FunctionCallOutput(item) => &mut item.status,
            Item::Reasoning(item) => &mut item.status,
        };
        *field = Some(status);
    }
}

/// How far an item has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = openai::ItemStatus)]
pub enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::MessageItem)]
pub struct MessageItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ItemStatus>,
    pub role: Role,
    pub content: PartContent,
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// A call of a function; `arguments` are JSON in a string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::FunctionCallItem)]
pub struct FunctionCallItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ItemStatus>,
    pub call_id: String,
    pub name: String,
    pub arguments: String,
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// What a call gave back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::FunctionCallOutputItem)]
pub struct FunctionCallOutputItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ItemStatus>,
    pub call_id: String,
    pub output: PartContent,
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

/// What the model thought before it answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ReasoningItem)]
pub struct ReasoningItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ItemStatus>,
    #[serde(default, deserialize_with = "body::or_default")]
    pub summary: Vec<SummaryPart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Vec<ReasoningPart>>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = openai::ReasoningPart)]
pub enum ReasoningPart {
    ReasoningText { text: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = openai::SummaryPart)]
pub enum SummaryPart {
    SummaryText { text: String },
}

/// What a message says, or a call gave back.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum PartContent {
    Text(String),
    Parts(Vec<Part>),
}

schema_of!(
    PartContent,
    "openai.ResponseContent",
    schema::any_of([schema::text(), schema::list(schema::reference::<Part>())]),
    Part
);

impl<'de> Deserialize<'de> for PartContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyContent;

        impl<'de> Visitor<'de> for AnyContent {
            type Value = PartContent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PartContent, E> {
                Ok(PartContent::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<PartContent, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(PartContent::Parts)
            }
        }

        deserializer.deserialize_any(AnyContent)
    }
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = openai::ResponsePart)]
pub enum Part {
    InputText {
        text: String,
    },
    OutputText {
        text: String,
        /// Always empty: nothing is cited.
        #[serde(default, deserialize_with = "body::or_default")]
        annotations: Vec<Value>,
        #[serde(default, deserialize_with = "body::or_default")]
        logprobs: Vec<ChatTokenLogprob>,
    },
    Refusal {
        refusal: String,
    },
    ReasoningText {
        text: String,
    },
    InputImage(Map<String, Value>),
    InputFile(Map<String, Value>),
    InputAudio(Map<String, Value>),
}

impl Part {
    /// An answer's text.
    pub fn output(text: String, logprobs: Vec<ChatTokenLogprob>) -> Part {
        Part::OutputText { text, annotations: Vec::new(), logprobs }
    }

    /// The value of `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Part::InputText { .. } => "input_text",
            Part::OutputText { .. } => "output_text",
            Part::Refusal { .. } => "refusal",
            Part::ReasoningText { .. } => "reasoning_text",
            Part::InputImage(_) => "input_image",
            Part::InputFile(_) => "input_file",
            Part::InputAudio(_) => "input_audio",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn items_are_told_by_their_kind_and_a_message_needs_none() {
        let read = |value| InputItem::read("input[0]", value).unwrap();
        let InputItem::Item(Item::Message(message)) = read(json!({"role": "user", "content": "Hi"})) else {
            panic!("a message")
        };
        assert_eq!((message.role, message.content), (Role::User, PartContent::Text("Hi".to_owned())));
        let answer = json!({"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
            "content": [{"type": "output_text", "text": "Yo", "annotations": [], "logprobs": null}], "phase": null});
        let InputItem::Item(Item::Message(message)) = read(answer) else { panic!("a message") };
        assert_eq!(message.content, PartContent::Parts(vec![Part::output("Yo".to_owned(), Vec::new())]));
        assert_eq!(message.other.keys().collect::<Vec<_>>(), ["phase"]);
        let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
        assert!(matches!(read(call), InputItem::Item(Item::FunctionCall(call)) if call.name == "f"));
        let reference = InputItem::Reference(ItemReference {
            r#type: Some("item_reference".to_owned()),
            id: "msg_1".to_owned(),
        });
        assert_eq!(read(json!({"id": "msg_1"})), reference);
        let thought = json!({"type": "reasoning", "id": "rs_1", "summary": null,
            "content": [{"type": "reasoning_text", "text": "hm"}], "encrypted_content": null});
        assert!(matches!(read(thought), InputItem::Item(Item::Reasoning(item)) if item.summary.is_empty()));
    }

    #[test]
    fn a_mistake_in_an_item_is_named_by_its_place() {
        let check = |value: Value, field: &str, text: &str| {
            let error = InputItem::read("input[3]", value).unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field), "{error}");
            assert!(error.reason.contains(text), "{error}");
        };
        check(json!("Hi"), "input[3]", "expected an object");
        check(json!({"content": "Hi"}), "input[3]", "missing field `role`");
        check(json!({"role": "wizard", "content": ""}), "input[3].role", "unknown variant `wizard`");
        check(
            json!({"role": "user", "content": 7}),
            "input[3].content",
            "a string or a list of content parts",
        );
        let part = json!([{"type": "input_text", "text": "a"}, {"type": "hologram"}]);
        check(
            json!({"role": "user", "content": part}),
            "input[3].content[1].type",
            "unknown variant `hologram`",
        );
        check(
            json!({"type": "web_search_call", "id": "x"}),
            "input[3].type",
            "\"web_search_call\" cannot be read",
        );
        check(
            json!({"type": "function_call", "name": "f", "arguments": ""}),
            "input[3]",
            "missing field `call_id`",
        );
    }
}
