//! Element types, quant block layouts with their scalar codecs, host tensors, and the `Backend` trait
//! every device implements.

pub mod codec;
pub mod dtype;
mod error;
pub mod host;

pub use dtype::DType;
pub use error::TensorError;
pub use host::{Format, HostTensor, MlxFloat};
