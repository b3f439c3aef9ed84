//! Matrix products of a TinyLlama-like MLP weight: GB/s of weights for one row, GFLOP/s for more.
//!
//! `cargo bench -p mlxr-kernels --bench products [-- FORMAT... INSTRUCTION_SET...]`, formats such as Q4_K or "MLX 4-bit g64".

mod timing;

use bytes::Bytes;
use mlxr_kernels::{CpuBackend, CpuOptions, Isa, Kernels, Products, bandwidth};
use mlxr_tensor::conformance::data::{self, Noise};
use mlxr_tensor::{Backend, DType, Format, HostTensor, Weight};

const ROWS: usize = 5632;
const COLS: usize = 2048;
/// Enough matrices that one pass does not fit a cache.
const N_WEIGHTS: usize = 24;
/// Activation rows beside one.
const ROW_COUNTS: [usize; 7] = [2, 4, 8, 16, 32, 128, 512];
/// Time of one measurement.
const SECONDS: f64 = 0.15;

fn noise(n: usize) -> Vec<f32> {
    Noise::new(1).values(n)
}

/// Seconds of the fastest of the runs that fit [`SECONDS`].
fn best(run: impl FnMut()) -> f64 {
    timing::best(SECONDS, run)
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Of those that differ in the type of their scales alone, the first.
    let named = |a: &String| data::formats().into_iter().find(|f| f.name().eq_ignore_ascii_case(a));
    let wanted: Vec<Format> = arguments.iter().filter_map(named).collect();
    let formats = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
    ]
    .map(Format::Plain);
    let formats = if wanted.is_empty() { formats.to_vec() } else { wanted };
    let mut tables: Vec<Kernels> = arguments.iter().filter_map(|a| a.parse().ok()).collect();
    if tables.is_empty() {
        tables = Kernels::available();
    }
    let n_threads = mlxr_kernels::ThreadPool::default_threads();
    if let Some(gbps) = bandwidth::measure_read_gbps(n_threads, 1.0) {
        println!("memory read bandwidth: {gbps:.1} GB/s with {n_threads} threads");
    }
    println!("{:22} GB/s of 1 row, then GFLOP/s of {ROW_COUNTS:?} rows", "");
    for format in formats {
        let tensor = data::tensor(format, &[ROWS, COLS], &mut Noise::new(1));
        for kernels in &tables {
            measure(&tensor, kernels, Products::Alike);
            if kernels.isa() == Isa::Amx {
                measure(&tensor, kernels, Products::Bf16);
            }
        }
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark reports on stdout")]
fn measure(tensor: &HostTensor, kernels: &Kernels, products: Products) {
    let options = CpuOptions { n_threads: None, isa: Some(kernels.isa()) };
    let backend = CpuBackend::new(options).expect("this CPU has it").with_products(products);
    let weights: Vec<Weight> = (0..N_WEIGHTS)
        .map(|_| {
            let [data, scales, biases] =
                [tensor.data(), tensor.scales(), tensor.biases()].map(|bytes| Bytes::copy_from_slice(bytes));
            let copy = HostTensor::with_scales("w", &[ROWS, COLS], tensor.format(), data, scales, biases);
            backend.upload(&copy.expect("sizes fit")).expect("a known format")
        })
        .collect();
    let seconds = |n: usize| {
        let x = backend.act(n, COLS, &noise(n * COLS));
        let n_weights = if n < 32 { N_WEIGHTS } else { 1 };
        best(|| weights[..n_weights].iter().for_each(|w| drop(backend.linear(&x, w, None))))
            / n_weights as f64
    };
    let gbps = tensor.n_bytes() as f64 / seconds(1) / 1e9;
    let gflops = ROW_COUNTS.map(|n| format!("{:6.0}", 2e-9 * (ROWS * COLS * n) as f64 / seconds(n)));
    let name = if products == Products::Bf16 { "bf16" } else { kernels.isa().name() };
    println!("{:13} {name:8} {gbps:6.1}  {}", tensor.format().name(), gflops.join(" "));
}
