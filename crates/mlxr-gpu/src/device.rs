//! Adapters and the device made from one.

use std::sync::{Arc, Mutex, PoisonError};

use mlxr_tensor::{DeviceMemory, TensorError};
use wgpu::{Features, Limits};

use crate::uploads::{Uploads, Writer};
use crate::{memory, unified};

/// The backend's name in errors.
pub(crate) const BACKEND: &str = "gpu";

/// What every adapter must have.
const REQUIRED: Features = Features::SUBGROUP.union(Features::IMMEDIATES);

/// What products on matrix units take.
const MATRICES: Features = Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SHADER_F16);

/// What people want to know of an adapter, with the names it has in its description.
const REPORTED: [(Features, &str); 4] = [
    (Features::SHADER_F16, "f16"),
    (Features::TIMESTAMP_QUERY, "timestamps"),
    (Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative matrices"),
    (Features::SUBGROUP_BARRIER, "subgroup barriers"),
];

/// Bytes of immediates a kernel may take.
pub(crate) const IMMEDIATE_BYTES: u32 = 64;

/// Which adapter to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AdapterChoice {
    /// The fastest kind there is; a software driver only when nothing else is there and it is allowed.
    #[default]
    Best,
    /// By its place in [`adapters`].
    Index(usize),
    /// The fastest kind, software drivers included.
    BestOrSoftware,
}

/// What is known of an adapter without making a device of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterInfo {
    /// Its place in [`adapters`].
    pub index: usize,
    pub name: String,
    /// `vulkan` or `metal`.
    pub api: &'static str,
    pub driver: String,
    /// Runs on the CPU.
    pub is_software: bool,
    /// `None` where the driver does not say.
    pub memory: Option<DeviceMemory>,
    /// Lanes that kernels take for a subgroup.
    pub subgroup: u32,
    /// The least and the most lanes that its driver gives one.
    pub driver_subgroups: [u32; 2],
    /// What it can do beyond what every adapter must.
    pub features: Vec<&'static str>,
    /// Whether [`AdapterChoice::Best`] is this one.
    pub is_best: bool,
    /// Why it cannot be used, if so.
    pub unusable: Option<String>,
}

impl AdapterInfo {
    /// How subgroups are taken, in words.
    pub fn describe_subgroups(&self) -> String {
        let AdapterInfo { subgroup, driver_subgroups: [least, most], .. } = self;
        match (least == most, least == subgroup) {
            (true, true) => subgroup.to_string(),
            (true, false) => format!("{subgroup} of the driver's {least}"),
            (false, _) => format!("{subgroup} of the driver's {least} to {most}"),
        }
    }
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    #[error("no GPU found that Vulkan or Metal can use\nhint: run on the CPU with --device cpu")]
    None,
    #[error(
        "there is no GPU but {name}, which computes on the CPU itself\nhint: run on the CPU with --device cpu, or on \
         it with --device {index}"
    )]
    OnlySoftware { index: usize, name: String },
    #[error("there is no GPU {index}: {n_adapters} found\nhint: `mlxr doctor` lists them")]
    NoSuchAdapter { index: usize, n_adapters: usize },
    #[error("{name} cannot be used: {reason}")]
    Unusable { name: String, reason: String },
    #[error("{name}: the driver gave no device: {reason}")]
    Device { name: String, reason: String },
    #[error("kernel {kernel}: {reason}")]
    Kernel { kernel: &'static str, reason: String },
}

/// A device, its queue, and what went wrong on it.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: AdapterInfo,
    pub(crate) limits: Limits,
    /// Whether it multiplies matrices of f16, 16 by 16, with sums in f32.
    pub(crate) has_matrices: bool,
    /// Lanes that kernels are compiled to take for a subgroup.
    pub(crate) subgroup: u32,
    /// Whether weights lie in memory that the host shares with it, see `unified.rs`.
    pub(crate) is_unified: bool,
    failure: Arc<Failure>,
    writer: Arc<Writer>,
    pub(crate) uploads: Uploads,
}

/// What went wrong first on a device.
#[derive(Default)]
pub(crate) struct Failure(Mutex<Option<String>>);

impl Failure {
    /// Remembers a reason, if it is the first.
    pub(crate) fn note(&self, reason: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
    }

