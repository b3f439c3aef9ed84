//! Which device computes.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{EmbedderLimits, EngineError, EngineOptions};
use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_kernels::{CpuBackend, CpuOptions, Kernels, Products};
use mlxr_models::{ModelError, Placement};
use mlxr_server::config::{self, GpuLayers, ServerConfig};
use mlxr_server::{
    Device, DeviceError, Fallback, Memory, MemoryPlan, PlanError, Role, Room, sweep_leftovers,
};
use mlxr_tensor::{Backend, TensorError};

use crate::failure::{failure, usage};
use crate::first_check::{self, Pairing};
use crate::folders;
use crate::units::bytes;

/// What is asked for: a device, and how the CPU computes if that is it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    device: config::Device,
    gpu_layers: GpuLayers,
    cpu: CpuOptions,
    products: Products,
    is_profiled: bool,
    is_tuning: bool,
}

/// The device that models go to, what they may take of it, and the one behind it for what it cannot take.
pub struct Devices {
    pub first: Device,
    pub memory: Memory,
    pub fallback: Option<Fallback>,
}

/// How products of many rows are computed, where `bf16` says what was asked for.
pub fn products(bf16: bool) -> Products {
    if bf16 { Products::Bf16 } else { Products::Alike }
}

/// The CPU's kernels that the settings name.
///
/// # Errors
/// This CPU does not run them.
pub fn kernels(config: &ServerConfig) -> anyhow::Result<Kernels> {
    let Some(name) = &config.cpu_kernels else { return Ok(Kernels::best()) };
    name.parse().map_err(|reason| {
        let message = format_args!("engine.cpu_kernels is {name:?}, but {reason}");
        failure(message, "`mlxr config show` says where it is set")
    })
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

/// Whether Linux has the device of any GPU in its folder of devices: without one, drivers need not be loaded, which takes
/// time and memory, and of which some write to stderr. Always so on other systems.
fn may_have_gpu(folder: &Path) -> bool {
    /// Those of NVIDIA's driver, of Windows beneath Linux, and of drivers for phones.
    const NAMES: [&str; 5] = ["nvidiactl", "nvgpu", "dxg", "kgsl-3d0", "mali0"];
    let is_render = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("renderD");
    !cfg!(target_os = "linux")
        || NAMES.iter().any(|name| folder.join(name).exists())
        || std::fs::read_dir(folder.join("dri"))
            .is_ok_and(|entries| entries.flatten().any(|entry| is_render(&entry.file_name())))
}

impl Wanted {
    pub fn new(device: config::Device, cpu: CpuOptions, products: Products) -> Wanted {
        Wanted { device, gpu_layers: GpuLayers::All, cpu, products, is_profiled: false, is_tuning: false }
    }

    /// With layers of a model on the CPU that the GPU is not to take or has no room for.
    pub fn with_gpu_layers(self, gpu_layers: GpuLayers) -> Wanted {
        Wanted { gpu_layers, ..self }
    }

    /// With every kernel timed, if `is_profiled`.
    pub fn profiled(self, is_profiled: bool) -> Wanted {
        Wanted { is_profiled, ..self }
    }

    /// With products measured on a GPU that has not met them before, if `is_tuning`.
    pub fn tuning(self, is_tuning: bool) -> Wanted {
        Wanted { is_tuning, ..self }
    }

    /// Opens the device. With `auto` the CPU takes the place of a GPU that is not there, and stands in for one that is.
    ///
    /// # Errors
    /// There is no such device, or it cannot be used.
    pub fn open(self) -> anyhow::Result<Devices> {
        let cpu = Device::new(move || self.open_cpu());
        let Some(choice) = self.adapter()? else {
            if self.is_profiled {
                return Err(usage(
                    "kernels of a CPU cannot be timed",
                    "leave --profile out, or give --device gpu",
                ));
            }
            if self.is_tuning {
                return Err(usage(
                    "only products of a GPU are tuned",
                    "leave --tune out, or give --device gpu",
                ));
            }
            return Ok(Devices::only(cpu));
        };
        let is_auto = self.device == config::Device::Auto;
        let is_divided = matches!(self.gpu_layers, GpuLayers::Count(1..));
        let needs_gpu = !is_auto || is_divided || self.is_profiled || self.is_tuning;
        if !needs_gpu && !may_have_gpu(Path::new("/dev")) {
            return Ok(Devices::only(cpu));
        }
        let gpu = Device::with_weights_of(mlxr_gpu::weight_bytes, move || self.open_gpu(choice));
        match gpu.backend() {
            Ok(backend) => {
                let fallback = Fallback {
                    device: cpu,
                    memory: Memory::detect(),
                    shares_memory: backend.memory().is_some_and(|memory| memory.is_shared),
                    gpu_layers: self.gpu_layers,
                    role: if is_auto { Role::Models } else { Role::Layers },
                };
                let is_needed = is_auto || self.gpu_layers != GpuLayers::All;
                let memory = Memory::of(&*backend);
                Ok(Devices { first: gpu, memory, fallback: is_needed.then_some(fallback) })
            }
            Err(error) if !needs_gpu => {
                tracing::info!(reason = error.reason, "computing on the CPU");
                Ok(Devices::only(cpu))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The adapter to use, if any layer is to be computed on one.
    fn adapter(self) -> anyhow::Result<Option<AdapterChoice>> {
        match (adapter(self.device), self.gpu_layers) {
            (None, GpuLayers::Count(1..)) => Err(usage(
                "--gpu-layers divides a model between a GPU and the CPU, and the device is the CPU",
                "give --device gpu too, or auto or the number of a GPU",
            )),
            (_, GpuLayers::Count(0)) => Ok(None),
            (choice, _) => Ok(choice),
        }
    }

    fn open_gpu(self, choice: AdapterChoice) -> Result<Arc<dyn Backend>, DeviceError> {
        folders::gpu_caches().for_each(|folder| _ = sweep_leftovers(&folder));
        let backend = GpuBackend::new(choice).map_err(|error| DeviceError { reason: error.to_string() })?;
        let backend = match folders::gpu_pipelines() {
            Some(folder) => backend.with_pipeline_cache(&folder),
            None => backend,
        };
        let is_half = self.products == Products::Bf16;
        let mut backend = backend.with_half_products(is_half);
        let pairing = Pairing { adapter: backend.adapter().clone(), cpu: self.cpu, is_half };
        if let Some(path) = folders::gpu_tuning() {
            backend = backend.with_tuning(path, self.is_tuning);
        }
        if self.is_profiled {
            backend.start_profile().map_err(|error| DeviceError { reason: error.to_string() })?;
        }
        let backend: Arc<dyn Backend> = Arc::new(backend);
        // What is timed would be more than the model's kernels.
        if !self.is_profiled && !self.is_tuning {
            let record = folders::gpu_checks();
            first_check::check(&backend, &pairing, record.as_deref()).map_err(|error| {
                let reason = format!(
                    "{error:#}\n\
                     hint: run on the CPU (--device cpu), and paste what `mlxr doctor --gpu-selftest` says into an issue"
                );
                if self.device == config::Device::Auto {
                    tracing::warn!(reason = reason.lines().next(), "the GPU is not used");
                }
                DeviceError { reason }
            })?;
        }
        Ok(backend)
    }

    fn open_cpu(self) -> Result<Arc<dyn Backend>, DeviceError> {
        let backend = CpuBackend::new(self.cpu)
            .map_err(|error| DeviceError { reason: format!("cannot set up the CPU backend: {error}") })?;
        Ok(Arc::new(backend.with_products(self.products)))
    }

    /// Begins to open the device, which may take some tenths of a second, while the host does something else.
    pub fn open_beside(self) -> Opening {
        Opening { wanted: self, thread: std::thread::Builder::new().spawn(move || self.open()).ok() }
    }

    /// As [`Opening::load`].
    ///
    /// # Errors
    /// As [`Opening::load`].
    pub fn load<T>(
        self,
        ckpt: &Checkpoint,
        options: EngineOptions,
        load: impl Fn(&Placement, &EngineOptions) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        Opening { wanted: self, thread: None }.load(ckpt, options, load)
    }
}

/// A device that is being opened.
pub struct Opening {
    wanted: Wanted,
    thread: Option<JoinHandle<anyhow::Result<Devices>>>,
}

impl Drop for Opening {
    /// A process that ends while a driver begins may end badly.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Opening {
    fn devices(mut self) -> anyhow::Result<Devices> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(devices)) => devices,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => self.wanted.open(),
        }
    }

    /// Loads something onto the device, and onto the CPU too what the GPU has no room for; with `auto` onto the CPU alone
    /// when the GPU cannot take it. `load` is told the rows of a step that suit the device.
    ///
    /// # Errors
    /// There is no device, it has no room, or `load` fails.
    pub fn load<T>(
        self,
        ckpt: &Checkpoint,
        options: EngineOptions,
        load: impl Fn(&Placement, &EngineOptions) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let devices = self.devices()?;
        let load_first = || {
            let backend = devices.first.backend()?;
            let options = EngineOptions { max_batch_tokens: batch_rows(&*backend), ..options };
            load(&devices.place(ckpt, backend, &options)?, &options)
        };
        match (load_first(), &devices.fallback) {
            (Err(error), Some(fallback)) if fallback.role == Role::Models && concerns_device(&error) => {
                let reason = format!("{error:#}");
                tracing::warn!(
                    reason = reason.lines().next(),
                    "computing on the CPU: the GPU cannot take the model"
                );
                load(&Placement::whole(fallback.device.backend()?), &options)
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
     hint: {}run it on the CPU (--device cpu), give it less context, or quantise it (`mlxr quantize`)",
    .can_be_divided.then_some("leave what has no room to the CPU (--gpu-layers auto), ").unwrap_or_default()
)]
struct TooLarge {
    model: String,
    can_be_divided: bool,
    needed: String,
    device: String,
    limit: String,
}

impl Devices {
    /// The CPU and nothing else.
    fn only(cpu: Device) -> Devices {
        Devices { first: cpu, memory: Memory::detect(), fallback: None }
    }

    /// With another limit on what models take of each device, if there is one.
    pub fn limited_to(self, limit: Option<Memory>) -> Devices {
        let Some(memory) = limit else { return self };
        let fallback = self.fallback.map(|fallback| Fallback { memory, ..fallback });
        Devices { memory, fallback, ..self }
    }

    /// What a model takes here with one full sequence, and the room there is.
    ///
    /// # Errors
    /// The model's files make no sense.
    pub fn plan(&self, ckpt: &Checkpoint, options: &EngineOptions) -> Result<(MemoryPlan, Room), PlanError> {
        let cpu = self.fallback.as_ref().map(Fallback::room);
        let weight_bytes = self.first.weight_bytes();
        let device = Some(self.first.clone());
        let room = Room { device_bytes: self.memory.limit_bytes, weight_bytes, device, cpu };
        let plan = if ckpt.is_embedder() {
            MemoryPlan::for_embedder(ckpt, options, &EmbedderLimits::default(), &room)?
        } else {
            MemoryPlan::within(ckpt, &EngineOptions { max_seqs: 1, ..*options }, &room)?
        };
        Ok((plan, room))
    }

    /// Where a model's layers go. The CPU takes any model: what of the weights has no room stays in the files.
    ///
    /// # Errors
    /// There is no room.
    fn place(
        &self,
        ckpt: &Checkpoint,
        backend: Arc<dyn Backend>,
        options: &EngineOptions,
    ) -> anyhow::Result<Placement> {
        if backend.memory().is_none() && self.fallback.is_none() {
            return Ok(Placement::whole(backend));
        }
        let (plan, room) = self.plan(ckpt, options)?;
        if !room.holds(&plan) {
            let model = ckpt.path.display().to_string();
            let (needed, limit) = (bytes(plan.total_bytes()), bytes(room.device_bytes));
            let is_auto =
                self.fallback.as_ref().is_some_and(|fallback| fallback.gpu_layers == GpuLayers::Auto);
            let can_be_divided = !is_auto && !ckpt.is_embedder();
            return Err(TooLarge { model, can_be_divided, needed, device: backend.describe(), limit }.into());
        }
        let whole = Placement::whole(backend);
        let (Some(split), Some(fallback)) = (plan.split, &self.fallback) else { return Ok(whole) };
        match fallback.gpu_layers {
            GpuLayers::Auto => tracing::warn!(%split, "the GPU has no room for the whole model"),
            _ => tracing::info!(%split, "the model is divided as asked"),
        }
        Ok(whole.with_first(split.cpu.n_layers, fallback.device.backend()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_without_room_is_told_where_else_it_can_go() {
        let hint = |can_be_divided| {
            let text = |text: &str| text.to_owned();
            let (model, needed) = (text("m.gguf"), text("9 GB"));
            TooLarge { model, can_be_divided, needed, device: text("GPU"), limit: text("8 GB") }.to_string()
        };
        assert!(
            hint(true)
                .contains("hint: leave what has no room to the CPU (--gpu-layers auto), run it on the CPU")
        );
        assert!(hint(false).contains("hint: run it on the CPU (--device cpu), give it less context"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn drivers_are_loaded_where_a_gpu_has_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let dev = folder.path();
        assert!(!may_have_gpu(dev));
        std::fs::create_dir(dev.join("dri")).unwrap();
        // A display without anything that renders, as servers have.
        std::fs::write(dev.join("dri/card0"), "").unwrap();
        assert!(!may_have_gpu(dev));
        std::fs::write(dev.join("dri/renderD128"), "").unwrap();
        assert!(may_have_gpu(dev));
        std::fs::remove_dir_all(dev.join("dri")).unwrap();
        std::fs::write(dev.join("nvidiactl"), "").unwrap();
        assert!(may_have_gpu(dev));
    }
}
