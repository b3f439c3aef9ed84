//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::content::{AnswerBlock, Content};
use crate::body::{self, BodyError};

/// The request. Fields are Anthropic's; see their API reference for what each means.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::MessagesRequest)]
pub struct MessagesRequest {
    pub model: String,
    pub messages: Vec<Message>,
    /// Needed, but for counting.
    pub max_tokens: Option<usize>,
    pub system: Option<Content>,
    pub cache_control: Option<Value>,
    pub container: Option<Value>,
    pub context_management: Option<Value>,
    pub diagnostics: Option<Value>,
    pub inference_geo: Option<String>,
    pub mcp_servers: Option<Vec<Value>>,
    pub metadata: Option<Map<String, Value>>,
    pub output_config: Option<OutputConfig>,
    /// What `output_config.format` was in the beta.
    pub output_format: Option<OutputFormat>,
    pub service_tier: Option<String>,
    pub speed: Option<String>,
    pub stop_sequences: Option<Vec<String>>,
    pub stream: Option<bool>,
    pub temperature: Option<f32>,
    pub thinking: Option<Thinking>,
    pub tool_choice: Option<ToolChoice>,
    pub tools: Option<Vec<Tool>>,
    pub top_k: Option<i64>,
    pub top_p: Option<f32>,
    pub user_profile_id: Option<String>,
    pub workspace_id: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl MessagesRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        body::parse(body)
    }
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::Message)]
pub struct Message {
    pub role: Role,
    pub content: Content,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = anthropic::Role)]
pub enum Role {
    User,
    Assistant,
    System,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::System => "system",
        }
    }
}

/// `output_config`.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::OutputConfig)]
pub struct OutputConfig {
    pub effort: Option<String>,
    pub format: Option<OutputFormat>,
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// The form asked of the answer.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = anthropic::OutputFormat)]
pub enum OutputFormat {
    JsonSchema { schema: Map<String, Value> },
}

/// `thinking`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = anthropic::Thinking)]
pub struct Thinking {
    pub r#type: ThinkingMode,
    pub budget_tokens: Option<usize>,
    pub display: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = anthropic::ThinkingMode)]
pub enum ThinkingMode {
    Enabled,
    Disabled,
    Adaptive,
    BetweenTools,
}

/// A tool the model may call. One with a `type` other than `custom` is Anthropic's own.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::Tool)]
pub struct Tool {
    pub r#type: Option<String>,
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema.
    pub input_schema: Option<Value>,
    pub strict: Option<bool>,
    /// `cache_control`, `input_examples` and what else there is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `tool_choice`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = anthropic::ToolChoice)]
pub enum ToolChoice {
    Auto { disable_parallel_tool_use: Option<bool> },
    Any { disable_parallel_tool_use: Option<bool> },
    Tool { name: String, disable_parallel_tool_use: Option<bool> },
    None {},
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = anthropic::MessageAnswer)]
pub struct MessageAnswer {
    pub id: String,
    /// `message`.
    pub r#type: String,
    /// `assistant`.
    pub role: String,
    pub model: String,
    pub content: Vec<AnswerBlock>,
    pub stop_reason: Option<String>,
    pub stop_sequence: Option<String>,
    pub usage: Usage,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = anthropic::Usage)]
pub struct Usage {
    pub input_tokens: usize,
    pub cache_creation_input_tokens: usize,
    pub cache_read_input_tokens: usize,
    pub output_tokens: usize,
}

/// The answer of `count_tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = anthropic::TokenCount)]
pub struct TokenCount {
    pub input_tokens: usize,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::content::Block;
    use super::*;

    fn parse(body: Value) -> Result<MessagesRequest, BodyError> {
        MessagesRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_the_python_client_sends_is_read() {
        // As anthropic-python 2.11 writes a conversation with a call and its result.
        let request = parse(json!({
            "max_tokens": 64, "model": "m", "stop_sequences": ["END"], "stream": true, "temperature": 0.5,
            "top_k": 5, "top_p": 0.9, "metadata": {"user_id": "u"}, "service_tier": "auto",
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "1 + 2?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "text", "text": "I will add."},
                    {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "3"}]},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}]}
            ],
            "tools": [{"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "add", "disable_parallel_tool_use": true},
            "thinking": {"type": "enabled", "budget_tokens": 1024},
            "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
            "betas": []
        }))
        .unwrap();
        assert_eq!((request.max_tokens, request.top_k), (Some(64), Some(5)));
        let Some(Content::Blocks(system)) = &request.system else { panic!("{:?}", request.system) };
        assert!(matches!(&system[0], Block::Text(block) if block.other.contains_key("cache_control")));
        let Content::Blocks(result) = &request.messages[2].content else { panic!("a list was sent") };
        assert_eq!(result.iter().map(Block::kind).collect::<Vec<_>>(), ["tool_result", "image"]);
        let choice = ToolChoice::Tool { name: "add".to_owned(), disable_parallel_tool_use: Some(true) };
        assert_eq!(request.tool_choice, Some(choice));
        assert_eq!(request.thinking.unwrap().r#type, ThinkingMode::Enabled);
        assert_eq!(request.unknown.keys().collect::<Vec<_>>(), ["betas"]);
    }

    #[test]
    fn a_mistake_is_named_by_its_place() {
        let message = |message: Value| parse(json!({"model": "m", "messages": [message]})).unwrap_err();
        let field = |value: Value| message(value).field.unwrap();
        assert_eq!(field(json!({"role": "robot", "content": "x"})), "messages[0].role");
        assert_eq!(field(json!({"role": "user", "content": 3})), "messages[0].content");
        assert_eq!(
            field(json!({"role": "user", "content": [{"type": "smell"}]})),
            "messages[0].content[0].type"
        );
        let reason = message(json!({"role": "user", "content": [{"type": "text"}]})).reason;
        assert!(reason.contains("missing field `text`"), "{reason}");
        assert!(parse(json!({"model": "m"})).unwrap_err().reason.contains("missing field `messages`"));
    }

    #[test]
    fn every_tool_choice_is_read() {
        let read = |value: Value| serde_json::from_value::<ToolChoice>(value).unwrap();
        let disable_parallel_tool_use = None;
        assert_eq!(read(json!({"type": "auto"})), ToolChoice::Auto { disable_parallel_tool_use });
        assert_eq!(read(json!({"type": "any"})), ToolChoice::Any { disable_parallel_tool_use });
        assert_eq!(read(json!({"type": "none"})), ToolChoice::None {});
    }

    #[test]
    fn an_answer_is_written_and_read_back() {
        let answer = MessageAnswer {
            id: "msg_1".to_owned(),
            r#type: "message".to_owned(),
            role: "assistant".to_owned(),
            model: "m".to_owned(),
            content: vec![AnswerBlock::Text { text: "Hi".to_owned() }],
            stop_reason: Some("end_turn".to_owned()),
            stop_sequence: None,
            usage: Usage { input_tokens: 3, output_tokens: 2, ..Usage::default() },
            warnings: Vec::new(),
        };
        let text = serde_json::to_string(&answer).unwrap();
        let expected = concat!(
            r#"{"id":"msg_1","type":"message","role":"assistant","model":"m","#,
            r#""content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn","stop_sequence":null,"#,
            r#""usage":{"input_tokens":3,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"#,
            r#""output_tokens":2}}"#
        );
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<MessageAnswer>(&text).unwrap(), answer);
    }
}
