//! Every table's kernels against the scalar ones, with ragged sizes.

use mlxr_tensor::conformance::data::{self, Noise};
use mlxr_tensor::{DType, Format};
use proptest::prelude::*;

use crate::kernels::{Kernels, TILE};
use crate::linear::codes::{CodeKind, CodeRow, Panel, QuantActs, QuantRow, StoredRow};
use crate::scalar;

/// Difference of two sums of the same terms in different orders, relative to the sum of their magnitudes.
const ORDER_TOLERANCE: f32 = 1e-6;

/// Difference of element-wise functions with and without fused multiply-add.
const FUNCTION_TOLERANCE: f32 = 2e-6;

fn assert_close(got: &[f32], expected: &[f32], size: f32, tolerance: f32, kernels: &Kernels) {
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(
            (g - e).abs() <= tolerance * size,
            "{kernels:?}: element {i} is {g}, scalar {e}, size {size}"
        );
    }
}

fn quantised(kernels: &Kernels, x: &[f32]) -> QuantActs {
    let mut acts = QuantActs::zeroed(1, x.len());
    let lens = acts.row_lens();
    let (codes, floats) = acts.parts_mut();
    kernels.quantise(x, QuantActs::row_mut(lens, codes, floats));
    acts
}

proptest! {
    #[test]
    fn float_dots_equal_the_scalar_ones(cols in 1usize..200, n_w in 1..=TILE, n_x in 1..=TILE, seed: u64) {
        let mut noise = Noise::new(seed);
        let xs: Vec<Vec<f32>> = (0..n_x).map(|_| noise.values(cols)).collect();
        let xs: Vec<&[f32]> = xs.iter().map(Vec::as_slice).collect();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = data::tensor(Format::Plain(dtype), &[n_w, cols], &mut noise);
            let rows: Vec<&[u8]> = tensor.data().chunks_exact(tensor.data().len() / n_w).collect();
            let run = |kernels: &Kernels| {
                let dot = kernels.dot_floats(tensor.format()).expect("a float type");
                let mut out = [0f32; TILE * TILE];
                // SAFETY: the table came from `Kernels::available`.
                unsafe { dot(&rows, &xs, &mut out) };
                out
            };
            let expected = run(&scalar::TABLE);
            for kernels in Kernels::available() {
                assert_close(&run(&kernels), &expected, cols as f32 * 4.0, ORDER_TOLERANCE, &kernels);
            }
        }
    }

    #[test]
    fn code_dots_equal_the_scalar_ones(
        n_groups in 1usize..12, n_w in 1..=TILE, n_x in 1..=TILE, seed: u64,
        signed: bool, wide: bool, offsets: bool,
    ) {
        let kind = CodeKind { signed, group: if wide { 32 } else { 16 }, offsets };
        let cols = n_groups * 32;
        let mut noise = Noise::new(seed);
        let mut panel = Panel::empty();
        panel.reshape(TILE, cols, kind.group);
        for row in 0..n_w {
            let out = panel.row_mut(row);
            // The extreme codes are where 16-bit steps would saturate.
            let code = |n: &mut Noise| [-128, -127, 127, n.next_u64() as i8][n.below(4)];
            out.codes.fill_with(|| if signed { code(&mut noise) } else { code(&mut noise) & 127 });
            out.scales.fill_with(|| noise.value());
            out.offsets.fill_with(|| if offsets { noise.value() } else { 0.0 });
        }
        let rows: Vec<CodeRow<'_>> = (0..n_w).map(|i| panel.row(i)).collect();
        let acts: Vec<QuantActs> =
            (0..n_x).map(|_| quantised(&scalar::TABLE, &noise.values(cols))).collect();
        let xs: Vec<QuantRow<'_>> = acts.iter().map(|a| a.row(0)).collect();
        let run = |kernels: &Kernels| {
            let mut out = [0f32; TILE * TILE];
            // SAFETY: the table came from `Kernels::available`.
            unsafe { (kernels.dot_codes)(kind, &rows, &xs, &mut out) };
            out
        };
        let expected = run(&scalar::TABLE);
        for kernels in Kernels::available() {
            assert_close(&run(&kernels), &expected, cols as f32 * 512.0, ORDER_TOLERANCE, &kernels);
        }
    }

    #[test]
    fn quantised_activations_are_the_same_everywhere(n_groups in 1usize..9, seed: u64, zero: bool) {
        let mut x = Noise::new(seed).values(n_groups * 32);
        if zero {
            x[..32].fill(0.0);
        }
        let expected = quantised(&scalar::TABLE, &x);
        for kernels in Kernels::available() {
            let got = quantised(&kernels, &x);
            let (got, expected) = (got.row(0), expected.row(0));
            prop_assert_eq!(got.codes, expected.codes);
            prop_assert_eq!(got.scales, expected.scales);
            prop_assert_eq!(got.sums16, expected.sums16);
            prop_assert_eq!(got.sums32, expected.sums32);
        }
    }

    #[test]
    fn element_wise_loops_equal_the_scalar_ones(n in 1usize..120, seed: u64) {
        let mut noise = Noise::new(seed);
        let (x, w) = (noise.values(n), noise.values(n));
        let scalar = scalar::TABLE;
        for kernels in Kernels::available() {
            let both = |op: &dyn Fn(&Kernels, &mut [f32])| {
                let (mut got, mut expected) = (x.clone(), x.clone());
                op(&kernels, &mut got);
                op(&scalar, &mut expected);
                assert_close(&got, &expected, 8.0, FUNCTION_TOLERANCE, &kernels);
            };
            prop_assert_eq!(kernels.max(&x), scalar.max(&x));
            both(&|k, x| x[0] = k.exp_sum(&mut x.to_vec(), 3.0));
            both(&|k, x| x[0] = k.sum_squares(x) / n as f32);
            both(&|k, x| { k.exp_sum(x, 3.0); });
            both(&|k, x| k.softcap(x, 2.0));
            both(&|k, x| k.add_scaled(x, &w, 0.5));
            both(&|k, x| k.norm_in_place(x, &w, 0.7));
            both(&|k, x| { let n = x.len() / 2; k.rotate_half(&mut x[..2 * n], &w[..n], &w[n..2 * n]) });
            both(&|k, x| { let n = x.len() / 2; k.rotate_pairs(&mut x[..2 * n], &w[..n], &w[n..2 * n]) });
        }
    }
}

