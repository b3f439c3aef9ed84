//! A GPU that this program meets for the first time computes what the CPU computes too, and is used only if they agree:
//! a driver that compiles kernels to something else would otherwise answer with nonsense.
//!
//! The bundled model's logits are compared, of prompts and of decoded tokens. `mlxr doctor --gpu-selftest` compares every
//! kernel.
//!
//! Bound: the file that remembers what agreed has one line for each adapter, driver and program, [`MAX_KNOWN`] at most.

use std::path::Path;
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use std::{fs, io, thread};

use anyhow::{Context, bail, ensure};
use mlxr_checkpoint::Checkpoint;
use mlxr_gpu::AdapterInfo;
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::Placement;
use mlxr_tensor::{Backend, Batch, DType, argmax};

use crate::bundled;
use crate::loaded::{self, BLOCK_TOKENS};

/// How far logits may be from the CPU's, as a part of these: what differs in rounding is a hundredth and less, what is
/// computed wrongly about as large as the logits themselves.
const MAX_DEVIATION: f64 = 0.1;
/// Rows of two prompts: products of many rows, and a sequence whose rows end within a block.
const PROMPTS: [usize; 2] = [70, 3];
const N_DECODED: usize = 3;
const MAX_KNOWN: usize = 100;

/// Who computes: the check is made once for each.
pub struct Pairing {
    pub adapter: AdapterInfo,
    pub cpu: CpuOptions,
    /// Products of many rows round to half precision.
    pub is_half: bool,
}

impl Pairing {
    /// One line of the file. A program that was built anew is another one.
    fn line(&self) -> String {
        let AdapterInfo { name, api, driver, .. } = &self.adapter;
        let built = std::env::current_exe().and_then(fs::metadata).and_then(|file| file.modified()).ok();
        let built =
            built.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |time| time.as_secs());
        let products = if self.is_half { "half products" } else { "products" };
        format!("{name} ({api}, {driver}), {products}, mlxr {} of {built}", env!("CARGO_PKG_VERSION"))
    }
}

/// Compares the GPU with the CPU, unless the file at `record` says that they agreed before. A driver that computes on the
/// CPU is taken at its word: nobody gets one who does not name it.
///
/// # Errors
/// They do not agree, or the GPU fails.
pub fn check(gpu: &Arc<dyn Backend>, pairing: &Pairing, record: Option<&Path>) -> anyhow::Result<()> {
    if pairing.adapter.is_software {
        return Ok(());
    }
    once(&pairing.line(), record, || {
        let name = &pairing.adapter.name;
        compare(gpu, pairing.cpu).with_context(|| format!("{name} does not compute what the CPU does"))?;
        tracing::debug!(adapter = name, "the GPU computes what the CPU does");
        Ok(())
    })
}

/// Does what the file at `record` has no line of, and writes the line once it is done.
fn once(line: &str, record: Option<&Path>, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut known = record.map(read).unwrap_or_default();
    if known.iter().any(|known| known == line) {
        return Ok(());
    }
    run()?;
    known.push(line.to_owned());
    if let Some(path) = record
        && let lines = &known[known.len().saturating_sub(MAX_KNOWN)..]
        && let Err(error) = mlxr_gpu::keep(path, (lines.join("\n") + "\n").as_bytes())
    {
        tracing::warn!(path = %path.display(), %error, "that this GPU was checked is not kept");
    }
    Ok(())
}

/// Both compute the same steps, side by side.
fn compare(gpu: &Arc<dyn Backend>, cpu: CpuOptions) -> anyhow::Result<()> {
    let ckpt = bundled::open()?;
    let (ours, theirs) = thread::scope(|scope| {
        let theirs = scope.spawn(|| -> anyhow::Result<_> {
            let cpu: Arc<dyn Backend> = Arc::new(CpuBackend::new(cpu)?);
            logits(&ckpt, &cpu)
        });
        (logits(&ckpt, gpu), theirs.join())
    });
    let theirs = theirs.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    agree(&ours?, &theirs)
}

