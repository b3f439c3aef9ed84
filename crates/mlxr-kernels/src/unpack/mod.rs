//! Stored blocks to codes, scales and offsets, written once and compiled for each instruction set.
//!
//! Block layouts are those of ggml-common.h, as the GGUF types use them, and MLX's affine groups. The bodies are plain
//! loops the compiler vectorises under the target features [`unpack_table!`] names; [`Primitives`] is what a set does better than the compiler would.

use half::bf16;

use crate::linear::codes::{CodeKind, StoredRow, UnpackedRow};

pub(crate) const SIGNED_32: CodeKind = CodeKind { signed: true, group: 32, offsets: false };
pub(crate) const SIGNED_16: CodeKind = CodeKind { signed: true, group: 16, offsets: false };
pub(crate) const OFFSET_32: CodeKind = CodeKind { signed: false, group: 32, offsets: true };
pub(crate) const OFFSET_16: CodeKind = CodeKind { signed: false, group: 16, offsets: true };
pub(crate) const SIGNED_OFFSET_32: CodeKind = CodeKind { signed: true, group: 32, offsets: true };

/// Steps an instruction set has better instructions for than plain Rust compiles to.
pub(crate) trait Primitives {
    /// Widens a half-precision float.
    fn to_f32(bits: u16) -> f32;
    /// `table[code]` for each code, which are below 16.
    fn look_up(table: &[i8; 16], codes: [u8; 16]) -> [u8; 16];
    /// 255 for each bit of `bits` that is set, the lowest first, and 0 for the others.
    #[inline(always)]
    fn spread(bits: u32) -> [u8; 32] {
        std::array::from_fn(|i| ((bits >> i & 1) as u8).wrapping_neg())
    }
}

/// By integer arithmetic and loads, without branches.
pub(crate) struct Portable;

impl Primitives for Portable {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        let magnitude = u32::from(bits & 0x7fff) << 13;
        // The exponent is rebiased by a product, which is exact and also normalises subnormals.
        let rebiased = (f32::from_bits(magnitude) * f32::from_bits((254 - 15) << 23)).to_bits();
        let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
        f32::from_bits(rebiased | special | u32::from(bits & 0x8000) << 16)
    }

    #[inline(always)]
    fn look_up(table: &[i8; 16], codes: [u8; 16]) -> [u8; 16] {
        codes.map(|code| table[usize::from(code & 15)] as u8)
    }
}

