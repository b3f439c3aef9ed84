//! Reads and writes model files: GGUF, Hugging Face safetensors, MLX.
//!
//! [`Checkpoint::open`] turns any of them into the same thing: a config shaped like Hugging Face's config.json and
//! tensors under canonical names, mapped and never copied where the file's layout allows it.
//! Invariant: no input makes this crate panic or allocate more than the file's own size explains.

pub mod arch;
mod assemble;
mod atomic;
mod checkpoint;
pub mod convert;
mod embedding;
mod error;
mod file_type;
pub mod gguf;
mod json;
mod layout;
mod mapping;
mod mlx;
mod published;
pub mod quantize;
mod safetensors;
mod summary;
mod tokenizer;
mod vision;
mod word_piece;

pub use arch::ArchSpec;
pub use checkpoint::{Checkpoint, CheckpointFormat};
pub use embedding::{DenseModule, EmbeddingFiles, Matryoshka, Pooling};
pub use error::{CheckpointError, Fault};
pub use file_type::{FileType, UnknownFileType};
pub use gguf::{GgufMetadata, MetaArray, MetaType, MetaValue, StringArray};
pub use mapping::{LoadOptions, Prefetch};
pub use safetensors::read_safetensors;
pub use summary::{FormatShare, Summary};
pub use tokenizer::TokenizerSource;
pub use vision::VisionFiles;
