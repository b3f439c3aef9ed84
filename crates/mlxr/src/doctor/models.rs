//! Whether models can be read, have room, and come out right.

use std::path::Path;
use std::sync::Arc;

use mlxr_engine::EngineOptions;
use mlxr_kernels::{CpuBackend, CpuOptions, Isa, Kernels, Products};
use mlxr_models::Placement;
use mlxr_server::config::{self, Bytes, GpuLayers, Loaded, ServerConfig};
use mlxr_server::{Memory, MemoryPlan, Role, Room, Share, Split, describe_devices};
use mlxr_tensor::{Backend, Batch, DType};
use mlxr_text::{EncodeOptions, Tokenizer};

use super::Finding;
use crate::device::{Devices, Wanted};
use crate::loaded::{self, Sequences};
use crate::units::bytes;
use crate::{bundled, model_source};

/// What the bundled model reads.
const PROMPT: &str = "Once upon a";

/// Logits of two instruction sets may differ by so much: they add in another order.
const TOLERANCE: f32 = 0.05;

/// Computes with all kernels of this CPU, and compares with the plain ones.
pub fn arithmetic() -> Finding {
    match faulty() {
        Ok(faulty) => describe_arithmetic(&faulty),
        Err(error) => {
            Finding::failed("arithmetic", &error, "build or install mlxr anew: its own model is damaged")
        }
    }
}

fn describe_arithmetic(faulty: &[(Isa, f32)]) -> Finding {
    if faulty.is_empty() {
        return Finding::ok("arithmetic", format!("all kernels compute the same: {}", Kernels::names()));
    }
    let each = faulty.iter().map(|(isa, difference)| format!("{} by {difference}", isa.name()));
    Finding::problem(
        "arithmetic",
        format!("kernels differ from plain ones in a logit: {}", each.collect::<Vec<_>>().join(", ")),
        "choose others with engine.cpu_kernels (--cpu-kernels), and report it with the output of `mlxr doctor --json`; \
         the machine's memory may also be faulty",
    )
}

/// The kernels whose logits behind [`PROMPT`] are too far from those of the plain ones, and how far at most.
fn faulty() -> anyhow::Result<Vec<(Isa, f32)>> {
    let plain = logits(Isa::Scalar)?;
    let mut faulty = Vec::new();
    for isa in Kernels::available().iter().map(Kernels::isa) {
        let differences = logits(isa)?.into_iter().zip(&plain).map(|(a, b)| (a - b).abs());
        // What is no number is as far as can be.
        let most = differences.fold(0.0, |most: f32, d| if d.is_nan() { f32::INFINITY } else { most.max(d) });
        if most > TOLERANCE {
            faulty.push((isa, most));
        }
    }
    Ok(faulty)
}

fn logits(isa: Isa) -> anyhow::Result<Vec<f32>> {
    let ckpt = bundled::open()?;
    let prompt = Tokenizer::from_source(&ckpt.tokenizer)?.encode(PROMPT, EncodeOptions::default())?;
    let backend: Arc<dyn Backend> =
        Arc::new(CpuBackend::new(CpuOptions { isa: Some(isa), ..CpuOptions::default() })?);
    let n_ctx = u32::try_from(prompt.len())?;
    let model = loaded::model(&ckpt, &Placement::whole(backend), Some(n_ctx))?;
    let mut sequences = Sequences::new(model, DType::F16, 1, n_ctx)?;
    let mut batch = Batch::default();
    sequences.append(&mut batch, 0, &prompt);
    sequences.forward(&batch)
}

/// Looks at models as the device would take them that they are for.
pub struct Planner {
    wanted: Wanted,
    options: EngineOptions,
    memory: Option<Memory>,
}

impl Planner {
    /// For a device and its layers, or those of the settings.
    pub fn new(
        device: Option<config::Device>,
        gpu_layers: Option<GpuLayers>,
        config: Option<&ServerConfig>,
    ) -> Planner {
        let device = device.or(config.map(|config| config.device)).unwrap_or_default();
        let gpu_layers = gpu_layers.or(config.map(|config| config.gpu_layers)).unwrap_or_default();
        // A name that makes no sense is a finding about the processor.
        let isa = config.and_then(|config| crate::device::kernels(config).ok()).map(|kernels| kernels.isa());
        let cpu = CpuOptions { isa, ..CpuOptions::default() };
        let defaults = EngineOptions::default();
        let options = config.map_or(defaults, |config| EngineOptions {
            n_ctx: config.n_ctx.map(|n| n as usize),
            kv_dtype: config.kv_type,
            ..defaults
        });
        Planner {
            wanted: Wanted::new(device, cpu, Products::Alike).with_gpu_layers(gpu_layers),
            options,
            memory: config.and_then(|config| config.memory).map(|Bytes(limit_bytes)| Memory { limit_bytes }),
        }
    }

    /// Whether models can be read, and have room. The device is opened if there is one to look at.
    pub fn models<'a>(&self, paths: impl Iterator<Item = &'a Path>) -> Vec<Finding> {
        let mut paths = paths.peekable();
        if paths.peek().is_none() {
            return Vec::new();
        }
        match self.wanted.open() {
            Ok(devices) => {
                let devices = devices.limited_to(self.memory);
                let names = devices.first.backend().map(|backend| describe_devices([(&backend, 0)]));
                let device = names.unwrap_or_else(|error| error.to_string());
                paths.map(|path| self.model(path, &devices, &device)).collect()
            }
            Err(error) => vec![Finding::failed("device", &error, "name another with --device")],
        }
    }

    fn model(&self, path: &Path, devices: &Devices, device: &str) -> Finding {
        let ckpt = match model_source::open(path) {
            Ok(ckpt) => ckpt,
            Err(error) => return Finding::failed("model", &error, "fetch it again"),
        };
        let behind = devices.fallback.as_ref().filter(|fallback| fallback.role == Role::Models);
        match devices.plan(&ckpt, &self.options) {
            Ok((plan, room)) => {
                describe_plan(path, &plan, &room, device, behind.map(|f| f.memory.limit_bytes))
            }
            Err(error) => Finding::failed("model", &error.into(), "`mlxr show` says what it is"),
        }
    }
}

