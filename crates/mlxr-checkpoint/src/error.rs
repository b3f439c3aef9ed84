//! What can be wrong with a model file, told so that the reader knows which byte and what to do next.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use mlxr_tensor::TensorError;

/// Errors of reading, writing and converting checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: cannot {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error("{}: {fault}", path.display())]
    Malformed { path: PathBuf, fault: Box<Fault> },
    #[error("{}: invalid JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: {what} is not supported\nhint: {hint}", path.display())]
    Unsupported { path: PathBuf, what: String, hint: String },
    #[error("{}: {what} is missing\nhint: {hint}", path.display())]
    Missing { path: PathBuf, what: String, hint: String },
    #[error("{}: unknown architecture {found:?}\nhint: supported are {supported}", path.display())]
    UnknownArchitecture { path: PathBuf, found: String, supported: String },
    #[error("{}: {source}", path.display())]
    Tensor { path: PathBuf, source: TensorError },
    #[error("stopped by the caller")]
    Cancelled,
}

/// One place in a file that does not say what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The thing being read, e.g. `tensor "output.weight": offset`.
    pub what: String,
    /// Where it stands, in bytes from the start of the file.
    pub offset: u64,
    pub found: String,
    pub expected: String,
    /// The next step for the person who owns the file.
    pub hint: &'static str,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault { what, offset, found, expected, hint } = self;
        write!(f, "{what} at byte {offset}: found {found}, expected {expected}\nhint: {hint}")
    }
}

/// The usual advice for a file that contradicts itself.
pub(crate) const DAMAGED: &str = "the file is damaged or incomplete; fetch or convert it again";

impl CheckpointError {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| CheckpointError::Io { path: path.to_owned(), action, source }
    }

    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| CheckpointError::Json { path: path.to_owned(), source }
    }

    pub(crate) fn tensor(path: &Path) -> impl FnOnce(TensorError) -> Self {
        move |source| CheckpointError::Tensor { path: path.to_owned(), source }
    }

    pub(crate) fn malformed(
        path: &Path,
        what: impl Into<String>,
        offset: u64,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Self {
        CheckpointError::Malformed {
            path: path.to_owned(),
            fault: Box::new(Fault {
                what: what.into(),
                offset,
                found: found.to_string(),
                expected: expected.to_string(),
                hint: DAMAGED,
            }),
        }
    }

    /// The same error with other advice.
    pub(crate) fn hinting(mut self, advice: &'static str) -> Self {
        if let CheckpointError::Malformed { fault, .. } = &mut self {
            fault.hint = advice;
        }
        self
    }

    pub(crate) fn missing(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Self {
        CheckpointError::Missing { path: path.to_owned(), what: what.into(), hint: hint.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Self {
        CheckpointError::Unsupported { path: path.to_owned(), what: what.into(), hint: hint.into() }
    }
}
