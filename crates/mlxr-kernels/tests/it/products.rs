//! Linear layers in every format and on every instruction set against f64 sums over the dequantised weights.

use bytes::Bytes;
use mlxr_kernels::{CpuBackend, CpuOptions, Kernels};
use mlxr_tensor::{Backend, DType, HostTensor, codec};

fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| next() + next()).collect()
}

#[test]
fn linear_equals_the_f64_product_and_does_not_depend_on_the_number_of_rows() {
    let (rows, cols, n_x) = (37, 768, 7);
    for kernels in Kernels::available() {
        let options = CpuOptions { n_threads: Some(2), isa: Some(kernels.isa()) };
        let backend = CpuBackend::new(options).unwrap();
        for dtype in [
            DType::F32,
            DType::F16,
            DType::BF16,
            DType::Q8_0,
            DType::Q4_0,
            DType::Q4_K,
            DType::Q5_K,
            DType::Q6_K,
            DType::Q2_K,
            DType::IQ4_XS,
        ] {
            let data = codec::quantise(dtype, &noise(rows * cols, 1), cols, None).unwrap();
            let weight = HostTensor::new("w", &[rows, cols], dtype, Bytes::from(data)).unwrap();
            let values = weight.to_f32().unwrap();
            let x = noise(n_x * cols, 2);
            let w = backend.upload(&weight).unwrap();
            let got = backend.read(&backend.linear(&backend.act(n_x, cols, &x), &w, None)).unwrap();
            let (mut error, mut norm) = (0f64, 0f64);
            for r in 0..n_x {
                for o in 0..rows {
                    let expected: f64 =
                        (0..cols).map(|c| f64::from(values[o * cols + c]) * f64::from(x[r * cols + c])).sum();
                    error += (f64::from(got[r * rows + o]) - expected).powi(2);
                    norm += expected * expected;
                }
                let alone = backend.act(1, cols, &x[r * cols..(r + 1) * cols]);
                let alone = backend.read(&backend.linear(&alone, &w, None)).unwrap();
                assert_eq!(alone, got[r * rows..(r + 1) * rows], "{dtype} row {r} on {backend:?}");
            }
            let relative = (error / norm).sqrt();
            let limit = if matches!(dtype, DType::Q2_K | DType::IQ4_XS) || !dtype.is_quantised() {
                1e-6
            } else {
                1e-2
            };
            assert!(relative < limit, "{dtype} on {backend:?}: {relative:e}");
        }
    }
}
