//! Mixture of experts.

use super::data::{self, Noise};
use super::{FUNCTION_TOLERANCE, INT8_TOLERANCE, assert_close, assert_same_bits, read, reference};
use crate::{Act, Backend, DType, Format, HostTensor, RouterSpec, Weight};

const COLS: usize = 256;
const N_EXPERTS: usize = 5;

/// Experts whose layer has no weights and their own index as bias: what the routing chose becomes readable.
fn index_experts(backend: &dyn Backend, n_experts: usize) -> (Weight, Weight) {
    let zeros = vec![0f32; 32];
    let experts: Vec<HostTensor> = (0..n_experts)
        .map(|e| HostTensor::from_f32(format!("experts.{e}"), &[1, 32], &zeros).expect("sizes fit"))
        .collect();
    let indices: Vec<f32> = (0..n_experts).map(|e| e as f32).collect();
    let bias = HostTensor::from_f32("bias", &[n_experts, 1], &indices).expect("sizes fit");
    let upload = backend.upload_experts(&experts).expect("small experts");
    (upload, backend.upload(&bias).expect("a small matrix"))
}

pub(super) fn routing(backend: &dyn Backend) {
    let (n_rows, n_experts) = (6, 16);
    let mut logits = Noise::new(1).values(n_rows * n_experts);
    // Equal logits, and a row of nothing but those.
    (logits[3], logits[9]) = (4.0, 4.0);
    logits[n_experts..2 * n_experts].fill(0.5);
    let (experts, bias) = index_experts(backend, n_experts);
    for (top_k, softmax_over_all) in [(1, false), (2, false), (2, true), (4, true), (16, false)] {
        let spec = RouterSpec { top_k, softmax_over_all };
        let routing = backend.route(&backend.act(n_rows, n_experts, &logits), &spec);
        assert_eq!((routing.n_rows(), routing.top_k()), (n_rows, top_k));
        let x = backend.act(n_rows, 32, &vec![0f32; n_rows * 32]);
        let chosen = backend.expert_linear(&x, &experts, Some(&bias), &routing);
        // Expert `j` of a row brings the unit vector `j`, so the sum lists the weights.
        let units: Vec<f32> = (0..n_rows * top_k * top_k)
            .map(|i| if i / top_k % top_k == i % top_k { 1.0 } else { 0.0 })
            .collect();
        let weights = backend.combine(&backend.act(n_rows * top_k, top_k, &units), &routing);
        let expected: Vec<(usize, f64)> = logits
            .chunks_exact(n_experts)
            .flat_map(|row| reference::route(row, top_k, softmax_over_all))
            .collect();
        let experts_expected: Vec<f32> = expected.iter().map(|&(e, _)| e as f32).collect();
        let case = format!("{spec:?}");
        assert_same_bits(&read(backend, &chosen), &experts_expected, &format!("experts of {case}"));
        let weights_expected: Vec<f64> = expected.iter().map(|&(_, w)| w).collect();
        assert_close(&read(backend, &weights), &weights_expected, FUNCTION_TOLERANCE, &case);
    }
}

pub(super) fn linear(backend: &dyn Backend) {
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_K, DType::MXFP4] {
        let mut noise = Noise::new(2);
        let stack = data::tensor(Format::Plain(dtype), &[N_EXPERTS, 12, COLS], &mut noise);
        let experts: Vec<HostTensor> = (0..N_EXPERTS).map(|e| stack.stack_item(e)).collect();
        let Ok(weight) = backend.upload_experts(&experts) else { continue };
        let bias = noise.values(N_EXPERTS * 12);
        let bias_tensor = HostTensor::from_f32("bias", &[N_EXPERTS, 12], &bias).expect("sizes fit");
        let bias_weight = backend.upload(&bias_tensor).expect("a small matrix");
        let (n_rows, spec) = (11, RouterSpec { top_k: 2, softmax_over_all: false });
        let logits = noise.values(n_rows * N_EXPERTS);
        let x = noise.values(n_rows * COLS);
        // Two layers in a row: the second's input has a row per choice. Only the first is compared with f64.
        let forward = |rows: std::ops::Range<usize>, per_choice: bool| -> (Vec<f32>, Vec<f32>) {
            let cut = |values: &[f32], cols: usize| -> Act {
                backend.act(rows.len(), cols, &values[rows.start * cols..rows.end * cols])
            };
            let routing = backend.route(&cut(&logits, N_EXPERTS), &spec);
            let mut input = cut(&x, COLS);
            if per_choice {
                let doubled: Vec<u32> = (0..rows.len() as u32).flat_map(|r| [r, r]).collect();
                input = backend.gather_rows(&input, &doubled);
            }
            let choices = backend.expert_linear(&input, &weight, Some(&bias_weight), &routing);
            (read(backend, &choices), read(backend, &backend.combine(&choices, &routing)))
        };
        let (choices, combined) = forward(0..n_rows, false);
        let values = stack.to_f32().expect("numbers");
        let tolerance = if dtype.is_quantised() { INT8_TOLERANCE } else { FUNCTION_TOLERANCE };
        for row in 0..n_rows {
            let mut sum = vec![0f64; 12];
            let routed = reference::route(&logits[row * N_EXPERTS..][..N_EXPERTS], 2, false);
            for (j, &(e, weight)) in routed.iter().enumerate() {
                let expert = &values[e * 12 * COLS..(e + 1) * 12 * COLS];
                let bias = &bias[e * 12..(e + 1) * 12];
                let expected = reference::linear(&x[row * COLS..][..COLS], expert, Some(bias), COLS);
                let got = &choices[(row * 2 + j) * 12..][..12];
                assert_close(got, &expected, tolerance, &format!("{dtype} row {row} expert {e}"));
                sum.iter_mut().zip(&expected).for_each(|(s, v)| *s += weight * v);
            }
            assert_close(&combined[row * 12..][..12], &sum, tolerance, &format!("{dtype} row {row}"));
            let alone = forward(row..row + 1, false);
            assert_same_bits(&alone.0, &choices[row * 24..][..24], &format!("{dtype} row {row} alone"));
            assert_same_bits(&alone.1, &combined[row * 12..][..12], &format!("{dtype} row {row} alone"));
        }
        assert_same_bits(&forward(0..n_rows, true).0, &choices, &format!("{dtype}, a row per choice"));
    }
}

