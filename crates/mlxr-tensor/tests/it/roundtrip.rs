//! Properties that hold for every type.

use std::num::NonZeroU32;

use mlxr_tensor::codec::{
    can_quantise, dequantise_row, dequantise_rows, quantise, quantise_mlx, quantise_mlx_float, row_decoder,
};
use mlxr_tensor::{DType, Format, HostTensor, MlxFloat};
use proptest::prelude::*;

use crate::golden::values;

/// Largest relative root mean square error of a round trip on the golden values, which hold outliers, offsets and
/// zeros. Measured, plus a few per cent.
const ERROR_BOUNDS: &[(DType, f32)] = &[
    (DType::F32, 0.0),
    (DType::F16, 0.0003),
    (DType::BF16, 0.0025),
    (DType::F8E4M3, 0.03),
    (DType::Q1_0, 0.60),
    (DType::Q4_0, 0.065),
    (DType::Q4_1, 0.048),
    (DType::Q5_0, 0.032),
    (DType::Q5_1, 0.025),
    (DType::Q8_0, 0.004),
    (DType::Q8_1, 0.004),
    (DType::Q2_K, 0.15),
    (DType::Q3_K, 0.098),
    (DType::Q4_K, 0.033),
    (DType::Q5_K, 0.015),
    (DType::Q6_K, 0.0135),
    (DType::Q8_K, 0.0042),
    (DType::IQ1_S, 0.37),
    (DType::IQ1_M, 0.355),
    (DType::IQ2_XXS, 0.342),
    (DType::IQ2_XS, 0.274),
    (DType::IQ2_S, 0.252),
    (DType::IQ3_XXS, 0.167),
    (DType::IQ3_S, 0.132),
    (DType::IQ4_NL, 0.061),
    (DType::IQ4_XS, 0.061),
    (DType::TQ1_0, 0.48),
    (DType::TQ2_0, 0.48),
    (DType::MXFP4, 0.115),
    (DType::NVFP4, 0.095),
];

/// Types whose encoder searches and weighs, so that importance must help. The others follow a formula.
const WEIGHED: &[DType] = &[
    DType::Q1_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ1_S,
    DType::IQ1_M,
    DType::IQ2_XXS,
    DType::IQ2_XS,
    DType::IQ2_S,
    DType::IQ3_XXS,
    DType::IQ3_S,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
    DType::NVFP4,
];

/// Types that give the same bytes back when their own output is encoded again.
const STABLE: &[DType] = &[
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8E4M3,
    DType::Q4_0,
    DType::Q5_0,
    DType::Q8_0,
    DType::Q8_1,
    DType::TQ1_0,
    DType::TQ2_0,
];

fn encoders() -> impl Iterator<Item = DType> {
    DType::ALL.iter().copied().filter(|d| can_quantise(*d))
}

fn round_trip(dtype: DType, x: &[f32], cols: usize, importance: Option<&[f32]>) -> Vec<f32> {
    let bytes = quantise(dtype, x, cols, importance).expect("valid input");
    let mut decoded = vec![f32::NAN; x.len()];
    dequantise_row(dtype, &bytes, &mut decoded).expect("valid input");
    decoded
}

/// Root mean square error relative to the root mean square of the values, both weighed by column.
fn relative_error(x: &[f32], decoded: &[f32], w: &[f32]) -> f32 {
    let sum = |f: &dyn Fn(usize) -> f32| -> f32 { (0..x.len()).map(|i| w[i % w.len()] * f(i).powi(2)).sum() };
    (sum(&|i| x[i] - decoded[i]) / sum(&|i| x[i])).sqrt()
}

/// Importance that varies over three orders of magnitude.
fn uneven_importance(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 64) as f32 / 9.0).exp()).collect()
}

#[test]
fn every_encoder_stays_within_its_error_bound() {
    let x = values();
    let beyond: Vec<(DType, f32)> = encoders()
        .map(|dtype| (dtype, relative_error(&x, &round_trip(dtype, &x, 512, None), &[1.0])))
        .filter(|(dtype, error)| {
            let bound = ERROR_BOUNDS.iter().find(|(d, _)| d == dtype).expect("a bound for every encoder");
            *error > bound.1
        })
        .collect();
    assert!(beyond.is_empty(), "{beyond:?}");
}

