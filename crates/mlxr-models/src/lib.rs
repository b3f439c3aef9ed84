//! Model families on one decoder.
//!
//! [`Model::load`] reads a checkpoint's config through its family's file, checks that every weight is found and
//! every tensor used, and uploads them. [`Model::forward`] turns a batch of rows into logits.
//! [`Placement`] says which of the devices it is given computes which layers; nothing here names one, and no op knows
//! whether a row is prefill or decode.

mod arithmetic;
mod config;
mod decoder;
mod embedder;
mod encoder;
mod error;
mod families;
mod fields;
mod head;
mod model;
mod placement;
mod rope;
mod upload;
mod vision;
mod weights;

pub use arithmetic::Multiplications;
pub use config::{Bias, DecoderConfig, LayerConfig, MlpConfig, QkNorm};
pub use embedder::{Embedder, Text, scratch_spec};
pub use encoder::{EncoderConfig, EncoderMlp, ScoreConfig};
pub use error::ModelError;
pub use head::{EmbedderHead, HeadError, ScoreActivation, ranking, shorten, vectors};
pub use model::{Model, ModelOptions};
pub use placement::{ModelKv, Placement, SavedBlocks};
pub use rope::{RopeConfig, RopeScaling};
pub use vision::{VisionConfig, VisionTower};
