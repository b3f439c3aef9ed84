//! The processor, the memory and the limits of this process.

use mlxr_gpu::AdapterInfo;
use mlxr_kernels::{Isa, Kernels, ThreadPool};
use mlxr_server::config::ServerConfig;
use mlxr_tensor::DeviceMemory;
use sysinfo::System;

use super::Finding;
use crate::device;
use crate::units::bytes;

/// Less than this and even small models have no room.
const SMALL_MEMORY: u64 = 1 << 30;

pub fn program() -> Finding {
    let version = env!("CARGO_PKG_VERSION");
    let message = format!("mlxr {version} on {} {}", std::env::consts::OS, std::env::consts::ARCH);
    if cfg!(debug_assertions) {
        let next = "build it with `cargo build --release`";
        return Finding::note("program", format!("{message}, built without optimisation"), next);
    }
    Finding::ok("program", message)
}

/// The processor and the kernels that the settings choose.
pub fn processor(config: Option<&ServerConfig>) -> Finding {
    let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = format!("{} cores, {n_threads} threads", ThreadPool::default_threads());
    let message = format!("{cores}; kernels: {}", Kernels::names());
    match config.map_or_else(|| Ok(Kernels::best()), device::kernels) {
        Ok(used) => describe_processor(Kernels::best().isa(), used.isa(), message),
        Err(error) => Finding::failed("processor", &error, "`mlxr config set engine.cpu_kernels auto`"),
    }
}

fn describe_processor(best: Isa, used: Isa, message: String) -> Finding {
    if used != best {
        let message = format!("{message}; engine.cpu_kernels has models use {}", used.name());
        return Finding::ok("processor", message);
    }
    let message = format!("{message}; models use {}", used.name());
    match best {
        Isa::Scalar if cfg!(target_arch = "x86_64") => Finding::note(
            "processor",
            format!("{message}; there is no AVX2, so models compute many times slower than they could"),
            "use a machine with AVX2; in a virtual machine, let it see the host's processor (QEMU: -cpu host)",
        ),
        Isa::Scalar => Finding::note(
            "processor",
            format!("{message}; there are no kernels for this processor, only plain ones"),
            "use an x86-64 machine with AVX2 or an AArch64 machine with the dot product extension",
        ),
        _ => Finding::ok("processor", message),
    }
}

/// GPUs, by the numbers that `--device` knows them by.
pub fn adapters() -> Vec<Finding> {
    let found = mlxr_gpu::adapters();
    if found.is_empty() {
        return vec![Finding::ok("gpu", "none that Vulkan or Metal can use: models run on the CPU")];
    }
    found.iter().map(describe_adapter).collect()
}

fn describe_adapter(adapter: &AdapterInfo) -> Finding {
    let AdapterInfo { index, name, api, driver, features, .. } = adapter;
    let message = format!("{index}: {name} ({api}, driver {driver})");
    if let Some(reason) = &adapter.unusable {
        let next = "use another or the CPU (--device); a newer driver may offer what is missing";
        return Finding::note("gpu", format!("{message} cannot be used: {reason}"), next);
    }
    let features: String = features.iter().map(|feature| format!(", {feature}")).collect();
    let (memory, subgroups) = (describe_adapter_memory(adapter.memory), adapter.describe_subgroups());
    let message = format!("{message}: {memory}, subgroups of {subgroups}{features}");
    Finding::ok(
        "gpu",
        match (adapter.is_software, adapter.is_best) {
            (true, _) => format!("{message}; it computes on the CPU itself: --device {index} chooses it"),
            (false, true) => format!("{message}; models run on it unless --device says otherwise"),
            (false, false) => format!("{message}; --device {index} chooses it"),
        },
    )
}

/// The memory of an adapter in words.
pub fn describe_adapter_memory(memory: Option<DeviceMemory>) -> String {
    let Some(DeviceMemory { total_bytes, usable_bytes, is_shared }) = memory else {
        return "memory of a size its driver does not tell".to_owned();
    };
    let whose = if is_shared { "shared with the processor" } else { "of its own" };
    format!("{} of memory {whose}, {} of it free to use", bytes(total_bytes), bytes(usable_bytes))
}

pub fn memory() -> Finding {
    let mut system = System::new();
    system.refresh_memory();
    let container = system.cgroup_limits().map(|limits| (limits.total_memory, limits.free_memory));
    describe_memory(system.total_memory(), system.available_memory(), container)
}

