//! The service from outside: requests in, bytes out, on the bundled model and on a tiny one.

#![allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]

mod anthropic;
mod cached;
mod cancel;
mod catalogue;
mod chat;
mod completions;
mod dashboard;
mod devices;
mod embeddings;
mod errors;
mod harness;
mod images;
mod keys;
mod limits;
mod malformed;
mod models;
mod native;
mod ollama;
mod openapi;
mod pace;
mod responses;
mod sockets;
mod structure;
