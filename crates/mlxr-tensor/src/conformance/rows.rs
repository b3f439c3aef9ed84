//! Ops on rows: norms, arithmetic, activations, selection, rotation.

use super::data::Noise;
use super::{
    CENTRED_TOLERANCE, F32_TOLERANCE, FUNCTION_TOLERANCE, assert_close, assert_same_bits, read, reference,
};
use crate::{Act, Activation, Backend, Batch, Gate, HostTensor, Rope, RopePairing, Weight};

/// Rows and columns: one row, ragged columns, and enough of both that a backend splits the work.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 64), (3, 37), (5, 130), (67, 576), (33, 2048)];

fn vector(backend: &dyn Backend, values: &[f32]) -> Weight {
    let tensor = HostTensor::from_f32("vector", &[values.len()], values).expect("sizes fit");
    backend.upload(&tensor).expect("a vector of f32")
}

/// Runs `op` on all rows and on each row alone, compares the two, and returns the former.
fn by_rows(
    backend: &dyn Backend,
    inputs: &[&[f32]],
    (rows, cols): (usize, usize),
    op: impl Fn(Vec<Act>) -> Act,
) -> Vec<f32> {
    let all = op(inputs.iter().map(|x| backend.act(rows, cols, x)).collect());
    let all = read(backend, &all);
    for row in 0..rows {
        let range = row * cols..(row + 1) * cols;
        let alone = op(inputs.iter().map(|x| backend.act(1, cols, &x[range.clone()])).collect());
        assert_same_bits(&read(backend, &alone), &all[range], &format!("row {row} of [{rows}, {cols}]"));
    }
    all
}

pub(super) fn acts(backend: &dyn Backend) {
    for (rows, cols) in SHAPES {
        let x = Noise::new(1).values(rows * cols);
        let act = backend.act(rows, cols, &x);
        assert_eq!((act.rows(), act.cols()), (rows, cols));
        assert_same_bits(&read(backend, &act), &x, &format!("[{rows}, {cols}]"));
    }
    // A buffer that comes back from the pool brings nothing of its past along.
    drop(backend.act(4, 64, &[7.0; 256]));
    assert_eq!(read(backend, &backend.act(3, 50, &[1.0; 150])), [1.0; 150]);
}

pub(super) fn norms(backend: &dyn Backend) {
    for shape @ (rows, cols) in SHAPES {
        let mut noise = Noise::new(2);
        let (x, y, w) = (noise.values(rows * cols), noise.values(rows * cols), noise.values(cols));
        let weight = vector(backend, &w);
        let case = format!("[{rows}, {cols}]");
        let got = by_rows(backend, &[&x], shape, |acts| backend.rms_norm(&acts[0], &weight, 1e-5));
        assert_close(&got, &reference::rms_norm(&x, &w, 1e-5), F32_TOLERANCE, &case);
        let mut residual = backend.act(rows, cols, &x);
        let got = backend.add_rms_norm(&mut residual, &backend.act(rows, cols, &y), 0.5, &weight, 1e-6);
        let sum: Vec<f32> = x.iter().zip(&y).map(|(a, b)| a + 0.5 * b).collect();
        let expected: Vec<f64> = sum.iter().map(|&v| f64::from(v)).collect();
        assert_close(&read(backend, &residual), &expected, F32_TOLERANCE, &case);
        assert_close(&read(backend, &got), &reference::rms_norm(&sum, &w, 1e-6), F32_TOLERANCE, &case);
    }
    for head_dim in [64, 80, 128, 256] {
        let mut noise = Noise::new(3);
        let (x, w) = (noise.values(6 * 3 * head_dim), noise.values(head_dim));
        let weight = vector(backend, &w);
        let got = by_rows(backend, &[&x], (6, 3 * head_dim), |mut acts| {
            backend.rms_norm_heads(&mut acts[0], &weight, 1e-6);
            acts.remove(0)
        });
        let case = format!("heads of {head_dim}");
        assert_close(&got, &reference::rms_norm(&x, &w, 1e-6), F32_TOLERANCE, &case);
    }
}

