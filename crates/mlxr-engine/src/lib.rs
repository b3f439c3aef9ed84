//! Paged KV cache, sampler and the step loop.