/// `container` is its limit and what is left of it.
fn describe_memory(total: u64, available: u64, container: Option<(u64, u64)>) -> Finding {
    let container = container.filter(|(limit, _)| (1..total).contains(limit));
    let (mut message, available) = match container {
        Some((limit, free)) => (
            format!("{} of the {} this container may use are free", bytes(free), bytes(limit)),
            free.min(available),
        ),
        None => (format!("{} of {} are available", bytes(available), bytes(total)), available),
    };
    if available < SMALL_MEMORY {
        let next = "end other programs, or load small models with a short context (mlxr serve --ctx 1024)";
        return Finding::note("memory", message, next);
    }
    message += "; `mlxr show MODEL` says what a model takes";
    Finding::ok("memory", message)
}

/// Whether as many connections as the server takes can be open.
#[cfg(unix)]
pub fn open_files(max_connections: usize) -> Finding {
    describe_open_files(crate::open_files::hard_limit(), max_connections)
}

#[cfg(unix)]
fn describe_open_files(hard_limit: Option<u64>, max_connections: usize) -> Finding {
    let needed = crate::open_files::needed(max_connections);
    match hard_limit {
        Some(limit) if limit < needed => Finding::note(
            "open files",
            format!(
                "a process may have {limit}; a server that is to take {max_connections} connections needs more"
            ),
            format!(
                "raise the hard limit (LimitNOFILE={needed} in a systemd unit), or take fewer with --max-connections"
            ),
        ),
        _ => Finding::ok("open files", "a process may have as many as the server takes connections"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_processor_without_vectors_is_noted() {
        let describe = |best, used| describe_processor(best, used, String::new());
        assert_eq!(describe(Isa::Avx2, Isa::Avx2).level, Level::Ok);
        let finding = describe(Isa::Scalar, Isa::Scalar);
        assert_eq!((finding.level, finding.next.is_some()), (Level::Note, true));
        let chosen = describe(Isa::Avx2, Isa::Scalar);
        assert_eq!(chosen, Finding::ok("processor", "; engine.cpu_kernels has models use scalar"));
    }

    #[test]
    fn a_gpu_is_told_by_its_number_or_why_it_cannot_be_used() {
        let card = AdapterInfo {
            index: 1,
            name: "Card".to_owned(),
            api: "vulkan",
            driver: "1.2".to_owned(),
            is_software: false,
            memory: Some(DeviceMemory { total_bytes: 8 << 30, usable_bytes: 7 << 30, is_shared: false }),
            subgroup: 32,
            driver_subgroups: [32, 64],
            features: vec!["f16"],
            is_best: true,
            unusable: None,
        };
        let finding = describe_adapter(&card);
        let words = "1: Card (vulkan, driver 1.2): 8.0 GiB of memory of its own, 7.0 GiB of it free to use, \
                     subgroups of 32 of the driver's 32 to 64, f16; models run on it unless --device says otherwise";
        assert_eq!(finding, Finding::ok("gpu", words));
        let finding = describe_adapter(&AdapterInfo { is_software: true, memory: None, ..card.clone() });
        assert_eq!((finding.level, finding.message.contains("does not tell")), (Level::Ok, true));
        assert!(finding.message.ends_with("on the CPU itself: --device 1 chooses it"), "{}", finding.message);
        let finding =
            describe_adapter(&AdapterInfo { unusable: Some("it lacks SUBGROUP".to_owned()), ..card });
        assert_eq!((finding.level, finding.message.ends_with("it lacks SUBGROUP")), (Level::Note, true));
    }

    #[test]
    fn the_memory_of_a_container_counts() {
        const GIB: u64 = 1 << 30;
        let check = |container, level, text: &str| {
            let finding = describe_memory(64 * GIB, 32 * GIB, container);
            assert_eq!(finding.level, level, "{}", finding.message);
            assert!(finding.message.contains(text), "{}", finding.message);
        };
        check(None, Level::Ok, "32.0 GiB of 64.0 GiB are available");
        check(Some((8 * GIB, 2 * GIB)), Level::Ok, "2.0 GiB of the 8.0 GiB this container");
        check(Some((8 * GIB, GIB / 2)), Level::Note, "512 MiB of the 8.0 GiB");
        // A limit beyond the machine is none.
        check(Some((u64::MAX, u64::MAX)), Level::Ok, "of 64.0 GiB are available");
    }

    #[cfg(unix)]
    #[test]
    fn the_hard_limit_of_open_files_is_compared() {
        assert_eq!(describe_open_files(Some(8192), 4096).level, Level::Ok);
        assert_eq!(describe_open_files(None, 4096).level, Level::Ok);
        let finding = describe_open_files(Some(1024), 4096);
        assert_eq!(finding.level, Level::Note);
        assert!(finding.next.unwrap().contains("LimitNOFILE=4160"));
    }
}
