//! Linear layers and embeddings.

use super::data::{self, Noise};
use super::{F16_TOLERANCE, F32_TOLERANCE, INT8_TOLERANCE, assert_close, assert_same_bits, read, reference};
use crate::{Act, Backend, Batch, DType, Format, Gate, HostTensor, LinearLayer, TensorError, Weight};

/// Formats every backend computes with.
const REQUIRED: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::Q8_0];

/// The weight, or `None` where the backend says it does not have the format and need not.
fn upload(backend: &dyn Backend, tensor: &HostTensor) -> Option<Weight> {
    match backend.upload(tensor) {
        Ok(weight) => Some(weight),
        Err(TensorError::Unsupported { .. })
            if !REQUIRED.iter().any(|&d| tensor.format() == Format::Plain(d)) =>
        {
            None
        }
        Err(e) => panic!("{}: {e}", tensor.format().name()),
    }
}

fn tolerance(format: Format) -> f64 {
    match format {
        Format::Plain(DType::F32 | DType::F16 | DType::BF16) => F32_TOLERANCE,
        _ => INT8_TOLERANCE,
    }
}

/// One product against the reference, and each row of it alone and in runs of odd length.
fn check_linear(backend: &dyn Backend, tensor: &HostTensor, n_rows: usize, with_bias: bool) {
    let Some(weight) = upload(backend, tensor) else { return };
    let (n_out, cols) = (tensor.rows(), tensor.cols());
    let case = format!("{} [{n_out}, {cols}] with {n_rows} rows", tensor.format().name());
    let mut noise = Noise::new(7);
    let x = noise.values(n_rows * cols);
    let bias = with_bias.then(|| noise.values(n_out));
    let bias_weight = bias.as_ref().map(|values| {
        let tensor = HostTensor::from_f32("bias", &[n_out], values).expect("sizes fit");
        backend.upload(&tensor).expect("a vector of f32")
    });
    let linear = |rows: std::ops::Range<usize>| {
        let act = backend.act(rows.len(), cols, &x[rows.start * cols..rows.end * cols]);
        read(backend, &backend.linear(&act, &weight, bias_weight.as_ref()))
    };
    let got = linear(0..n_rows);
    let values = tensor.to_f32().expect("a format with numbers");
    let expected = reference::linear(&x, &values, bias.as_deref(), cols);
    assert_close(&got, &expected, tolerance(tensor.format()), &case);
    for step in [1, 3] {
        for start in (0..n_rows).step_by(step) {
            let end = (start + step).min(n_rows);
            let expected = &got[start * n_out..end * n_out];
            assert_same_bits(&linear(start..end), expected, &format!("{case}, rows {start}..{end}"));
        }
    }
}

pub(super) fn formats(backend: &dyn Backend) {
    for format in data::formats() {
        let tensor = data::tensor(format, &[21, 512], &mut Noise::new(1));
        check_linear(backend, &tensor, 9, false);
    }
}

pub(super) fn ragged(backend: &dyn Backend) {
    let shapes = [(1, 1), (3, 7), (5, 16), (4, 33), (17, 100), (64, 63), (130, 257)];
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for (n_out, cols) in shapes {
            let tensor = data::tensor(Format::Plain(dtype), &[n_out, cols], &mut Noise::new(2));
            check_linear(backend, &tensor, 5, true);
        }
    }
    let mlx = |group_size| Format::MlxAffine { bits: 4, group_size, scale: DType::BF16 };
    for (format, cols) in [
        (Format::Plain(DType::Q8_0), 32),
        (Format::Plain(DType::Q4_0), 96),
        (Format::Plain(DType::Q8_0), 160),
        (Format::Plain(DType::Q4_0), 1056),
        (Format::Plain(DType::Q6_K), 256),
        (Format::Plain(DType::Q4_K), 768),
        (mlx(32), 96),
        (mlx(64), 192),
        (mlx(128), 128),
    ] {
        for n_out in [1, 6, 67] {
            let tensor = data::tensor(format, &[n_out, cols], &mut Noise::new(3));
            check_linear(backend, &tensor, 6, true);
        }
    }
    // Whole runs of 1024 columns, and more rows than are computed together.
    for dtype in [DType::Q8_0, DType::Q4_0, DType::Q4_K, DType::Q6_K] {
        let tensor = data::tensor(Format::Plain(dtype), &[6, 1024], &mut Noise::new(6));
        check_linear(backend, &tensor, 19, true);
    }
}

