//! Which device computes.

use std::sync::Arc;

use anyhow::Context;
use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_kernels::{CpuBackend, CpuOptions, Products};
use mlxr_server::config::Device;
use mlxr_tensor::Backend;

/// How products of many rows are computed, where `bf16` says what was asked for.
pub fn products(bf16: bool) -> Products {
    if bf16 { Products::Bf16 } else { Products::Alike }
}

/// The backend of a device; `n_threads` and `products` count on the CPU alone.
///
/// # Errors
/// There is no such device, or it cannot be used.
pub fn backend(
    device: Device,
    n_threads: Option<usize>,
    products: Products,
) -> anyhow::Result<Arc<dyn Backend>> {
    let gpu = |choice| GpuBackend::new(choice).map(|backend| Arc::new(backend) as Arc<dyn Backend>);
    match (device, adapter(device)) {
        (_, None) => cpu(n_threads, products),
        (Device::Auto, Some(choice)) => gpu(choice).or_else(|reason| {
            tracing::info!(%reason, "computing on the CPU");
            cpu(n_threads, products)
        }),
        (_, Some(choice)) => Ok(gpu(choice)?),
    }
}

/// The adapter that a device names; `None` is the CPU.
pub fn adapter(device: Device) -> Option<AdapterChoice> {
    match device {
        Device::Cpu => None,
        Device::Gpu | Device::Auto => Some(AdapterChoice::Best),
        Device::Index(index) => Some(AdapterChoice::Index(index)),
    }
}

fn cpu(n_threads: Option<usize>, products: Products) -> anyhow::Result<Arc<dyn Backend>> {
    let options = CpuOptions { n_threads, ..CpuOptions::default() };
    let backend = CpuBackend::new(options).context("cannot set up the CPU backend")?;
    Ok(Arc::new(backend.with_products(products)))
}