#[test]
fn importance_lowers_the_error_where_it_counts() {
    let x = values();
    let importance = uneven_importance(512);
    for &dtype in WEIGHED {
        let [plain, weighed] = [None, Some(&importance[..])]
            .map(|w| relative_error(&x, &round_trip(dtype, &x, 512, w), &importance));
        assert!(weighed < plain, "{dtype}: {weighed} with importance, {plain} without");
    }
}

#[test]
fn rows_are_encoded_independently() {
    let x = values();
    let importance = uneven_importance(512);
    for dtype in encoders() {
        let whole = quantise(dtype, &x, 512, Some(&importance)).expect("valid input");
        let rows =
            x.chunks(512).map(|row| quantise(dtype, row, 512, Some(&importance)).expect("valid input"));
        assert!(rows.flatten().eq(whole), "{dtype}");
    }
}

#[test]
fn zeros_stay_zero_and_finite_extremes_stay_finite() {
    for dtype in encoders() {
        assert!(round_trip(dtype, &[0.0; 256], 256, None).iter().all(|v| *v == 0.0), "{dtype}");
        let largest = if dtype == DType::F8E4M3 { 448.0 } else { 2600.0 };
        for scale in [1e-38, 1e-6, largest] {
            let x: Vec<f32> = (0..256).map(|i| scale * ((i * 7 % 29) as f32 / 14.0 - 1.0)).collect();
            let decoded = round_trip(dtype, &x, 256, Some(&[0.0; 256]));
            let bound = 3.0 * scale.max(1e-3);
            assert!(decoded.iter().all(|v| v.abs() <= bound), "{dtype} at {scale}: {decoded:?}");
        }
    }
}

#[test]
fn values_that_are_not_finite_are_named() {
    let mut x = values();
    x[512 + 77] = f32::NAN;
    let message = |x: &[f32]| quantise(DType::Q4_K, x, 512, None).expect_err("an error").to_string();
    assert_eq!(message(&x), "cannot quantise to Q4_K: row 1 column 77 is NaN");
    x[512 + 77] = 0.0;
    x[1024 + 3] = f32::NEG_INFINITY;
    assert_eq!(message(&x), "cannot quantise to Q4_K: row 2 column 3 is -inf");
    x[1024 + 3] = 1e6;
    assert_eq!(
        message(&x),
        "cannot quantise to Q4_K: row 2 column 3 is 1000000, beyond the largest magnitude 65504"
    );
    x[1024 + 3] = f32::INFINITY;
    assert!(encoders().all(|dtype| quantise(dtype, &x, 512, None).is_err()));
    assert!(quantise_mlx(&x, 512, 4, 64, DType::F16).is_err());
    assert!(quantise_mlx_float(MlxFloat::Mxfp4, &x, 512).is_err());
}

#[test]
fn lengths_and_importance_are_checked() {
    let message = |x: &[f32], cols, w: Option<&[f32]>| {
        quantise(DType::Q4_0, x, cols, w).expect_err("an error").to_string()
    };
    let x = [0.0; 64];
    assert!(message(&x, 48, None).contains("64 values in rows of 48 do not fit blocks of 32"));
    assert!(message(&x, 0, None).contains("rows of 0"));
    assert!(message(&x, 64, Some(&[1.0; 32])).contains("importance has 32 values for 64 columns"));
    let mut w = [1.0; 64];
    w[5] = -1.0;
    assert!(message(&x, 64, Some(&w)).contains("importance of column 5 is -1"));
    assert!(quantise_mlx(&x, 64, 7, 64, DType::F16).is_err());
    assert!(quantise_mlx(&x, 64, 4, 0, DType::F16).is_err());
    assert!(quantise_mlx(&x, 64, 4, 64, DType::Q4_0).is_err());
    assert!(quantise_mlx(&x, 32, 4, 64, DType::F16).is_err());
}

