//! Integration tests of the text crate.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests are tests too")]

mod data;
mod embedded;
mod grammar;
mod hostile;
mod house;
mod malformed;
mod pairs;
mod random;
mod seeds;
mod templates;
mod tool_calls;
mod vocabs;
