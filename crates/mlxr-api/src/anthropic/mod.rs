//! Anthropic's dialect: messages, their streams, and counting their tokens.

pub mod content;
pub mod error;
pub mod messages;
pub mod stream;
