//! Products and attention of a Llama-3-8B-like model on the GPU: microseconds, GB/s of what is read from memory, and
//! TFLOP/s where many rows meet a weight.
//!
//! `cargo bench -p mlxr-gpu --bench kernels [-- FORMAT...]`

use std::time::Instant;

use bytes::Bytes;
use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_tensor::conformance::data::Noise;
use mlxr_tensor::{
    Act, AttentionSpec, Backend, Batch, DType, HostTensor, KvLayerSpec, KvSpec, Reach, Weight,
};

/// Rows and columns of the weights.
const SHAPES: [(usize, usize); 4] = [(4096, 4096), (14336, 4096), (4096, 14336), (128_256, 4096)];
const ROW_COUNTS: [usize; 6] = [1, 2, 4, 8, 16, 512];
/// Bytes of weights read in turn, so that none is still in a cache.
const SET_BYTES: usize = 400 << 20;
const MAX_COPIES: usize = 24;
/// Ops between two waits, so that these cost little.
const MIN_OPS: usize = 100;
/// Time of one measurement.
const SECONDS: f64 = 0.05;
const N_HEADS: usize = 32;
const N_KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const BLOCK_TOKENS: usize = 16;
/// Stored tokens and sequences.
const CONTEXTS: [(usize, usize); 4] = [(4096, 1), (32_768, 1), (4096, 16), (1024, 1)];
/// Layers of the cache, read in turn.
const N_LAYERS: usize = 16;

fn values(backend: &dyn Backend, rows: usize, cols: usize) -> Act {
    backend.act(rows, cols, &Noise::new(1).values(rows * cols))
}

/// Seconds of one of the `n_ops` ops that `run` records, in the fastest of the runs that fit [`SECONDS`].
fn seconds(backend: &dyn Backend, n_ops: usize, mut run: impl FnMut()) -> f64 {
    let end = backend.act(1, 1, &[0.0]);
    let mut time = || {
        let start = Instant::now();
        run();
        // Comes after everything before.
        backend.read(&end).expect("a device that works");
        start.elapsed().as_secs_f64() / n_ops as f64
    };
    time();
    time();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < SECONDS {
        best = best.min(time());
    }
    best
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn products(backend: &dyn Backend, dtype: DType) {
    for (n_out, cols) in SHAPES {
        let n_bytes = dtype.bytes_for(cols).expect("whole blocks") * n_out;
        let mut noise = Noise::new(1);
        let words = std::iter::repeat_with(|| noise.next_u64());
        let data: Vec<u8> = words.flat_map(u64::to_le_bytes).take(n_bytes).collect();
        let tensor = HostTensor::new("weight", &[n_out, cols], dtype, Bytes::from(data)).expect("sizes fit");
        let n_copies = (SET_BYTES / n_bytes).clamp(2, MAX_COPIES);
        let weights: Vec<Weight> =
            (0..n_copies).map(|_| backend.upload(&tensor).expect("room for the weights")).collect();
        for n_rows in ROW_COUNTS {
            if n_rows > 16 && n_out > 100_000 {
                continue;
            }
            let x = values(backend, n_rows, cols);
            let n_ops = MIN_OPS.next_multiple_of(n_copies);
            let time = seconds(backend, n_ops, || {
                weights.iter().cycle().take(n_ops).for_each(|w| drop(backend.linear(&x, w, None)));
            });
            println!(
                "{dtype} {n_out}x{cols} rows {n_rows}: {:.1} us, {:.0} GB/s, {:.2} TFLOP/s",
                time * 1e6,
                n_bytes as f64 / time / 1e9,
                2.0 * (n_rows * n_out * cols) as f64 / time / 1e12,
            );
        }
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn attention(backend: &dyn Backend) {
    let spec = AttentionSpec {
        n_heads: N_HEADS,
        scale: 0.09,
        reach: Reach::Causal,
        window: None,
        softcap: None,
        sinks: None,
    };
    for (n_tokens, n_seqs) in CONTEXTS {
        let n_blocks = n_tokens / BLOCK_TOKENS;
        let layer = KvLayerSpec { n_kv_heads: N_KV_HEADS, k_dim: HEAD_DIM, v_dim: HEAD_DIM };
        let kv_spec = KvSpec {
            n_blocks: n_blocks * n_seqs,
            block_tokens: BLOCK_TOKENS,
            dtype: DType::F16,
            layers: vec![layer; N_LAYERS],
        };
        let kv = backend.kv_cache(&kv_spec).expect("room for the cache");
        let mut batch = Batch::new();
        for seq in 0..n_seqs {
            let table: Vec<u32> = (0..n_blocks).map(|b| (b * n_seqs + seq) as u32).rev().collect();
            batch.push(&[1], n_tokens as u32 - 1, &table, BLOCK_TOKENS);
        }
        let q = values(backend, n_seqs, N_HEADS * HEAD_DIM);
        let time = seconds(backend, MIN_OPS, || {
            for i in 0..MIN_OPS {
                drop(backend.attention(&q, &kv, i % N_LAYERS, &batch, &spec));
            }
        });
        let n_bytes = n_tokens * n_seqs * N_KV_HEADS * HEAD_DIM * 2 * 2;
        println!(
            "attention over {n_tokens} tokens of {n_seqs}: {:.1} us, {:.0} GB/s",
            time * 1e6,
            n_bytes as f64 / time / 1e9
        );
    }
}

/// Ops of one row that wait for each other.
#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn chain(backend: &dyn Backend) {
    let weight = HostTensor::from_f32("norm", &[4096], &[1.0; 4096]).expect("sizes fit");
    let weight = backend.upload(&weight).expect("room for a vector");
    const N: usize = 300;
    let time = seconds(backend, N, || {
        let mut x = values(backend, 1, 4096);
        for _ in 0..N {
            x = backend.rms_norm(&x, &weight, 1e-5);
        }
    });
    println!("norms one after the other: {:.2} us each", time * 1e6);
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn main() {
    let wanted: Vec<DType> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let formats = [DType::Q4_0, DType::Q8_0, DType::F16, DType::Q4_K, DType::Q6_K];
    let formats = if wanted.is_empty() { formats.to_vec() } else { wanted };
    let backend = GpuBackend::new(AdapterChoice::BestOrSoftware).expect("a GPU");
    println!("{}", backend.describe());
    chain(&backend);
    attention(&backend);
    for dtype in formats {
        products(&backend, dtype);
    }
}