pub(super) fn several(backend: &dyn Backend) {
    let mut noise = Noise::new(4);
    let (n_rows, cols) = (5, 256);
    let x = backend.act(n_rows, cols, &noise.values(n_rows * cols));
    let formats = [DType::F16, DType::Q8_0, DType::F32].map(Format::Plain);
    let weights: Vec<Weight> = formats
        .iter()
        .enumerate()
        .map(|(i, &format)| {
            let tensor = data::tensor(format, &[8 * i + 9, cols], &mut noise);
            backend.upload(&tensor).expect("a required format")
        })
        .collect();
    let layers: Vec<LinearLayer<'_>> = weights.iter().map(|w| (w, None)).collect();
    let together = backend.linear_each(&x, &layers);
    assert_eq!(together.len(), weights.len());
    for (weight, act) in weights.iter().zip(&together) {
        assert_eq!((act.rows(), act.cols()), (n_rows, weight.shape()[0]));
        let alone = read(backend, &backend.linear(&x, weight, None));
        assert_same_bits(&read(backend, act), &alone, &format!("{weight:?}"));
    }
}

/// Gated layers in one op, against the ops they stand for: few rows and many, and a product of the result.
pub(super) fn gated(backend: &dyn Backend) {
    let mut noise = Noise::new(8);
    let swiglu = Gate::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    let cases = [(DType::Q4_0, 128, Gate::Silu), (DType::Q6_K, 96, swiglu), (DType::F16, 64, Gate::GeluTanh)];
    for ((dtype, n_out, kind), with_bias) in cases.into_iter().flat_map(|c| [(c, false), (c, true)]) {
        let mut matrix = |dtype: DType, shape: [usize; 2]| {
            let tensor = data::tensor(Format::Plain(dtype), &shape, &mut noise);
            backend.upload(&tensor).expect("a required format")
        };
        let (gate, up) = (matrix(dtype, [n_out, 256]), matrix(dtype, [n_out, 256]));
        let down = matrix(DType::Q8_0, [40, n_out]);
        let biases = [n_out, n_out].map(|n| {
            let tensor = HostTensor::from_f32("bias", &[n], &noise.values(n)).expect("sizes fit");
            backend.upload(&tensor).expect("a vector of f32")
        });
        let [gate_bias, up_bias] = biases.each_ref().map(|bias| with_bias.then_some(bias));
        let (gate, up) = ((&gate, gate_bias), (&up, up_bias));
        for n_rows in [1, 2, 3, 5, 20] {
            let x = backend.act(n_rows, 256, &noise.values(n_rows * 256));
            let both = backend.linear_each(&x, &[gate, up]);
            let apart = backend.gated(&both[0], &both[1], kind);
            let together = backend.linear_gated(&x, gate, up, kind);
            let case = format!("{n_rows} rows of {dtype}, {kind:?}");
            assert_same_bits(&read(backend, &together), &read(backend, &apart), &case);
            let down = |x: &Act| read(backend, &backend.linear(x, &down, None));
            assert_same_bits(&down(&together), &down(&apart), &format!("{case}: then a product"));
        }
    }
}

