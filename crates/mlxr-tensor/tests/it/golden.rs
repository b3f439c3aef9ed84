//! Bit-exact comparison with `gguf.quants` and `mlx.core`.

use std::path::PathBuf;

use mlxr_tensor::codec::{dequantise_row, quantise, quantise_mlx, quantise_mlx_float};
use mlxr_tensor::{DType, Format, HostTensor, MlxFloat};

const ROWS: usize = 4;
const COLS: usize = 512;

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/quant").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The values that every encode file was made from.
pub fn values() -> Vec<f32> {
    floats(&golden("values.f32"))
}

#[track_caller]
fn assert_same_bits(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let same = f.to_bits() == e.to_bits() || (f.is_nan() && e.is_nan());
        assert!(same, "{what}: element {i} is {f} ({:08x}), not {e} ({:08x})", f.to_bits(), e.to_bits());
    }
}

#[track_caller]
fn check_decode(dtype: DType) {
    let file = golden(&format!("{dtype}.decode"));
    let n = file.len() / (dtype.block_bytes() + 4 * dtype.block_len()) * dtype.block_len();
    let (blocks, expected) = file.split_at(dtype.bytes_for(n).expect("whole blocks"));
    let mut found = vec![f32::NAN; n];
    dequantise_row(dtype, blocks, &mut found).expect("valid input");
    assert_same_bits(dtype.name(), &found, &floats(expected));
}

#[track_caller]
fn check_encode(dtype: DType) {
    let expected = golden(&format!("{dtype}.encode"));
    let found = quantise(dtype, &values(), COLS, None).expect("valid input");
    let (found, expected) = (found.chunks(dtype.block_bytes()), expected.chunks(dtype.block_bytes()));
    assert_eq!(found.len(), expected.len());
    for (i, (f, e)) in found.zip(expected).enumerate() {
        assert_eq!(f, e, "{dtype} block {i}");
    }
}

#[test]
fn random_blocks_decode_to_the_bits_of_gguf() {
    use DType::*;
    for dtype in [
        BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS,
        IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4, NVFP4,
    ] {
        check_decode(dtype);
    }
}

#[test]
fn every_8_bit_float_decodes_to_the_bits_of_torch() {
    check_decode(DType::F8E4M3);
    check_decode(DType::F8E5M2);
}

#[test]
fn values_encode_to_the_bytes_of_gguf() {
    use DType::*;
    for dtype in [F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, TQ1_0, TQ2_0, MXFP4] {
        check_encode(dtype);
    }
}

/// Cuts a golden file into parts of the given lengths.
fn parts<const N: usize>(file: &[u8], lengths: [usize; N]) -> [Vec<u8>; N] {
    let mut rest = file;
    let parts = lengths.map(|n| rest.split_off(..n).expect("a longer golden file").to_vec());
    assert!(rest.is_empty());
    parts
}

#[test]
fn mlx_affine_codes_and_values_equal_mlx() {
    for bits in [2u8, 3, 4, 5, 6, 8] {
        for group_size in [32u16, 64, 128] {
            let n = ROWS * COLS;
            let n_scales = n / usize::from(group_size) * 4;
            let file = golden(&format!("mlx-{bits}bit-g{group_size}"));
            let lengths = [n * usize::from(bits) / 8, n_scales, n_scales, n * 4];
            let [data, scales, biases, decoded] = parts(&file, lengths);
            let found = quantise_mlx(&values(), COLS, bits, group_size, DType::F32).expect("valid input");
            assert!(found == (data.clone(), scales.clone(), biases.clone()), "{bits}-bit g{group_size}");
            let format = Format::MlxAffine { bits, group_size, scale: DType::F32 };
            let tensor = HostTensor::with_scales(
                "w",
                &[ROWS, COLS],
                format,
                data.into(),
                scales.into(),
                biases.into(),
            );
            assert_same_bits(
                &format.name(),
                &tensor.expect("valid parts").to_f32().expect("a codec"),
                &floats(&decoded),
            );
        }
    }
}

#[test]
fn mlx_affine_of_bf16_values_equals_mlx() {
    let n = ROWS * COLS;
    let [data, scales, biases] = parts(&golden("mlx-4bit-g64-bf16"), [n / 2, n / 32, n / 32]);
    let rounded: Vec<f32> = values().iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect();
    let found = quantise_mlx(&rounded, COLS, 4, 64, DType::BF16).expect("valid input");
    assert!(found == (data, scales, biases));
}

#[test]
fn mlx_block_floats_equal_mlx() {
    for (name, mode) in [("mxfp4", MlxFloat::Mxfp4), ("nvfp4", MlxFloat::Nvfp4), ("mxfp8", MlxFloat::Mxfp8)] {
        let n = ROWS * COLS;
        let lengths = [n * mode.bits() / 8, n / mode.group_size(), n * 4];
        let [data, scales, decoded] = parts(&golden(&format!("mlx-{name}")), lengths);
        let found = quantise_mlx_float(mode, &values(), COLS).expect("valid input");
        assert!(found == (data.clone(), scales.clone()), "{name}");
        let format = Format::MlxFloat(mode);
        let tensor = HostTensor::with_scales(
            "w",
            &[ROWS, COLS],
            format,
            data.into(),
            scales.into(),
            Default::default(),
        );
        assert_same_bits(name, &tensor.expect("valid parts").to_f32().expect("a codec"), &floats(&decoded));
    }
}
