//! Element types, quant block layouts with their scalar codecs, host tensors, and the [`Backend`] trait
//! every device implements.

mod ahead;
pub mod backend;
pub mod codec;
pub mod conformance;
pub mod dtype;
mod error;
pub mod host;
mod largest;
pub mod math;
mod pixels;

pub use ahead::{
    Ahead, DRAW_TOLERANCE, DeviceTokens, Fed, Guess, GuessStage, GuessedToken, LogitChange, MAX_LEFT_OUT,
    Rows, RowsWanted, StartedRows,
};
pub use backend::{
    Act, Activation, AttentionSpec, Backend, Batch, BlockCopy, DeviceCache, DeviceMemory, Gate, GivenRows,
    KernelTime, KvCache, KvLayerSpec, KvSpec, LinearLayer, MAX_LARGEST, Reach, Rope, RopePairing, RouterSpec,
    Routing, Span, Weight,
};
pub use dtype::DType;
pub use error::TensorError;
pub use host::{Codebook, Format, HostTensor, MlxFloat};
pub use largest::{EXP_SUM_TOLERANCE, Ranked, argmax, largest};
pub use pixels::Pixels;
