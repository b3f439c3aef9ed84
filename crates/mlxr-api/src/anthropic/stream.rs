//! Events of a streamed answer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::content::AnswerBlock;
use super::error::ErrorDetail;
use super::messages::{MessageAnswer, Usage};

/// One event; its name in the stream is its `type`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = anthropic::StreamEvent)]
pub enum StreamEvent {
    /// The answer as it is before its first token.
    MessageStart {
        message: MessageAnswer,
    },
    ContentBlockStart {
        index: usize,
        content_block: AnswerBlock,
    },
    Ping {},
    ContentBlockDelta {
        index: usize,
        delta: BlockDelta,
    },
    ContentBlockStop {
        index: usize,
    },
    MessageDelta {
        delta: MessageDelta,
        usage: Usage,
    },
    MessageStop {},
    Error {
        error: ErrorDetail,
    },
}

impl StreamEvent {
    /// The value of `type`.
    pub const fn name(&self) -> &'static str {
        match self {
            StreamEvent::MessageStart { .. } => "message_start",
            StreamEvent::ContentBlockStart { .. } => "content_block_start",
            StreamEvent::Ping {} => "ping",
            StreamEvent::ContentBlockDelta { .. } => "content_block_delta",
            StreamEvent::ContentBlockStop { .. } => "content_block_stop",
            StreamEvent::MessageDelta { .. } => "message_delta",
            StreamEvent::MessageStop {} => "message_stop",
            StreamEvent::Error { .. } => "error",
        }
    }
}

/// What an event adds to a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = anthropic::BlockDelta)]
pub enum BlockDelta {
    TextDelta { text: String },
    ThinkingDelta { thinking: String },
    SignatureDelta { signature: String },
    InputJsonDelta { partial_json: String },
}

/// How the answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = anthropic::MessageDelta)]
pub struct MessageDelta {
    pub stop_reason: Option<String>,
    pub stop_sequence: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(event: &StreamEvent, expected: &str) {
        let text = serde_json::to_string(event).unwrap();
        assert_eq!(text, expected);
        assert!(text.starts_with(&format!(r#"{{"type":"{}""#, event.name())), "{text}");
        assert_eq!(&serde_json::from_str::<StreamEvent>(&text).unwrap(), event);
    }

    #[test]
    fn events_are_what_clients_read() {
        check(&StreamEvent::Ping {}, r#"{"type":"ping"}"#);
        check(&StreamEvent::MessageStop {}, r#"{"type":"message_stop"}"#);
        check(&StreamEvent::ContentBlockStop { index: 1 }, r#"{"type":"content_block_stop","index":1}"#);
        let content_block = AnswerBlock::Text { text: String::new() };
        check(
            &StreamEvent::ContentBlockStart { index: 0, content_block },
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        );
        let delta = BlockDelta::TextDelta { text: "a".to_owned() };
        check(
            &StreamEvent::ContentBlockDelta { index: 0, delta },
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}"#,
        );
        let delta = BlockDelta::InputJsonDelta { partial_json: "{".to_owned() };
        check(
            &StreamEvent::ContentBlockDelta { index: 2, delta },
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{"}}"#,
        );
        let delta = MessageDelta { stop_reason: Some("end_turn".to_owned()), stop_sequence: None };
        let usage = Usage { input_tokens: 1, output_tokens: 2, ..Usage::default() };
        let expected = concat!(
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"#,
            r#""usage":{"input_tokens":1,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"#,
            r#""output_tokens":2}}"#
        );
        check(&StreamEvent::MessageDelta { delta, usage }, expected);
        let error = ErrorDetail { r#type: "api_error".to_owned(), message: "m".to_owned() };
        check(
            &StreamEvent::Error { error },
            r#"{"type":"error","error":{"type":"api_error","message":"m"}}"#,
        );
    }
}
