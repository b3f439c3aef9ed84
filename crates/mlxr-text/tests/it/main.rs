//! Integration tests of the text crate.

mod data;
mod house;
