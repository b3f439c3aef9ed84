//! MLX's group formats: codes packed little-endian into words, scales (and biases) in arrays of their own.
//!
//! Eight codes of `bits` bits always fill `bits` whole bytes, for the odd widths 3, 5 and 6 as well, so a row is one
//! bit stream. MLX does the arithmetic in the type of the scales; here it is f32.

use super::legacy::{amax, min_max};
use super::{encode, fp4, fp8};
use crate::{DType, MlxFloat, TensorError};

/// The parameters of an affine format.
#[derive(Clone, Copy)]
pub struct Affine {
    pub bits: usize,
    pub group_size: usize,
}

impl Affine {
    pub fn is_valid(self) -> bool {
        matches!(self.bits, 2..=6 | 8) && self.group_size > 0 && self.group_size.is_multiple_of(8)
    }

    /// Whole groups: an element is `scale * code + bias`.
    pub fn decode(self, data: &[u8], scales: &[f32], biases: &[f32], out: &mut [f32]) {
        let mask = (1u64 << self.bits) - 1;
        let groups =
            out.chunks_exact_mut(self.group_size).zip(data.chunks_exact(self.group_size / 8 * self.bits));
        for ((out, bytes), (scale, bias)) in groups.zip(scales.iter().zip(biases)) {
            for (out, bytes) in out.as_chunks_mut::<8>().0.iter_mut().zip(bytes.chunks_exact(self.bits)) {
                let mut word = bytes.iter().rev().fold(0u64, |word, &byte| word << 8 | u64::from(byte));
                for o in out {
                    *o = scale * (word & mask) as f32 + bias;
                    word >>= self.bits;
                }
            }
        }
    }

    /// One group as MLX quantises it: the end of the range further from zero is a code's exact value, and zero is
    /// one too. Returns scale and bias.
    fn encode_group(self, x: &[f32], data: &mut [u8]) -> (f32, f32) {
        let n_levels = ((1u32 << self.bits) - 1) as f32;
        let (min, max) = min_max(x);
        let from_min = min.abs() > max.abs();
        let step = ((max - min) / n_levels).max(1e-7);
        let (mut scale, edge) = if from_min { (step, min) } else { (-step, max) };
        let zero_code = (edge / scale).round_ties_even();
        let mut bias = 0.0;
        if zero_code != 0.0 {
            scale = edge / zero_code;
            bias = edge;
        }
        for (x, bytes) in x.as_chunks::<8>().0.iter().zip(data.chunks_exact_mut(self.bits)) {
            let mut word = 0u64;
            for &v in x.iter().rev() {
                let code = ((v - bias) / scale).round_ties_even().clamp(0.0, n_levels);
                word = word << self.bits | code as u64;
            }
            bytes.copy_from_slice(&word.to_le_bytes()[..self.bits]);
        }
        (scale, bias)
    }
}

/// Whole groups of a block-float mode.
pub fn decode_float(mode: MlxFloat, data: &[u8], scales: &[u8], out: &mut [f32]) {
    let group_size = mode.group_size();
    let groups = out.chunks_exact_mut(group_size).zip(data.chunks_exact(group_size * mode.bits() / 8));
    for ((out, bytes), &scale) in groups.zip(scales) {
        let scale = decode_scale(mode, scale);
        match mode {
            MlxFloat::Mxfp8 => {
                for (o, &code) in out.iter_mut().zip(bytes) {
                    *o = fp8::e4m3_to_f32(code) * scale;
                }
            }
            MlxFloat::Mxfp4 | MlxFloat::Nvfp4 => {
                for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = [byte & 15, byte >> 4].map(|code| fp4::VALUES[usize::from(code)] * scale);
                }
            }
        }
    }
}

fn decode_scale(mode: MlxFloat, code: u8) -> f32 {
    match mode {
        MlxFloat::Nvfp4 => fp8::e4m3_to_f32(code),
        MlxFloat::Mxfp4 | MlxFloat::Mxfp8 => fp8::e8m0_to_f32(code),
    }
}

/// Packed codes, scales and biases of a tensor, each as a file stores it.
pub type AffineParts = (Vec<u8>, Vec<u8>, Vec<u8>);