#[test]
fn unpacked_rows_are_the_same_bits_everywhere() {
    for format in data::formats() {
        let Some((kind, _)) = (scalar::TABLE.unpack)(format) else { continue };
        let cols = 768;
        let tensor = data::unaligned(&data::tensor(format, &[1, cols], &mut Noise::new(9)));
        let group_size = match format {
            Format::MlxAffine { group_size, .. } => group_size.into(),
            _ => 32,
        };
        let row =
            StoredRow { data: tensor.data(), scales: tensor.scales(), biases: tensor.biases(), group_size };
        let run = |kernels: &Kernels| {
            let (found, unpack) = (kernels.unpack)(format).expect("every table unpacks the same formats");
            assert_eq!(found, kind);
            let mut panel = Panel::empty();
            panel.reshape(1, cols, kind.group);
            // SAFETY: the table came from `Kernels::available`.
            unsafe { unpack(row, panel.row_mut(0)) };
            panel
        };
        let expected = run(&scalar::TABLE);
        // What the codes mean is what the codec says.
        let values = tensor.to_f32().expect("numbers");
        let stored = expected.row(0);
        for (i, &value) in values.iter().enumerate() {
            let group = i / kind.group;
            let unpacked = stored.scales[group] * f32::from(stored.codes[i]) + stored.offsets[group];
            let limit = 1e-5 * (stored.scales[group].abs() * 128.0 + stored.offsets[group].abs());
            assert!((unpacked - value).abs() <= limit, "{}: {unpacked} {value}", format.name());
        }
        for kernels in Kernels::available() {
            let got = run(&kernels);
            let (got, expected) = (got.row(0), expected.row(0));
            assert_eq!(got.codes, expected.codes, "{} {kernels:?}", format.name());
            assert_eq!(got.scales, expected.scales, "{} {kernels:?}", format.name());
            assert_eq!(got.offsets, expected.offsets, "{} {kernels:?}", format.name());
        }
    }
}
