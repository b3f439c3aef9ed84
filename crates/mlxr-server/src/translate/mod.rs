//! What the dialects mean: wire types to engine requests, events to wire types.

mod collect;
pub mod openai;
mod sampling;
