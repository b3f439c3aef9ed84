//! The crate from outside: whole files in, checkpoints out.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

mod convert;
mod corpus;
mod formats;
mod open;
mod quantize;
