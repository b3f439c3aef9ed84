//! What a step does around its products: meeting of threads, attention, norms.
//!
//! `cargo bench -p mlxr-kernels --bench around [attention | norms | pool]` prints microseconds, the fastest of some runs.

mod timing;

use std::time::Instant;

use mlxr_kernels::{CpuBackend, CpuOptions, ThreadPool};
use mlxr_tensor::conformance::data::Noise;
use mlxr_tensor::{
    AttentionSpec, Backend, Batch, DType, Gate, HostTensor, KvLayerSpec, KvSpec, Reach, Rope, RopePairing,
};

/// Time of one measurement.
const SECONDS: f64 = 0.2;
/// The shapes of the bundled model.
const HIDDEN: usize = 512;
const INTERMEDIATE: usize = 1536;
const N_HEADS: usize = 8;
const N_KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
/// Arenas used in turn, as the layers of a model are.
const N_LAYERS: usize = 8;
const BLOCK_TOKENS: usize = 16;

fn noise(n: usize) -> Vec<f32> {
    Noise::new(1).values(n)
}

/// Microseconds of the fastest of the runs that fit [`SECONDS`].
fn best(run: impl FnMut()) -> f64 {
    timing::best(SECONDS, run) * 1e6
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|a| a == name);
    if wanted("pool") {
        pool();
    }
    if wanted("norms") {
        norms();
    }
    if wanted("attention") {
        attention();
    }
}

/// What a region costs beyond the time that its longest part takes, on the average of many.
#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn pool() {
    let n_threads = ThreadPool::default_threads();
    let pool = ThreadPool::new(n_threads);
    for part_us in [2.0, 20.0] {
        let n = 100;
        let work = |_, _| {
            let start = Instant::now();
            while start.elapsed().as_secs_f64() * 1e6 < part_us {
                std::hint::spin_loop();
            }
        };
        let region = best(|| (0..n).for_each(|_| pool.run(work))) / f64::from(n);
        println!("a region of {n_threads} threads whose parts take {part_us}: {:.2} more", region - part_us);
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn norms() {
    let backend = CpuBackend::new(CpuOptions::default()).expect("a CPU");
    for n_rows in [1, 32, 512] {
        let bytes: Vec<u8> = noise(HIDDEN).iter().flat_map(|v| v.to_le_bytes()).collect();
        let weight = HostTensor::new("w", &[HIDDEN], DType::F32, bytes.into()).expect("sizes fit");
        let weight = backend.upload(&weight).expect("floats");
        let mut residual = backend.act(n_rows, HIDDEN, &noise(n_rows * HIDDEN));
        let x = backend.act(n_rows, HIDDEN, &noise(n_rows * HIDDEN));
        let norm = best(|| drop(backend.add_rms_norm(&mut residual, &x, 0.5, &weight, 1e-5)));
        let gate = backend.act(n_rows, INTERMEDIATE, &noise(n_rows * INTERMEDIATE));
        let up = backend.act(n_rows, INTERMEDIATE, &noise(n_rows * INTERMEDIATE));
        let gated = best(|| drop(backend.gated(&gate, &up, Gate::Silu)));
        println!("{n_rows} rows: add and norm of {HIDDEN} {norm:.1}, SwiGLU of {INTERMEDIATE} {gated:.1}");
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn attention() {
    // Rows of a sequence, sequences, tokens stored before.
    let cases: [(usize, usize, usize); 9] = [
        (1, 1, 128),
        (1, 1, 1024),
        (1, 1, 8192),
        (1, 32, 32),
        (1, 32, 128),
        (1, 32, 512),
        (128, 1, 0),
        (512, 1, 0),
        (512, 1, 512),
    ];
    for (n_rows, n_seqs, depth) in cases {
        let backend = CpuBackend::new(CpuOptions::default()).expect("a CPU");
        let per_seq = (depth + n_rows).div_ceil(BLOCK_TOKENS);
        let spec = KvSpec {
            n_blocks: per_seq * n_seqs,
            block_tokens: BLOCK_TOKENS,
            dtype: DType::F16,
            layers: vec![KvLayerSpec { n_kv_heads: N_KV_HEADS, k_dim: HEAD_DIM, v_dim: HEAD_DIM }; N_LAYERS],
        };
        let mut kv = backend.kv_cache(&spec).expect("it fits");
        let mut batch = Batch::new();
        let mut stored = Batch::new();
        for seq in 0..n_seqs {
            // As they come when sequences grow side by side.
            let table: Vec<u32> = (0..per_seq).map(|i| (i * n_seqs + seq) as u32).collect();
            stored.push(&vec![0; depth + n_rows], 0, &table, BLOCK_TOKENS);
            batch.push(&vec![0; n_rows], depth as u32, &table, BLOCK_TOKENS);
        }
        let width = N_KV_HEADS * HEAD_DIM;
        let k = backend.act(stored.n_rows(), width, &noise(stored.n_rows() * width));
        for layer in 0..N_LAYERS {
            backend.store_kv(&mut kv, layer, &k, &k, &stored);
        }
        let total = batch.n_rows();
        let mut q = backend.act(total, N_HEADS * HEAD_DIM, &noise(total * N_HEADS * HEAD_DIM));
        let spec = AttentionSpec {
            n_heads: N_HEADS,
            scale: 0.125,
            reach: Reach::Causal,
            window: None,
            softcap: None,
            sinks: None,
        };
        let frequencies = (0..HEAD_DIM / 2).map(|i| 1e4f32.powf(-(i as f32) / 32.0)).collect();
        let rope = Rope::new(RopePairing::Half, frequencies, 1.0);
        let turned = best(|| backend.rope(&mut q, HEAD_DIM, &rope, &batch));
        let attended = best(|| {
            (0..N_LAYERS).for_each(|layer| drop(backend.attention(&q, &kv, layer, &batch, &spec)));
        }) / N_LAYERS as f64;
        let pairs = (0..n_rows).map(|row| depth + row + 1).sum::<usize>() * n_seqs;
        let flops = (4 * pairs * N_HEADS * HEAD_DIM) as f64;
        let bytes = ((depth + n_rows) * n_seqs * width * 4) as f64;
        println!(
            "{n_seqs:2} sequences, {n_rows:3} rows after {depth:4}: attention {attended:8.1} ({:5.1} GFLOP/s, {:4.1} GB/s), RoPE {turned:.1}",
            flops / attended / 1e3,
            bytes / attended / 1e3,
        );
    }
}
