//! What the dialects mean: wire types to engine requests, events to wire types.

pub mod anthropic;
mod collect;
mod conversation;
pub mod embeddings;
mod images;
pub mod native;
pub mod ollama;
pub mod openai;
mod parts;
pub mod sampling;
mod structure;
mod tool_block;

pub use sampling::defaults;
