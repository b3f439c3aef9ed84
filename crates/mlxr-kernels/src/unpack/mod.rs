//! Stored blocks to codes, scales and offsets, written once and compiled for each instruction set.
//!
//! Block layouts are those of ggml-common.h, as the GGUF types use them, and MLX's affine groups. The bodies are plain
//! loops the compiler vectorises under the target features [`unpack_table!`] names; [`Half`] says how a set widens f16.

use half::bf16;

use crate::linear::codes::{CodeKind, StoredRow, UnpackedRow};

pub(crate) const SIGNED_32: CodeKind = CodeKind { signed: true, group: 32, offsets: false };
pub(crate) const SIGNED_16: CodeKind = CodeKind { signed: true, group: 16, offsets: false };
pub(crate) const OFFSET_32: CodeKind = CodeKind { signed: false, group: 32, offsets: true };
pub(crate) const SIGNED_OFFSET_32: CodeKind = CodeKind { signed: true, group: 32, offsets: true };

/// How an instruction set widens a half-precision float.
pub(crate) trait Half {
    fn to_f32(bits: u16) -> f32;
}

/// By integer arithmetic, without branches.
pub(crate) struct Portable;

impl Half for Portable {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        let magnitude = u32::from(bits & 0x7fff) << 13;
        // The exponent is rebiased by a product, which is exact and also normalises subnormals.
        let rebiased = (f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23)).to_bits();
        let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(rebiased | special | u32::from(bits & 0x8000) << 16)
    }
}

/// Names the unpacking kernels of a set `unpack: fn(Format) -> Option<(CodeKind, Unpack)>`, compiled under `$feature`.
macro_rules! unpack_table {
    ($half:ty $(, $feature:literal)?) => {
        /// The unpacking kernel of a format, if it has one.
        pub(crate) fn unpack(
            format: mlxr_tensor::Format,
        ) -> Option<($crate::linear::codes::CodeKind, $crate::kernels::Unpack)> {
            use $crate::linear::codes::{StoredRow, UnpackedRow};
            use $crate::unpack::{self, bf16_value, f16_value};
            use mlxr_tensor::{DType, Format};
            macro_rules! kernel {
                ($kind:ident, $body:expr) => {{
                    $(#[target_feature(enable = $feature)])?
                    fn kernel(row: StoredRow<'_>, out: UnpackedRow<'_>) { $body(row, out) }
                    Some((unpack::$kind, kernel))
                }};
            }
            match format {
                Format::Plain(DType::Q8_0) => kernel!(SIGNED_32, unpack::q8_0::<$half>),
                Format::Plain(DType::Q4_0) => kernel!(OFFSET_32, unpack::q4_0::<$half>),
                Format::Plain(DType::Q4_K) => kernel!(OFFSET_32, unpack::q4_k::<$half>),
                Format::Plain(DType::Q5_K) => kernel!(OFFSET_32, unpack::q5_k::<$half>),
                Format::Plain(DType::Q6_K) => kernel!(SIGNED_16, unpack::q6_k::<$half>),
                Format::MlxAffine { bits: 4, group_size, scale } if group_size % 32 == 0 => match scale {
                    DType::F16 => kernel!(OFFSET_32, |r, o| unpack::mlx4(r, o, f16_value::<$half>)),
                    DType::BF16 => kernel!(OFFSET_32, |r, o| unpack::mlx4(r, o, bf16_value)),
                    DType::F32 => kernel!(OFFSET_32, |r, o| unpack::mlx4(r, o, f32::from_le_bytes)),
                    _ => None,
                },
                Format::MlxAffine { bits: 8, group_size, scale } if group_size % 32 == 0 => match scale {
                    DType::F16 => kernel!(SIGNED_OFFSET_32, |r, o| unpack::mlx8(r, o, f16_value::<$half>)),
                    DType::BF16 => kernel!(SIGNED_OFFSET_32, |r, o| unpack::mlx8(r, o, bf16_value)),
                    DType::F32 => kernel!(SIGNED_OFFSET_32, |r, o| unpack::mlx8(r, o, f32::from_le_bytes)),
                    _ => None,
                },
                _ => None,
            }
        }
    };
}
pub(crate) use unpack_table;

#[inline(always)]
pub(crate) fn f16_value<H: Half>(bytes: [u8; 2]) -> f32 {
    H::to_f32(u16::from_le_bytes(bytes))
}

#[inline(always)]
pub(crate) fn bf16_value(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}

#[inline(always)]
fn half_at<H: Half>(bytes: &[u8], at: usize) -> f32 {
    f16_value::<H>([bytes[at], bytes[at + 1]])
}

#[inline(always)]
pub(crate) fn q8_0<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<34>().0;
    for ((block, codes), scale) in blocks.iter().zip(out.codes.as_chunks_mut::<32>().0).zip(out.scales) {
        *scale = half_at::<H>(block, 0);
        for (code, &byte) in codes.iter_mut().zip(&block[2..]) {
            *code = byte as i8;
        }
    }
}

