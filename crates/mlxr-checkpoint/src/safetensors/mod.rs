//! safetensors: a JSON header, then raw tensor data without holes; large models come as shards with an index.

mod header;
mod index;
mod writer;

pub(crate) use index::open_dir;
pub(crate) use writer::{Entry, write_dir};

use std::path::Path;

use bytes::Bytes;
use mlxr_tensor::{DType, HostTensor};

use crate::CheckpointError;

/// The header's type names and ours.
const DTYPES: &[(&str, DType)] = &[
    ("F64", DType::F64),
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("F8_E4M3", DType::F8E4M3),
    ("F8_E5M2", DType::F8E5M2),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("I16", DType::I16),
    ("I8", DType::I8),
    ("U64", DType::U64),
    ("U32", DType::U32),
    ("U16", DType::U16),
    ("U8", DType::U8),
    ("BOOL", DType::BOOL),
];

pub(crate) fn dtype_from_name(name: &str) -> Option<DType> {
    DTYPES.iter().find(|(n, _)| *n == name).map(|(_, d)| *d)
}

/// The tensors of one safetensors file that is in memory, under the names it gives them; `name` is for messages.
///
/// # Errors
/// When the header is not what the format demands, or contradicts the file's size.
pub fn read_safetensors(name: &Path, bytes: &Bytes) -> Result<Vec<HostTensor>, CheckpointError> {
    Ok(header::parse(name, bytes)?.tensors.into_iter().map(|raw| raw.tensor).collect())
}
