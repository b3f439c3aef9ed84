//! Encoding: checks on the input, then the encoder of the type, row after row.

use super::{fp4, fp8, iquant_encode, kquant_encode, legacy, plain, ternary};
use crate::{DType, TensorError};

/// Encodes whole blocks of one row; `importance` is as long as the row.
type RowEncoder = fn(row: &[f32], importance: Option<&[f32]>, out: &mut [u8]);

/// `values`, rows of `cols`, as `dtype`.
///
/// `importance` holds a weight of at least zero per column, typically the mean square of the activations that meet
/// it. Without it the types GGML encodes by a fixed formula give exactly that encoding, and the others weight errors
/// by the size of the values; IQ1 and IQ2 types then lose noticeably more than they need to.
///
/// # Errors
/// [`TensorError::Quantise`] for types that cannot be made, values that are not finite or too large for the type's
/// scale, and lengths that do not fit.
pub fn quantise(
    dtype: DType,
    values: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, TensorError> {
    let fail = |reason: String| TensorError::Quantise { dtype, reason };
    let encode = row_encoder(dtype).ok_or_else(|| fail("there is no encoder for this type".to_owned()))?;
    let row_bytes =
        dtype.bytes_for(cols).filter(|_| cols > 0 && values.len().is_multiple_of(cols)).ok_or_else(|| {
            fail(format!(
                "{} values in rows of {cols} do not fit blocks of {}",
                values.len(),
                dtype.block_len()
            ))
        })?;
    if let Some(importance) = importance {
        check_importance(importance, cols).map_err(fail)?;
    }
    check_values(values, cols, max_magnitude(dtype)).map_err(fail)?;
    let mut out = vec![0; values.len() / cols * row_bytes];
    for (row, out) in values.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes)) {
        encode(row, importance, out);
    }
    Ok(out)
}

/// Whether [`quantise`] can make `dtype`.
pub fn can_quantise(dtype: DType) -> bool {
    row_encoder(dtype).is_some()
}

fn check_importance(importance: &[f32], cols: usize) -> Result<(), String> {
    if importance.len() != cols {
        return Err(format!("importance has {} values for {cols} columns", importance.len()));
    }
    match importance.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
        Some(col) => Err(format!("importance of column {col} is {}", importance[col])),
        None => Ok(()),
    }
}

/// Every value must be finite and at most `max` in magnitude.
pub fn check_values(values: &[f32], cols: usize, max: f32) -> Result<(), String> {
    let bad = |v: &f32| v.is_nan() || v.abs() > max;
    let Some(i) = values.iter().position(bad) else {
        return Ok(());
    };
    let (row, col, value) = (i / cols, i % cols, values[i]);
    if value.is_finite() {
        Err(format!("row {row} column {col} is {value}, beyond the largest magnitude {max}"))
    } else {
        Err(format!("row {row} column {col} is {value}"))
    }
}

/// Largest magnitude that does not overflow the type or its scale.
fn max_magnitude(dtype: DType) -> f32 {
    match dtype {
        DType::F32 | DType::Q8_K | DType::MXFP4 => f32::MAX,
        DType::BF16 => half::bf16::MAX.to_f32(),
        DType::F8E4M3 => 448.0,
        DType::NVFP4 => 448.0 * 6.0,
        _ => half::f16::MAX.to_f32(),
    }
}

#[rustfmt::skip]
fn row_encoder(dtype: DType) -> Option<RowEncoder> {
    let encode: RowEncoder = match dtype {
        DType::F32 => |row, _, out| blocks(row, None, out, |x, _, out| plain::encode_f32(x, out)),
        DType::F16 => |row, _, out| blocks(row, None, out, |x, _, out| plain::encode_f16(x, out)),
        DType::BF16 => |row, _, out| blocks(row, None, out, |x, _, out| plain::encode_bf16(x, out)),
        DType::F8E4M3 => |row, _, out| blocks(row, None, out, |x, _, out| fp8::encode_e4m3(x, out)),
        DType::Q1_0 => |row, w, out| blocks(row, w, out, legacy::encode_q1_0),
        DType::Q4_0 => |row, w, out| blocks(row, w, out, legacy::encode_q4_0),
        DType::Q4_1 => |row, w, out| blocks(row, w, out, legacy::encode_q4_1),
        DType::Q5_0 => |row, w, out| blocks(row, w, out, legacy::encode_q5_0),
        DType::Q5_1 => |row, w, out| blocks(row, w, out, legacy::encode_q5_1),
        DType::Q8_0 => |row, w, out| blocks(row, w, out, legacy::encode_q8_0),
        DType::Q8_1 => |row, w, out| blocks(row, w, out, legacy::encode_q8_1),
        DType::Q2_K => |row, w, out| blocks(row, w, out, kquant_encode::encode_q2_k),
        DType::Q3_K => |row, w, out| blocks(row, w, out, kquant_encode::encode_q3_k),
        DType::Q4_K => |row, w, out| blocks(row, w, out, kquant_encode::encode_q4_k),
        DType::Q5_K => |row, w, out| blocks(row, w, out, kquant_encode::encode_q5_k),
        DType::Q6_K => |row, w, out| blocks(row, w, out, kquant_encode::encode_q6_k),
        DType::Q8_K => |row, w, out| blocks(row, w, out, kquant_encode::encode_q8_k),
        DType::IQ1_S => |row, w, out| blocks(row, w, out, iquant_encode::encode_iq1_s),
        DType::IQ1_M => |row, w, out| blocks(row, w, out, iquant_encode::encode_iq1_m),
        DType::IQ2_XXS => |row, w, out| blocks(row, w, out, iquant_encode::encode_iq2_xxs),
        DType::IQ2_XS => |row, w, out| blocks(row, w, out, iquant_encode::encode_iq2_xs),
        DType::IQ2_S => |row, w, out| blocks(row, w, out, iquant_encode::encode_iq2_s),
        DType::IQ3_XXS => |row, w, out| blocks(row, w, out, iquant_encode::encode_iq3_xxs),
        DType::IQ3_S => |row, w, out| blocks(row, w, out, iquant_encode::encode_iq3_s),
        DType::IQ4_NL => |row, w, out| blocks(row, w, out, kquant_encode::encode_iq4_nl),
        DType::IQ4_XS => |row, w, out| blocks(row, w, out, kquant_encode::encode_iq4_xs),
        DType::TQ1_0 => |row, w, out| blocks(row, w, out, ternary::encode_tq1_0),
        DType::TQ2_0 => |row, w, out| blocks(row, w, out, ternary::encode_tq2_0),
        DType::MXFP4 => |row, w, out| blocks(row, w, out, fp4::encode_mxfp4),
        DType::NVFP4 => |row, w, out| blocks(row, w, out, fp4::encode_nvfp4),
        DType::F64 | DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::F8E5M2
        | DType::U8 | DType::U16 | DType::U32 | DType::U64 | DType::BOOL => return None,
    };
    Some(encode)
}

fn blocks<const LEN: usize, const BYTES: usize>(
    row: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
    encode: impl Fn(&[f32; LEN], Option<&[f32; LEN]>, &mut [u8; BYTES]),
) {
    let importance = importance.map(|w| w.as_chunks::<LEN>().0);
    let runs = row.as_chunks::<LEN>().0;
    for (i, (x, block)) in runs.iter().zip(out.as_chunks_mut::<BYTES>().0).enumerate() {
        encode(x, importance.map(|w| &w[i]), block);
    }
}
