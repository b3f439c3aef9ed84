//! Why a checkpoint cannot be run.

use mlxr_tensor::TensorError;

/// Errors of loading a model. `model` is the path the user named.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error("{model}: model type {model_type:?} is not one of {supported}")]
    UnknownFamily { model: String, model_type: String, supported: String },
    #[error("{model}: config field {field} = {value}: {reason}")]
    Config { model: String, field: String, value: String, reason: String },
    #[error("{model}: config field {field} is missing: {reason}")]
    MissingField { model: String, field: String, reason: String },
    #[error("{model}: {n} tensors are missing: {}", listed(.first, *.n))]
    MissingTensors { model: String, n: usize, first: Vec<String> },
    #[error("{model}: {n} tensors have no place in this model: {}", listed(.first, *.n))]
    LeftoverTensors { model: String, n: usize, first: Vec<String> },
    #[error("{model}: tensor {name:?} has shape {found:?}, expected {expected:?}")]
    TensorShape { model: String, name: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("{model}: a context of {n_ctx} tokens was asked for, the model can use at most {n_ctx_max}")]
    ContextTooLong { model: String, n_ctx: u32, n_ctx_max: u32 },
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// How many names a message lists before it only counts.
pub(crate) const N_LISTED: usize = 5;

fn listed(first: &[String], n: usize) -> String {
    let more = if first.len() < n { ", ..." } else { "" };
    format!("{}{more}", first.join(", "))
}
