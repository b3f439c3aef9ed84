//! Reranking: the request, and the answer.

use mlxr_api::openai::embeddings::EmbeddingUsage;
use mlxr_api::openai::rerank::{Document, Rerank, RerankRequest, RerankResult};
use mlxr_models::{ScoreActivation, ranking};

use crate::embedding::Embedded;
use crate::model_manager::EmbedderLease;
use crate::notices::Notices;
use crate::translate::embeddings::{EmbedTask, Reader, head_refusal};
use crate::{ServeError, ids};

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    model: String,
    activation: ScoreActivation,
    top_n: usize,
    /// To return; `None` where nobody wants them.
    documents: Option<Vec<Document>>,
    warnings: Vec<String>,
}

/// A document by its place.
pub fn field(index: usize) -> String {
    format!("documents[{index}]")
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(
    wire: RerankRequest,
    lease: &EmbedderLease,
    strict: bool,
) -> Result<EmbedTask<Answer>, ServeError> {
    let mut notices = Notices::default();
    for field in wire.unknown.keys() {
        notices.add(field, "the field is unknown");
    }
    notices.enforce(strict || wire.strict == Some(true))?;
    for (field, value) in [("top_n", wire.top_n), ("max_tokens_per_doc", wire.max_tokens_per_doc)] {
        if value == Some(0) {
            return Err(ServeError::invalid(field, format!("{field} is 0, but must be 1 or more")));
        }
    }
    let activation = lease.handle.head().relevance().map_err(|error| head_refusal(error, "model"))?;
    let reader = Reader::new(lease, wire.truncate == Some(true), None, field)?;
    let max_tokens = wire.max_tokens_per_doc.unwrap_or(usize::MAX);
    let pairs = wire.documents.iter().enumerate();
    let pairs = pairs.map(|(i, document)| reader.pair(i, &wire.query, document.text(), max_tokens));
    let texts = pairs.collect::<Result<_, _>>()?;
    let answer = Answer {
        model: lease.name().to_owned(),
        activation,
        top_n: wire.top_n.unwrap_or(usize::MAX),
        documents: (wire.return_documents != Some(false)).then_some(wire.documents),
        warnings: notices.warnings(),
    };
    Ok(EmbedTask { texts, answer, notices })
}

impl Answer {
    /// # Errors
    /// The model failed.
    pub fn whole(self, embedded: &Embedded) -> Result<Rerank, ServeError> {
        let ranking = ranking(&embedded.results, self.activation, self.top_n);
        let ranking = ranking.map_err(|error| head_refusal(error, "model"))?;
        let document = |index: usize| self.documents.as_ref()?.get(index).cloned().map(Document::into_object);
        let result =
            |(index, relevance_score)| RerankResult { index, relevance_score, document: document(index) };
        Ok(Rerank {
            id: ids::unique("rerank-"),
            results: ranking.into_iter().map(result).collect(),
            usage: EmbeddingUsage { prompt_tokens: embedded.n_tokens, total_tokens: embedded.n_tokens },
            model: self.model,
            warnings: self.warnings,
        })
    }
}
