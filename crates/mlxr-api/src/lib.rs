//! The wire types of the HTTP dialects: what clients send and what they get, nothing of what it means.
//!
//! Invariant: a field a dialect documents has a type here, and one it does not ends up in `unknown`, so that whoever
//! translates a request can honour, report or refuse every one of them.

pub mod anthropic;
mod body;
pub mod native;
pub mod ollama;
pub mod openai;
mod schema;

pub use body::{BodyError, parse};