/// Names the unpacking kernels of a set `unpack: fn(Format) -> Option<(CodeKind, Unpack)>`, compiled under `$feature`.
macro_rules! unpack_table {
    ($primitives:ty $(, $feature:literal)?) => {
        /// The unpacking kernel of a format, if it has one.
        pub(crate) fn unpack(
            format: mlxr_tensor::Format,
        ) -> Option<($crate::linear::codes::CodeKind, $crate::kernels::Unpack)> {
            use $crate::linear::codes::{StoredRow, UnpackedRow};
            use $crate::unpack::{self, bf16_value, f16_value};
            use mlxr_tensor::{DType, Format, MlxFloat};
            macro_rules! kernel {
                ($kind:ident, $body:expr) => {{
                    $(#[target_feature(enable = $feature)])?
                    fn kernel(row: StoredRow<'_>, out: UnpackedRow<'_>) { $body(row, out) }
                    Some((unpack::$kind, kernel))
                }};
            }
            match format {
                Format::Plain(DType::Q8_0) => kernel!(SIGNED_32, unpack::q8_0::<$primitives>),
                Format::Plain(DType::Q4_0) => kernel!(OFFSET_32, unpack::q4_0::<$primitives>),
                Format::Plain(DType::Q4_1) => kernel!(OFFSET_32, unpack::q4_1::<$primitives>),
                Format::Plain(DType::Q5_0) => kernel!(OFFSET_32, unpack::q5_0::<$primitives>),
                Format::Plain(DType::Q5_1) => kernel!(OFFSET_32, unpack::q5_1::<$primitives>),
                Format::Plain(DType::Q2_K) => kernel!(OFFSET_16, unpack::q2_k::<$primitives>),
                Format::Plain(DType::Q3_K) => kernel!(SIGNED_16, unpack::q3_k::<$primitives>),
                Format::Plain(DType::IQ4_NL) => kernel!(SIGNED_32, unpack::iq4_nl::<$primitives>),
                Format::Plain(DType::IQ4_XS) => kernel!(SIGNED_32, unpack::iq4_xs::<$primitives>),
                Format::Plain(DType::MXFP4) => kernel!(SIGNED_32, unpack::mxfp4::<$primitives>),
                Format::MlxFloat(MlxFloat::Mxfp4) => kernel!(SIGNED_32, unpack::mlx_mxfp4::<$primitives>),
                Format::Plain(DType::Q4_K) => kernel!(OFFSET_32, unpack::q4_k::<$primitives>),
                Format::Plain(DType::Q5_K) => kernel!(OFFSET_32, unpack::q5_k::<$primitives>),
                Format::Plain(DType::Q6_K) => kernel!(SIGNED_16, unpack::q6_k::<$primitives>),
                Format::MlxAffine { bits: 4, group_size, scale } if group_size % 32 == 0 => match scale {
                    DType::F16 => kernel!(OFFSET_32, |r, o| unpack::mlx4(r, o, f16_value::<$primitives>)),
                    DType::BF16 => kernel!(OFFSET_32, |r, o| unpack::mlx4(r, o, bf16_value)),
                    DType::F32 => kernel!(OFFSET_32, |r, o| unpack::mlx4(r, o, f32::from_le_bytes)),
                    _ => None,
                },
                Format::MlxAffine { bits: 8, group_size, scale } if group_size % 32 == 0 => match scale {
                    DType::F16 => kernel!(SIGNED_OFFSET_32, |r, o| unpack::mlx8(r, o, f16_value::<$primitives>)),
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
pub(crate) fn f16_value<H: Primitives>(bytes: [u8; 2]) -> f32 {
    H::to_f32(u16::from_le_bytes(bytes))
}

#[inline(always)]
pub(crate) fn bf16_value(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}

#[inline(always)]
fn half_at<H: Primitives>(bytes: &[u8], at: usize) -> f32 {
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
pub(crate) fn q8_0<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<34>().0;
    for ((block, codes), scale) in blocks.iter().zip(out.codes.as_chunks_mut::<32>().0).zip(out.scales) {
        *scale = half_at::<H>(block, 0);
        let bytes = take::<32>(block, 2);
        put::<32>(codes, 0, |i| bytes[i]);
    }
}

#[inline(always)]
pub(crate) fn q4_0<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<18>().0.iter().zip(out.codes.as_chunks_mut::<32>().0);
    for ((block, codes), (scale, offset)) in blocks.zip(out.scales.iter_mut().zip(out.offsets)) {
        *scale = half_at::<H>(block, 0);
        *offset = -8.0 * *scale;
        put_nibbles(codes, 0, take::<16>(block, 2));
    }
}

/// The two halves of 16 packed bytes: low nibbles first, then high ones.
#[inline(always)]
fn put_nibbles(codes: &mut [i8], at: usize, bytes: [u8; 16]) {
    put::<16>(codes, at, |i| bytes[i] & 15);
    put::<16>(codes, at + 16, |i| bytes[i] >> 4);
}

/// As `put_nibbles`, through a table.
#[inline(always)]
fn put_looked_up<H: Primitives>(table: &[i8; 16], codes: &mut [i8], at: usize, bytes: [u8; 16]) {
    let low = H::look_up(table, bytes.map(|b| b & 15));
    let high = H::look_up(table, bytes.map(|b| b >> 4));
    put::<16>(codes, at, |i| low[i]);
    put::<16>(codes, at + 16, |i| high[i]);
}

/// Five-bit codes: nibbles as in `put_nibbles` and bit `i` of `high` for code `i`.
#[inline(always)]
fn put_five_bits<H: Primitives>(codes: &mut [i8], high: u32, bytes: [u8; 16]) {
    let high = H::spread(high);
    put::<16>(codes, 0, |i| bytes[i] & 15 | high[i] & 16);
    put::<16>(codes, 16, |i| bytes[i] >> 4 | high[i + 16] & 16);
}

#[inline(always)]
pub(crate) fn q4_1<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<20>().0.iter().zip(out.codes.as_chunks_mut::<32>().0);
    for ((block, codes), (scale, offset)) in blocks.zip(out.scales.iter_mut().zip(out.offsets)) {
        *scale = half_at::<H>(block, 0);
        *offset = half_at::<H>(block, 2);
        put_nibbles(codes, 0, take::<16>(block, 4));
    }
}

#[inline(always)]
pub(crate) fn q5_0<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<22>().0.iter().zip(out.codes.as_chunks_mut::<32>().0);
    for ((block, codes), (scale, offset)) in blocks.zip(out.scales.iter_mut().zip(out.offsets)) {
        *scale = half_at::<H>(block, 0);
        *offset = -16.0 * *scale;
        put_five_bits::<H>(codes, u32::from_le_bytes(take::<4>(block, 2)), take::<16>(block, 6));
    }
}

#[inline(always)]
pub(crate) fn q5_1<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<24>().0.iter().zip(out.codes.as_chunks_mut::<32>().0);
    for ((block, codes), (scale, offset)) in blocks.zip(out.scales.iter_mut().zip(out.offsets)) {
        *scale = half_at::<H>(block, 0);
        *offset = half_at::<H>(block, 2);
        put_five_bits::<H>(codes, u32::from_le_bytes(take::<4>(block, 4)), take::<16>(block, 8));
    }
}

#[inline(always)]
pub(crate) fn q2_k<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<84>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        let (d, d_min) = (half_at::<H>(block, 80), half_at::<H>(block, 82));
        let packed = take::<16>(block, 0);
        let groups = out.scales[b * 16..][..16].iter_mut().zip(&mut out.offsets[b * 16..][..16]);
        for ((scale, offset), s) in groups.zip(packed) {
            *scale = d * f32::from(s & 15);
            *offset = -d_min * f32::from(s >> 4);
        }
        for run in 0..8 {
            let bytes = take::<32>(block, 16 + run / 4 * 32);
            put::<32>(codes, 32 * run, |i| bytes[i] >> (2 * (run % 4)) & 3);
        }
    }
}