#[test]
fn types_without_a_reference_decode_by_their_formula() {
    let block_32 = |d: f32| -> Vec<u8> {
        let codes = (0..32).map(|i| (i * 8 - 128) as i8 as u8);
        half::f16::from_f32(d).to_le_bytes().into_iter().chain([0, 0]).chain(codes).collect()
    };
    let mut out = vec![0.0; 32];
    dequantise_row(DType::Q8_1, &block_32(0.5), &mut out).expect("one block");
    assert!(out.iter().enumerate().all(|(i, v)| *v == 0.5 * (i as f32 * 8.0 - 128.0)));

    let codes = (0..256).map(|i| (i - 128) as i8 as u8);
    let block: Vec<u8> = 0.25f32.to_le_bytes().into_iter().chain(codes).chain([0xab; 32]).collect();
    let mut out = vec![0.0; 256];
    dequantise_row(DType::Q8_K, &block, &mut out).expect("one block");
    assert!(out.iter().enumerate().all(|(i, v)| *v == 0.25 * (i as f32 - 128.0)));

    let bits = (0..16).map(|i| if i < 8 { 0b0000_0001 } else { 0xff });
    let block: Vec<u8> = half::f16::from_f32(1.5).to_le_bytes().into_iter().chain(bits).collect();
    let mut out = vec![0.0; 128];
    dequantise_row(DType::Q1_0, &block, &mut out).expect("one block");
    let sign = |i: usize| if i >= 64 || i.is_multiple_of(8) { 1.5 } else { -1.5 };
    assert!(out.iter().enumerate().all(|(i, v)| *v == sign(i)));
}

#[test]
fn the_sums_of_8_bit_blocks_are_those_of_their_codes() {
    let x = values();
    for block in quantise(DType::Q8_K, &x, 512, None).expect("valid input").chunks(292) {
        for (j, codes) in block[4..260].chunks(16).enumerate() {
            let sum: i16 = codes.iter().map(|c| i16::from(*c as i8)).sum();
            assert_eq!(block[260 + 2 * j..][..2], sum.to_le_bytes());
        }
    }
    for block in quantise(DType::Q8_1, &x, 512, None).expect("valid input").chunks(36) {
        let half = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let sum: i32 = block[4..].iter().map(|c| i32::from(*c as i8)).sum();
        assert!((half(2) - half(0) * sum as f32).abs() <= 2e-3 * half(2).abs() + 1e-6);
    }
}

#[test]
fn integers_and_doubles_decode_to_their_values() {
    fn check<const N: usize>(dtype: DType, bytes: [u8; N], expected: f32) {
        let mut out = [f32::NAN];
        dequantise_row(dtype, &bytes, &mut out).expect("one element");
        assert_eq!(out[0], expected, "{dtype}");
    }
    check(DType::I8, [0x80], -128.0);
    check(DType::I16, (-30000i16).to_le_bytes(), -30000.0);
    check(DType::I32, 1_000_000i32.to_le_bytes(), 1_000_000.0);
    check(DType::I64, (-(1i64 << 40)).to_le_bytes(), -1_099_511_627_776.0);
    check(DType::F64, 0.1f64.to_le_bytes(), 0.1);
    check(DType::F32, f32::MIN_POSITIVE.to_le_bytes(), f32::MIN_POSITIVE);
    assert!(dequantise_row(DType::U32, &[0; 4], &mut [0.0]).is_err());
    assert!(dequantise_row(DType::Q4_0, &[0; 17], &mut [0.0; 32]).is_err());
}

#[test]
fn a_range_of_rows_equals_those_rows_of_the_whole() {
    let x = values();
    let (data, scales, biases) = quantise_mlx(&x, 512, 5, 64, DType::BF16).expect("valid input");
    let affine = Format::MlxAffine { bits: 5, group_size: 64, scale: DType::BF16 };
    let (codes, exponents) = quantise_mlx_float(MlxFloat::Mxfp8, &x, 512).expect("valid input");
    let float = Format::MlxFloat(MlxFloat::Mxfp8);
    let plain = quantise(DType::Q5_K, &x, 512, None).expect("valid input");
    for tensor in [
        HostTensor::with_scales("a", &[2, 2, 512], affine, data.into(), scales.into(), biases.into()),
        HostTensor::with_scales("f", &[4, 512], float, codes.into(), exponents.into(), Default::default()),
        HostTensor::new("p", &[4, 512], DType::Q5_K, plain.into()),
    ] {
        let tensor = tensor.expect("valid parts");
        let whole = tensor.to_f32().expect("a codec");
        let mut rows = vec![f32::NAN; 1024];
        dequantise_rows(&tensor, 1..3, &mut rows).expect("a codec");
        assert_eq!(rows, whole[512..1536]);
        assert_eq!(tensor.row_slice(1..3).to_f32().expect("a codec"), rows);
    }
}

