//! The CPU backend against plain references, on every instruction set this machine has.

mod backend;