pub(super) fn layer_norms(backend: &dyn Backend) {
    for shape @ (rows, cols) in SHAPES {
        let mut noise = Noise::new(8);
        // Far from 0, where a variance from sums of squares would have lost its digits.
        let x: Vec<f32> = noise.values(rows * cols).iter().map(|v| v + 30.0).collect();
        let (w, b) = (noise.values(cols), noise.values(cols));
        let (weight, bias) = (vector(backend, &w), vector(backend, &b));
        for (bias, b) in [(None, None), (Some(&bias), Some(b.as_slice()))] {
            let got =
                by_rows(backend, &[&x], shape, |acts| backend.layer_norm(&acts[0], &weight, bias, 1e-5));
            // One column has no spread: what is left is the bias, or nothing.
            let expected = reference::layer_norm(&x, &w, b, 1e-5);
            let case = format!("[{rows}, {cols}], bias {}", b.is_some());
            assert_close(&got, &expected, CENTRED_TOLERANCE, &case);
        }
    }
}

pub(super) fn activations(backend: &dyn Backend) {
    let kinds = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Silu,
        Activation::Relu,
        Activation::Tanh,
    ];
    for kind in kinds {
        let run = |x: &[f32], rows, cols| {
            by_rows(backend, &[x], (rows, cols), |mut acts| {
                backend.activate(&mut acts[0], kind);
                acts.remove(0)
            })
        };
        let check = |x: &[f32], rows, cols| {
            let expected: Vec<f64> = x.iter().map(|&v| reference::activation(v, kind)).collect();
            let case = format!("{kind:?} [{rows}, {cols}]");
            assert_close(&run(x, rows, cols), &expected, FUNCTION_TOLERANCE, &case);
        };
        for (rows, cols) in SHAPES {
            let x: Vec<f32> = Noise::new(9).values(rows * cols).iter().map(|v| v * 4.0).collect();
            check(&x, rows, cols);
        }
        // Far out the functions reach their limits instead of overflowing.
        check(&[-1e4, -90.0, 90.0, 1e4], 1, 4);
    }
}

pub(super) fn arithmetic(backend: &dyn Backend) {
    for shape @ (rows, cols) in SHAPES {
        let mut noise = Noise::new(4);
        let (x, y) = (noise.values(rows * cols), noise.values(rows * cols));
        let case = format!("[{rows}, {cols}]");
        let got = by_rows(backend, &[&x, &y], shape, |mut acts| {
            let y = acts.remove(1);
            backend.add(&mut acts[0], &y, 0.25);
            acts.remove(0)
        });
        let expected: Vec<f64> =
            x.iter().zip(&y).map(|(&a, &b)| f64::from(a) + 0.25 * f64::from(b)).collect();
        assert_close(&got, &expected, F32_TOLERANCE, &case);
        let got = by_rows(backend, &[&x], shape, |mut acts| {
            backend.scale(&mut acts[0], -1.5);
            acts.remove(0)
        });
        let expected: Vec<f64> = x.iter().map(|&a| -1.5 * f64::from(a)).collect();
        assert_close(&got, &expected, F32_TOLERANCE, &case);
        let wide: Vec<f32> = x.iter().map(|v| v * 40.0).collect();
        let got = by_rows(backend, &[&wide], shape, |mut acts| {
            backend.softcap(&mut acts[0], 30.0);
            acts.remove(0)
        });
        let expected: Vec<f64> = wide.iter().map(|&a| 30.0 * (f64::from(a) / 30.0).tanh()).collect();
        assert_close(&got, &expected, FUNCTION_TOLERANCE, &case);
    }
}

