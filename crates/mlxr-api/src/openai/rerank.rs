//! `POST /v1/rerank`, in the shape that Jina's and Cohere's clients share.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::embeddings::EmbeddingUsage;
use crate::body::{self, BodyError};
use crate::schema::{self, schema_of};

/// The request.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::RerankRequest)]
pub struct RerankRequest {
    pub model: String,
    pub query: String,
    pub documents: Vec<Document>,
    /// How many to return; absent is all.
    pub top_n: Option<usize>,
    /// Return the documents too; true when absent.
    pub return_documents: Option<bool>,
    /// Cut every document to this many tokens.
    pub max_tokens_per_doc: Option<usize>,
    /// Cut documents whose pair is longer than the model's context; otherwise they are refused.
    pub truncate: Option<bool>,
    /// Refuse fields that have no effect.
    pub strict: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl RerankRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        body::parse(body)
    }
}

/// A text, or an object with one.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "a document is a string, or an object whose `text` is one")]
pub enum Document {
    Text(String),
    Object(DocumentObject),
}

impl Document {
    pub fn text(&self) -> &str {
        match self {
            Document::Text(text) => text,
            Document::Object(object) => &object.text,
        }
    }

    /// As it comes back.
    pub fn into_object(self) -> DocumentObject {
        match self {
            Document::Text(text) => DocumentObject { text, other: Map::new() },
            Document::Object(object) => object,
        }
    }
}

schema_of!(
    Document,
    "openai.RerankDocument",
    schema::any_of([schema::text(), schema::reference::<DocumentObject>()]),
    DocumentObject
);

/// A document; only its text is read, whatever else it has comes back with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = openai::RerankDocumentObject)]
pub struct DocumentObject {
    pub text: String,
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The answer: the best document first.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::Rerank)]
pub struct Rerank {
    pub id: String,
    pub model: String,
    pub results: Vec<RerankResult>,
    pub usage: EmbeddingUsage,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::RerankResult)]
pub struct RerankResult {
    /// The document's place in the request.
    pub index: usize,
    pub relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub document: Option<DocumentObject>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<RerankRequest, BodyError> {
        RerankRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn documents_are_texts_or_objects_with_one() {
        let body =
            json!({"model": "m", "query": "q", "documents": ["a", {"text": "b", "id": 7}], "top_n": 1});
        let request = parse(body).unwrap();
        assert_eq!(request.documents.iter().map(Document::text).collect::<Vec<_>>(), ["a", "b"]);
        let wrong = parse(json!({"model": "m", "query": "q", "documents": ["a", 3]})).unwrap_err();
        assert_eq!(wrong.field.as_deref(), Some("documents[1]"));
        assert!(wrong.reason.contains("a document is a string"), "{wrong}");
    }

    #[test]
    fn documents_come_back_only_where_they_are_asked_for() {
        let result = |document| RerankResult { index: 1, relevance_score: 0.5, document };
        let text = |result| serde_json::to_string(&result).unwrap();
        assert_eq!(text(result(None)), r#"{"index":1,"relevance_score":0.5}"#);
        let returned = Some(Document::Text("b".to_owned()).into_object());
        assert_eq!(text(result(returned)), r#"{"index":1,"relevance_score":0.5,"document":{"text":"b"}}"#);
    }
}
