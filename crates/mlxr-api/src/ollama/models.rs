//! `GET /api/tags`, `POST /api/show`, `GET /api/ps` and `GET /api/version`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::{self, BodyError};

/// What a model is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ModelDetails)]
pub struct ModelDetails {
    pub parent_model: String,
    /// Of the files: `gguf`, `safetensors`.
    pub format: String,
    pub family: String,
    pub families: Vec<String>,
    /// Such as `27.3M`.
    pub parameter_size: String,
    /// Such as `Q8_0`.
    pub quantization_level: String,
}

/// A model that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ListedModel)]
pub struct ListedModel {
    pub name: String,
    pub model: String,
    /// RFC 3339.
    pub modified_at: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub digest: String,
    pub details: ModelDetails,
}

/// All models.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ModelList)]
pub struct ModelList {
    pub models: Vec<ListedModel>,
}

/// A model in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::RunningModel)]
pub struct RunningModel {
    pub name: String,
    pub model: String,
    /// Bytes it takes.
    pub size: u64,
    pub digest: String,
    pub details: ModelDetails,
    /// RFC 3339.
    pub expires_at: String,
    /// Of its bytes, those on an accelerator.
    pub size_vram: u64,
    pub context_length: u64,
}

/// All models in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::RunningModels)]
pub struct RunningModels {
    pub models: Vec<RunningModel>,
}

/// A question about one model.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::ShowRequest)]
pub struct ShowRequest {
    #[serde(alias = "name")]
    pub model: String,
    /// Long lists too, such as the vocabulary.
    pub verbose: Option<bool>,
    pub system: Option<String>,
    pub template: Option<String>,
    pub options: Option<Map<String, Value>>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl ShowRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        body::parse(body)
    }
}

/// Everything about one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ShowResponse)]
pub struct ShowResponse {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    pub modelfile: String,
    /// One per line, name and value.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parameters: String,
    pub template: String,
    /// The system prompt of conversations that have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub system: String,
    /// What every conversation begins with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<ShownMessage>,
    pub details: ModelDetails,
    pub model_info: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<TensorInfo>>,
    /// `completion`, `tools`, `thinking`, `insert`.
    pub capabilities: Vec<String>,
    /// RFC 3339.
    pub modified_at: String,
}

/// A message that a conversation begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::ShownMessage)]
pub struct ShownMessage {
    pub role: String,
    pub content: String,
}

/// One tensor, with `verbose`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::TensorInfo)]
pub struct TensorInfo {
    pub name: String,
    pub r#type: String,
    pub shape: Vec<usize>,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::Version)]
pub struct Version {
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_may_be_asked_for_by_its_old_name() {
        let check = |body: &str| assert_eq!(ShowRequest::parse(body.as_bytes()).unwrap().model, "m");
        check(r#"{"model": "m"}"#);
        check(r#"{"name": "m", "verbose": true}"#);
        let request = ShowRequest::parse(br#"{"model": "m", "x": 1}"#).unwrap();
        assert_eq!(request.unknown.len(), 1);
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let show = ShowResponse {
            license: None,
            modelfile: "FROM m".to_owned(),
            parameters: String::new(),
            template: "t".to_owned(),
            system: String::new(),
            messages: Vec::new(),
            details: ModelDetails { family: "llama".to_owned(), ..ModelDetails::default() },
            model_info: Map::new(),
            tensors: None,
            capabilities: vec!["completion".to_owned()],
            modified_at: "2024-01-01T00:00:00Z".to_owned(),
        };
        let text = serde_json::to_string(&show).unwrap();
        let expected = concat!(
            r#"{"modelfile":"FROM m","template":"t","details":{"parent_model":"","format":"","family":"llama","#,
            r#""families":[],"parameter_size":"","quantization_level":""},"model_info":{},"#,
            r#""capabilities":["completion"],"modified_at":"2024-01-01T00:00:00Z"}"#
        );
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<ShowResponse>(&text).unwrap(), show);
    }
}
