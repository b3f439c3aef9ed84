//! Paged KV cache, sampler and the step loop.

mod ids;
pub mod kv;
pub mod sampler;
pub mod scheduler;

pub use ids::{BlockId, RequestId, SeqId};
