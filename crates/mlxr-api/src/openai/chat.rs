//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::sampling::SamplingExtensions;
use super::text_list::TextList;
use super::tools::{
    FunctionCall, FunctionChoice, FunctionDefinition, ResponseFormat, Tool, ToolCall, ToolChoice,
};
use super::usage::{StreamOptions, Usage};
use crate::body::{self, BodyError};
use crate::schema::{self, schema_of};

/// The request. Fields are OpenAI's; see their API reference for what each means.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::ChatCompletionRequest)]
pub struct ChatCompletionRequest {
    pub model: String,
    #[schema(min_items = 1)]
    pub messages: Vec<ChatMessage>,
    pub audio: Option<Value>,
    pub frequency_penalty: Option<f32>,
    pub function_call: Option<FunctionChoice>,
    pub functions: Option<Vec<FunctionDefinition>>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub logprobs: Option<bool>,
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<usize>,
    #[schema(minimum = 1)]
    pub max_tokens: Option<usize>,
    pub metadata: Option<Map<String, Value>>,
    pub modalities: Option<Vec<String>>,
    #[schema(minimum = 1)]
    pub n: Option<usize>,
    pub parallel_tool_calls: Option<bool>,
    pub prediction: Option<Value>,
    pub presence_penalty: Option<f32>,
    pub prompt_cache_key: Option<String>,
    pub prompt_cache_retention: Option<String>,
    pub reasoning_effort: Option<String>,
    pub response_format: Option<ResponseFormat>,
    pub safety_identifier: Option<String>,
    pub seed: Option<i64>,
    pub service_tier: Option<String>,
    pub stop: Option<TextList>,
    pub store: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub temperature: Option<f32>,
    pub tool_choice: Option<ToolChoice>,
    pub tools: Option<Vec<Tool>>,
    pub top_logprobs: Option<usize>,
    pub top_p: Option<f32>,
    pub user: Option<String>,
    pub verbosity: Option<String>,
    pub web_search_options: Option<Value>,
    #[serde(skip)]
    pub extensions: SamplingExtensions,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl ChatCompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        let mut request: Self = body::parse(body)?;
        request.extensions = body::parse_rest(std::mem::take(&mut request.unknown))?;
        request.unknown = std::mem::take(&mut request.extensions.unknown);
        Ok(request)
    }
}

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::ChatMessage)]
pub struct ChatMessage {
    pub role: Role,
    pub content: Option<Content>,
    pub tool_calls: Option<Vec<ToolCall>>,
    pub function_call: Option<FunctionCall>,
    /// The rest (`name`, `tool_call_id`, `reasoning_content`, ...): what a chat template makes of it.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = openai::Role)]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
    Function,
}

impl Role {
    pub const fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::Developer => "developer",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Function => "function",
        }
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = openai::ContentPart)]
pub enum ContentPart {
    Text { text: String },
    Refusal { refusal: String },
    ImageUrl { image_url: Value },
    InputAudio { input_audio: Value },
    File { file: Value },
}

impl ContentPart {
    /// The value of `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            ContentPart::Text { .. } => "text",
            ContentPart::Refusal { .. } => "refusal",
            ContentPart::ImageUrl { .. } => "image_url",
            ContentPart::InputAudio { .. } => "input_audio",
            ContentPart::File { .. } => "file",
        }
    }
}

schema_of!(
    Content,
    "openai.Content",
    schema::any_of([schema::text(), schema::list(schema::reference::<ContentPart>())]),
    ContentPart
);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyContent;

        impl<'de> Visitor<'de> for AnyContent {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content parts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Content::Parts)
            }
        }

        deserializer.deserialize_any(AnyContent)
    }
}

/// The whole answer.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ChatCompletion)]
pub struct ChatCompletion {
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
    pub system_fingerprint: String,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ChatChoice)]
pub struct ChatChoice {
    pub index: u32,
    pub message: AnswerMessage,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
}

