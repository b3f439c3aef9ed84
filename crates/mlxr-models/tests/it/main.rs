//! The families against their reference outputs, on the tiny checkpoints under `golden/tiny`.

#![allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]

mod configs;
mod embedder;
mod exact;
mod golden;
mod harness;
mod house;
mod invariance;
mod published;
mod vision;
