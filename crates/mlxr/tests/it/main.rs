//! The binary from outside: exit code, standard output and standard error of every command.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod bench;
mod catalogue;
mod command;
mod config;
mod convert;
mod embed;
mod errors;
mod help;
mod keys;
mod packaging;
mod perplexity;
mod run;
mod show;
mod tokenize;
mod vision;

#[cfg(unix)]
mod control;
#[cfg(unix)]
mod doctor;
#[cfg(unix)]
mod repl;
#[cfg(unix)]
mod serve;
#[cfg(unix)]
mod server;
#[cfg(unix)]
mod service;