/// The logits of every step, and what the device takes for the largest of each row.
fn logits(ckpt: &Checkpoint, backend: &Arc<dyn Backend>) -> anyhow::Result<Vec<Row>> {
    let n_ctx = PROMPTS[0] + N_DECODED;
    let model = loaded::model(ckpt, &Placement::whole(backend.clone()), Some(n_ctx as u32))?;
    let vocab = model.config().vocab;
    let (n_blocks, n_seqs) = (n_ctx.div_ceil(BLOCK_TOKENS), PROMPTS.len());
    let mut kv = model.kv_cache(&model.kv_spec(n_blocks * n_seqs, BLOCK_TOKENS, DType::F16))?;
    // Blocks of a sequence neither lie side by side nor in order.
    let table = |seq: usize| (0..n_blocks).rev().map(|i| (i * n_seqs + seq) as u32).collect::<Vec<_>>();
    let tables = [table(0), table(1)];
    let token = |seq: usize, position: usize| ((seq * 101 + position * 7919) % vocab) as u32;
    let mut rows = Vec::new();
    for step in 0..=N_DECODED {
        let mut batch = Batch::new();
        for (seq, n_prompt) in PROMPTS.into_iter().enumerate() {
            let positions = if step == 0 { 0..n_prompt } else { n_prompt + step - 1..n_prompt + step };
            let tokens: Vec<u32> = positions.clone().map(|position| token(seq, position)).collect();
            batch.push(&tokens, positions.start as u32, &tables[seq], BLOCK_TOKENS);
            batch.want_last();
        }
        let logits = model.forward(&batch, &mut kv)?;
        let (values, largest) = (backend.read(&logits)?, backend.argmax(&logits)?);
        ensure!(largest.len() == n_seqs, "it chose {} tokens for {n_seqs} rows", largest.len());
        let of_rows = values.chunks(vocab).zip(largest);
        rows.extend(of_rows.map(|(values, largest)| Row { values: values.to_vec(), largest }));
    }
    Ok(rows)
}

struct Row {
    values: Vec<f32>,
    largest: Option<u32>,
}

fn agree(ours: &[Row], theirs: &[Row]) -> anyhow::Result<()> {
    ensure!(ours.len() == theirs.len(), "it gave {} rows of logits in place of {}", ours.len(), theirs.len());
    for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let pairs = || ours.values.iter().zip(&theirs.values).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        let deviation =
            (square(&mut pairs().map(|(a, b)| a - b)) / square(&mut pairs().map(|(_, b)| b))).sqrt();
        if deviation.is_nan() || deviation > MAX_DEVIATION {
            bail!("row {i} of the bundled model's logits is off by {:.0} % of its size", 100.0 * deviation);
        }
        let largest = argmax(&ours.values);
        ensure!(
            ours.largest == largest,
            "it takes {:?} for the largest of logits whose largest is {largest:?}",
            ours.largest
        );
    }
    Ok(())
}

/// Lines of the file; none where it cannot be read.
fn read(path: &Path) -> Vec<String> {
    match fs::read_to_string(path) {
        Ok(text) => text.lines().map(str::to_owned).collect(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "which GPUs were checked cannot be read");
            }
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use mlxr_gpu::{AdapterChoice, GpuBackend};

    use super::*;

    fn row(values: &[f32]) -> Row {
        Row { values: values.to_vec(), largest: argmax(values) }
    }

    #[test]
    fn rounding_agrees_and_nonsense_does_not() {
        let cpu = [row(&[1.0, -2.0, 4.0]), row(&[0.5, 3.0, 1.0])];
        let first = |values: &[f32]| {
            agree(&[row(values), row(&[0.5, 3.0, 1.0])], &cpu).map_err(|error| error.to_string())
        };
        assert_eq!(first(&[1.01, -1.98, 4.05]), Ok(()));
        let off = |percent: &str| {
            Err(format!("row 0 of the bundled model's logits is off by {percent} % of its size"))
        };
        assert_eq!(first(&[0.0, 0.0, 0.0]), off("100"));
        assert_eq!(first(&[f32::NAN, -2.0, 4.0]), off("NaN"));
        assert_eq!(first(&[4.0, 1.0, -2.0]), off("160"));
        let wrong = Row { values: vec![0.5, 3.0, 1.0], largest: Some(2) };
        let error = agree(&[row(&[1.0, -2.0, 4.0]), wrong], &cpu).unwrap_err().to_string();
        assert_eq!(error, "it takes Some(2) for the largest of logits whose largest is Some(1)");
        assert!(agree(&[], &cpu).is_err());
    }

    #[test]
    fn what_agreed_is_not_compared_again() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("mlxr/gpu-checked");
        let fails = || Err(anyhow!("nonsense"));
        assert!(once("card 1", Some(&record), fails).is_err());
        assert!(once("card 1", Some(&record), fails).is_err(), "a failure is not remembered");
        once("card 1", Some(&record), || Ok(())).unwrap();
        once("card 1", Some(&record), fails).unwrap();
        assert!(once("card 2", Some(&record), fails).is_err());
        assert!(once("card 1", None, fails).is_err());
        for i in 0..MAX_KNOWN {
            once(&format!("other {i}"), Some(&record), || Ok(())).unwrap();
        }
        assert_eq!(read(&record).len(), MAX_KNOWN);
        assert!(once("card 1", Some(&record), fails).is_err(), "forgotten, as the oldest");
    }

    #[test]
    fn a_gpu_computes_what_the_cpu_does() {
        match GpuBackend::new(AdapterChoice::BestOrSoftware) {
            Ok(gpu) => compare(&(Arc::new(gpu) as Arc<dyn Backend>), CpuOptions::default()).unwrap(),
            Err(error) => assert!(std::env::var_os("MLXR_REQUIRE_GPU").is_none(), "{error}"),
        }
    }
}
