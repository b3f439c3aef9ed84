//! mlxr's own dialect, below `/mlxr/v1`: the models in memory, what they are doing, and the steps from text to tokens
//! and back.

pub mod cache;
pub mod config;
pub mod error;
pub mod health;
pub mod kv;
pub mod logs;
pub mod metrics;
pub mod models;
pub mod requests;
pub mod score;
pub mod shutdown;
pub mod stats;
pub mod text;
