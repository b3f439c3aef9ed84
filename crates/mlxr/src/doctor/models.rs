//! Whether models can be read, have room, and come out right.

use std::path::Path;
use std::sync::Arc;

use mlxr_engine::EngineOptions;
use mlxr_kernels::{CpuBackend, CpuOptions, Isa, Kernels};
use mlxr_server::config::Loaded;
use mlxr_server::{Memory, MemoryPlan};
use mlxr_tensor::{Backend, Batch, DType};
use mlxr_text::{EncodeOptions, Tokenizer};

use super::Finding;
use crate::loaded::{self, Sequences};
use crate::units::bytes;
use crate::{bundled, model_source};

/// What the bundled model reads.
const PROMPT: &str = "Once upon a";

/// Logits of two instruction sets may differ by so much: they add in another order.
const TOLERANCE: f32 = 0.05;

/// Computes with the fastest kernels and with the plain ones, and compares.
pub fn arithmetic() -> Finding {
    let best = Kernels::best().isa();
    match compare(best) {
        Ok(difference) if difference <= TOLERANCE => {
            Finding::ok("arithmetic", format!("{} kernels compute what plain ones do", best.name()))
        }
        Ok(difference) => Finding::problem(
            "arithmetic",
            format!("{} kernels and plain ones differ by {difference} in a logit", best.name()),
            "report it with the output of `mlxr doctor --json`; the machine's memory may also be faulty",
        ),
        Err(error) => {
            Finding::failed("arithmetic", &error, "build or install mlxr anew: its own model is damaged")
        }
    }
}

/// The largest difference between the logits behind [`PROMPT`].
fn compare(best: Isa) -> anyhow::Result<f32> {
    let (fast, plain) = (logits(best)?, logits(Isa::Scalar)?);
    anyhow::ensure!(fast.iter().all(|logit| logit.is_finite()), "logits are not numbers");
    Ok(fast.iter().zip(&plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max))
}

fn logits(isa: Isa) -> anyhow::Result<Vec<f32>> {
    let ckpt = bundled::open()?;
    let prompt = Tokenizer::from_source(&ckpt.tokenizer)?.encode(PROMPT, EncodeOptions::default())?;
    let backend: Arc<dyn Backend> =
        Arc::new(CpuBackend::new(CpuOptions { isa: Some(isa), ..CpuOptions::default() })?);
    let n_ctx = u32::try_from(prompt.len())?;
    let model = loaded::model(&ckpt, backend.clone(), Some(n_ctx))?;
    let mut sequences = Sequences::new(model, backend, DType::F16, 1, n_ctx)?;
    let mut batch = Batch::default();
    sequences.append(&mut batch, 0, &prompt);
    sequences.forward(&batch)
}

/// Whether a model can be read, and has room.
pub fn model(path: &Path) -> Finding {
    let ckpt = match model_source::open(path) {
        Ok(ckpt) => ckpt,
        Err(error) => return Finding::failed("model", &error, "fetch it again"),
    };
    let memory = Memory::detect();
    match MemoryPlan::new(&ckpt, &EngineOptions::default(), memory.limit_bytes) {
        Ok(plan) => describe_plan(path, plan.total_bytes(), memory.limit_bytes),
        Err(error) => Finding::failed("model", &error.into(), "`mlxr show` says what it is"),
    }
}

/// The models a server would find by itself, and those it is told to serve.
pub fn catalogue(loaded: &Loaded) -> Vec<Finding> {
    let mut findings: Vec<Finding> = loaded.config.files.iter().map(|file| model(&file.path)).collect();
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

fn describe_plan(path: &Path, total: u64, limit: u64) -> Finding {
    let shown = path.display();
    if total > limit {
        return Finding::problem(
            "model",
            format!("{shown} takes {}, and all models together may take {}", bytes(total), bytes(limit)),
            "quantise it (`mlxr quantize`), or give it less context (`mlxr serve --ctx`)",
        );
    }
    Finding::ok("model", format!("{shown} can be read and takes {}", bytes(total)))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn this_machine_computes_as_it_should() {
        let finding = arithmetic();
        assert_eq!(finding.level, Level::Ok, "{}", finding.message);
    }

    #[test]
    fn a_model_without_room_is_a_problem() {
        let path = Path::new("x.gguf");
        assert_eq!(describe_plan(path, 1 << 30, 1 << 31).level, Level::Ok);
        assert_eq!(describe_plan(path, 1 << 32, 1 << 31).level, Level::Problem);
    }
}
