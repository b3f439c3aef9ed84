//! Embeddings: the request, and the answer.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mlxr_api::openai::completions::PromptItem;
use mlxr_api::openai::embeddings::{
    Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, EncodingFormat, Vector,
};
use mlxr_models::vectors;

use crate::ServeError;
use crate::embedding::Embedded;
use crate::model_manager::EmbedderLease;
use crate::notices::Notices;
use crate::translate::embeddings::{EmbedTask, Reader, head_refusal, n_dims};

/// OpenAI's documented limit.
const MAX_INPUTS: usize = 2048;

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    model: String,
    n_dims: usize,
    format: EncodingFormat,
    warnings: Vec<String>,
}

/// An input by its place.
pub fn field(index: usize) -> String {
    format!("input[{index}]")
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(
    wire: &EmbeddingRequest,
    lease: &EmbedderLease,
    strict: bool,
) -> Result<EmbedTask<Answer>, ServeError> {
    let mut notices = Notices::default();
    if wire.user.is_some() {
        notices.add("user", "users are not told apart");
    }
    for field in wire.unknown.keys() {
        notices.add(field, "the field is unknown");
    }
    notices.enforce(strict || wire.strict == Some(true))?;
    let inputs = &wire.input.0;
    if inputs.len() > MAX_INPUTS {
        let reason = format!("input has {} entries, but at most {MAX_INPUTS} are allowed", inputs.len());
        return Err(ServeError::invalid("input", reason));
    }
    let n_dims = n_dims(lease, wire.dimensions)?;
    let reader = Reader::new(lease, wire.truncate == Some(true), wire.prompt_name.as_deref(), field)?;
    let text = |(i, item): (usize, &PromptItem)| match item {
        PromptItem::Text(text) => reader.text(i, text),
        PromptItem::Ids(ids) => reader.tokens(i, ids),
    };
    let texts = inputs.iter().enumerate().map(text).collect::<Result<_, _>>()?;
    let (model, format) = (lease.name().to_owned(), wire.encoding_format.unwrap_or_default());
    let answer = Answer { model, n_dims, format, warnings: notices.warnings() };
    Ok(EmbedTask { texts, answer, notices })
}

impl Answer {
    /// # Errors
    /// The model failed.
    pub fn whole(self, embedded: &Embedded) -> Result<EmbeddingList, ServeError> {
        let vectors = vectors(&embedded.results, self.n_dims);
        let vectors = vectors.map_err(|error| head_refusal(error, "dimensions"))?;
        let embedding = |(index, vector)| {
            let embedding = match self.format {
                EncodingFormat::Float => Vector::Floats(vector),
                EncodingFormat::Base64 => Vector::Base64(base64(&vector)),
            };
            Embedding { object: "embedding", index, embedding }
        };
        let data = vectors.into_iter().enumerate().map(embedding).collect();
        let usage = EmbeddingUsage { prompt_tokens: embedded.n_tokens, total_tokens: embedded.n_tokens };
        Ok(EmbeddingList { object: "list", data, model: self.model, usage, warnings: self.warnings })
    }
}

fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}