pub(super) fn gates(backend: &dyn Backend) {
    let swiglu = Gate::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    for kind in [Gate::Silu, Gate::Gelu, Gate::GeluTanh, swiglu] {
        for shape @ (rows, cols) in SHAPES {
            let mut noise = Noise::new(5);
            let gate: Vec<f32> = noise.values(rows * cols).iter().map(|v| v * 4.0).collect();
            let up: Vec<f32> = noise.values(rows * cols).iter().map(|v| v * 4.0).collect();
            let got = by_rows(backend, &[&gate, &up], shape, |acts| backend.gated(&acts[0], &acts[1], kind));
            let expected: Vec<f64> =
                gate.iter().zip(&up).map(|(&g, &u)| reference::gated(g, u, kind)).collect();
            assert_close(&got, &expected, FUNCTION_TOLERANCE, &format!("{kind:?} [{rows}, {cols}]"));
        }
        // Far out the functions reach their limits instead of overflowing.
        let (gate, up) = ([-1e4f32, -90.0, 90.0, 1e4], [1f32; 4]);
        let got = read(backend, &backend.gated(&backend.act(1, 4, &gate), &backend.act(1, 4, &up), kind));
        let expected: Vec<f64> = gate.iter().map(|&g| reference::gated(g, 1.0, kind)).collect();
        assert_close(&got, &expected, FUNCTION_TOLERANCE, &format!("{kind:?} far out"));
    }
}

pub(super) fn selection(backend: &dyn Backend) {
    let x = Noise::new(6).values(9 * 300);
    let act = backend.act(9, 300, &x);
    let rows = [8u32, 0, 3, 3];
    let got = read(backend, &backend.gather_rows(&act, &rows));
    let expected: Vec<f32> = rows.iter().flat_map(|&r| &x[r as usize * 300..][..300]).copied().collect();
    assert_same_bits(&got, &expected, &"gathered rows");
    let mut x = vec![-1f32; 8 * 300];
    (x[7], x[250], x[300], x[599], x[899]) = (4.0, 4.0, 9.0, 8.0, 5.0);
    x[900..1200].fill(f32::NEG_INFINITY);
    x[1450] = f32::INFINITY;
    x[1799] = f32::NAN;
    x[1801] = -f32::NAN;
    x[2100..2400].fill(f32::NEG_INFINITY);
    x[2399] = f32::MIN;
    let found = backend.argmax(&backend.act(8, 300, &x)).expect("the device works");
    let expected = [Some(7), Some(0), Some(299), None, None, None, None, Some(299)];
    assert_eq!(found, expected, "the lowest column of the largest value, or none of what is no distribution");
    let wide = Noise::new(12).values(2 * 50_000);
    let found = backend.argmax(&backend.act(2, 50_000, &wide)).expect("the device works");
    let expected: Vec<Option<u32>> = wide.chunks_exact(50_000).map(crate::argmax).collect();
    assert_eq!(found, expected, "rows as long as a vocabulary");
    let expected: Vec<_> = wide.chunks_exact(50_000).map(|row| crate::largest(row, 40)).collect();
    let found = backend.largest(&backend.act(2, 50_000, &wide), 40).expect("the device works");
    assert_eq!(found, expected, "the largest of rows as long as a vocabulary");
    for n in [1, 2, 37, crate::MAX_LARGEST] {
        let found = backend.largest(&backend.act(8, 300, &x), n).expect("the device works");
        let rows = x.chunks_exact(300);
        let expected: Vec<_> =
            rows.map(|row| crate::argmax(row).map_or_else(Vec::new, |_| crate::largest(row, n))).collect();
        assert_eq!(found, expected, "the {n} largest, equal ones by their column");
    }
    for (rows, cols, values) in [(2, 50_000, &wide), (8, 300, &x)] {
        let found = backend.ranked(&backend.act(rows, cols, values), 40).expect("the device works");
        assert_eq!(found.len(), rows);
        for (found, row) in found.iter().zip(values.chunks_exact(cols)) {
            let expected = crate::Ranked::of(row, 40);
            assert_eq!(found.largest, expected.largest, "the largest of a row and their share");
            let error = (found.exp_sum / expected.exp_sum - 1.0).abs();
            assert!(
                expected.largest.is_empty() || error < crate::EXP_SUM_TOLERANCE / 2.0,
                "off by {error:e}"
            );
        }
    }
    let short = backend.largest(&backend.act(1, 3, &[1.0, 3.0, -2.0]), 40).expect("the device works");
    assert_eq!(short, [[(1, 3.0), (0, 1.0), (2, -2.0)]], "all of a short row");
}

