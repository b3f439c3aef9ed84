//! What stands behind a weight: the tensor as the file stores it, shared, and how its rows meet activations.

use std::sync::OnceLock;

use mlxr_tensor::{HostTensor, TensorError, Weight, codec};

/// A matrix or vector, or the matrices of all experts of one projection.
pub(crate) struct CpuWeight {
    pub(crate) parts: Vec<HostTensor>,
    values: OnceLock<Vec<f32>>,
}

impl CpuWeight {
    pub(crate) fn new(parts: Vec<HostTensor>) -> Self {
        Self { parts, values: OnceLock::new() }
    }

    /// The only part of a weight that is not a stack of experts.
    pub(crate) fn matrix(&self) -> &HostTensor {
        &self.parts[0]
    }

    /// All elements as f32: for vectors (norms, biases, sinks), converted on first use.
    pub(crate) fn values(&self) -> &[f32] {
        self.values.get_or_init(|| self.parts.iter().flat_map(dequantised).collect())
    }
}

/// The values of a vector (or of a small matrix of biases).
pub(crate) fn vector(weight: &Weight) -> &[f32] {
    weight.handle::<CpuWeight>().values()
}

/// Refuses formats without numbers, by trying the first row.
pub(crate) fn check_format(tensor: &HostTensor) -> Result<(), TensorError> {
    if tensor.rows() == 0 {
        return Ok(());
    }
    codec::dequantise(&tensor.row_slice(0..1)).map(drop).map_err(|e| match e {
        TensorError::NoCodec { name, dtype } => TensorError::Unsupported {
            name,
            backend: "cpu",
            reason: format!("type {dtype} cannot be converted to numbers"),
        },
        other => other,
    })
}

/// All elements of a tensor whose format `check_format` accepted.
pub(crate) fn dequantised(tensor: &HostTensor) -> Vec<f32> {
    codec::dequantise(tensor).expect("the format was checked at upload")
}

/// Row `row` of a tensor whose format `check_format` accepted.
pub(crate) fn dequantise_row(tensor: &HostTensor, row: usize, out: &mut [f32]) {
    codec::dequantise_rows(tensor, row..row + 1, out).expect("the format was checked at upload");
}
