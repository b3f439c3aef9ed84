//! Scalar codecs: the oracle every kernel is tested against.
//!
//! Decoding reproduces the `gguf` Python package bit for bit (and MLX's arithmetic in f32), encoding reproduces it
//! for every type that package encodes when no importance is given. Everything here is a pure function of its
//! arguments, so rows may be coded from any number of threads and the bytes never depend on how work is split.
//!
//! One file per family: block layouts are documented as byte offsets beside the code that reads them.

mod apart;
mod codebook;
mod encode;
mod fit;
mod fp4;
mod fp8;
mod grids;
mod iquant;
mod iquant_encode;
mod kquant;
mod kquant_encode;
mod legacy;
mod mlx;
mod plain;
mod planes;
mod scaled;
mod ternary;

use std::ops::Range;

pub use apart::{FP4, NF4};
pub use encode::{can_quantise, quantise};
pub use fp4::{DOUBLED as FP4_DOUBLED, half_ue4m3};
pub use fp8::{e4m3_to_f32, e8m0_to_f32, f32_to_e4m3};
pub use iquant::IQ4_LEVELS;
pub use kquant::{q3_k_scales, scales_and_mins};
pub use legacy::{decode_q4_0, encode_q4_0, five_bit_codes};
pub use mlx::{AffineParts, quantise_mlx, quantise_mlx_float};
pub use planes::unpack as unpack_codes;

use crate::{DType, Format, HostTensor, TensorError};

/// Decodes whole blocks: `bytes` holds exactly the blocks that fill `out`.
pub type RowDecoder = fn(bytes: &[u8], out: &mut [f32]);

/// All elements of `tensor` as f32, row-major.
///
/// # Errors
/// [`TensorError::NoCodec`] for storage types that are not numbers to compute with.
pub fn dequantise(tensor: &HostTensor) -> Result<Vec<f32>, TensorError> {
    let mut out = vec![0.0; tensor.n_elements()];
    dequantise_rows(tensor, 0..tensor.rows(), &mut out)?;
    Ok(out)
}

/// Rows `rows` of the flattened `[rows, cols]` view of `tensor` as f32 into `out`.
///
/// # Errors
/// [`TensorError::NoCodec`] for storage types that are not numbers to compute with.
///
/// # Panics
/// When `rows` exceeds the tensor or `out` does not hold `rows.len() * cols` elements: callers take both from the
/// shape.
pub fn dequantise_rows(tensor: &HostTensor, rows: Range<usize>, out: &mut [f32]) -> Result<(), TensorError> {
    assert!(rows.start <= rows.end && rows.end <= tensor.rows(), "rows {rows:?} of {}", tensor.rows());
    let cols = tensor.cols();
    assert_eq!(out.len(), rows.len() * cols, "output of rows {rows:?} with {cols} columns");
    let format = tensor.format();
    let cut =
        |bytes: &bytes::Bytes, row_bytes: usize| bytes.slice(rows.start * row_bytes..rows.end * row_bytes);
    let row_bytes = tensor.data().len() / tensor.rows().max(1);
    let data = cut(tensor.data(), row_bytes);
    let no_codec = |dtype| TensorError::NoCodec { name: tensor.name().to_owned(), dtype };
    match format {
        Format::Plain(dtype) => {
            let decode = row_decoder(dtype).ok_or_else(|| no_codec(dtype))?;
            decode(&data, out);
        }
        Format::MlxAffine { bits, group_size, scale } => {
            let affine = mlx::Affine { bits: bits.into(), group_size: group_size.into() };
            let decode_scale = affine.is_valid().then(|| row_decoder(scale)).flatten();
            let decode_scale = decode_scale.ok_or_else(|| no_codec(DType::U32))?;
            let scale_bytes = format.row_scale_bytes(cols);
            let n_groups = out.len() / affine.group_size;
            let mut scales = vec![0.0; n_groups];
            let mut biases = vec![0.0; n_groups];
            decode_scale(&cut(tensor.scales(), scale_bytes), &mut scales);
            decode_scale(&cut(tensor.biases(), scale_bytes), &mut biases);
            affine.decode(&data, &scales, &biases, out);
        }
        Format::MlxFloat(mode) => {
            mlx::decode_float(mode, &data, &cut(tensor.scales(), format.row_scale_bytes(cols)), out);
        }
        Format::Scaled { element, group_size } => {
            let decode = row_decoder(element).ok_or_else(|| no_codec(element))?;
            decode(&data, out);
            let group_size = group_size.map_or(cols, |n| n.get() as usize);
            apart::scale_rows(&cut(tensor.scales(), format.row_scale_bytes(cols)), cols, group_size, out);
        }
        Format::Codebook { table, group_size } => {
            apart::look_up(table.values(), &data, out);
            let group_size = group_size.into();
            apart::scale_rows(&cut(tensor.scales(), format.row_scale_bytes(cols)), cols, group_size, out);
        }
    }
    Ok(())
}