pub(super) fn placement(backend: &dyn Backend) {
    let mut noise = Noise::new(13);
    for (n_rows, cols, rows) in [(1, 1, vec![0]), (9, 300, vec![8, 0, 3]), (70, 37, (0..64).rev().collect())]
    {
        let (x, y) = (noise.values(n_rows * cols), noise.values(rows.len() * cols));
        let mut act = backend.act(n_rows, cols, &x);
        backend.scatter_rows(&mut act, &rows, &backend.act(rows.len(), cols, &y));
        let mut expected = x;
        for (&row, y) in rows.iter().zip(y.chunks_exact(cols)) {
            expected[row as usize * cols..][..cols].copy_from_slice(y);
        }
        assert_same_bits(
            &read(backend, &act),
            &expected,
            &format!("{} rows of [{n_rows}, {cols}]", rows.len()),
        );
    }
}

pub(super) fn patches(backend: &dyn Backend) {
    // Square images and others, and pixels that fill no patch.
    for (n_channels, height, width, patch) in
        [(1, 1, 1, 1), (3, 28, 28, 14), (3, 23, 37, 5), (2, 64, 32, 16), (3, 224, 224, 14)]
    {
        let image = Noise::new(14).values(n_channels * height * width);
        let act = backend.patches(&backend.act(n_channels * height, width, &image), n_channels, patch);
        let (n_down, n_across) = (height / patch, width / patch);
        let case = format!("[{n_channels}, {height}, {width}] by {patch}");
        assert_eq!((act.rows(), act.cols()), (n_down * n_across, n_channels * patch * patch), "{case}");
        let mut expected = Vec::new();
        for (down, across) in (0..n_down).flat_map(|down| (0..n_across).map(move |across| (down, across))) {
            for channel in 0..n_channels {
                for line in channel * height + down * patch..channel * height + (down + 1) * patch {
                    expected.extend(&image[line * width + across * patch..][..patch]);
                }
            }
        }
        assert_same_bits(&read(backend, &act), &expected, &case);
    }
}

pub(super) fn rope(backend: &dyn Backend) {
    for (head_dim, rotary_dim) in [(64, 64), (80, 32), (96, 96), (128, 128), (256, 64)] {
        for pairing in [RopePairing::Half, RopePairing::Interleaved] {
            let half = rotary_dim / 2;
            let inv_freq: Vec<f32> =
                (0..half).map(|i| 1.0 / 10_000f32.powf(2.0 * i as f32 / rotary_dim as f32)).collect();
            let rope = Rope::new(pairing, inv_freq.clone(), 1.25);
            let mut batch = Batch::new();
            batch.push(&[0; 5], 0, &[0], 16);
            batch.push(&[0; 2], 5000, &(0..400).collect::<Vec<u32>>(), 16);
            let (n_heads, n_rows) = (3, batch.n_rows());
            let x = Noise::new(7).values(n_rows * n_heads * head_dim);
            let mut act = backend.act(n_rows, n_heads * head_dim, &x);
            backend.rope(&mut act, head_dim, &rope, &batch);
            // A second rope on the same batch must not be given the first one's angles.
            let other = Rope::new(pairing, inv_freq.iter().map(|f| f * 0.5).collect(), 1.0);
            let mut other_act = backend.act(n_rows, n_heads * head_dim, &x);
            backend.rope(&mut other_act, head_dim, &other, &batch);
            for (rope, act) in [(&rope, &act), (&other, &other_act)] {
                let heads = x.chunks_exact(head_dim).enumerate();
                let expected: Vec<f64> = heads
                    .flat_map(|(i, head)| {
                        let position = batch.positions[i / n_heads];
                        reference::rope(head, position, &rope.inv_freq, rope.magnitude, pairing)
                    })
                    .collect();
                let case = format!("head {head_dim}, rotary {rotary_dim}, {pairing:?}");
                assert_close(&read(backend, act), &expected, F32_TOLERANCE, &case);
            }
        }
    }
}
