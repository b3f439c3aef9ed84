//! Which device computes.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_tensor::Backend;

/// What `--device` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// A GPU if there is one that can be used, else the CPU.
    Auto,
    /// The fastest GPU.
    Gpu,
    /// A GPU by its number.
    Index(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Device::Cpu),
            "auto" => Ok(Device::Auto),
            "gpu" => Ok(Device::Gpu),
            _ => text
                .parse()
                .map(Device::Index)
                .map_err(|_| "expected cpu, gpu, auto or the number of a GPU".to_owned()),
        }
    }
}

impl Device {
    /// The backend of the device; `n_threads` counts on the CPU alone.
    ///
    /// # Errors
    /// There is no such device, or it cannot be used.
    pub fn backend(self, n_threads: Option<usize>) -> anyhow::Result<Arc<dyn Backend>> {
        let gpu = |choice| GpuBackend::new(choice).map(|backend| Arc::new(backend) as Arc<dyn Backend>);
        match self {
            Device::Cpu => cpu(n_threads),
            Device::Gpu => Ok(gpu(AdapterChoice::Best)?),
            Device::Index(index) => Ok(gpu(AdapterChoice::Index(index))?),
            Device::Auto => gpu(AdapterChoice::Best).or_else(|reason| {
                tracing::debug!(%reason, "computing on the CPU");
                cpu(n_threads)
            }),
        }
    }
}

fn cpu(n_threads: Option<usize>) -> anyhow::Result<Arc<dyn Backend>> {
    let options = CpuOptions { n_threads, ..CpuOptions::default() };
    Ok(Arc::new(CpuBackend::new(options).context("cannot set up the CPU backend")?))
}