/// A product, a sum and a norm in one op, against the ops they stand for: few rows and many, then products of the result and
/// an op that changes it.
pub(super) fn added_and_normed(backend: &dyn Backend) {
    let mut noise = Noise::new(9);
    let cases =
        [(DType::Q4_0, 64), (DType::Q6_K, 288), (DType::F16, 96), (DType::F16, 1056), (DType::Q8_0, 5120)];
    for ((dtype, n_out), with_bias) in cases.into_iter().flat_map(|c| [(c, false), (c, true)]) {
        let mut matrix = |dtype: DType, shape: [usize; 2]| {
            let tensor = data::tensor(Format::Plain(dtype), &shape, &mut noise);
            backend.upload(&tensor).expect("a required format")
        };
        let weight = matrix(dtype, [n_out, 256]);
        let next = [DType::Q4_1, DType::F16].map(|dtype| matrix(dtype, [32, n_out]));
        let [bias, norm] = [n_out, n_out].map(|n| {
            let tensor = HostTensor::from_f32("vector", &[n], &noise.values(n)).expect("sizes fit");
            backend.upload(&tensor).expect("a vector of f32")
        });
        let layer = (&weight, with_bias.then_some(&bias));
        for n_rows in [1, 2, 3, 5] {
            let x = backend.act(n_rows, 256, &noise.values(n_rows * 256));
            let before = noise.values(n_rows * n_out);
            let (mut apart, mut together) =
                (backend.act(n_rows, n_out, &before), backend.act(n_rows, n_out, &before));
            let y = backend.linear(&x, layer.0, layer.1);
            let expected = backend.add_rms_norm(&mut apart, &y, 0.5, &norm, 1e-5);
            let got = backend.linear_add_rms_norm(&mut together, (&x, layer), 0.5, &norm, 1e-5);
            let case = format!("{n_rows} rows of {n_out} in {dtype}");
            assert_same_bits(&read(backend, &together), &read(backend, &apart), &format!("{case}: sum"));
            assert_same_bits(&read(backend, &got), &read(backend, &expected), &format!("{case}: norm"));
            for next in &next {
                let product = |x: &Act| read(backend, &backend.linear(x, next, None));
                assert_same_bits(&product(&got), &product(&expected), &format!("{case}: then {next:?}"));
            }
            let next = (&next[0], None);
            let gated = |x| read(backend, &backend.linear_gated(x, next, next, Gate::Silu));
            assert_same_bits(&gated(&got), &gated(&expected), &format!("{case}: then gated"));
            let twice = |mut x: Act| {
                backend.scale(&mut x, 2.0);
                read(backend, &backend.linear(&x, next.0, None))
            };
            assert_same_bits(&twice(got), &twice(expected), &format!("{case}: then changed"));
        }
    }
}

pub(super) fn embed(backend: &dyn Backend) {
    for format in data::formats() {
        let table = data::tensor(format, &[40, 256], &mut Noise::new(5));
        let Some(weight) = upload(backend, &table) else { continue };
        let mut batch = Batch::new();
        batch.push(&[3, 39, 0, 3], 0, &[0], 16);
        batch.push(&[17], 5, &[1], 16);
        for scale in [1.0f32, 16.0] {
            let got = read(backend, &backend.embed(&weight, &batch, scale));
            let values = table.to_f32().expect("a format with numbers");
            let rows = batch.tokens.iter().flat_map(|&t| &values[t as usize * 256..][..256]);
            let expected: Vec<f64> = rows.map(|&v| f64::from(v) * f64::from(scale)).collect();
            let is_required = REQUIRED.iter().any(|&d| format == Format::Plain(d));
            let tolerance = if is_required { F32_TOLERANCE } else { F16_TOLERANCE };
            assert_close(&got, &expected, tolerance, &format.name());
        }
    }
}

pub(super) fn unaligned(backend: &dyn Backend) {
    let mlx = Format::MlxAffine { bits: 4, group_size: 64, scale: DType::BF16 };
    let plain = [DType::F32, DType::F16, DType::BF16, DType::Q8_0, DType::Q4_K].map(Format::Plain);
    for format in plain.into_iter().chain([mlx]) {
        let tensor = data::tensor(format, &[9, 256], &mut Noise::new(6));
        check_linear(backend, &data::unaligned(&tensor), 2, false);
    }
}
