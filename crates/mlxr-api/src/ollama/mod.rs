//! Ollama's dialect: one file per endpoint, and what several of them share.

pub mod chat;
pub mod create;
pub mod embed;
pub mod error;
pub mod generate;
pub mod keep_alive;
pub mod logprobs;
pub mod metrics;
pub mod models;
pub mod options;
pub mod output;
