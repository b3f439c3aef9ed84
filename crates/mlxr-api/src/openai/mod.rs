//! OpenAI's dialect: one file per endpoint, and what several of them share.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod error;
pub mod models;
pub mod rerank;
pub mod responses;
pub mod sampling;
pub mod text_list;
pub mod tools;
pub mod usage;
