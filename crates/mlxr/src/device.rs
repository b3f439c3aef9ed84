//! Which device computes.

use std::io;
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{EmbedderLimits, EngineError, EngineOptions};
use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_kernels::{CpuBackend, CpuOptions, Products};
use mlxr_models::ModelError;
use mlxr_server::config;
use mlxr_server::{Device, DeviceError, Memory, MemoryPlan};
use mlxr_tensor::{Backend, TensorError};

use crate::failure::usage;
use crate::units::bytes;

/// What is asked for: a device, and how the CPU computes if that is it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    device: config::Device,
    n_threads: Option<usize>,
    products: Products,
    is_profiled: bool,
}

/// The device that models go to, and where they go that it cannot take.
pub struct Devices {
    pub first: Device,
    pub fallback: Option<Device>,
}

/// How products of many rows are computed, where `bf16` says what was asked for.
pub fn products(bf16: bool) -> Products {
    if bf16 { Products::Bf16 } else { Products::Alike }
}

/// Rows of a step, where nobody says: a GPU with memory of its own is faster with more than a processor gains from.
pub fn batch_rows(backend: &dyn Backend) -> usize {
    const OF_A_GPU: usize = 2048;
    match backend.memory() {
        Some(memory) if !memory.is_shared => OF_A_GPU,
        _ => EngineOptions::default().max_batch_tokens,
    }
}

/// The adapter that a device names; `None` is the CPU.
pub fn adapter(device: config::Device) -> Option<AdapterChoice> {
    match device {
        config::Device::Cpu => None,
        config::Device::Gpu | config::Device::Auto => Some(AdapterChoice::Best),
        config::Device::Index(index) => Some(AdapterChoice::Index(index)),
    }
}

impl Wanted {
    pub fn new(device: config::Device, n_threads: Option<usize>, products: Products) -> Wanted {
        Wanted { device, n_threads, products, is_profiled: false }
    }

    /// With every kernel timed, if `is_profiled`.
    pub fn profiled(self, is_profiled: bool) -> Wanted {
        Wanted { is_profiled, ..self }
    }

    /// Opens the device. With `auto` the CPU takes the place of a GPU that is not there, and stands in for one that is.
    ///
    /// # Errors
    /// There is no such device, or it cannot be used.
    pub fn open(self) -> anyhow::Result<Devices> {
        let cpu = Device::new(move || self.open_cpu());
        let Some(choice) = adapter(self.device) else {
            if self.is_profiled {
                return Err(usage(
                    "kernels of a CPU cannot be timed",
                    "leave --profile out, or give --device gpu",
                ));
            }
            return Ok(Devices { first: cpu, fallback: None });
        };
        let gpu = Device::new(move || self.open_gpu(choice));
        let is_auto = self.device == config::Device::Auto;
        match gpu.backend() {
            Ok(_) => Ok(Devices { first: gpu, fallback: is_auto.then_some(cpu) }),
            Err(error) if is_auto && !self.is_profiled => {
                tracing::info!(reason = error.reason, "computing on the CPU");
                Ok(Devices { first: cpu, fallback: None })
            }
            Err(error) => Err(error.into()),
        }
    }

    fn open_gpu(self, choice: AdapterChoice) -> Result<Arc<dyn Backend>, DeviceError> {
        let backend = GpuBackend::new(choice).map_err(|error| DeviceError { reason: error.to_string() })?;
        let backend = backend.with_half_products(self.products == Products::Bf16);
        if self.is_profiled {
            backend.start_profile().map_err(|error| DeviceError { reason: error.to_string() })?;
        }
        Ok(Arc::new(backend))
    }

    fn open_cpu(self) -> Result<Arc<dyn Backend>, DeviceError> {
        let options = CpuOptions { n_threads: self.n_threads, ..CpuOptions::default() };
        let backend = CpuBackend::new(options)
            .map_err(|error| DeviceError { reason: format!("cannot set up the CPU backend: {error}") })?;
        Ok(Arc::new(backend.with_products(self.products)))
    }

    /// Loads something onto the device; with `auto` onto the CPU when the GPU cannot take it.
    ///
    /// # Errors
    /// There is no device, or `load` fails.
    pub fn load<T>(self, load: impl Fn(Arc<dyn Backend>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let Devices { first, fallback } = self.open()?;
        match (load(first.backend()?), fallback) {
            (Err(error), Some(fallback)) if concerns_device(&error) => {
                let reason = format!("{error:#}");
                tracing::warn!(
                    reason = reason.lines().next(),
                    "computing on the CPU: the GPU cannot take the model"
                );
                load(fallback.backend()?)
            }
            (result, _) => result,
        }
    }
}

/// Whether another device might do better.
fn concerns_device(error: &anyhow::Error) -> bool {
    let of_tensor = |error: &TensorError| {
        matches!(
            error,
            TensorError::Unsupported { .. }
                | TensorError::OutOfMemory { .. }
                | TensorError::DeviceLost { .. }
        )
    };
    error.chain().any(|cause| {
        let in_model = matches!(cause.downcast_ref(), Some(ModelError::Tensor(error)) if of_tensor(error));
        let in_engine = matches!(cause.downcast_ref(), Some(EngineError::Tensor(error)) if of_tensor(error));
        // A thread that could not be started for want of scratch.
        let in_io = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let in_thread = in_io.and_then(|cause| cause.downcast_ref()).is_some_and(of_tensor);
        let is_plain = cause.downcast_ref().is_some_and(of_tensor);
        in_model || in_engine || in_thread || is_plain || cause.is::<TooLarge>()
    })
}

/// A model has no room on a device.
#[derive(Debug, thiserror::Error)]
#[error(
    "{model} does not fit: it takes {needed}, and models on {device} may take {limit}\n\
     hint: run it on the CPU (--device cpu), give it less context, or quantise it (`mlxr quantize`)"
)]
struct TooLarge {
    model: String,
    needed: String,
    device: String,
    limit: String,
}

/// Looks whether a model has room on a device that has its own say about its memory.
///
/// # Errors
/// It has none.
pub fn check_room(ckpt: &Checkpoint, backend: &dyn Backend, options: &EngineOptions) -> anyhow::Result<()> {
    if backend.memory().is_none() {
        return Ok(());
    }
    let Memory { limit_bytes } = Memory::of(backend);
    let plan = if ckpt.is_embedder() {
        MemoryPlan::for_embedder(ckpt, options, &EmbedderLimits::default())?
    } else {
        MemoryPlan::new(ckpt, options, 0)?
    };
    if plan.total_bytes() > limit_bytes {
        let model = ckpt.path.display().to_string();
        let (needed, limit) = (bytes(plan.total_bytes()), bytes(limit_bytes));
        return Err(TooLarge { model, needed, device: backend.describe(), limit }.into());
    }
    Ok(())
}