#[test]
fn mlx_formats_nobody_wrote_are_refused() {
    let tensor = |bits, group_size, scale| {
        let format = Format::MlxAffine { bits, group_size, scale };
        let scales = bytes::Bytes::from(vec![0; format.row_scale_bytes(64)]);
        let data = vec![0; usize::from(bits) * 8];
        HostTensor::with_scales("w", &[1, 64], format, data.into(), scales.clone(), scales)
            .expect("valid parts")
    };
    assert!(tensor(4, 64, DType::F16).to_f32().is_ok());
    assert!(tensor(7, 64, DType::F16).to_f32().is_err());
    assert!(tensor(16, 64, DType::F16).to_f32().is_err());
    assert!(tensor(4, 4, DType::F16).to_f32().is_err());
    assert!(tensor(4, 64, DType::U16).to_f32().is_err());
}

/// Random numbers of the reference generator of xorshift32.
fn noise(seed: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(NonZeroU32::new(seed), |state| {
        let mut s = state.get();
        s ^= s << 13;
        s ^= s >> 17;
        s ^= s << 5;
        NonZeroU32::new(s)
    })
    .map(NonZeroU32::get)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_bytes_decode_without_panic(seed in 1u32..) {
        let bytes: Vec<u8> = noise(seed).map(|v| (v >> 11) as u8).take(292 * 4).collect();
        for &dtype in DType::ALL {
            let Some(decode) = row_decoder(dtype) else { continue };
            let n_blocks = bytes.len() / dtype.block_bytes();
            let mut out = vec![0.0; n_blocks * dtype.block_len()];
            decode(&bytes[..n_blocks * dtype.block_bytes()], &mut out);
        }
    }

    #[test]
    fn what_an_encoder_made_it_makes_again(x in prop::collection::vec(-4f32..4.0, 256)) {
        for &dtype in STABLE {
            let once = round_trip(dtype, &x, 256, None);
            prop_assert_eq!(&round_trip(dtype, &once, 256, None), &once, "{}", dtype);
        }
    }

    #[test]
    fn uniform_values_stay_within_half_a_step(x in prop::collection::vec(-1f32..1.0, 256)) {
        // Steps of the formula types over the range of a block, with slack for the f16 scale.
        for (dtype, steps) in [(DType::Q4_1, 15.0), (DType::Q5_1, 31.0), (DType::Q8_0, 254.0)] {
            let decoded = round_trip(dtype, &x, 256, None);
            for (a, b) in x.iter().zip(&decoded) {
                prop_assert!((a - b).abs() <= 1.0 / steps + 3e-3, "{} {} {}", dtype, a, b);
            }
        }
    }

    #[test]
    fn mlx_affine_stays_within_half_a_step(
        x in prop::collection::vec(-1f32..1.0, 256),
        bits in prop::sample::select(vec![2u8, 3, 4, 5, 6, 8]),
        group_size in prop::sample::select(vec![32u16, 64, 128]),
    ) {
        let (data, scales, biases) = quantise_mlx(&x, 256, bits, group_size, DType::F32).expect("valid input");
        let format = Format::MlxAffine { bits, group_size, scale: DType::F32 };
        let tensor =
            HostTensor::with_scales("w", &[1, 256], format, data.into(), scales.into(), biases.into());
        let decoded = tensor.expect("valid parts").to_f32().expect("a codec");
        // The step is stretched so that zero is a code: by less than half a step over the smaller side.
        let bound = 2.0 / (f32::from(bits) - 0.5).exp2();
        for (a, b) in x.iter().zip(&decoded) {
            prop_assert!((a - b).abs() <= bound, "{} {}", a, b);
        }
    }
}
