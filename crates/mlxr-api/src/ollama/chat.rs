//! `POST /api/chat`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::keep_alive::KeepAlive;
use super::logprobs::Logprob;
use super::metrics::Metrics;
use super::options::Options;
use super::output::{Format, Think};
use crate::body::{self, BodyError};

/// The request. Fields are Ollama's; see its API documentation for what each means.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::ChatRequest)]
pub struct ChatRequest {
    pub model: String,
    /// None at all only loads or unloads the model.
    pub messages: Option<Vec<Message>>,
    /// In OpenAI's shape.
    pub tools: Option<Vec<Value>>,
    /// Absent is true.
    pub stream: Option<bool>,
    pub format: Option<Format>,
    pub keep_alive: Option<KeepAlive>,
    pub options: Option<Options>,
    pub think: Option<Think>,
    pub truncate: Option<bool>,
    pub shift: Option<bool>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<usize>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        body::parse(body)
    }
}

/// One message, of the conversation or of the answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::Message)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    #[serde(default)]
    pub content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A call of a tool; its arguments are JSON, not a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ToolCall)]
pub struct ToolCall {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub function: ToolCallFunction,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ToolCallFunction)]
pub struct ToolCallFunction {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    pub name: String,
    pub arguments: Map<String, Value>,
}

/// A line of a streamed answer, or the whole of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ChatResponse)]
pub struct ChatResponse {
    pub model: String,
    /// RFC 3339.
    pub created_at: String,
    pub message: Message,
    pub done: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<String>,
    #[serde(flatten)]
    #[schema(value_type = Metrics)]
    pub metrics: Option<Metrics>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<Logprob>,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<ChatRequest, BodyError> {
        ChatRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_the_python_client_sends_is_read() {
        // As ollama-python 0.6.3 writes a conversation with a call and its result.
        let tool = json!({"type": "function", "function": {"name": "add", "description": "Adds.", "parameters":
            {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer", "description": ""}}}}});
        let request = parse(json!({
            "model": "m", "stream": true, "format": {"type": "object"}, "think": false, "keep_alive": 0.0,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1 + 2?", "images": ["AAAA"]},
                {"role": "assistant", "thinking": "hm", "tool_calls": [
                    {"function": {"name": "add", "arguments": {"a": 1}}}]},
                {"role": "tool", "content": "3", "tool_name": "add", "extra": 1}
            ],
            "tools": [tool.clone()]
        }))
        .unwrap();
        let messages = request.messages.unwrap();
        assert_eq!((messages[0].role.as_str(), messages[1].images.as_ref().unwrap().len()), ("system", 1));
        assert_eq!((messages[2].content.as_str(), messages[2].thinking.as_deref()), ("", Some("hm")));
        let call = &messages[2].tool_calls.as_ref().unwrap()[0];
        assert_eq!((call.function.name.as_str(), &call.function.arguments["a"]), ("add", &json!(1)));
        assert_eq!(messages[3].tool_name.as_deref(), Some("add"));
        assert_eq!(messages[3].unknown.keys().collect::<Vec<_>>(), ["extra"]);
        assert_eq!((request.tools, request.think), (Some(vec![tool]), Some(Think::Whether(false))));
        assert!(matches!(request.format, Some(Format::Schema(schema)) if schema["type"] == "object"));
        assert!(request.unknown.is_empty());
    }

    #[test]
    fn a_mistake_is_named_by_its_place() {
        let field = |body: Value| parse(body).unwrap_err().field.unwrap();
        assert_eq!(
            field(json!({"model": "m", "messages": [{"role": "user", "content": 1}]})),
            "messages[0].content"
        );
        assert_eq!(field(json!({"model": "m", "messages": "Hi"})), "messages");
        assert_eq!(field(json!({"model": "m", "options": {"num_ctx": -1}})), "options.num_ctx");
    }

    #[test]
    fn lines_are_written_and_read_back() {
        let message = Message { role: "assistant".to_owned(), content: "x".to_owned(), ..Message::default() };
        let line = ChatResponse {
            model: "m".to_owned(),
            created_at: "2024-01-01T00:00:00Z".to_owned(),
            message,
            done: false,
            done_reason: None,
            metrics: None,
            logprobs: Vec::new(),
            warnings: Vec::new(),
        };
        let text = serde_json::to_string(&line).unwrap();
        let head = r#"{"model":"m","created_at":"2024-01-01T00:00:00Z","#;
        assert_eq!(text, format!(r#"{head}"message":{{"role":"assistant","content":"x"}},"done":false}}"#));
        let function = ToolCallFunction { index: Some(0), name: "f".to_owned(), arguments: Map::new() };
        let calls = vec![ToolCall { id: Some("c".to_owned()), function }];
        let message = Message { tool_calls: Some(calls), content: String::new(), ..line.message.clone() };
        let end = ChatResponse { message, metrics: Some(Metrics::default()), done: true, ..line };
        let text = serde_json::to_string(&end).unwrap();
        let calls = r#""tool_calls":[{"id":"c","function":{"index":0,"name":"f","arguments":{}}}]"#;
        assert!(
            text.contains(&format!(r#""content":"",{calls}}},"done":true,"total_duration":0"#)),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<ChatResponse>(&text).unwrap(), end);
    }
}