    fn reason(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All adapters, in the order in which they are numbered.
pub fn adapters() -> Vec<AdapterInfo> {
    enumerate().into_iter().map(|(_, info)| info).collect()
}

fn enumerate() -> Vec<(wgpu::Adapter, AdapterInfo)> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL;
    descriptor.flags = if cfg!(debug_assertions) {
        wgpu::InstanceFlags::VALIDATION.with_env()
    } else {
        wgpu::InstanceFlags::empty()
    };
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut all: Vec<_> = found.into_iter().enumerate().map(|(i, adapter)| describe(i, adapter)).collect();
    if let Some(best) = best(&all, AdapterChoice::Best) {
        all[best].1.is_best = true;
    }
    all
}

fn describe(index: usize, adapter: wgpu::Adapter) -> (wgpu::Adapter, AdapterInfo) {
    let info = adapter.get_info();
    let missing = lacking(adapter.features(), &adapter.limits());
    let api = match info.backend {
        wgpu::Backend::Metal => "metal",
        _ => "vulkan",
    };
    let (subgroup, driver_subgroups) = (subgroup_lanes(&info), driver_subgroups(&info));
    let is_small = || {
        (subgroup < 8).then(|| format!("its driver may choose subgroups of {subgroup} lanes, fewer than 8"))
    };
    let is_other = || {
        (api == "metal" && !info.name.starts_with("Apple"))
            .then(|| "on Metal, kernels are made for Apple's own GPUs".to_owned())
    };
    let unusable = missing.or_else(is_small).or_else(is_other);
    let has = |(feature, name): (Features, _)| adapter.features().contains(feature).then_some(name);
    let described = AdapterInfo {
        index,
        name: info.name,
        api,
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        is_software: info.device_type == wgpu::DeviceType::Cpu,
        memory: memory::of(&adapter),
        subgroup,
        driver_subgroups,
        features: REPORTED.into_iter().filter_map(has).collect(),
        is_best: false,
        unusable,
    };
    (adapter, described)
}

/// Lanes of the smallest and the largest subgroups that the driver may choose.
fn driver_subgroups(info: &wgpu::AdapterInfo) -> [u32; 2] {
    // What wgpu says of Metal holds for all of its devices; Apple's have 32.
    if info.backend == wgpu::Backend::Metal {
        [32; 2]
    } else {
        [info.subgroup_min_size, info.subgroup_max_size]
    }
}

/// Lanes that every subgroup has, and as many of a larger one as kernels know. Drivers make subgroups of lanes that follow
/// each other in the workgroup, so that a part of one begins where kernels think that it does; one that did not would not
/// compute what the CPU does when it is first met.
fn subgroup_lanes(info: &wgpu::AdapterInfo) -> u32 {
    driver_subgroups(info)[0].min(32)
}

/// What kernels need and an adapter does not offer.
fn lacking(features: Features, limits: &Limits) -> Option<String> {
    /// Buffers of the kernel that binds most of those that every device runs: attention over a quantised cache that writes
    /// codes.
    const N_BUFFERS: u32 = 11;
    const N_LANES: u32 = 256;
    const WORKGROUP_BYTES: u32 = 32 << 10;
    let missing = REQUIRED - features;
    if !missing.is_empty() {
        return Some(format!("it lacks {missing:?}"));
    }
    let needed = [
        ("buffers a kernel binds", N_BUFFERS, limits.max_storage_buffers_per_shader_stage),
        ("lanes of a workgroup", N_LANES, limits.max_compute_invocations_per_workgroup),
        ("lanes of a workgroup in a row", N_LANES, limits.max_compute_workgroup_size_x),
        ("bytes of workgroup memory", WORKGROUP_BYTES, limits.max_compute_workgroup_storage_size),
        ("bytes of immediates", IMMEDIATE_BYTES, limits.max_immediate_size),
    ];
    let short = needed.into_iter().find(|(_, needed, offered)| offered < needed);
    short.map(|(what, needed, offered)| format!("{offered} {what} are too few: {needed} are needed"))
}

/// Whether there are matrices, which whole subgroups have, of the size that kernels are compiled for.
fn has_matrices(adapter: &wgpu::Adapter) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let info = adapter.get_info();
    driver_subgroups(&info) == [subgroup_lanes(&info); 2]
        && adapter.features().contains(MATRICES)
        && adapter.features().contains(Features::SUBGROUP_BARRIER)
        && adapter.cooperative_matrix_properties().iter().any(|matrix| {
            let sizes = [matrix.m_size, matrix.n_size, matrix.k_size];
            sizes == [16; 3] && matrix.ab_type == F16 && matrix.cr_type == F32
        })
}

