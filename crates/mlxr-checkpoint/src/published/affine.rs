//! Integer codes with a scale and a zero point per group, as [`Format::MlxAffine`] holds them.

use bytes::Bytes;
use half::{bf16, f16};
use mlxr_tensor::{DType, Format, HostTensor};

use super::Module;
use crate::CheckpointError;

/// An element is `scale * (code - zero)`.
pub(super) struct Affine {
    pub bits: usize,
    pub rows: usize,
    pub cols: usize,
    /// Columns that share a scale.
    pub group_size: usize,
    /// A bit stream per row.
    pub codes: Bytes,
    /// `[rows, cols / group_size]`.
    pub scales: Vec<f32>,
    pub zeros: Vec<f32>,
    /// The type the file stores scales in.
    pub scale_type: DType,
}

impl Affine {
    /// The tensor. Groups too large for the format are cut into several with the same scale.
    ///
    /// A product of an f16 or bf16 scale and a code is exact in f32, so values are those of the file's arithmetic in f32.
    pub fn into_tensor(self, module: &Module<'_>) -> Result<HostTensor, CheckpointError> {
        let Some(group_size) = [128, 64, 32].into_iter().find(|n| self.group_size.is_multiple_of(*n)) else {
            let what = format!("quantization_config.group_size: {}", self.group_size);
            return Err(module.unsupported(what, "groups are multiples of 32 columns"));
        };
        let repeat = self.group_size / group_size;
        let spread = |values: Vec<f32>| -> Vec<f32> {
            values.into_iter().flat_map(|v| std::iter::repeat_n(v, repeat)).collect()
        };
        let biases = self.scales.iter().zip(&self.zeros).map(|(scale, zero)| -scale * zero).collect();
        let (scales, biases) = (spread(self.scales), spread(biases));
        let narrow = narrowed(self.scale_type, &scales).zip(narrowed(self.scale_type, &biases));
        let wide = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let (scale, scales, biases) = match narrow {
            Some((scales, biases)) => (self.scale_type, scales, biases),
            None => (DType::F32, wide(&scales), wide(&biases)),
        };
        let format = Format::MlxAffine { bits: self.bits as u8, group_size: group_size as u16, scale };
        let shape = [self.rows, self.cols];
        HostTensor::with_scales(module.name, &shape, format, self.codes, scales.into(), biases.into())
            .map_err(CheckpointError::tensor(&module.path))
    }
}

/// The values in a half-precision type, if it holds all of them.
fn narrowed(dtype: DType, values: &[f32]) -> Option<Vec<u8>> {
    let bits = |&v: &f32| -> Option<u16> {
        let (bits, back) = match dtype {
            DType::F16 => (f16::from_f32(v).to_bits(), f16::from_f32(v).to_f32()),
            DType::BF16 => (bf16::from_f32(v).to_bits(), bf16::from_f32(v).to_f32()),
            _ => return None,
        };
        (back == v).then_some(bits)
    };
    let bits: Option<Vec<u16>> = values.iter().map(bits).collect();
    Some(bits?.into_iter().flat_map(u16::to_le_bytes).collect())
}

/// The u32 words of a tensor of I32 or U32.
pub(super) fn words(tensor: &HostTensor) -> impl Fn(usize) -> u32 + '_ {
    let chunks = tensor.data().as_chunks::<4>().0;
    |i| u32::from_le_bytes(chunks[i])
}

/// Code `i` of a stream of `bits`-wide codes that starts at word `first`, `step` words apart.
pub(super) fn code_at(word: impl Fn(usize) -> u32, first: usize, step: usize, bits: usize, i: usize) -> u32 {
    let (at, shift) = (i * bits / 32, i * bits % 32);
    let low = u64::from(word(first + at * step)) >> shift;
    let high = if shift + bits > 32 { u64::from(word(first + (at + 1) * step)) << (32 - shift) } else { 0 };
    ((low | high) & ((1 << bits) - 1)) as u32
}

/// `[rows, cols]` of words turned to `[cols, rows]`, in squares that stay in the cache.
pub(super) fn transposed(word: impl Fn(usize) -> u32, rows: usize, cols: usize) -> Vec<u8> {
    const SIDE: usize = 32;
    let mut out = vec![0u8; rows * cols * 4];
    let (target, _) = out.as_chunks_mut::<4>();
    for row in (0..rows).step_by(SIDE) {
        for col in (0..cols).step_by(SIDE) {
            for c in col..(col + SIDE).min(cols) {
                for r in row..(row + SIDE).min(rows) {
                    target[c * rows + r] = word(r * cols + c).to_le_bytes();
                }
            }
        }
    }
    out
}

/// `[rows, cols]` of values turned to `[cols, rows]`.
pub(super) fn transposed_floats(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_turn_and_turn_back() {
        let words: Vec<u32> = (0..70 * 45).collect();
        let turned = transposed(|i| words[i], 70, 45);
        let turned: Vec<u32> = turned.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        assert_eq!(turned[1], 45);
        assert_eq!(
            transposed(|i| turned[i], 45, 70),
            words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn codes_may_straddle_words() {
        let words = [0x8000_0000u32, 0b10];
        assert_eq!(code_at(|i| words[i], 0, 1, 3, 11), 0b001);
        assert_eq!(code_at(|i| words[i], 0, 1, 3, 10), 0b010);
        assert_eq!(code_at(|i| [0xc000_0000u32, 1][i], 0, 1, 3, 10), 0b111);
    }

    #[test]
    fn halves_take_only_what_they_hold() {
        assert_eq!(narrowed(DType::F16, &[1.5, -2.0]).map(|b| b.len()), Some(4));
        assert_eq!(narrowed(DType::BF16, &[1.001]), None);
        assert_eq!(narrowed(DType::F16, &[1e6]), None);
    }
}
