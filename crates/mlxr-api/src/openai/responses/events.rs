//! The events a response comes in.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::chat::ChatTokenLogprob;
use super::items::{Item, Part};
use super::response::Response;

/// One event; `sequence_number` counts them from 0.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ResponseStreamEvent)]
pub struct StreamEvent {
    pub sequence_number: usize,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened. Items are named by their id and their place in the output, their parts by their place in the item.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type")]
#[schema(as = openai::ResponseEventKind)]
pub enum EventKind {
    #[serde(rename = "response.created")]
    Created { response: Response },
    #[serde(rename = "response.in_progress")]
    InProgress { response: Response },
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: Item },
    #[serde(rename = "response.content_part.added")]
    PartAdded { item_id: String, output_index: usize, content_index: usize, part: Part },
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        item_id: String,
        output_index: usize,
        content_index: usize,
        delta: String,
        logprobs: Vec<ChatTokenLogprob>,
    },
    #[serde(rename = "response.output_text.done")]
    TextDone {
        item_id: String,
        output_index: usize,
        content_index: usize,
        text: String,
        logprobs: Vec<ChatTokenLogprob>,
    },
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta { item_id: String, output_index: usize, content_index: usize, delta: String },
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone { item_id: String, output_index: usize, content_index: usize, text: String },
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta { item_id: String, output_index: usize, delta: String },
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone { item_id: String, output_index: usize, name: String, arguments: String },
    #[serde(rename = "response.content_part.done")]
    PartDone { item_id: String, output_index: usize, content_index: usize, part: Part },
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: Item },
    #[serde(rename = "response.completed")]
    Completed { response: Response },
    #[serde(rename = "response.incomplete")]
    Incomplete { response: Response },
    #[serde(rename = "response.failed")]
    Failed { response: Response },
}

impl EventKind {
    /// The event's name, which is also its `type`.
    pub const fn name(&self) -> &'static str {
        match self {
            EventKind::Created { .. } => "response.created",
            EventKind::InProgress { .. } => "response.in_progress",
            EventKind::ItemAdded { .. } => "response.output_item.added",
            EventKind::PartAdded { .. } => "response.content_part.added",
            EventKind::TextDelta { .. } => "response.output_text.delta",
            EventKind::TextDone { .. } => "response.output_text.done",
            EventKind::ReasoningDelta { .. } => "response.reasoning_text.delta",
            EventKind::ReasoningDone { .. } => "response.reasoning_text.done",
            EventKind::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            EventKind::ArgumentsDone { .. } => "response.function_call_arguments.done",
            EventKind::PartDone { .. } => "response.content_part.done",
            EventKind::ItemDone { .. } => "response.output_item.done",
            EventKind::Completed { .. } => "response.completed",
            EventKind::Incomplete { .. } => "response.incomplete",
            EventKind::Failed { .. } => "response.failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_event_s_name_is_its_type() {
        let (item_id, delta) = ("fc_1".to_owned(), "{".to_owned());
        let part = Part::ReasoningText { text: String::new() };
        let kinds = [
            EventKind::ArgumentsDelta { item_id: item_id.clone(), output_index: 1, delta },
            EventKind::PartDone { item_id, output_index: 0, content_index: 0, part },
        ];
        for kind in kinds {
            let name = kind.name();
            let event: Value = json!(StreamEvent { sequence_number: 4, kind });
            assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(4)));
        }
    }
}
