//! GGUF: one file (or a numbered series of them) with typed metadata, a tensor directory and aligned tensor data.
//!
//! Versions 2 and 3, little-endian. Every count, size and offset is checked against the file before it is used.
//! Format: the GGUF specification of the ggml project.

mod cursor;
mod metadata;
mod reader;
mod split;
mod writer;

pub(crate) use cursor::Cursor;
pub use metadata::{GgufMetadata, MetaArray, MetaType, MetaValue, StringArray};
pub(crate) use reader::{GgufFile, RawTensor};
pub(crate) use split::open_series;
pub use writer::{GgufWriter, TensorPlan};

/// The four bytes every GGUF file starts with.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Alignment of tensor data where `general.alignment` does not say otherwise.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The metadata of a GGUF file that need not be a whole model, such as one that holds a vocabulary only; `name` is for
/// messages.
///
/// # Errors
/// Says where the file breaks the format.
pub fn read_metadata(
    name: &std::path::Path,
    bytes: &bytes::Bytes,
) -> Result<GgufMetadata, crate::CheckpointError> {
    Ok(GgufFile::parse(name, bytes)?.metadata)
}