#[inline(always)]
pub(crate) fn q3_k<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<110>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        let d = half_at::<H>(block, 108);
        let packed = take::<12>(block, 96);
        for (i, scale) in out.scales[b * 16..][..16].iter_mut().enumerate() {
            let low = packed[i % 8] >> (4 * (i / 8)) & 15;
            let high = packed[8 + i % 4] >> (2 * (i / 4)) & 3;
            *scale = d * f32::from((low | high << 4) as i8 - 32);
        }
        let high = take::<32>(block, 0);
        for run in 0..8 {
            let low = take::<32>(block, 32 + run / 4 * 32);
            // A missing high bit takes 4 off.
            put::<32>(codes, 32 * run, |i| {
                (low[i] >> (2 * (run % 4)) & 3 | (high[i] >> run & 1) << 2).wrapping_sub(4)
            });
        }
    }
}

/// The values IQ4 codes stand for.
pub(crate) const IQ4_VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values E2M1 codes stand for.
pub(crate) const E2M1_VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// `values` more than `zero`, as bytes.
#[cfg(target_arch = "x86_64")]
pub(crate) const fn above_zero(values: &[i8; 16], zero: u8) -> [u8; 16] {
    let (mut out, mut i) = ([0; 16], 0);
    while i < 16 {
        out[i] = (values[i] as u8).wrapping_add(zero);
        i += 1;
    }
    out
}

