//! Whole models: the GPU chooses the tokens that the CPU chooses.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mlxr_checkpoint::Checkpoint;
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::{Model, ModelKv, ModelOptions, Placement};
use mlxr_tensor::{Batch, DType};

use crate::backend;

const N_PROMPT: usize = 21;
const N_GREEDY: usize = 24;
const BLOCK_TOKENS: usize = 16;
/// CPU and GPU round activations to eight bits in the same way. Sums in another order differ in the last bit, and rarely
/// that moves a value to the next code; what follows is then rounded anew. The difference, relative to the largest
/// logit, is that of two roundings.
const TOLERANCE: f32 = 1e-1;
/// Best logits closer than this, relative to the largest, may change places after that: in the small quantised
/// checkpoints a logit is then off by 0.01 to 0.05.
const TIE: f32 = 3e-2;

/// A sequence of one model.
struct Session {
    model: Model,
    kv: ModelKv,
    table: Vec<u32>,
    n_stored: u32,
}

impl Session {
    fn open(path: &Path, placement: &Placement) -> Session {
        let ckpt = Checkpoint::open(path).unwrap();
        let model = Model::load_at(&ckpt, placement, &ModelOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let n_blocks = (N_PROMPT + N_GREEDY).div_ceil(BLOCK_TOKENS);
        let kv = model.kv_cache(&model.kv_spec(n_blocks, BLOCK_TOKENS, DType::F16)).unwrap();
        Session { model, kv, table: (0..n_blocks as u32).rev().collect(), n_stored: 0 }
    }

    /// The logits after `tokens`.
    fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        let mut batch = Batch::new();
        batch.push(tokens, self.n_stored, &self.table, BLOCK_TOKENS);
        batch.want_last();
        self.n_stored += tokens.len() as u32;
        let logits = self.model.forward(&batch, &mut self.kv).unwrap();
        self.model.backend().read(&logits).unwrap()
    }
}

/// The largest logit's id, and how far ahead it is of the second.
fn best(logits: &[f32]) -> (u32, f32) {
    let id = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a))).unwrap();
    let others = logits.iter().enumerate().filter(|(i, _)| *i != id).map(|(_, v)| *v);
    (id as u32, logits[id] - others.fold(f32::NEG_INFINITY, f32::max))
}

/// Runs both until the end or a tie. Returns how many tokens they chose alike, or where they differ.
fn compare(path: &Path, ours: &Placement, theirs: &Placement) -> Result<usize, String> {
    let (mut ours, mut theirs) = (Session::open(path, ours), Session::open(path, theirs));
    let vocab = ours.model.config().vocab;
    let prompt: Vec<u32> = (0..N_PROMPT).map(|i| ((i * 37 + 5) % vocab) as u32).collect();
    let (mut row, mut expected) = (ours.feed(&prompt), theirs.feed(&prompt));
    for step in 0..N_GREEDY {
        let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
        let error = row.iter().zip(&expected).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        let ((id, _), (wanted, margin)) = (best(&row), best(&expected));
        let margin = margin / largest;
        let is_wrong = id != wanted && margin > TIE;
        if is_wrong || error > TOLERANCE {
            let path = path.display();
            return Err(format!(
                "{path}, step {step}: {id} for {wanted}, off by {error:e}, ahead by {margin:e}"
            ));
        }
        if id != wanted {
            return Ok(step);
        }
        (row, expected) = (ours.feed(&[id]), theirs.feed(&[id]));
    }
    Ok(N_GREEDY)
}

/// Checkpoints under a folder.
fn checkpoints(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    found.sort();
    found
}

/// A model whole on a GPU and whole on the CPU.
fn placements() -> Option<[Placement; 2]> {
    let gpu = backend()?;
    Some([Placement::whole(gpu), Placement::whole(cpu_backend())])
}

fn cpu_backend() -> Arc<CpuBackend> {
    let options = CpuOptions { n_threads: Some(2), isa: None };
    Arc::new(CpuBackend::new(options).unwrap())
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_family_and_the_bundled_models_choose_what_the_cpu_chooses() {
    let Some([gpu, cpu]) = placements() else { return };
    let root = root();
    let mut found = Vec::new();
    for family in checkpoints(&root.join("golden/tiny")) {
        for checkpoint in checkpoints(&family) {
            if checkpoint.ends_with("split") {
                continue;
            }
            found.push(compare(&checkpoint, &gpu, &cpu));
        }
    }
    for bundled in checkpoints(&root.join("models")) {
        found.push(compare(&bundled, &gpu, &cpu));
    }
    assert!(found.len() > 40, "{} checkpoints", found.len());
    let n_same = found.iter().filter(|result| **result == Ok(N_GREEDY)).count();
    let differ: Vec<String> = found.iter().filter_map(|result| result.clone().err()).collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(n_same * 5 >= found.len() * 4, "only {n_same} of {} ran to the end alike", found.len());
}

#[test]
fn the_bundled_model_split_anywhere_chooses_what_the_cpu_chooses() {
    let Some([gpu, cpu]) = placements() else { return };
    let path = root().join("models/mlxr-27m-q8_0.gguf");
    let n_layers = Session::open(&path, &cpu).model.config().layers.len();
    for n_first in [1, n_layers / 3, n_layers / 2, n_layers - 1] {
        let split = gpu.clone().with_first(n_first, cpu_backend());
        let n_same = compare(&path, &split, &cpu).unwrap();
        assert!(n_same * 3 >= N_GREEDY, "{n_first} of {n_layers} on the CPU: {n_same} alike");
    }
}

#[test]
fn families_split_in_the_middle_choose_what_the_cpu_chooses() {
    let Some([gpu, cpu]) = placements() else { return };
    for path in ["gemma2/hf", "gpt_oss/model.gguf", "mixtral/mlx-4bit", "smollm3/hf"] {
        let split = gpu.clone().with_first(1, cpu_backend());
        let n_same = compare(&root().join("golden/tiny").join(path), &split, &cpu).unwrap();
        assert!(n_same * 2 >= N_GREEDY, "{path}: {n_same} alike");
    }
}
