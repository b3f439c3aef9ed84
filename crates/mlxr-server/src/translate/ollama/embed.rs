//! `/api/embed` and `/api/embeddings`: the request, and the answer.

use mlxr_api::ollama::embed::{EmbedRequest, EmbedResponse, EmbeddingRequest, EmbeddingResponse};
use mlxr_api::openai::text_list::TextList;
use mlxr_models::vectors;

use super::line::Clock;
use super::options;
use crate::ServeError;
use crate::embedding::Embedded;
use crate::model_manager::EmbedderLease;
use crate::notices::Notices;
use crate::translate::embeddings::{EmbedTask, FieldName, Reader, head_refusal, n_dims};

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    model: String,
    n_dims: usize,
    clock: Clock,
    warnings: Vec<String>,
}

/// An input by its place.
pub fn input(index: usize) -> String {
    format!("input[{index}]")
}

/// The only text of a request to `/api/embeddings`.
pub fn prompt(_: usize) -> String {
    "prompt".to_owned()
}

/// A request to `/api/embeddings` as `/api/embed` takes it; an empty prompt is none.
pub fn of_older(wire: EmbeddingRequest) -> EmbedRequest {
    let EmbeddingRequest { model, prompt, keep_alive, options, unknown } = wire;
    let prompt = prompt.filter(|prompt| !prompt.is_empty());
    EmbedRequest {
        model,
        input: prompt.map(|prompt| TextList(vec![prompt])),
        truncate: None,
        dimensions: None,
        keep_alive,
        options,
        unknown,
    }
}

/// Reads a request for a model; `field` names the texts in errors.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(
    wire: &EmbedRequest,
    field: FieldName,
    lease: &EmbedderLease,
    strict: bool,
    clock: Clock,
) -> Result<EmbedTask<Answer>, ServeError> {
    let mut notices = Notices::default();
    let mut reader = Reader::new(lease, wire.truncate == Some(true), None, field)?;
    if let Some(asked) = &wire.options {
        options::note_unsampled(asked, lease.embeddings().n_ctx(), &mut notices);
        if let Some(n_ctx) = asked.num_ctx {
            reader = reader.within(n_ctx);
        }
    }
    for name in wire.unknown.keys() {
        notices.add(name, "there is no such field");
    }
    notices.enforce(strict)?;
    let texts = wire.input.as_ref().map_or(&[][..], |input| &input.0);
    let texts = texts.iter().enumerate().map(|(i, text)| reader.text(i, text));
    let texts = texts.collect::<Result<_, _>>()?;
    let n_dims = n_dims(lease, wire.dimensions)?;
    let answer = Answer { model: lease.name().to_owned(), n_dims, clock, warnings: notices.warnings() };
    Ok(EmbedTask { texts, answer, notices })
}

impl Answer {
    /// # Errors
    /// The model failed.
    pub fn whole(self, embedded: &Embedded) -> Result<EmbedResponse, ServeError> {
        let embeddings = vectors(&embedded.results, self.n_dims);
        let embeddings = embeddings.map_err(|error| head_refusal(error, "dimensions"))?;
        Ok(EmbedResponse {
            model: self.model,
            embeddings,
            total_duration: nanos(self.clock.arrived.elapsed()),
            load_duration: nanos(self.clock.load),
            prompt_eval_count: embedded.n_tokens,
            warnings: self.warnings,
        })
    }

    /// # Errors
    /// The model failed.
    pub fn whole_older(self, embedded: &Embedded) -> Result<EmbeddingResponse, ServeError> {
        let EmbedResponse { mut embeddings, warnings, .. } = self.whole(embedded)?;
        Ok(EmbeddingResponse { embedding: embeddings.pop().unwrap_or_default(), warnings })
    }
}

fn nanos(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
