//! What changes the list of models: `POST /api/create`, `POST /api/copy`, `DELETE /api/delete`, and what would fetch
//! or publish models, `POST /api/pull` and `POST /api/push`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::body::parsed;
use crate::openai::text_list::TextList;

/// Asks for a model to be made from another, or from files sent before.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::CreateRequest)]
pub struct CreateRequest {
    /// The new model's name.
    #[serde(alias = "name")]
    pub model: String,
    /// The model it is made from.
    pub from: Option<String>,
    /// Names of files and the digests of blobs with their content.
    pub files: Option<BTreeMap<String, String>>,
    pub adapters: Option<BTreeMap<String, String>>,
    /// A chat template in Jinja.
    pub template: Option<String>,
    pub system: Option<String>,
    pub license: Option<TextList>,
    pub parameters: Option<Map<String, Value>>,
    /// What every conversation begins with.
    pub messages: Option<Vec<SeedMessage>>,
    /// Such as `q4_K_M`.
    #[serde(alias = "quantization")]
    pub quantize: Option<String>,
    /// In place of the fields above, as older clients say it.
    pub modelfile: Option<String>,
    pub stream: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A message that a conversation begins with.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::SeedMessage)]
pub struct SeedMessage {
    pub role: String,
    #[serde(default)]
    pub content: String,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// One line of what is being done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::Progress)]
pub struct Progress {
    pub status: String,
    /// Of a long step, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
}

/// Asks for a model under a second name.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::CopyRequest)]
pub struct CopyRequest {
    pub source: String,
    pub destination: String,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Asks for a model to be removed.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::DeleteRequest)]
pub struct DeleteRequest {
    #[serde(alias = "name")]
    pub model: String,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// Asks for a model to be fetched or published.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::TransferRequest)]
pub struct TransferRequest {
    #[serde(alias = "name")]
    pub model: String,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

parsed!(CreateRequest, CopyRequest, DeleteRequest, TransferRequest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_described_in_the_new_way_and_the_old_one() {
        let body = r#"{"model": "m", "from": "n", "license": "MIT", "messages": [{"role": "user", "content": "Hi"}], "x": 1}"#;
        let request = CreateRequest::parse(body.as_bytes()).unwrap();
        assert_eq!((request.from.as_deref(), request.unknown.len()), (Some("n"), 1));
        assert_eq!(request.license.unwrap().0, ["MIT"]);
        assert_eq!(request.messages.unwrap()[0].content, "Hi");
        let request =
            CreateRequest::parse(br#"{"name": "m", "quantization": "q8_0", "modelfile": "FROM n"}"#);
        assert_eq!(request.unwrap().quantize.as_deref(), Some("q8_0"));
        let error = CreateRequest::parse(br#"{"model": "m", "files": {"a": 1}}"#).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("files.a"));
    }

    #[test]
    fn progress_has_numbers_only_where_there_are_some() {
        let text = |progress: &Progress| serde_json::to_string(progress).unwrap();
        let status = Progress { status: "success".to_owned(), ..Progress::default() };
        assert_eq!(text(&status), r#"{"status":"success"}"#);
        let bytes = Progress { total: Some(2), completed: Some(1), ..status };
        assert_eq!(text(&bytes), r#"{"status":"success","total":2,"completed":1}"#);
    }
}