/// One row (or any run of whole blocks) of `dtype` as f32 into `out`.
///
/// # Errors
/// [`TensorError::NoCodec`] for types that are not numbers to compute with, [`TensorError::ByteLength`] when
/// `bytes` is not what `out` elements of `dtype` take.
pub fn dequantise_row(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<(), TensorError> {
    let decode = row_decoder(dtype).ok_or_else(|| TensorError::NoCodec { name: "row".to_owned(), dtype })?;
    match dtype.bytes_for(out.len()) {
        Some(expected) if expected == bytes.len() => decode(bytes, out),
        expected => {
            return Err(TensorError::ByteLength {
                name: "row".to_owned(),
                part: "data",
                expected: expected.unwrap_or(0),
                found: bytes.len(),
            });
        }
    }
    Ok(())
}

/// The decoder of a type, or `None` for types that are not numbers to compute with (unsigned words, booleans).
#[rustfmt::skip]
pub fn row_decoder(dtype: DType) -> Option<RowDecoder> {
    let decode: RowDecoder = match dtype {
        DType::F32 => |bytes, out| blocks(bytes, out, plain::decode_f32),
        DType::F16 => |bytes, out| blocks(bytes, out, plain::decode_f16),
        DType::BF16 => |bytes, out| blocks(bytes, out, plain::decode_bf16),
        DType::F64 => |bytes, out| blocks(bytes, out, plain::decode_f64),
        DType::I8 => |bytes, out| blocks(bytes, out, plain::decode_i8),
        DType::I16 => |bytes, out| blocks(bytes, out, plain::decode_i16),
        DType::I32 => |bytes, out| blocks(bytes, out, plain::decode_i32),
        DType::I64 => |bytes, out| blocks(bytes, out, plain::decode_i64),
        DType::F8E4M3 => |bytes, out| blocks(bytes, out, fp8::decode_e4m3),
        DType::F8E5M2 => |bytes, out| blocks(bytes, out, fp8::decode_e5m2),
        DType::Q1_0 => |bytes, out| blocks(bytes, out, legacy::decode_q1_0),
        DType::Q4_0 => |bytes, out| blocks(bytes, out, legacy::decode_q4_0),
        DType::Q4_1 => |bytes, out| blocks(bytes, out, legacy::decode_q4_1),
        DType::Q5_0 => |bytes, out| blocks(bytes, out, legacy::decode_q5_0),
        DType::Q5_1 => |bytes, out| blocks(bytes, out, legacy::decode_q5_1),
        DType::Q8_0 => |bytes, out| blocks(bytes, out, legacy::decode_q8_0),
        DType::Q8_1 => |bytes, out| blocks(bytes, out, legacy::decode_q8_1),
        DType::Q2_K => |bytes, out| blocks(bytes, out, kquant::decode_q2_k),
        DType::Q3_K => |bytes, out| blocks(bytes, out, kquant::decode_q3_k),
        DType::Q4_K => |bytes, out| blocks(bytes, out, kquant::decode_q4_k),
        DType::Q5_K => |bytes, out| blocks(bytes, out, kquant::decode_q5_k),
        DType::Q6_K => |bytes, out| blocks(bytes, out, kquant::decode_q6_k),
        DType::Q8_K => |bytes, out| blocks(bytes, out, kquant::decode_q8_k),
        DType::IQ1_S => |bytes, out| blocks(bytes, out, iquant::decode_iq1_s),
        DType::IQ1_M => |bytes, out| blocks(bytes, out, iquant::decode_iq1_m),
        DType::IQ2_XXS => |bytes, out| blocks(bytes, out, iquant::decode_iq2_xxs),
        DType::IQ2_XS => |bytes, out| blocks(bytes, out, iquant::decode_iq2_xs),
        DType::IQ2_S => |bytes, out| blocks(bytes, out, iquant::decode_iq2_s),
        DType::IQ3_XXS => |bytes, out| blocks(bytes, out, iquant::decode_iq3_xxs),
        DType::IQ3_S => |bytes, out| blocks(bytes, out, iquant::decode_iq3_s),
        DType::IQ4_NL => |bytes, out| blocks(bytes, out, iquant::decode_iq4_nl),
        DType::IQ4_XS => |bytes, out| blocks(bytes, out, iquant::decode_iq4_xs),
        DType::TQ1_0 => |bytes, out| blocks(bytes, out, ternary::decode_tq1_0),
        DType::TQ2_0 => |bytes, out| blocks(bytes, out, ternary::decode_tq2_0),
        DType::MXFP4 => |bytes, out| blocks(bytes, out, fp4::decode_mxfp4),
        DType::NVFP4 => |bytes, out| blocks(bytes, out, fp4::decode_nvfp4),
        DType::U8 | DType::U16 | DType::U32 | DType::U64 | DType::BOOL => return None,
    };
    Some(decode)
}

fn blocks<const BYTES: usize, const LEN: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; LEN]),
) {
    let (blocks, rest) = bytes.as_chunks::<BYTES>();
    let (runs, tail) = out.as_chunks_mut::<LEN>();
    assert!(rest.is_empty() && tail.is_empty() && blocks.len() == runs.len(), "bytes and output disagree");
    for (block, run) in blocks.iter().zip(runs) {
        decode(block, run);
    }
}

/// The f16 at byte `offset` of a block.
fn f16_at(block: &[u8], offset: usize) -> f32 {
    half::f16::from_bits(u16_at(block, offset)).to_f32()
}

fn u16_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

fn u32_at(block: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}
