//! `POST /v1/completions`.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::sampling::SamplingExtensions;
use super::text_list::TextList;
use super::tools::ResponseFormat;
use super::usage::{StreamOptions, Usage};
use crate::body::{self, BodyError};
use crate::schema::{self, schema_of};

/// The request. Fields are OpenAI's; see their API reference for what each means.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[schema(as = openai::CompletionRequest)]
pub struct CompletionRequest {
    pub model: String,
    pub prompt: Prompts,
    #[schema(minimum = 1)]
    pub best_of: Option<usize>,
    pub echo: Option<bool>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub logprobs: Option<usize>,
    pub max_tokens: Option<usize>,
    #[schema(minimum = 1)]
    pub n: Option<usize>,
    pub presence_penalty: Option<f32>,
    /// Not OpenAI's here.
    pub response_format: Option<ResponseFormat>,
    pub seed: Option<i64>,
    pub stop: Option<TextList>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub suffix: Option<String>,
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub user: Option<String>,
    #[serde(skip)]
    pub extensions: SamplingExtensions,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl CompletionRequest {
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

/// `prompt`: a text, some texts, token ids, or some lists of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts(pub Vec<PromptItem>);

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptItem {
    Text(String),
    Ids(Vec<u32>),
}

schema_of!(
    Prompts,
    "openai.Prompts",
    schema::any_of([
        schema::text(),
        schema::list(schema::text()),
        schema::list(schema::token_id()),
        schema::list(schema::list(schema::token_id())),
    ])
);

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyPrompts)
    }
}

struct AnyPrompts;

impl<'de> Visitor<'de> for AnyPrompts {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of strings, a list of token ids or a list of such lists")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts(vec![PromptItem::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        let mixed = || de::Error::custom("texts and token ids are mixed");
        let (mut prompts, mut ids) = (Vec::new(), Vec::new());
        while let Some(element) = seq.next_element()? {
            match element {
                Element::Text(text) => prompts.push(PromptItem::Text(text)),
                Element::Ids(ids) => prompts.push(PromptItem::Ids(ids)),
                Element::Id(id) => ids.push(id),
            }
        }
        match (prompts.is_empty(), ids.is_empty()) {
            (true, _) => prompts.push(PromptItem::Ids(ids)),
            (false, true) => {}
            (false, false) => return Err(mixed()),
        }
        Ok(Prompts(prompts))
    }
}

/// One element of a list given as prompt.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyElement;

        impl<'de> Visitor<'de> for AnyElement {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or a list of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Element, E> {
                let id = u32::try_from(id);
                id.map(Element::Id).map_err(|_| E::custom("a token id is below 4294967296"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Element::Ids(ids))
            }
        }

        deserializer.deserialize_any(AnyElement)
    }
}

/// The answer, and every event of a streamed one.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::Completion)]
pub struct Completion {
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub choices: Vec<CompletionChoice>,
    /// Always there in a whole answer. In a stream with `include_usage`: null, but for the last event; else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// What of the request was not honoured; ours, absent when empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::CompletionChoice)]
pub struct CompletionChoice {
    pub text: String,
    pub index: usize,
    pub logprobs: Option<CompletionLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// Log-probabilities, one entry per token in each list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = openai::CompletionLogprobs)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// The first token of an echoed prompt has none.
    pub token_logprobs: Vec<Option<f32>>,
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Characters before the token in the choice's text.
    pub text_offset: Vec<usize>,
}

/// Tokens and their log-probabilities, most likely first; on the wire one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopLogprobs(pub Vec<(String, f32)>);

schema_of!(TopLogprobs, "openai.TopLogprobs", schema::map(Some(schema::number())));

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<CompletionRequest, BodyError> {
        CompletionRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn every_form_of_prompt_is_read() {
        let check = |prompt: Value, expected: Vec<PromptItem>| {
            assert_eq!(parse(json!({"model": "m", "prompt": prompt})).unwrap().prompt.0, expected);
        };
        let text = |text: &str| PromptItem::Text(text.to_owned());
        check(json!("a"), vec![text("a")]);
        check(json!(["a", "b"]), vec![text("a"), text("b")]);
        check(json!([1, 2]), vec![PromptItem::Ids(vec![1, 2])]);
        check(json!([[1], [2, 3]]), vec![PromptItem::Ids(vec![1]), PromptItem::Ids(vec![2, 3])]);
        check(json!([]), vec![PromptItem::Ids(vec![])]);
    }

    #[test]
    fn a_bad_prompt_is_named_by_its_place() {
        let field =
            |prompt: Value| parse(json!({"model": "m", "prompt": prompt})).unwrap_err().field.unwrap();
        assert_eq!(field(json!({"a": 1})), "prompt");
        assert_eq!(field(json!(["a", 1])), "prompt");
        assert_eq!(field(json!([-1])), "prompt[0]");
        assert_eq!(field(json!([[1, "x"]])), "prompt[0][1]");
        assert_eq!(field(json!([4_294_967_296_u64])), "prompt[0]");
    }

    #[test]
    fn what_an_evaluation_harness_sends_is_read() {
        // As lm-eval's local-completions writes a loglikelihood request.
        let request = parse(json!({
            "model": "m", "prompt": [[5, 6, 7]], "temperature": 0, "max_tokens": 1, "logprobs": 1,
            "seed": 1234, "echo": true
        }))
        .unwrap();
        assert_eq!((request.echo, request.logprobs, request.max_tokens), (Some(true), Some(1), Some(1)));
        assert!(request.unknown.is_empty());
    }

    #[test]
    fn the_whole_answer_and_a_chunk_differ_in_usage() {
        let completion = |usage| Completion {
            id: "cmpl-1".to_owned(),
            object: "text_completion",
            created: 7,
            model: "m".to_owned(),
            system_fingerprint: "f".to_owned(),
            choices: vec![CompletionChoice {
                text: "x".to_owned(),
                index: 0,
                logprobs: None,
                finish_reason: None,
            }],
            usage,
            warnings: vec!["w".to_owned()],
        };
        let head = concat!(
            r#"{"id":"cmpl-1","object":"text_completion","created":7,"model":"m","system_fingerprint":"f","#,
            r#""choices":[{"text":"x","index":0,"logprobs":null,"finish_reason":null}]"#
        );
        let check = |usage, tail: &str| {
            assert_eq!(serde_json::to_string(&completion(usage)).unwrap(), format!("{head}{tail}"));
        };
        check(None, r#","warnings":["w"]}"#);
        check(Some(None), r#","usage":null,"warnings":["w"]}"#);
        check(
            Some(Some(Usage::new(1, 2))),
            concat!(
                r#","usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"#,
                r#""prompt_tokens_details":{"cached_tokens":0}},"warnings":["w"]}"#,
            ),
        );
    }
}
