//! The engine from outside: behaviour on a runner that computes nothing, invariance on real weights.

#![allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]

mod ahead;
mod behaviour;
mod constraint;
mod embedder;
mod fake;
mod invariance;
mod prefix_cache;
mod scheduling;
mod thread;
mod vision;