#[inline(always)]
pub(crate) fn q4_0<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<18>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<32>().0).enumerate() {
        let scale = half_at::<H>(block, 0);
        out.scales[b] = scale;
        out.offsets[b] = -8.0 * scale;
        for (i, &byte) in block[2..].iter().enumerate() {
            codes[i] = (byte & 15) as i8;
            codes[i + 16] = (byte >> 4) as i8;
        }
    }
}

/// The 6-bit scales and minima of the eight sub-blocks of Q4_K and Q5_K, unpacked from 12 bytes.
#[inline(always)]
fn scales_and_minima(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        minima[i] = packed[i + 4] & 63;
        scales[i + 4] = packed[i + 8] & 15 | packed[i] >> 6 << 4;
        minima[i + 4] = packed[i + 8] >> 4 | packed[i + 4] >> 6 << 4;
    }
    (scales, minima)
}

/// Fills the scales and offsets of a super-block of Q4_K or Q5_K from its 16-byte head.
#[inline(always)]
fn k_scales<H: Half>(head: &[u8], scales: &mut [f32], offsets: &mut [f32]) {
    let (d, d_min) = (half_at::<H>(head, 0), half_at::<H>(head, 2));
    let (s, m) = scales_and_minima(&head[4..16]);
    for i in 0..8 {
        scales[i] = d * f32::from(s[i]);
        offsets[i] = -d_min * f32::from(m[i]);
    }
}

#[inline(always)]
pub(crate) fn q4_k<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<144>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        k_scales::<H>(block, &mut out.scales[b * 8..][..8], &mut out.offsets[b * 8..][..8]);
        for (bytes, codes) in block[16..].chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            for (i, &byte) in bytes.iter().enumerate() {
                codes[i] = (byte & 15) as i8;
                codes[i + 32] = (byte >> 4) as i8;
            }
        }
    }
}

#[inline(always)]
pub(crate) fn q5_k<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<176>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        k_scales::<H>(block, &mut out.scales[b * 8..][..8], &mut out.offsets[b * 8..][..8]);
        let (high, low) = block[16..].split_at(32);
        for (pair, (bytes, codes)) in low.chunks_exact(32).zip(codes.chunks_exact_mut(64)).enumerate() {
            for (i, &byte) in bytes.iter().enumerate() {
                let high = high[i] >> (2 * pair);
                codes[i] = (byte & 15 | (high & 1) << 4) as i8;
                codes[i + 32] = (byte >> 4 | (high >> 1 & 1) << 4) as i8;
            }
        }
    }
}

#[inline(always)]
pub(crate) fn q6_k<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<210>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        let d = half_at::<H>(block, 208);
        for (scale, &s) in out.scales[b * 16..][..16].iter_mut().zip(&block[192..208]) {
            *scale = d * f32::from(s as i8);
        }
        for (half, codes) in codes.chunks_exact_mut(128).enumerate() {
            let (low, high) = (&block[half * 64..][..64], &block[128 + half * 32..][..32]);
            for i in 0..32 {
                let code = |low: u8, shift: u8| (low | (high[i] >> shift & 3) << 4) as i8 - 32;
                codes[i] = code(low[i] & 15, 0);
                codes[i + 32] = code(low[i + 32] & 15, 2);
                codes[i + 64] = code(low[i] >> 4, 4);
                codes[i + 96] = code(low[i + 32] >> 4, 6);
            }
        }
    }
}

/// Repeats MLX's scale and bias of a group over the 32-column groups it covers; `shift` was taken off the codes.
#[inline(always)]
fn mlx_scales<const N: usize>(
    row: StoredRow<'_>,
    scales: &mut [f32],
    offsets: &mut [f32],
    shift: f32,
    to_f32: impl Fn([u8; N]) -> f32,
) {
    let repeat = row.group_size / 32;
    let stored = row.scales.as_chunks::<N>().0.iter().zip(row.biases.as_chunks::<N>().0);
    let groups = scales.chunks_exact_mut(repeat).zip(offsets.chunks_exact_mut(repeat));
    for ((&scale, &bias), (scales, offsets)) in stored.zip(groups) {
        let scale = to_f32(scale);
        scales.fill(scale);
        offsets.fill(to_f32(bias) + shift * scale);
    }
}

#[inline(always)]
pub(crate) fn mlx4<const N: usize>(
    row: StoredRow<'_>,
    out: UnpackedRow<'_>,
    to_f32: impl Fn([u8; N]) -> f32,
) {
    mlx_scales(row, out.scales, out.offsets, 0.0, to_f32);
    for (pair, &byte) in out.codes.as_chunks_mut::<2>().0.iter_mut().zip(row.data) {
        *pair = [(byte & 15) as i8, (byte >> 4) as i8];
    }
}

#[inline(always)]
pub(crate) fn mlx8<const N: usize>(
    row: StoredRow<'_>,
    out: UnpackedRow<'_>,
    to_f32: impl Fn([u8; N]) -> f32,
) {
    mlx_scales(row, out.scales, out.offsets, 128.0, to_f32);
    for (code, &byte) in out.codes.iter_mut().zip(row.data) {
        *code = (byte ^ 0x80) as i8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_widening_equals_the_reference_for_every_half() {
        for bits in 0..=u16::MAX {
            let (got, expected) = (Portable::to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{bits:#06x}");
        }
    }
}
