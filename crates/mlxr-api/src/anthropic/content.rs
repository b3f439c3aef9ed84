//! What messages are made of.

use std::fmt;

use serde::de::{self, SeqAccess, Visitor, value::SeqAccessDeserializer};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::schema::{self, schema_of};

/// A text, or a list of blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

/// A piece of a message that a client sends.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = anthropic::Block)]
pub enum Block {
    Text(TextBlock),
    Image(OtherBlock),
    Document(OtherBlock),
    SearchResult(OtherBlock),
    Thinking(ThinkingBlock),
    RedactedThinking(OtherBlock),
    ToolUse(ToolUseBlock),
    ToolResult(ToolResultBlock),
    ServerToolUse(OtherBlock),
    WebSearchToolResult(OtherBlock),
    WebFetchToolResult(OtherBlock),
    CodeExecutionToolResult(OtherBlock),
    BashCodeExecutionToolResult(OtherBlock),
    TextEditorCodeExecutionToolResult(OtherBlock),
    ToolSearchToolResult(OtherBlock),
    ContainerUpload(OtherBlock),
}

impl Block {
    /// The value of `type`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Block::Text(_) => "text",
            Block::Image(_) => "image",
            Block::Document(_) => "document",
            Block::SearchResult(_) => "search_result",
            Block::Thinking(_) => "thinking",
            Block::RedactedThinking(_) => "redacted_thinking",
            Block::ToolUse(_) => "tool_use",
            Block::ToolResult(_) => "tool_result",
            Block::ServerToolUse(_) => "server_tool_use",
            Block::WebSearchToolResult(_) => "web_search_tool_result",
            Block::WebFetchToolResult(_) => "web_fetch_tool_result",
            Block::CodeExecutionToolResult(_) => "code_execution_tool_result",
            Block::BashCodeExecutionToolResult(_) => "bash_code_execution_tool_result",
            Block::TextEditorCodeExecutionToolResult(_) => "text_editor_code_execution_tool_result",
            Block::ToolSearchToolResult(_) => "tool_search_tool_result",
            Block::ContainerUpload(_) => "container_upload",
        }
    }

    /// The fields beyond those read here.
    pub const fn other(&self) -> &Map<String, Value> {
        match self {
            Block::Text(block) => &block.other,
            Block::Thinking(block) => &block.other,
            Block::ToolUse(block) => &block.other,
            Block::ToolResult(block) => &block.other,
            Block::Image(block)
            | Block::Document(block)
            | Block::SearchResult(block)
            | Block::RedactedThinking(block)
            | Block::ServerToolUse(block)
            | Block::WebSearchToolResult(block)
            | Block::WebFetchToolResult(block)
            | Block::CodeExecutionToolResult(block)
            | Block::BashCodeExecutionToolResult(block)
            | Block::TextEditorCodeExecutionToolResult(block)
            | Block::ToolSearchToolResult(block)
            | Block::ContainerUpload(block) => &block.fields,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::TextBlock)]
pub struct TextBlock {
    pub text: String,
    /// `cache_control`, `citations` and what else there is.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::ThinkingBlock)]
pub struct ThinkingBlock {
    pub thinking: String,
    #[serde(default)]
    pub signature: String,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::ToolUseBlock)]
pub struct ToolUseBlock {
    pub id: String,
    pub name: String,
    pub input: Map<String, Value>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::ToolResultBlock)]
pub struct ToolResultBlock {
    pub tool_use_id: String,
    #[schema(no_recursion)]
    pub content: Option<Content>,
    pub is_error: Option<bool>,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A block whose insides nobody here reads.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = anthropic::OtherBlock)]
pub struct OtherBlock {
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

schema_of!(
    Content,
    "anthropic.Content",
    schema::any_of([schema::text(), schema::list(schema::reference::<Block>())]),
    Block
);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyContent;

        impl<'de> Visitor<'de> for AnyContent {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content blocks")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Content::Blocks)
            }
        }

        deserializer.deserialize_any(AnyContent)
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = anthropic::AnswerBlock)]
pub enum AnswerBlock {
    Text { text: String },
    Thinking { thinking: String, signature: String },
    ToolUse { id: String, name: String, input: Map<String, Value> },
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_block_knows_its_own_name() {
        for kind in [
            "image",
            "document",
            "search_result",
            "redacted_thinking",
            "server_tool_use",
            "web_search_tool_result",
            "web_fetch_tool_result",
            "code_execution_tool_result",
            "bash_code_execution_tool_result",
            "text_editor_code_execution_tool_result",
            "tool_search_tool_result",
            "container_upload",
        ] {
            let block: Block = serde_json::from_value(json!({"type": kind, "x": 1})).unwrap();
            assert_eq!((block.kind(), &block.other()["x"]), (kind, &json!(1)));
        }
        for (block, kind) in [
            (json!({"type": "text", "text": "a", "x": 1}), "text"),
            (json!({"type": "thinking", "thinking": "a", "signature": "", "x": 1}), "thinking"),
            (json!({"type": "tool_use", "id": "a", "name": "f", "input": {}, "x": 1}), "tool_use"),
            (json!({"type": "tool_result", "tool_use_id": "a", "content": "b", "x": 1}), "tool_result"),
        ] {
            let block: Block = serde_json::from_value(block).unwrap();
            assert_eq!((block.kind(), block.other().len()), (kind, 1));
        }
    }

    #[test]
    fn blocks_of_answers_are_written_and_read_back() {
        let check = |block: &AnswerBlock, expected: &str| {
            let text = serde_json::to_string(block).unwrap();
            assert_eq!(text, expected);
            assert_eq!(&serde_json::from_str::<AnswerBlock>(&text).unwrap(), block);
        };
        check(&AnswerBlock::Text { text: "a".to_owned() }, r#"{"type":"text","text":"a"}"#);
        let thinking = AnswerBlock::Thinking { thinking: "a".to_owned(), signature: String::new() };
        check(&thinking, r#"{"type":"thinking","thinking":"a","signature":""}"#);
        let (id, name) = ("toolu_1".to_owned(), "f".to_owned());
        let call = AnswerBlock::ToolUse { id, name, input: Map::from_iter([("x".to_owned(), json!(1))]) };
        check(&call, r#"{"type":"tool_use","id":"toolu_1","name":"f","input":{"x":1}}"#);
    }
}
