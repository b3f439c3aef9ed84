//! What can be wrong with a grammar.

/// Why a grammar was refused, or failed while it was followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A keyword of JSON Schema that would be ignored.
    #[error("unsupported schema keyword {keyword:?} at {path}")]
    Keyword { keyword: String, path: String },
    /// A schema that is none.
    #[error("schema at {path}: {reason}")]
    Schema { path: String, reason: String },
    /// A grammar that does not parse.
    #[error("{what} grammar, line {line}, column {column}: {reason}")]
    Syntax { what: &'static str, line: usize, column: usize, reason: String },
    /// A grammar that parses and still makes no automaton.
    #[error("{what} grammar: {reason}")]
    Compile { what: &'static str, reason: String },
    #[error("{what} grammar of {found} bytes, at most {max} are read")]
    TooLong { what: &'static str, found: usize, max: usize },
    #[error("the chosen tool {name:?} is not among the tools")]
    NoSuchTool { name: String },
    #[error("tool name {name:?}: {reason}")]
    ToolName { name: String, reason: &'static str },
    /// A vocabulary no grammar can work with.
    #[error("the vocabulary {reason}")]
    Vocabulary { reason: &'static str },
    /// A token that was not in the mask was committed.
    #[error("token {id} does not follow the grammar")]
    Refused { id: u32 },
    /// The automaton gave up, such as on a limit.
    #[error("the grammar failed: {reason}")]
    Failed { reason: String },
}

impl GrammarError {
    pub(crate) fn compile(what: &'static str, error: &impl ToString) -> GrammarError {
        // The first line says what is wrong; the rest repeats the source.
        let reason = error.to_string();
        let reason = reason.lines().next().unwrap_or_default().trim().to_owned();
        GrammarError::Compile { what, reason }
    }
}
