//! `POST /api/generate`.

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
#[schema(as = ollama::GenerateRequest)]
pub struct GenerateRequest {
    pub model: String,
    pub prompt: Option<String>,
    pub suffix: Option<String>,
    pub system: Option<String>,
    pub template: Option<String>,
    /// What an earlier answer gave as its context.
    pub context: Option<Vec<u32>>,
    pub raw: Option<bool>,
    /// Absent is true.
    pub stream: Option<bool>,
    pub format: Option<Format>,
    pub keep_alive: Option<KeepAlive>,
    pub images: Option<Vec<String>>,
    pub options: Option<Options>,
    pub think: Option<Think>,
    pub truncate: Option<bool>,
    pub shift: Option<bool>,
    pub logprobs: Option<bool>,
    pub top_logprobs: Option<usize>,
    pub width: Option<u32>,
    pub height: Option<u32>,
    pub steps: Option<u32>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl GenerateRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`BodyError`] names the field that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, BodyError> {
        body::parse(body)
    }
}

/// A line of a streamed answer, or the whole of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ollama::GenerateResponse)]
pub struct GenerateResponse {
    pub model: String,
    /// RFC 3339.
    pub created_at: String,
    pub response: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    pub done: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<String>,
    /// With the last line: the tokens so far, to go on from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Vec<u32>>,
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
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<GenerateRequest, BodyError> {
        GenerateRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_the_python_client_sends_is_read() {
        // As ollama-python 0.6.3 writes it: empty texts for what was not given, nothing for None.
        let request = parse(json!({
            "model": "m", "stream": false,
            "options": {"temperature": 0.0, "num_predict": 5, "stop": ["\n"], "seed": 3, "num_ctx": 4096, "flash": 1},
            "format": "json", "keep_alive": "10m", "prompt": "Hi", "suffix": "", "system": "", "template": "",
            "context": [1, 2], "raw": true, "think": "low", "logprobs": true, "top_logprobs": 2, "steps": 4
        }))
        .unwrap();
        assert_eq!((request.stream, request.format), (Some(false), Some(Format::Json)));
        assert_eq!(request.keep_alive, Some(KeepAlive::For(Duration::from_secs(600))));
        assert_eq!(request.think, Some(Think::Effort("low".to_owned())));
        assert_eq!((request.context, request.suffix.as_deref()), (Some(vec![1, 2]), Some("")));
        let options = request.options.unwrap();
        assert_eq!((options.num_predict, options.num_ctx, options.seed), (Some(5), Some(4096), Some(3)));
        assert_eq!(options.stop, Some(vec!["\n".to_owned()]));
        assert_eq!(options.unknown.keys().collect::<Vec<_>>(), ["flash"]);
        assert!(request.unknown.is_empty());
    }

    #[test]
    fn a_mistake_is_named_by_its_field() {
        let field = |body: Value| parse(body).unwrap_err().field.unwrap();
        assert_eq!(field(json!({"model": "m", "prompt": 3})), "prompt");
        assert_eq!(field(json!({"model": "m", "options": {"top_k": "x"}})), "options.top_k");
        assert_eq!(field(json!({"model": "m", "format": "yaml"})), "format");
        assert_eq!(field(json!({"model": "m", "think": "hard"})), "think");
        assert_eq!(field(json!({"model": "m", "keep_alive": "soon"})), "keep_alive");
        assert_eq!(parse(json!({})).unwrap_err().reason, "missing field `model` at line 1 column 2");
    }

    #[test]
    fn a_line_and_the_end_have_ollama_s_order_of_fields() {
        let line = GenerateResponse {
            model: "m".to_owned(),
            created_at: "2024-01-01T00:00:00Z".to_owned(),
            response: "x".to_owned(),
            thinking: None,
            done: false,
            done_reason: None,
            context: None,
            metrics: None,
            logprobs: Vec::new(),
            warnings: Vec::new(),
        };
        let check = |line: &GenerateResponse, expected: &str| {
            let text = serde_json::to_string(line).unwrap();
            assert_eq!(text, expected);
            assert_eq!(&serde_json::from_str::<GenerateResponse>(&text).unwrap(), line);
        };
        check(&line, r#"{"model":"m","created_at":"2024-01-01T00:00:00Z","response":"x","done":false}"#);
        let end = GenerateResponse {
            response: String::new(),
            done: true,
            done_reason: Some("stop".to_owned()),
            context: Some(vec![1, 2]),
            metrics: Some(Metrics {
                total_duration: 9,
                prompt_eval_count: 1,
                eval_count: 2,
                ..Metrics::default()
            }),
            ..line
        };
        let expected = concat!(
            r#"{"model":"m","created_at":"2024-01-01T00:00:00Z","response":"","done":true,"done_reason":"stop","#,
            r#""context":[1,2],"total_duration":9,"load_duration":0,"prompt_eval_count":1,"#,
            r#""prompt_eval_duration":0,"eval_count":2,"eval_duration":0}"#
        );
        check(&end, expected);
    }
}