#[inline(always)]
pub(crate) fn iq4_nl<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<18>().0.iter().zip(out.codes.as_chunks_mut::<32>().0);
    for ((block, codes), scale) in blocks.zip(out.scales) {
        *scale = half_at::<H>(block, 0);
        put_looked_up::<H>(&IQ4_VALUES, codes, 0, take::<16>(block, 2));
    }
}

#[inline(always)]
pub(crate) fn iq4_xs<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<136>().0;
    for (b, (block, codes)) in blocks.iter().zip(out.codes.as_chunks_mut::<256>().0).enumerate() {
        let d = half_at::<H>(block, 0);
        let high = u16::from_le_bytes(take::<2>(block, 2));
        let low = take::<4>(block, 4);
        for (i, scale) in out.scales[b * 8..][..8].iter_mut().enumerate() {
            let code = low[i / 2] >> (4 * (i % 2)) & 15 | ((high >> (2 * i) & 3) as u8) << 4;
            *scale = d * f32::from(code as i8 - 32);
            put_looked_up::<H>(&IQ4_VALUES, codes, 32 * i, take::<16>(block, 8 + 16 * i));
        }
    }
}

/// The bits of 2^-128, half of what code 0 of E8M0 stands for.
pub(crate) const HALF_LEAST_E8M0: u32 = 0x0020_0000;

/// Half of `2^(code - 127)`: the scale of doubled E2M1 values.
#[inline(always)]
pub(crate) fn half_e8m0(code: u8) -> f32 {
    match code {
        0 | 1 => f32::from_bits(HALF_LEAST_E8M0 << code),
        _ => f32::from_bits((u32::from(code) - 1) << 23),
    }
}

#[inline(always)]
pub(crate) fn mxfp4<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let blocks = row.data.as_chunks::<17>().0.iter().zip(out.codes.as_chunks_mut::<32>().0);
    for ((block, codes), scale) in blocks.zip(out.scales) {
        *scale = half_e8m0(block[0]);
        put_looked_up::<H>(&E2M1_VALUES, codes, 0, take::<16>(block, 1));
    }
}

/// Nibbles of which neighbours share a byte. One loop of shifts would be vectorised worse.
#[inline(always)]
fn neighbours(bytes: [u8; 16]) -> [u8; 32] {
    let (low, high) = (bytes.map(|b| b & 15), bytes.map(|b| b >> 4));
    let mut nibbles = [0u8; 32];
    for (i, pair) in nibbles.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *pair = [low[i], high[i]];
    }
    nibbles
}

/// MLX keeps the scales apart and neighbours in one byte.
#[inline(always)]
pub(crate) fn mlx_mxfp4<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
    let groups = row.data.as_chunks::<16>().0.iter().zip(row.scales);
    for (((bytes, &code), codes), scale) in groups.zip(out.codes.as_chunks_mut::<32>().0).zip(out.scales) {
        *scale = half_e8m0(code);
        let nibbles = neighbours(*bytes);
        for half in 0..2 {
            let values = H::look_up(&E2M1_VALUES, take::<16>(&nibbles, 16 * half));
            put::<16>(codes, 16 * half, |i| values[i]);
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
fn k_scales<H: Primitives>(head: &[u8], scales: &mut [f32], offsets: &mut [f32]) {
    let (d, d_min) = (half_at::<H>(head, 0), half_at::<H>(head, 2));
    let (s, m) = scales_and_minima(&head[4..16]);
    for i in 0..8 {
        scales[i] = d * f32::from(s[i]);
        offsets[i] = -d_min * f32::from(m[i]);
    }
}

#[inline(always)]
pub(crate) fn q4_k<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
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
pub(crate) fn q5_k<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
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
pub(crate) fn q6_k<H: Primitives>(row: StoredRow<'_>, out: UnpackedRow<'_>) {
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
        let nibbles = neighbours(*bytes);
        put::<32>(codes, 0, |i| nibbles[i]);
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
