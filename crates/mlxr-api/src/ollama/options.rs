//! `options`: how to sample, and how the model is loaded.

use serde::Deserialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Ollama's options, with the names of its model files' parameters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, ToSchema)]
#[schema(as = ollama::Options)]
pub struct Options {
    // How to sample.
    pub num_keep: Option<i64>,
    pub seed: Option<i64>,
    /// -1 is no limit, -2 the rest of the context.
    pub num_predict: Option<i64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub tfs_z: Option<f32>,
    /// -1 is all.
    pub repeat_last_n: Option<i64>,
    pub temperature: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub mirostat: Option<u8>,
    pub mirostat_tau: Option<f32>,
    pub mirostat_eta: Option<f32>,
    pub penalize_newline: Option<bool>,
    pub stop: Option<Vec<String>>,
    // How to load.
    pub num_ctx: Option<usize>,
    pub num_batch: Option<i64>,
    pub num_gpu: Option<i64>,
    pub main_gpu: Option<i64>,
    pub num_thread: Option<i64>,
    pub numa: Option<bool>,
    pub low_vram: Option<bool>,
    pub f16_kv: Option<bool>,
    pub logits_all: Option<bool>,
    pub vocab_only: Option<bool>,
    pub use_mmap: Option<bool>,
    pub use_mlock: Option<bool>,
    pub embedding_only: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}
