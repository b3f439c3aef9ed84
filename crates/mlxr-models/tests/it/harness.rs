//! Runs a model over sequences whose blocks lie scattered in the arena.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mlxr_checkpoint::Checkpoint;
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::{Model, ModelError, ModelKv, ModelOptions, Placement};
use mlxr_tensor::{Backend, Batch, DType};

use crate::exact::Exact;

/// Longest sequence the tests run: 154 prompt ids and 64 more.
const MAX_TOKENS: usize = 224;

/// A path under `golden/tiny`.
pub fn tiny(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/tiny").join(path)
}

pub fn backend() -> Arc<dyn Backend> {
    static BACKEND: OnceLock<Arc<CpuBackend>> = OnceLock::new();
    let make = || Arc::new(CpuBackend::new(CpuOptions { n_threads: Some(1), isa: None }).unwrap());
    BACKEND.get_or_init(make).clone()
}

/// Opens a model under `golden/tiny`.
pub fn open(path: &str, n_ctx: Option<u32>) -> Model {
    open_on(backend(), &tiny(path), n_ctx)
}

/// [`open`], with weights made f32.
pub fn open_exact(path: &str, n_ctx: Option<u32>) -> Model {
    open_on(Arc::new(Exact(backend())), &tiny(path), n_ctx)
}

/// [`open`], for any path.
pub fn open_path(path: &Path) -> Model {
    open_on(backend(), path, None)
}

fn open_on(backend: Arc<dyn Backend>, path: &Path, n_ctx: Option<u32>) -> Model {
    let ckpt = Checkpoint::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Model::load(&ckpt, backend, &ModelOptions { n_ctx }).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// [`open`], with the first `n_first` layers on a device of their own.
pub fn open_split(path: &str, n_first: usize) -> Model {
    let ckpt = Checkpoint::open(&tiny(path)).unwrap();
    let placement = Placement::whole(backend()).with_first(n_first, backend());
    Model::load_at(&ckpt, &placement, &ModelOptions::default()).unwrap()
}

pub fn load(ckpt: &Checkpoint, n_ctx: Option<u32>) -> Result<Model, ModelError> {
    Model::load(ckpt, backend(), &ModelOptions { n_ctx })
}

/// Where the blocks of sequences lie in the arena.
#[derive(Clone, Copy, Debug)]
pub enum Blocks {
    InOrder,
    /// Neighbours in a sequence are far apart and in no order.
    Scattered,
}

/// Some sequences being run by one model.
pub struct Session<'a> {
    model: &'a Model,
    kv: ModelKv,
    block_tokens: usize,
    tables: Vec<Vec<u32>>,
    lens: Vec<u32>,
}

/// Rows of one sequence in a step.
pub struct Rows<'a> {
    pub sequence: usize,
    pub tokens: &'a [u32],
    pub wanted: Wanted,
}

/// Of which rows a step gives logits.
#[derive(Clone, Copy, Debug)]
pub enum Wanted {
    All,
    Last,
    None,
}

impl<'a> Session<'a> {
    pub fn new(model: &'a Model, n_sequences: usize, block_tokens: usize, blocks: Blocks) -> Self {
        let per_sequence = MAX_TOKENS.div_ceil(block_tokens);
        let n_blocks = n_sequences * per_sequence;
        let kv = new_cache(model, n_blocks, block_tokens, DType::F32);
        // A step without a common divisor visits every block once.
        let step = (3..).find(|step| gcd(*step, n_blocks) == 1).unwrap();
        let place = |i: usize| match blocks {
            Blocks::InOrder => i as u32,
            Blocks::Scattered => (n_blocks - 1 - i * step % n_blocks) as u32,
        };
        let table = |s: usize| (0..per_sequence).map(|b| place(s * per_sequence + b)).collect();
        let tables = (0..n_sequences).map(table).collect();
        Self { model, kv, block_tokens, tables, lens: vec![0; n_sequences] }
    }

    /// One sequence whose keys and values are kept as `dtype`.
    pub fn with_cache(model: &'a Model, dtype: DType) -> Self {
        let mut session = Self::new(model, 1, 16, Blocks::Scattered);
        session.kv = new_cache(model, session.tables[0].len(), 16, dtype);
        session
    }

    /// One forward; returns the logits of the wanted rows in order.
    pub fn step(&mut self, plan: &[Rows<'_>]) -> Vec<Vec<f32>> {
        let mut batch = Batch::new();
        for rows in plan {
            let first = batch.n_rows() as u32;
            let s = rows.sequence;
            batch.push(rows.tokens, self.lens[s], &self.tables[s], self.block_tokens);
            self.lens[s] += rows.tokens.len() as u32;
            match rows.wanted {
                Wanted::All => batch.output_rows.extend(first..batch.n_rows() as u32),
                Wanted::Last => batch.want_last(),
                Wanted::None => {}
            }
        }
        let logits = self.model.forward(&batch, &mut self.kv).unwrap();
        assert_eq!(logits.rows(), batch.output_rows.len());
        let vocab = self.model.config().vocab;
        backend().read(&logits).unwrap().chunks_exact(vocab).map(<[f32]>::to_vec).collect()
    }

    /// The first sequence's next rows, all logits.
    pub fn feed(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.step(&[Rows { sequence: 0, tokens, wanted: Wanted::All }])
    }
}

fn new_cache(model: &Model, n_blocks: usize, block_tokens: usize, dtype: DType) -> ModelKv {
    model.kv_cache(&model.kv_spec(n_blocks, block_tokens, dtype)).unwrap()
}

pub fn best(logits: &[f32]) -> u32 {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).reduce(better).unwrap() as u32
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
