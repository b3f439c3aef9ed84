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

/// `N` bytes by value: the compiler vectorises loops over local arrays, where nothing can alias.
#[inline(always)]
fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

/// The codes `make(i)`, stored as a whole.
#[inline(always)]
fn put<const N: usize>(codes: &mut [i8], at: usize, make: impl Fn(usize) -> u8) {
    let mut made = [0i8; N];
    for (i, code) in made.iter_mut().enumerate() {
        *code = make(i) as i8;
    }
    codes[at..at + N].copy_from_slice(&made);
}

#[inline(always)]
pub(crate) fn q8_0<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<34>().0;
    for ((block, codes), scale) in blocks.iter().zip(out.codes.as_chunks_mut::<32>().0).zip(out.scales) {
        *scale = half_at::<H>(block, 0);
        let bytes = take::<32>(block, 2);
        put::<32>(codes, 0, |i| bytes[i]);
    }
}

#[inline(always)]
pub(crate) fn q4_0<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<18>().0.iter().zip(out.codes.as_chunks_mut::<32>().0);
    for ((block, codes), (scale, offset)) in blocks.zip(out.scales.iter_mut().zip(out.offsets)) {
        *scale = half_at::<H>(block, 0);
        *offset = -8.0 * *scale;
        let bytes = take::<16>(block, 2);
        put::<16>(codes, 0, |i| bytes[i] & 15);
        put::<16>(codes, 16, |i| bytes[i] >> 4);
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
        for pair in 0..4 {
            let bytes = take::<32>(block, 16 + 32 * pair);
            put::<32>(codes, 64 * pair, |i| bytes[i] & 15);
            put::<32>(codes, 64 * pair + 32, |i| bytes[i] >> 4);
        }
    }
}

#[inline(always)]
pub(crate) fn q5_k<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<176>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        k_scales::<H>(block, &mut out.scales[b * 8..][..8], &mut out.offsets[b * 8..][..8]);
        let high = take::<32>(block, 16);
        for pair in 0..4 {
            let low = take::<32>(block, 48 + 32 * pair);
            put::<32>(codes, 64 * pair, |i| low[i] & 15 | (high[i] >> (2 * pair) & 1) << 4);
            put::<32>(codes, 64 * pair + 32, |i| low[i] >> 4 | (high[i] >> (2 * pair + 1) & 1) << 4);
        }
    }
}

#[inline(always)]
pub(crate) fn q6_k<H: Half>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<210>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        let d = half_at::<H>(block, 208);
        let scales = take::<16>(block, 192);
        for (scale, s) in out.scales[b * 16..][..16].iter_mut().zip(scales) {
            *scale = d * f32::from(s as i8);
        }
        for half in 0..2 {
            let (first, second) = (take::<32>(block, 64 * half), take::<32>(block, 64 * half + 32));
            let high = take::<32>(block, 128 + 32 * half);
            let at = 128 * half;
            put::<32>(codes, at, |i| (first[i] & 15 | (high[i] & 3) << 4).wrapping_sub(32));
            put::<32>(codes, at + 32, |i| (second[i] & 15 | (high[i] >> 2 & 3) << 4).wrapping_sub(32));
            put::<32>(codes, at + 64, |i| (first[i] >> 4 | (high[i] >> 4 & 3) << 4).wrapping_sub(32));
            put::<32>(codes, at + 96, |i| (second[i] >> 4 | (high[i] >> 6) << 4).wrapping_sub(32));
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
    // Groups are 32 columns at least, so rows are whole runs of 32 codes.
    for (codes, bytes) in out.codes.as_chunks_mut::<32>().0.iter_mut().zip(row.data.as_chunks::<16>().0) {
        let bytes = *bytes;
        put::<32>(codes, 0, |i| bytes[i / 2] >> (4 * (i % 2)) & 15);
    }
}

#[inline(always)]
pub(crate) fn mlx8<const N: usize>(
    row: StoredRow<'_>,
    out: UnpackedRow<'_>,
    to_f32: impl Fn([u8; N]) -> f32,
) {
    mlx_scales(row, out.scales, out.offsets, 128.0, to_f32);
    for (codes, bytes) in out.codes.as_chunks_mut::<32>().0.iter_mut().zip(row.data.as_chunks::<32>().0) {
        let bytes = *bytes;
        put::<32>(codes, 0, |i| bytes[i] ^ 0x80);
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
