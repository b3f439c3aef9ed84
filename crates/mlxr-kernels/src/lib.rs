//! CPU backend: kernels per instruction set, chosen at run time, and the thread pool they run on.
//!
//! [`CpuBackend`] implements [`mlxr_tensor::Backend`]. Below it, path = instruction set and file = algorithm:
//! `scalar/` is the plain form of every kernel, `lanes/` and `unpack/` hold loops written once and compiled for each
//! instruction set, and [`Kernels`] is the table of what one instruction set offers.
#![expect(
    unsafe_code,
    reason = "SIMD loads and stores, disjoint writes from several threads, aligned memory"
)]

mod acts;
mod aligned;
#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod attend;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod backend;
pub mod bandwidth;
#[cfg(test)]
mod bf16_ops;
#[cfg(test)]
mod block_equivalence;
mod disjoint;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod dot;
#[cfg(test)]
mod equivalence;
mod kernels;
mod kv;
mod lanes;
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "only x86-64 has kernels for packed rows")
)]
mod linear;
mod moe;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod peak;
mod pool;
mod room;
mod rope;
mod scalar;
mod tiles;
mod unpack;
mod weight;

pub use backend::{CpuBackend, CpuOptions};
pub use kernels::{Isa, Kernels, Operands, Products};
pub use pool::ThreadPool;
