//! What can be wrong with a tokenizer file, a text or a chat template.

/// Errors of tokenizers and chat templates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// A tokenizer file that cannot be read.
    #[error("malformed {what}: {reason}")]
    Malformed { what: &'static str, reason: String },
    /// A well-formed file that asks for something we do not have.
    #[error("unsupported {what} {name:?}")]
    Unsupported { what: &'static str, name: String },
    /// A checkpoint without a tokenizer.
    #[error("the checkpoint has no tokenizer")]
    NoTokenizer,
    /// A text the tokenizer could not encode.
    #[error("cannot encode the text: {reason}")]
    Encode { reason: String },
    /// A template that does not parse, or that failed while rendering.
    #[error("chat template{}: {reason}", at_line(*.line))]
    Template { line: Option<usize>, reason: String },
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the chat template refused the conversation: {message}")]
    Refused { message: String },
    /// A template file that cannot be read.
    #[error("cannot read chat template {path:?}: {reason}")]
    TemplateFile { path: std::path::PathBuf, reason: String },
}

fn at_line(line: Option<usize>) -> String {
    line.map(|n| format!(", line {n}")).unwrap_or_default()
}

impl TextError {
    pub(crate) fn malformed(what: &'static str, reason: impl ToString) -> TextError {
        TextError::Malformed { what, reason: reason.to_string() }
    }
}