/// `values`, rows of `cols`, in MLX's affine format, with scales and biases of type `scale`.
///
/// The codes are those of `mlx.core.quantize` for an f32 array, or for one of type `scale` when the values are exact
/// in it.
///
/// # Errors
/// [`TensorError::Quantise`] for unknown widths and scale types, values that are not finite or too large for the
/// scale type, and lengths that do not fit.
pub fn quantise_mlx(
    values: &[f32],
    cols: usize,
    bits: u8,
    group_size: u16,
    scale: DType,
) -> Result<AffineParts, TensorError> {
    let affine = Affine { bits: bits.into(), group_size: group_size.into() };
    let fail = |reason: String| TensorError::Quantise { dtype: scale, reason };
    if !affine.is_valid() {
        return Err(fail(format!("no {bits}-bit codes in groups of {group_size}")));
    }
    if !matches!(scale, DType::F32 | DType::F16 | DType::BF16) {
        return Err(fail("scales are F32, F16 or BF16".to_owned()));
    }
    check_rows(values, cols, affine.group_size, affine.bits).map_err(fail)?;
    let n_groups = values.len() / affine.group_size;
    let group_bytes = affine.group_size / 8 * affine.bits;
    let mut data = vec![0; n_groups * group_bytes];
    let (mut scales, mut biases) = (Vec::with_capacity(n_groups), Vec::with_capacity(n_groups));
    // Half the range of f32: the width of a group must not overflow.
    let max = if scale == DType::F16 { half::f16::MAX.to_f32() } else { f32::MAX / 2.0 };
    encode::check_values(values, cols, max).map_err(fail)?;
    for (x, data) in values.chunks_exact(affine.group_size).zip(data.chunks_exact_mut(group_bytes)) {
        let (scale, bias) = affine.encode_group(x, data);
        scales.push(scale);
        biases.push(bias);
    }
    let store = |v: &[f32]| encode::quantise(scale, v, v.len(), None);
    if n_groups == 0 {
        return Ok((data, Vec::new(), Vec::new()));
    }
    Ok((data, store(&scales)?, store(&biases)?))
}

/// `values`, rows of `cols`, in a block-float mode of MLX: packed codes and one scale byte per group, those of
/// `mlx.core.quantize` for an f32 array.
///
/// # Errors
/// [`TensorError::Quantise`] for values that are not finite and lengths that do not fit.
pub fn quantise_mlx_float(
    mode: MlxFloat,
    values: &[f32],
    cols: usize,
) -> Result<(Vec<u8>, Vec<u8>), TensorError> {
    let dtype = match mode {
        MlxFloat::Mxfp4 => DType::MXFP4,
        MlxFloat::Nvfp4 => DType::NVFP4,
        MlxFloat::Mxfp8 => DType::F8E4M3,
    };
    let fail = |reason: String| TensorError::Quantise { dtype, reason };
    let group_size = mode.group_size();
    check_rows(values, cols, group_size, mode.bits()).map_err(fail)?;
    let max = if mode == MlxFloat::Nvfp4 { 448.0 * 6.0 } else { f32::MAX };
    encode::check_values(values, cols, max).map_err(fail)?;
    let n_groups = values.len() / group_size;
    let group_bytes = group_size * mode.bits() / 8;
    let (mut data, mut scales) = (vec![0; n_groups * group_bytes], vec![0; n_groups]);
    for (i, x) in values.chunks_exact(group_size).enumerate() {
        scales[i] = encode_float_group(mode, x, &mut data[i * group_bytes..][..group_bytes]);
    }
    Ok((data, scales))
}

fn encode_float_group(mode: MlxFloat, x: &[f32], data: &mut [u8]) -> u8 {
    let largest = if mode == MlxFloat::Mxfp8 { 448.0 } else { 6.0 };
    let ratio = amax(x) / largest;
    let code = match mode {
        MlxFloat::Nvfp4 => fp8::f32_to_e4m3(ratio),
        MlxFloat::Mxfp4 | MlxFloat::Mxfp8 if ratio == 0.0 => 127,
        MlxFloat::Mxfp4 | MlxFloat::Mxfp8 => (ratio.log2().ceil() as i32 + 127).clamp(0, 254) as u8,
    };
    let scale = decode_scale(mode, code);
    // A scale that rounded to zero makes the group zero.
    let scaled = |v: f32| if scale == 0.0 { 0.0 } else { v / scale };
    if mode == MlxFloat::Mxfp8 {
        for (byte, &v) in data.iter_mut().zip(x) {
            *byte = fp8::f32_to_e4m3(scaled(v));
        }
    } else {
        for (byte, pair) in data.iter_mut().zip(x.as_chunks::<2>().0) {
            let [low, high] = pair.map(|v| fp4::nearest(scaled(v), 0.5) as u8);
            *byte = low | high << 4;
        }
    }
    code
}

fn check_rows(values: &[f32], cols: usize, group_size: usize, bits: usize) -> Result<(), String> {
    let whole = cols > 0
        && cols.is_multiple_of(group_size)
        && (cols * bits).is_multiple_of(32)
        && values.len().is_multiple_of(cols);
    if whole {
        Ok(())
    } else {
        Err(format!("{} values in rows of {cols} do not fit groups of {group_size}", values.len()))
    }
}