/// The model's message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::AnswerMessage)]
pub struct AnswerMessage {
    pub role: &'static str,
    pub content: Option<String>,
    pub refusal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// In answers to requests with `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
}

/// Log-probabilities of a choice's tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ChatLogprobs)]
pub struct ChatLogprobs {
    pub content: Vec<ChatTokenLogprob>,
    pub refusal: Option<Vec<ChatTokenLogprob>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::ChatTokenLogprob)]
pub struct ChatTokenLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    pub top_logprobs: Vec<TopLogprob>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::TopLogprob)]
pub struct TopLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
}

/// One event of a streamed answer.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ChatCompletionChunk)]
pub struct ChatCompletionChunk {
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub choices: Vec<ChunkChoice>,
    /// With `include_usage`: null, but for the last chunk. Absent without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ChunkChoice)]
pub struct ChunkChoice {
    pub index: u32,
    pub delta: Delta,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// What a chunk adds to the message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::Delta)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCallDelta>,
}

/// What a chunk adds to a tool call.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::ToolCallDelta)]
pub struct ToolCallDelta {
    pub index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    pub function: FunctionCallDelta,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::FunctionCallDelta)]
pub struct FunctionCallDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tools::{NamedToolChoice, ToolChoiceMode};
    use super::*;

    fn parse(body: Value) -> Result<ChatCompletionRequest, BodyError> {
        ChatCompletionRequest::parse(body.to_string().as_bytes())
    }

    fn error(body: Value) -> (Option<String>, String) {
        let error = parse(body).unwrap_err();
        (error.field, error.reason)
    }

    #[test]
    fn what_the_python_client_sends_is_read() {
        // As openai-python writes it for a call with tools and images in the history.
        let request = parse(json!({
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
                ]},
                {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{\"x\":1}"}}
                ]},
                {"role": "tool", "tool_call_id": "call_1", "content": "a cat"}
            ],
            "model": "m", "max_completion_tokens": 20, "stop": ["\n", "END"], "seed": -3, "stream": true,
            "stream_options": {"include_usage": true}, "temperature": 1, "logit_bias": {"15": -100},
            "tools": [{"type": "function", "function": {"name": "look", "strict": true,
                "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
            "top_k": 20, "chat_template_kwargs": {"enable_thinking": false}, "guided_foo": 1, "n": null
        }))
        .unwrap();
        assert_eq!(request.messages.len(), 4);
        assert_eq!(request.messages[0].role, Role::Developer);
        let Some(Content::Parts(parts)) = &request.messages[1].content else { panic!("parts") };
        assert_eq!(parts.iter().map(ContentPart::kind).collect::<Vec<_>>(), ["text", "image_url"]);
        assert_eq!(request.messages[2].content, None);
        assert_eq!(request.messages[2].tool_calls.as_ref().unwrap()[0].function.arguments, "{\"x\":1}");
        assert_eq!(request.messages[3].other["tool_call_id"], "call_1");
        assert_eq!(request.stop, Some(TextList(vec!["\n".to_owned(), "END".to_owned()])));
        assert_eq!((request.seed, request.temperature, request.n), (Some(-3), Some(1.0), None));
        assert_eq!(request.logit_bias.unwrap()["15"], -100.0);
        assert_eq!(request.tools.unwrap()[0].function.strict, Some(true));
        let Some(ToolChoice::Named(NamedToolChoice { function, .. })) = request.tool_choice else {
            panic!("named")
        };
        assert_eq!(function.name, "look");
        assert!(matches!(request.response_format, Some(ResponseFormat::JsonSchema { .. })));
        assert_eq!(request.extensions.top_k, Some(20));
        assert_eq!(request.extensions.chat_template_kwargs.unwrap()["enable_thinking"], false);
        assert_eq!(request.unknown.keys().collect::<Vec<_>>(), ["guided_foo"]);
    }

    #[test]
    fn the_least_a_client_may_send_is_enough() {
        let request = parse(json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})).unwrap();
        assert_eq!(request.messages[0].content, Some(Content::Text("Hi".to_owned())));
        assert!(request.unknown.is_empty());
        let request =
            parse(json!({"model": "m", "messages": [], "stop": "x", "tool_choice": "none"})).unwrap();
        assert_eq!(request.stop, Some(TextList(vec!["x".to_owned()])));
        assert_eq!(request.tool_choice, Some(ToolChoice::Mode(ToolChoiceMode::None)));
    }

    #[test]
    fn a_mistake_is_named_by_its_field() {
        let user = |content: Value| json!({"model": "m", "messages": [{"role": "user", "content": content}]});
        let (field, reason) = error(user(json!(7)));
        assert_eq!(field.as_deref(), Some("messages[0].content"));
        assert!(reason.contains("expected a string or a list of content parts"), "{reason}");
        let (field, _) = error(user(json!([{"type": "text"}])));
        assert_eq!(field.as_deref(), Some("messages[0].content[0]"));
        let (field, reason) = error(json!({"model": "m", "messages": [{"role": "wizard"}]}));
        assert_eq!(field.as_deref(), Some("messages[0].role"));
        assert!(reason.contains("unknown variant `wizard`, expected one of `system`"), "{reason}");
        let with = |name: &str, value: Value| json!({"model": "m", "messages": [], name: value});
        for (name, value) in [
            ("temperature", json!("hot")),
            ("n", json!(-1)),
            ("stop", json!([1])),
            ("max_tokens", json!(1.5)),
            ("tool_choice", json!("always")),
            ("response_format", json!({"type": "yaml"})),
            ("stream", json!("yes")),
            ("top_k", json!("many")),
            ("stop_token_ids", json!([-1])),
        ] {
            let (field, reason) = error(with(name, value));
            let field = field.unwrap_or_default();
            assert!(field.starts_with(name), "{name}: {field}: {reason}");
        }
        assert!(error(json!({"model": "m"})).1.contains("missing field `messages`"));
    }

    #[test]
    fn answers_are_written_as_clients_read_them() {
        let answer = ChatCompletion {
            id: "chatcmpl-1".to_owned(),
            object: "chat.completion",
            created: 7,
            model: "m".to_owned(),
            choices: vec![ChatChoice {
                index: 0,
                message: AnswerMessage {
                    role: "assistant",
                    content: Some("Hi".to_owned()),
                    ..AnswerMessage::default()
                },
                logprobs: None,
                finish_reason: "stop",
            }],
            usage: Usage::new(3, 2).with_cached(1),
            system_fingerprint: "f".to_owned(),
            warnings: Vec::new(),
        };
        assert_eq!(
            serde_json::to_string(&answer).unwrap(),
            concat!(
                r#"{"id":"chatcmpl-1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"#,
                r#""message":{"role":"assistant","content":"Hi","refusal":null},"logprobs":null,"#,
                r#""finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"#,
                r#""prompt_tokens_details":{"cached_tokens":1}},"#,
                r#""system_fingerprint":"f"}"#
            )
        );
        let chunk = ChatCompletionChunk {
            id: "chatcmpl-1".to_owned(),
            object: "chat.completion.chunk",
            created: 7,
            model: "m".to_owned(),
            system_fingerprint: "f".to_owned(),
            choices: vec![ChunkChoice {
                index: 0,
                delta: Delta { content: Some("H".to_owned()), ..Delta::default() },
                logprobs: None,
                finish_reason: None,
            }],
            usage: Some(None),
            warnings: Vec::new(),
        };
        assert_eq!(
            serde_json::to_string(&chunk).unwrap(),
            concat!(
                r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","#,
                r#""system_fingerprint":"f","choices":[{"index":0,"delta":{"content":"H"},"logprobs":null,"#,
                r#""finish_reason":null}],"usage":null}"#
            )
        );
    }
}
