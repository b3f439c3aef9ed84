//! What a step does around its products: meeting of threads, attention, norms.
//!
//! `cargo bench -p mlxr-kernels --bench around [attention | norms | pool]` prints microseconds, the fastest of some runs;
//! `around long [TYPE] [HEADSxKV_HEADSxDIM] [DEPTH] [KERNELS]`, of which several may be named, prints medians of decoding
//! after many tokens from blocks all over an arena that no cache holds.

mod timing;

use std::time::Instant;

use mlxr_kernels::bandwidth::measure_read_gbps;
use mlxr_kernels::{CpuBackend, CpuOptions, Isa, Kernels, ThreadPool};
use mlxr_tensor::conformance::data::Noise;
use mlxr_tensor::{
    AttentionSpec, Backend, Batch, BlockCopy, DType, Gate, HostTensor, KvLayerSpec, KvSpec, Reach, Rope,
    RopePairing,
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
    if wanted("long") {
        long(&arguments);
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

/// Attention of a step of one sequence, layer after layer, as shares of the rate at which memory is read.
#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn long(arguments: &[String]) {
    let chosen = |name: &str, all: &[&str]| {
        arguments.iter().any(|a| a == name) || !arguments.iter().any(|a| all.contains(&a.as_str()))
    };
    let dtypes = [DType::F16, DType::BF16, DType::Q8_0, DType::F8E4M3, DType::Q4_0];
    let dtype_names = dtypes.map(DType::name);
    // Heads, KV heads, their width.
    let shapes = [(32, 4, 64), (32, 8, 128), (16, 16, 64)];
    let shape_names = shapes.map(|(heads, kv_heads, dim)| format!("{heads}x{kv_heads}x{dim}"));
    let shape_names: Vec<&str> = shape_names.iter().map(String::as_str).collect();
    let depths = [2048, 8192, 32768];
    let depth_names = depths.map(|depth: usize| depth.to_string());
    let depth_names: Vec<&str> = depth_names.iter().map(String::as_str).collect();
    let tables = Kernels::available();
    let table_names: Vec<&str> = tables.iter().map(|kernels| kernels.isa().name()).collect();
    let isas = tables.iter().filter(|kernels| arguments.iter().any(|a| a == kernels.isa().name()));
    let isas: Vec<Isa> = if table_names.iter().any(|name| arguments.iter().any(|a| a == name)) {
        isas.map(Kernels::isa).collect()
    } else {
        vec![Kernels::best().isa()]
    };
    let limit = measure_read_gbps(ThreadPool::default_threads(), 1.0).expect("memory");
    println!("memory: {limit:.1} GB/s");
    for isa in isas {
        for (&shape, shape_name) in shapes.iter().zip(&shape_names) {
            for (&dtype, dtype_name) in dtypes.iter().zip(dtype_names) {
                for (&depth, depth_name) in depths.iter().zip(&depth_names) {
                    let all = chosen(shape_name, &shape_names)
                        && chosen(dtype_name, &dtype_names)
                        && chosen(depth_name, &depth_names);
                    if all {
                        let (ms, bytes) = decode(isa, shape, dtype, depth);
                        let rate = bytes / ms / 1e6;
                        println!(
                            "{} {shape_name} {dtype_name} after {depth}: {ms:.3} ms a layer, {rate:.1} GB/s, {:.2} of memory's",
                            isa.name(),
                            rate / limit
                        );
                    }
                }
            }
        }
    }
}

/// Milliseconds of a layer's attention, the median, and the bytes of keys and values that it reads.
fn decode(isa: Isa, shape: (usize, usize, usize), dtype: DType, depth: usize) -> (f64, f64) {
    /// More than a last-level cache holds.
    const ARENA_BYTES: usize = 640 << 20;
    let (n_heads, n_kv_heads, dim) = shape;
    let backend = CpuBackend::new(CpuOptions { isa: Some(isa), n_threads: None }).expect("a CPU");
    let n_blocks = (depth + 1).div_ceil(BLOCK_TOKENS);
    let layer_bytes = 2 * n_kv_heads * dtype.bytes_for(dim).expect("whole blocks") * n_blocks * BLOCK_TOKENS;
    let n_layers = ARENA_BYTES.div_ceil(layer_bytes);
    let layers = vec![KvLayerSpec { n_kv_heads, k_dim: dim, v_dim: dim }; n_layers];
    let spec = KvSpec { n_blocks, block_tokens: BLOCK_TOKENS, dtype, layers };
    let mut kv = backend.kv_cache(&spec).expect("it fits");
    // Blocks in an order without runs.
    let mut table: Vec<u32> = (0..n_blocks as u32).collect();
    let mut noise = Noise::new(2);
    (1..n_blocks).for_each(|i| table.swap(i, noise.next_u64() as usize % (i + 1)));
    let mut stored = Batch::new();
    stored.push(&[0; BLOCK_TOKENS], 0, &[0], BLOCK_TOKENS);
    let width = n_kv_heads * dim;
    let k = backend.act(BLOCK_TOKENS, width, &noise.values(BLOCK_TOKENS * width));
    for layer in 0..n_layers {
        backend.store_kv(&mut kv, layer, &k, &k, &stored);
    }
    let copies: Vec<BlockCopy> = (1..n_blocks as u32).map(|to| BlockCopy { from: 0, to }).collect();
    backend.copy_blocks(&mut kv, &copies);
    let mut batch = Batch::new();
    batch.push(&[0], depth as u32, &table, BLOCK_TOKENS);
    let q = backend.act(1, n_heads * dim, &noise.values(n_heads * dim));
    let scale = (dim as f32).sqrt().recip();
    let spec =
        AttentionSpec { n_heads, scale, reach: Reach::Causal, window: None, softcap: None, sinks: None };
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let start = Instant::now();
            (0..n_layers).for_each(|layer| drop(backend.attention(&q, &kv, layer, &batch, &spec)));
            start.elapsed().as_secs_f64() * 1e3 / n_layers as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], layer_bytes as f64)
}
