//! Products and attention of a Llama-3-8B-like model, and experts of a Qwen3-30B-A3B-like one, on the GPU: microseconds,
//! GB/s of what is read from memory, and TFLOP/s where many rows meet a weight.
//!
//! `cargo bench -p mlxr-gpu --bench kernels [-- attention|experts|products... FORMAT...]`

use std::time::Instant;

use bytes::Bytes;
use mlxr_gpu::{AdapterChoice, GpuBackend};
use mlxr_tensor::conformance::data::Noise;
use mlxr_tensor::{
    Act, AttentionSpec, Backend, Batch, DType, HostTensor, KvLayerSpec, KvSpec, Reach, RouterSpec, Weight,
};

const SECTIONS: [&str; 3] = ["attention", "experts", "products"];
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
/// Rows and columns of an expert, experts of a layer, and how many a row goes to.
const EXPERT_SHAPES: [(usize, usize); 2] = [(768, 2048), (2048, 768)];
const N_EXPERTS: usize = 128;
const TOP_K: usize = 8;
const EXPERT_ROW_COUNTS: [usize; 8] = [1, 4, 16, 32, 64, 128, 512, 2048];
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

/// The products of a layer's experts with rows that were routed at random, each time anew.
#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn experts(backend: &dyn Backend, dtype: DType) {
    for (n_out, cols) in EXPERT_SHAPES {
        let n_bytes = dtype.bytes_for(cols).expect("whole blocks") * n_out;
        let mut noise = Noise::new(1);
        let words = std::iter::repeat_with(|| noise.next_u64());
        let data: Vec<u8> = words.flat_map(u64::to_le_bytes).take(n_bytes).collect();
        let tensor = HostTensor::new("expert", &[n_out, cols], dtype, Bytes::from(data)).expect("sizes fit");
        let stack = vec![tensor; N_EXPERTS];
        let n_copies = (SET_BYTES / (n_bytes * N_EXPERTS)).clamp(2, MAX_COPIES);
        let weights: Vec<Weight> =
            (0..n_copies).map(|_| backend.upload_experts(&stack).expect("room for the weights")).collect();
        for n_rows in EXPERT_ROW_COUNTS {
            let x = values(backend, n_rows, cols);
            let logits = values(backend, n_rows, N_EXPERTS);
            let spec = RouterSpec { top_k: TOP_K, softmax_over_all: false };
            let n_ops = MAX_COPIES.next_multiple_of(n_copies);
            let time = seconds(backend, n_ops, || {
                for weight in weights.iter().cycle().take(n_ops) {
                    let routing = backend.route(&logits, &spec);
                    drop(backend.expert_linear(&x, weight, None, &routing));
                }
            });
            println!(
                "{dtype} {N_EXPERTS} experts of {n_out}x{cols}, {TOP_K} of them, rows {n_rows}: {:.1} us, {:.2} TFLOP/s",
                time * 1e6,
                2.0 * (n_rows * TOP_K * n_out * cols) as f64 / time / 1e12,
            );
        }
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn attention(backend: &dyn Backend, dtype: DType) {
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
            dtype,
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
        let n_bytes = kv_spec.bytes_per_token().expect("whole blocks") / N_LAYERS * n_tokens * n_seqs;
        println!(
            "attention over {n_tokens} tokens of {n_seqs} in {dtype}: {:.1} us, {:.0} GB/s",
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
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted: Vec<DType> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let formats = [DType::Q4_0, DType::Q8_0, DType::F16, DType::Q4_K, DType::Q6_K];
    let formats = if wanted.is_empty() { formats.to_vec() } else { wanted };
    let has_section = args.iter().any(|arg| SECTIONS.contains(&arg.as_str()));
    let is_wanted = |section: &str| !has_section || args.iter().any(|arg| arg == section);
    let backend = GpuBackend::new(AdapterChoice::BestOrSoftware).expect("a GPU");
    println!("{}", backend.describe());
    if is_wanted("attention") {
        chain(&backend);
        [DType::F16, DType::F8E4M3].into_iter().for_each(|dtype| attention(&backend, dtype));
    }
    for dtype in formats {
        if is_wanted("experts") {
            experts(&backend, dtype);
        }
        if is_wanted("products") {
            products(&backend, dtype);
        }
    }
}
