//! The CPU backend against plain references.

mod products;