impl Gpu {
    /// A device of the chosen adapter.
    ///
    /// # Errors
    /// [`GpuError`] when there is none or it lacks what the kernels need.
    pub(crate) fn new(choice: AdapterChoice) -> Result<Gpu, GpuError> {
        let (adapter, info) = choose(enumerate(), choice)?;
        if let Some(reason) = info.unusable {
            return Err(GpuError::Unusable { name: info.name, reason });
        }
        let limits = Limits { max_immediate_size: IMMEDIATE_BYTES, ..adapter.limits() };
        let wanted = Features::TIMESTAMP_QUERY
            | Features::SUBGROUP_BARRIER
            | Features::MEMORY_DECORATION_COHERENT
            | Features::PIPELINE_CACHE;
        let has_matrices = has_matrices(&adapter);
        let (more, experimental_features) = if has_matrices {
            let more = MATRICES | (Features::PASSTHROUGH_SHADERS & adapter.features());
            // SAFETY: what is experimental are cooperative matrices, which are used after their results have been
            // compared with those of other kernels.
            (more, unsafe { wgpu::ExperimentalFeatures::enabled() })
        } else {
            (Features::empty(), wgpu::ExperimentalFeatures::disabled())
        };
        let request = adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("mlxr"),
            required_features: REQUIRED | more | (wanted & adapter.features()),
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        });
        let (device, queue) = pollster::block_on(request)
            .map_err(|e| GpuError::Device { name: info.name.clone(), reason: e.to_string() })?;
        let failure = Arc::<Failure>::default();
        // Errors of validation come in several lines.
        let note = |failure: &Failure, text: String| {
            failure.note(text.split_whitespace().collect::<Vec<_>>().join(" "));
        };
        let of_error = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| note(&of_error, error.to_string())));
        let of_loss = failure.clone();
        // Dropping the device ends here too; then nobody asks any more.
        device.set_device_lost_callback(move |reason, text| match reason {
            wgpu::DeviceLostReason::Destroyed => note(&of_loss, "it was destroyed".to_owned()),
            wgpu::DeviceLostReason::Unknown => note(&of_loss, text),
        });
        let writer = Arc::new(Writer::new(queue.clone()));
        let uploads = Uploads::new(writer.clone(), failure.clone());
        let (subgroup, is_unified) = (info.subgroup, unified::is_unified(&info));
        Ok(Gpu { device, queue, info, limits, has_matrices, subgroup, is_unified, failure, writer, uploads })
    }

    /// Whether a kernel that does what otherwise several do may bind all that they need.
    pub(crate) fn binds_many(&self) -> bool {
        /// The most that any of them has.
        const MOST: u32 = 15;
        self.limits.max_storage_buffers_per_shader_stage >= MOST
    }

    /// Whether a workgroup sees what another of the same kernel has written and then counted. WGSL promises nothing of the
    /// kind; in SPIR-V a storage barrier acquires and releases for the whole device, and such buffers are coherent. On
    /// Metal a barrier orders what one workgroup does and no more.
    pub(crate) fn is_coherent(&self) -> bool {
        self.info.api == "vulkan" && self.device.features().contains(Features::MEMORY_DECORATION_COHERENT)
    }

    /// Fails once anything on the device has failed.
    ///
    /// # Errors
    /// [`TensorError::DeviceLost`] with the first reason.
    pub(crate) fn check(&self) -> Result<(), TensorError> {
        match self.failure() {
            None => Ok(()),
            Some(reason) => Err(self.lost(reason)),
        }
    }

    /// What failed first.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.reason()
    }

    /// Remembers a failure, if it is the first.
    pub(crate) fn fail(&self, error: TensorError) {
        self.failure.note(match error {
            TensorError::DeviceLost { reason, .. } => reason,
            other => other.to_string(),
        });
    }

    pub(crate) fn lost(&self, reason: impl ToString) -> TensorError {
        TensorError::DeviceLost { backend: BACKEND, reason: reason.to_string() }
    }

    /// A storage buffer of `n_bytes`, contents undefined.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub(crate) fn buffer(&self, what: &str, n_bytes: u64) -> Result<wgpu::Buffer, TensorError> {
        let size = self.buffer_size(what, n_bytes)?;
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(what),
            size,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(buffer),
            Some(_) => Err(out_of_memory(what, n_bytes)),
        }
    }

    /// What a buffer for `n_bytes` takes.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`] where the device has no buffers of that size.
    pub(crate) fn buffer_size(&self, what: &str, n_bytes: u64) -> Result<u64, TensorError> {
        let size = n_bytes.max(1).checked_next_multiple_of(16);
        size.filter(|size| *size <= self.limits.max_buffer_size).ok_or_else(|| out_of_memory(what, n_bytes))
    }

    /// Writes to a buffer before what is submitted from now on; `at` is a multiple of four, and so is the end of `bytes`
    /// or it is that of the buffer.
    pub(crate) fn write(&self, buffer: &wgpu::Buffer, at: u64, bytes: &[u8]) {
        self.writer.write(buffer, at, bytes);
    }

    /// Hands commands to the device, behind the weights that are on their way to it.
    pub(crate) fn submit(&self, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        self.uploads.wait();
        self.queue.submit([commands])
    }
}

