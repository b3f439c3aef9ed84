//! `POST /api/embed`, and `POST /api/embeddings` that came before it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::keep_alive::KeepAlive;
use super::options::Options;
use crate::body::{self, BodyError};
use crate::openai::text_list::TextList;

/// The request to `/api/embed`. Fields are Ollama's; see its API documentation for what each means.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::EmbedRequest)]
pub struct EmbedRequest {
    pub model: String,
    /// A text or several; without any the model is only loaded.
    pub input: Option<TextList>,
    /// Cut what is longer than the context at its end. Absent is false: it is refused.
    pub truncate: Option<bool>,
    pub dimensions: Option<usize>,
    pub keep_alive: Option<KeepAlive>,
    pub options: Option<Options>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl EmbedRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        body::parse(body)
    }
}

/// A vector of length 1 for each text, in order. Durations are nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::EmbedResponse)]
pub struct EmbedResponse {
    pub model: String,
    pub embeddings: Vec<Vec<f32>>,
    /// From the request's arrival.
    pub total_duration: u64,
    /// What the model took to load.
    pub load_duration: u64,
    pub prompt_eval_count: usize,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The request to `/api/embeddings`.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::EmbeddingRequest)]
pub struct EmbeddingRequest {
    pub model: String,
    /// Without one the model is only loaded.
    pub prompt: Option<String>,
    pub keep_alive: Option<KeepAlive>,
    pub options: Option<Options>,
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

/// A vector of length 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::EmbeddingResponse)]
pub struct EmbeddingResponse {
    pub embedding: Vec<f32>,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_python_client_sends_is_read() {
        let body = json!({
            "model": "m", "input": ["a", "b"], "truncate": true, "options": {"num_ctx": 64},
            "keep_alive": "10m", "dimensions": 8
        });
        let request = EmbedRequest::parse(body.to_string().as_bytes()).unwrap();
        assert_eq!(request.input, Some(TextList(vec!["a".to_owned(), "b".to_owned()])));
        assert_eq!((request.truncate, request.dimensions), (Some(true), Some(8)));
        assert_eq!(request.keep_alive, Some(KeepAlive::For(Duration::from_secs(600))));
        let one = EmbedRequest::parse(br#"{"model": "m", "input": "a"}"#).unwrap();
        assert_eq!(one.input, Some(TextList(vec!["a".to_owned()])));
        let older = EmbeddingRequest::parse(br#"{"model": "m", "prompt": "a", "x": 1}"#).unwrap();
        assert_eq!((older.prompt.as_deref(), older.unknown.len()), (Some("a"), 1));
        let wrong = EmbedRequest::parse(br#"{"model": "m", "input": ["a", 3]}"#).unwrap_err();
        assert_eq!(wrong.field.as_deref(), Some("input[1]"));
    }

    #[test]
    fn the_answer_has_ollama_s_order_of_fields() {
        let answer = EmbedResponse {
            model: "m".to_owned(),
            embeddings: vec![vec![0.5, -0.25]],
            total_duration: 3,
            load_duration: 1,
            prompt_eval_count: 2,
            warnings: Vec::new(),
        };
        let expected = concat!(
            r#"{"model":"m","embeddings":[[0.5,-0.25]],"total_duration":3,"load_duration":1,"#,
            r#""prompt_eval_count":2}"#
        );
        assert_eq!(serde_json::to_string(&answer).unwrap(), expected);
    }
}