/// Rows that fall on experts as unevenly as they may: one expert has all of them, one has a single row, one has none.
pub(super) fn uneven(backend: &dyn Backend) {
    const N_OUT: usize = 20;
    let spec = RouterSpec { top_k: 2, softmax_over_all: false };
    for (dtype, n_experts) in [(DType::F16, 6), (DType::Q4_K, 6), (DType::Q4_0, 6), (DType::MXFP4, 3)] {
        let mut noise = Noise::new(3);
        let stack = data::tensor(Format::Plain(dtype), &[n_experts, N_OUT, COLS], &mut noise);
        let experts: Vec<HostTensor> = (0..n_experts).map(|e| stack.stack_item(e)).collect();
        let Ok(weight) = backend.upload_experts(&experts) else { continue };
        let values = stack.to_f32().expect("numbers");
        let bias = noise.values(n_experts * N_OUT);
        let bias_tensor = HostTensor::from_f32("bias", &[n_experts, N_OUT], &bias).expect("sizes fit");
        let bias_weight = backend.upload(&bias_tensor).expect("a small matrix");
        for n_rows in [4, 7, 13, 26, 67, 300] {
            let logits: Vec<f32> = (0..n_rows)
                .flat_map(|row| {
                    let mut logits = noise.values(n_experts);
                    // Expert 1 is everybody's, 0 the middle row's alone, 2 nobody's.
                    (logits[0], logits[1]) = (if row == n_rows / 2 { 50.0 } else { -50.0 }, 20.0);
                    if n_experts > 3 {
                        logits[2] = -60.0;
                    }
                    logits
                })
                .collect();
            let x = noise.values(n_rows * COLS);
            let forward = |rows: std::ops::Range<usize>| -> Vec<f32> {
                let act = |values: &[f32], cols: usize| -> Act {
                    backend.act(rows.len(), cols, &values[rows.start * cols..rows.end * cols])
                };
                let routing = backend.route(&act(&logits, n_experts), &spec);
                let choices = backend.expert_linear(&act(&x, COLS), &weight, Some(&bias_weight), &routing);
                read(backend, &choices)
            };
            let choices = forward(0..n_rows);
            let tolerance = if dtype.is_quantised() { INT8_TOLERANCE } else { FUNCTION_TOLERANCE };
            for (i, got) in choices.chunks_exact(N_OUT).enumerate() {
                let (row, j) = (i / 2, i % 2);
                let (e, _) = reference::route(&logits[row * n_experts..][..n_experts], 2, false)[j];
                let expert = &values[e * N_OUT * COLS..(e + 1) * N_OUT * COLS];
                let bias = &bias[e * N_OUT..(e + 1) * N_OUT];
                let expected = reference::linear(&x[row * COLS..][..COLS], expert, Some(bias), COLS);
                assert_close(
                    got,
                    &expected,
                    tolerance,
                    &format!("{dtype} row {row} of {n_rows}, expert {e}"),
                );
            }
            for row in [0, n_rows / 2, n_rows - 1] {
                let alone = forward(row..row + 1);
                let beside = &choices[row * 2 * N_OUT..][..2 * N_OUT];
                assert_same_bits(&alone, beside, &format!("{dtype} row {row} of {n_rows} alone"));
            }
        }
    }
}
