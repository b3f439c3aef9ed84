//! The GPU backend: WGSL compute kernels through wgpu, on Vulkan and Metal.
//!
//! [`GpuBackend`] implements [`mlxr_tensor::Backend`]. Ops are recorded into one compute pass and submitted in pieces
//! while more is recorded; only `read` and `argmax` wait. `wgsl/` holds one kernel per file, [`kernels`] the typed
//! parameters each is specialised by, [`layout`] how quantised weights lie on the device.
//!
//! Invariant: a row of a result comes from the same sequence of additions whatever rows are beside it, but for products
//! in f16 (`half.rs`), which are asked for.
#![expect(
    unsafe_code,
    reason = "shaders without run-time checks, and what only Vulkan and Metal know of an adapter or make of memory"
)]

mod acts;
mod attention;
mod backend;
mod barriers;
mod batch;
mod bindings;
mod buffers;
mod device;
mod experts;
mod few;
mod few_codes;
mod fused;
mod half;
mod half_attention;
mod kept;
mod kernels;
mod kv;
mod layout;
mod memory;
#[cfg(test)]
mod metal_tests;
mod mode;
mod ops;
mod params;
mod pipeline_cache;
mod pipelines;
mod profile;
mod read_back;
mod recorder;
mod registers;
mod repack;
mod tuner;
mod unified;
mod uploads;
mod weight;

pub use backend::GpuBackend;
pub use device::{AdapterChoice, AdapterInfo, GpuError, adapters};
pub use kept::keep;
pub use weight::weight_bytes;
