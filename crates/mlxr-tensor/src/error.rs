//! What can be wrong with a tensor.

use crate::DType;

/// Errors of tensor construction, codecs and backends.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    #[error("tensor {name:?}: shape {shape:?} does not fit format {format}")]
    Shape { name: String, shape: Vec<usize>, format: String },
    #[error("tensor {name:?}: {part} has {found} bytes, expected {expected}")]
    ByteLength { name: String, part: &'static str, expected: usize, found: usize },
    #[error("tensor {name:?}: type {dtype} cannot be converted to numbers")]
    NoCodec { name: String, dtype: DType },
    #[error("cannot quantise to {dtype}: {reason}")]
    Quantise { dtype: DType, reason: String },
    #[error("tensor {name:?}: the {backend} backend cannot use it: {reason}")]
    Unsupported { name: String, backend: &'static str, reason: String },
    #[error("{backend}: out of memory: needed {needed_bytes} bytes for {what}")]
    OutOfMemory { backend: &'static str, what: String, needed_bytes: u64 },
    #[error("{backend}: kernels cannot be timed: {reason}")]
    NoProfile { backend: &'static str, reason: String },
    #[error("{backend}: device lost: {reason}")]
    DeviceLost { backend: &'static str, reason: String },
}
