//! Properties that hold for every type.

use mlxr_tensor::DType;
use mlxr_tensor::codec::{can_quantise, dequantise_row, quantise};

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
    (DType::Q3_K, 0.103),
    (DType::Q4_K, 0.033),
    (DType::Q5_K, 0.015),
    (DType::Q6_K, 0.0135),
    (DType::Q8_K, 0.0042),
    (DType::IQ4_NL, 0.062),
    (DType::IQ4_XS, 0.062),
    (DType::TQ1_0, 0.48),
    (DType::TQ2_0, 0.48),
    (DType::MXFP4, 0.115),
    (DType::NVFP4, 0.095),
];

/// Root mean square error of a round trip relative to the root mean square of the values.
fn relative_error(dtype: DType, x: &[f32], cols: usize) -> f32 {
    let bytes = quantise(dtype, x, cols, None).expect("valid input");
    let mut decoded = vec![f32::NAN; x.len()];
    dequantise_row(dtype, &bytes, &mut decoded).expect("valid input");
    let error: f32 = x.iter().zip(&decoded).map(|(a, b)| (a - b).powi(2)).sum();
    (error / x.iter().map(|v| v * v).sum::<f32>()).sqrt()
}

#[test]
fn every_encoder_stays_within_its_error_bound() {
    for &dtype in DType::ALL.iter().filter(|d| can_quantise(**d)) {
        let (_, bound) = ERROR_BOUNDS.iter().find(|(d, _)| *d == dtype).expect("a bound for every encoder");
        let error = relative_error(dtype, &values(), 512);
        assert!(error <= *bound, "{dtype}: {error} > {bound}");
    }
}