fn out_of_memory(what: &str, n_bytes: u64) -> TensorError {
    TensorError::OutOfMemory { backend: BACKEND, what: what.to_owned(), needed_bytes: n_bytes }
}

fn choose(
    mut all: Vec<(wgpu::Adapter, AdapterInfo)>,
    choice: AdapterChoice,
) -> Result<(wgpu::Adapter, AdapterInfo), GpuError> {
    let n_adapters = all.len();
    match choice {
        AdapterChoice::Index(index) if index < n_adapters => Ok(all.swap_remove(index)),
        AdapterChoice::Index(index) => Err(GpuError::NoSuchAdapter { index, n_adapters }),
        AdapterChoice::Best | AdapterChoice::BestOrSoftware => match best(&all, choice) {
            Some(index) => Ok(all.swap_remove(index)),
            None => match all.into_iter().map(|(_, info)| info).find(|info| info.unusable.is_none()) {
                Some(AdapterInfo { index, name, .. }) => Err(GpuError::OnlySoftware { index, name }),
                None => Err(GpuError::None),
            },
        },
    }
}

/// The place of the fastest kind of adapter that can be used.
fn best(all: &[(wgpu::Adapter, AdapterInfo)], choice: AdapterChoice) -> Option<usize> {
    let rank = |(adapter, info): &(wgpu::Adapter, AdapterInfo)| match adapter.get_info().device_type {
        _ if info.unusable.is_some() => 0,
        wgpu::DeviceType::DiscreteGpu => 4,
        wgpu::DeviceType::IntegratedGpu => 3,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Cpu if choice == AdapterChoice::BestOrSoftware => 1,
        _ => 0,
    };
    let ranked = all.iter().map(rank).enumerate();
    // The first of equals.
    ranked.filter(|(_, rank)| *rank > 0).rev().max_by_key(|(_, rank)| *rank).map(|(index, _)| index)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that meets an unexpected None or Err should stop there")]
mod tests {
    use std::process::Command;

    use mlxr_tensor::conformance;

    use super::*;
    use crate::GpuBackend;
    use crate::buffers::Buffers;

    #[test]
    fn an_adapter_that_offers_too_little_is_said_to_lack_it() {
        let offered =
            Limits { max_immediate_size: 128, max_storage_buffers_per_shader_stage: 16, ..Limits::default() };
        let offered = Limits { max_compute_workgroup_storage_size: 32 << 10, ..offered };
        assert_eq!(lacking(REQUIRED, &offered), None);
        let lacks = |features, limits: &Limits| lacking(features, limits).unwrap_or_default();
        assert!(lacks(Features::IMMEDIATES, &offered).contains("SUBGROUP"));
        let few = Limits { max_storage_buffers_per_shader_stage: 8, ..offered.clone() };
        assert_eq!(lacks(REQUIRED, &few), "8 buffers a kernel binds are too few: 11 are needed");
        let small = Limits { max_compute_workgroup_storage_size: 16 << 10, ..offered };
        assert_eq!(lacks(REQUIRED, &small), "16384 bytes of workgroup memory are too few: 32768 are needed");
    }

    #[test]
    fn kernels_for_fewer_lanes_than_subgroups_have_compute_the_same() {
        /// Lavapipe reads it when it is loaded: its subgroups are as wide as its vectors.
        const WIDTH: (&str, &str) = ("LP_NATIVE_VECTOR_WIDTH", "512");
        if std::env::var(WIDTH.0).is_ok_and(|width| width == WIDTH.1) {
            let mut gpu = Gpu::new(AdapterChoice::BestOrSoftware).unwrap();
            assert!(gpu.subgroup > 8 || !gpu.info.is_software, "subgroups of {} lanes", gpu.subgroup);
            gpu.subgroup = 8;
            return conformance::run(&GpuBackend::of(Arc::new(gpu), Buffers::default()).unwrap());
        }
        if Gpu::new(AdapterChoice::BestOrSoftware).is_err() {
            assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "no GPU");
            return;
        }
        let name = "device::tests::kernels_for_fewer_lanes_than_subgroups_have_compute_the_same";
        let mut prepared = Command::new(std::env::current_exe().unwrap());
        let out = prepared.args(["--exact", name]).env(WIDTH.0, WIDTH.1).output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success() && said.contains("1 passed"), "{said}");
    }
}
