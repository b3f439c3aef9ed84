//! Matrix products of a TinyLlama-like MLP weight: GB/s of weights for one row, GFLOP/s for many.
//!
//! `cargo bench -p mlxr-kernels [-- FORMAT...]`

use std::time::Instant;

use bytes::Bytes;
use mlxr_kernels::{CpuBackend, CpuOptions, Kernels, bandwidth};
use mlxr_tensor::{Backend, DType, HostTensor, Weight, codec};

const ROWS: usize = 5632;
const COLS: usize = 2048;
/// Enough matrices that one pass does not fit a cache.
const N_WEIGHTS: usize = 24;
const PREFILL_ROWS: usize = 128;

fn noise(n: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next()).collect()
}

/// Seconds of the fastest of a few runs.
fn best_of(n: usize, mut run: impl FnMut()) -> f64 {
    let times = (0..n).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn main() {
    let wanted: Vec<DType> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let formats = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
    ];
    let formats = if wanted.is_empty() { formats.to_vec() } else { wanted };
    let n_threads = mlxr_kernels::ThreadPool::default_threads();
    if let Some(gbps) = bandwidth::measure_read_gbps(n_threads, 1.0) {
        println!("memory read bandwidth: {gbps:.1} GB/s with {n_threads} threads");
    }
    for dtype in formats {
        let data = Bytes::from(codec::quantise(dtype, &noise(ROWS * COLS), COLS, None).expect("a codec"));
        for kernels in Kernels::available().into_iter().skip(1) {
            let options = CpuOptions { n_threads: None, isa: Some(kernels.isa()) };
            let backend = CpuBackend::new(options).expect("this CPU has it");
            let weights: Vec<Weight> = (0..N_WEIGHTS)
                .map(|_| {
                    let copy = Bytes::from(data.to_vec());
                    let tensor = HostTensor::new("w", &[ROWS, COLS], dtype, copy).expect("sizes fit");
                    backend.upload(&tensor).expect("a known format")
                })
                .collect();
            let one = backend.act(1, COLS, &noise(COLS));
            let decode = best_of(5, || weights.iter().for_each(|w| drop(backend.linear(&one, w, None))));
            let many = backend.act(PREFILL_ROWS, COLS, &noise(PREFILL_ROWS * COLS));
            let prefill = best_of(3, || drop(backend.linear(&many, &weights[0], None)));
            let gbps = (data.len() * N_WEIGHTS) as f64 / decode / 1e9;
            let gweights = (ROWS * COLS * N_WEIGHTS) as f64 / decode / 1e9;
            let gflops = 2.0 * (ROWS * COLS * PREFILL_ROWS) as f64 / prefill / 1e9;
            let name = dtype.name();
            let isa = kernels.isa().name();
            println!(
                "{name:8} {isa:8} 1 row {gbps:6.1} GB/s {gweights:6.1} Gweight/s, {PREFILL_ROWS} rows {gflops:7.1} GFLOP/s"
            );
        }
    }
}
