//! Texts to vectors and pairs to scores, the same for all dialects.

use mlxr_engine::{EmbedError, TextReader};
use mlxr_models::{HeadError, Text};

use crate::ServeError;
use crate::model_manager::EmbedderLease;
use crate::notices::Notices;

/// What a request asks for: the texts, one per document where they are ranked, and how to answer.
#[derive(Debug)]
pub struct EmbedTask<A> {
    pub texts: Vec<Text>,
    pub answer: A,
    pub notices: Notices,
}

/// Names a text's field by its place.
pub type FieldName = fn(usize) -> String;

/// How the texts of a request are read.
pub struct Reader<'a> {
    reader: TextReader<'a>,
    prompt: &'a str,
    field: FieldName,
}

impl<'a> Reader<'a> {
    /// Reads texts for a model as its files say: their length, and the prompt that goes before them, which is the
    /// default one where `prompt` names none.
    ///
    /// # Errors
    /// The model has no prompt of that name.
    pub fn new(
        lease: &'a EmbedderLease,
        is_cut: bool,
        prompt: Option<&str>,
        field: FieldName,
    ) -> Result<Reader<'a>, ServeError> {
        let (tokenizer, n_ctx) = (lease.tokenizer(), lease.embeddings().n_ctx());
        let files = &lease.embeddings().files;
        let prompt = files.prompt(prompt).ok_or_else(|| {
            let known: Vec<&str> = files.prompts.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let reason =
                format!("prompt_name is {:?}, but the model has {known}", prompt.unwrap_or_default());
            ServeError::invalid("prompt_name", reason)
        })?;
        Ok(Reader { reader: TextReader { tokenizer, n_ctx, is_cut }, prompt, field })
    }

    /// With contexts of `n_ctx` tokens, if that is less.
    pub fn within(mut self, n_ctx: usize) -> Reader<'a> {
        self.reader.n_ctx = self.reader.n_ctx.min(n_ctx);
        self
    }

    /// # Errors
    /// The text cannot be read, or is too long.
    pub fn text(&self, index: usize, text: &str) -> Result<Text, ServeError> {
        let found = match self.prompt {
            "" => self.reader.text(index, text),
            prompt => self.reader.text(index, &format!("{prompt}{text}")),
        };
        found.map_err(|error| refusal(error, self.field))
    }

    /// # Errors
    /// There are too many tokens.
    pub fn tokens(&self, index: usize, tokens: &[u32]) -> Result<Text, ServeError> {
        self.reader.tokens(index, tokens.to_vec()).map_err(|error| refusal(error, self.field))
    }

    /// # Errors
    /// The pair cannot be read, or is too long.
    pub fn pair(&self, index: usize, query: &str, document: &str, max: usize) -> Result<Text, ServeError> {
        self.reader.pair(index, query, document, max).map_err(|error| refusal(error, self.field))
    }
}

/// What stands against a request's texts, by the names of their fields.
pub fn refusal(error: EmbedError, field: FieldName) -> ServeError {
    let invalid = |index: usize, reason: &str| {
        let field = field(index);
        let reason = format!("{field} {reason}");
        ServeError::invalid(field, reason)
    };
    match error {
        EmbedError::TooLong { index, n_tokens, n_ctx } => {
            ServeError::TextTooLong { field: field(index), n_tokens, n_ctx }
        }
        EmbedError::Empty { index } => invalid(index, "has no tokens"),
        EmbedError::Encode { index, reason } => invalid(index, &format!("cannot be encoded: {reason}")),
        EmbedError::NoSuchToken { index, token, vocab } => {
            invalid(index, &format!("has the token {token}, but the vocabulary has {vocab}"))
        }
        EmbedError::QueueFull { n_waiting, max_waiting } => ServeError::QueueFull { n_waiting, max_waiting },
        EmbedError::TooManyTexts { .. } | EmbedError::TooMuch { .. } => {
            ServeError::Invalid { field: None, reason: error.to_string() }
        }
        EmbedError::Stopping => ServeError::ShuttingDown,
        EmbedError::DeviceLost { reason } => ServeError::DeviceLost { reason },
        EmbedError::Failed { reason } => ServeError::Internal { cause: reason },
    }
}

/// What the model does not give of what `field` asks for.
pub fn head_refusal(error: HeadError, field: &str) -> ServeError {
    match error {
        HeadError::NotFinite => ServeError::internal(error),
        HeadError::Dims { .. } | HeadError::Uncut { .. } | HeadError::Lengths { .. } => {
            ServeError::invalid(field, error.to_string())
        }
        HeadError::ScoresOnly => ServeError::invalid("model", format!("{error}: use /v1/rerank")),
        HeadError::TokensOnly | HeadError::VectorsOnly | HeadError::Labels { .. } => {
            ServeError::invalid("model", error.to_string())
        }
    }
}

/// The length of the vectors that a request asks for.
///
/// # Errors
/// The model makes none, or none of that length.
pub fn n_dims(lease: &EmbedderLease, asked: Option<usize>) -> Result<usize, ServeError> {
    let found = lease.handle.head().n_dims(asked, &lease.embeddings().files.matryoshka);
    found.map_err(|error| head_refusal(error, "dimensions"))
}
