//! Scalar codecs: the oracle every kernel is tested against.

use crate::{DType, Format, HostTensor, TensorError};

/// All elements of `tensor` as f32, row-major.
///
/// # Errors
/// [`TensorError::NoCodec`] for storage types that are not numbers to compute with.
pub fn dequantise(tensor: &HostTensor) -> Result<Vec<f32>, TensorError> {
    let data = tensor.data();
    match tensor.format() {
        Format::Plain(DType::F32) => {
            Ok(data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        Format::Plain(DType::F16) => {
            Ok(data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect())
        }
        Format::Plain(DType::BF16) => {
            Ok(data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect())
        }
        Format::Plain(dtype) => Err(TensorError::NoCodec { name: tensor.name().to_owned(), dtype }),
        _ => Err(TensorError::NoCodec { name: tensor.name().to_owned(), dtype: DType::U32 }),
    }
}