/// The models a server would find by itself.
pub fn catalogue(loaded: &Loaded) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(catalogue) = loaded.catalogue() else { return findings };
    let folder = catalogue.folder().display().to_string();
    let found = match catalogue.scan() {
        Ok(found) => found,
        Err(error) => {
            findings.push(Finding::failed("catalogue", &error.into(), "see who owns the folder"));
            return findings;
        }
    };
    let mistakes = found.iter().filter_map(|found| found.entry.as_ref().err());
    findings.extend(mistakes.map(|mistake| {
        Finding::problem("catalogue", mistake.to_string(), "mend the file; the server runs without the model")
    }));
    let n_good = found.iter().filter(|found| found.entry.is_ok()).count();
    findings.push(Finding::ok("catalogue", format!("{n_good} models in {folder}")));
    findings
}

/// `behind` is the memory of the CPU, where it takes models that the device cannot.
fn describe_plan(path: &Path, plan: &MemoryPlan, room: &Room, device: &str, behind: Option<u64>) -> Finding {
    let (shown, total) = (path.display(), bytes(plan.total_bytes()));
    if !room.holds(plan) {
        let limit = bytes(room.device_bytes);
        if behind.is_some_and(|behind| plan.total_bytes() <= behind) {
            return Finding::note(
                "model",
                format!("{shown} takes {total} and runs on the CPU: models on {device} may take {limit}"),
                "quantise it (`mlxr quantize`), or give it less context (`mlxr serve --ctx`), for the GPU to take it",
            );
        }
        return Finding::problem(
            "model",
            format!("{shown} takes {total}, and all models together may take {limit} on {device}"),
            "quantise it (`mlxr quantize`), or give it less context (`mlxr serve --ctx`)",
        );
    }
    let message = format!("{shown} can be read and takes {total} on {device}");
    let Some(Split { cpu, gpu }) = plan.split else { return Finding::ok("model", message) };
    let share = |share: &Share| format!("{} layers, {}", share.n_layers, bytes(share.total_bytes()));
    let message = format!("{message} ({}) and on the CPU ({})", share(&gpu), share(&cpu));
    match room.cpu.as_ref().map(|cpu| cpu.gpu_layers) {
        Some(GpuLayers::Auto) => Finding::note(
            "model",
            format!("{message}: the GPU has no room for more"),
            "quantise it (`mlxr quantize`), or give it less context (`mlxr serve --ctx`), and more of it fits",
        ),
        _ => Finding::ok("model", message),
    }
}

#[cfg(test)]
mod tests {
    use mlxr_server::CpuRoom;

    use super::super::Level;
    use super::*;

    #[test]
    fn this_machine_computes_as_it_should() {
        let finding = arithmetic();
        assert_eq!(finding.level, Level::Ok, "{}", finding.message);
    }

    #[test]
    fn a_model_without_room_is_a_problem_and_one_on_two_devices_says_so() {
        let ckpt = bundled::open().unwrap();
        let options = EngineOptions::default();
        let look = |device_bytes: u64, cpu: Option<CpuRoom>| {
            let room = Room { cpu, ..Room::only(device_bytes) };
            let plan = MemoryPlan::within(&ckpt, &options, &room).unwrap();
            describe_plan(Path::new("x.gguf"), &plan, &room, "card", None)
        };
        let whole = look(1 << 40, None);
        assert_eq!(whole.level, Level::Ok);
        assert!(
            whole.message.contains("x.gguf can be read and takes") && whole.message.ends_with(" on card")
        );
        assert_eq!(look(1 << 20, None).level, Level::Problem);
        let cpu = |gpu_layers| Some(CpuRoom { bytes: 1 << 40, device: None, is_shared: false, gpu_layers });
        let asked = look(1 << 40, cpu(GpuLayers::Count(3)));
        assert_eq!(asked.level, Level::Ok);
        assert!(asked.message.contains(" on card (3 layers, ") && asked.message.contains(" on the CPU ("));
        let plan = MemoryPlan::new(&ckpt, &options, &Room::only(0)).unwrap();
        let short = look(plan.total_bytes() - 1, cpu(GpuLayers::Auto));
        assert_eq!(short.level, Level::Note, "{}", short.message);
        assert!(short.message.ends_with("the GPU has no room for more"), "{}", short.message);
        // A GPU without room for any layer, and the CPU behind it.
        let plan = MemoryPlan::new(&ckpt, &options, &Room::only(0)).unwrap();
        let with_cpu =
            |behind| describe_plan(Path::new("x"), &plan, &Room::only(1 << 20), "card", Some(behind));
        let on_cpu = with_cpu(plan.total_bytes());
        assert_eq!(on_cpu.level, Level::Note);
        assert!(
            on_cpu.message.contains(" and runs on the CPU: models on card may take 1.0 MiB"),
            "{}",
            on_cpu.message
        );
        assert_eq!(with_cpu(plan.total_bytes() - 1).level, Level::Problem);
    }
}
