//! `POST /v1/embeddings`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::completions::Prompts;
use crate::body::{self, BodyError};
use crate::schema::{self, schema_of};

/// The request. The first five fields are OpenAI's; see their API reference for what each means.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::EmbeddingRequest)]
pub struct EmbeddingRequest {
    pub model: String,
    pub input: Prompts,
    pub encoding_format: Option<EncodingFormat>,
    pub dimensions: Option<usize>,
    pub user: Option<String>,
    /// Cut what is longer than the model's context at its end; otherwise it is refused.
    pub truncate: Option<bool>,
    /// The model's prompt of this name goes before every text.
    pub prompt_name: Option<String>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl EmbeddingRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        body::parse(body)
    }
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(as = openai::EncodingFormat)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats.
    Base64,
}

/// The answer: a vector for each input, in order.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::EmbeddingList)]
pub struct EmbeddingList {
    /// `list`.
    pub object: &'static str,
    pub data: Vec<Embedding>,
    pub model: String,
    pub usage: EmbeddingUsage,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::Embedding)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

/// A vector of length 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

schema_of!(Vector, "openai.Vector", schema::any_of([schema::list(schema::number()), schema::text()]));

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::EmbeddingUsage)]
pub struct EmbeddingUsage {
    pub prompt_tokens: usize,
    pub total_tokens: usize,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::completions::PromptItem;
    use super::*;

    fn parse(body: Value) -> Result<EmbeddingRequest, BodyError> {
        EmbeddingRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_the_python_client_sends_is_read() {
        let request = parse(json!({"input": ["a", "b"], "model": "m", "encoding_format": "base64"})).unwrap();
        assert_eq!(request.encoding_format, Some(EncodingFormat::Base64));
        assert_eq!(request.input.0, [PromptItem::Text("a".to_owned()), PromptItem::Text("b".to_owned())]);
        let request = parse(json!({"input": [[1, 2], [3]], "model": "m", "dimensions": 8, "x": 1})).unwrap();
        assert_eq!(request.input.0, [PromptItem::Ids(vec![1, 2]), PromptItem::Ids(vec![3])]);
        assert_eq!((request.dimensions, request.unknown.len()), (Some(8), 1));
    }

    #[test]
    fn a_mistake_is_named_by_its_field() {
        let field = |body: Value| parse(body).unwrap_err().field.unwrap();
        assert_eq!(field(json!({"model": "m", "input": {}})), "input");
        assert_eq!(field(json!({"model": "m", "input": "a", "encoding_format": "int8"})), "encoding_format");
        assert_eq!(field(json!({"model": "m", "input": "a", "dimensions": -1})), "dimensions");
    }

    #[test]
    fn a_vector_is_a_list_or_a_text() {
        let list = EmbeddingList {
            object: "list",
            data: vec![
                Embedding { object: "embedding", index: 0, embedding: Vector::Floats(vec![0.1, -1.0]) },
                Embedding { object: "embedding", index: 1, embedding: Vector::Base64("AAAAAA==".to_owned()) },
            ],
            model: "m".to_owned(),
            usage: EmbeddingUsage { prompt_tokens: 2, total_tokens: 2 },
            warnings: Vec::new(),
        };
        let expected = concat!(
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-1.0]},"#,
            r#"{"object":"embedding","index":1,"embedding":"AAAAAA=="}],"model":"m","#,
            r#""usage":{"prompt_tokens":2,"total_tokens":2}}"#
        );
        assert_eq!(serde_json::to_string(&list).unwrap(), expected);
    }
}
