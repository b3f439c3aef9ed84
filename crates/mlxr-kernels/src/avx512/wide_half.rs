//! Panels of [`super::wide`] filled in half precision, 32 weights at a time, where the CPU calculates in it.
//!
//! The scale and the offset of a group of columns are multiplied by a power of two that makes the block's largest value
//! one of the largest numbers of half precision, and rounded to its eleven bits. The bits of `scale * code + offset` are
//! rounded to the eight of a bf16, and the power is taken out of the exponent again. So a value is off by what a bf16 is,
//! by half of the eleventh bit of itself, and where there are offsets, or scales are products of two numbers, by half of that
//! of both; zero becomes 2^-27 times the block's largest value or less.

use core::arch::asm;
use core::arch::x86_64::*;
use std::marker::PhantomData;

use super::layouts::{Layout, Visitor, Zero};
use super::rows::TileRows;
use super::super_blocks::{self, Heads, SuperBlock};
use super::wide::{self, OnlyHeads, Source, blocks_of, store, super_blocks_of};
use crate::linear::blocks::BLOCK_COLS;
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::WideRows;

/// Whether the CPU, known to run the AVX-512 table, calculates in half precision.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512fp16")
}

/// The exponent of the largest product that a block may have: that, less an offset, is still below the largest number.
const TOP: i32 = 13;

/// How much larger the number is that some bits stand for in half precision than in bf16, three places lower, as a power of
/// two: the exponents begin at -14 and at -126.
const BIAS: i32 = 112;

/// Products in half precision, whose instructions the compiler has no stable intrinsics for.
#[inline]
#[target_feature(enable = "avx512f")]
fn product(a: __m512i, b: __m512i) -> __m512i {
    let out: __m512i;
    // SAFETY: registers only; panels are only filled so where the CPU has the instruction (`is_available`).
    unsafe {
        asm!(
            "vmulph {out:z}, {a:z}, {b:z}",
            out = lateout(zmm_reg) out,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// `a * b + c` in half precision.
#[inline]
#[target_feature(enable = "avx512f")]
fn product_plus(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    let mut out = a;
    // SAFETY: as in `product`.
    unsafe {
        asm!(
            "vfmadd213ph {out:z}, {b:z}, {c:z}",
            out = inout(zmm_reg) out,
            b = in(zmm_reg) b,
            c = in(zmm_reg) c,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// 16-bit integers in half precision.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves_of(integers: __m512i) -> __m512i {
    let out: __m512i;
    // SAFETY: as in `product`.
    unsafe {
        asm!(
            "vcvtw2ph {out:z}, {from:z}",
            out = lateout(zmm_reg) out,
            from = in(zmm_reg) integers,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    out
}

/// The low (`HIGH`: high) sixteen bits of each lane, twice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn twice<const HIGH: bool>(lanes: __m512i) -> __m512i {
    let order = if HIGH {
        [0x0302_0302, 0x0706_0706, 0x0b0a_0b0a, 0x0f0e_0f0e]
    } else {
        [0x0100_0100, 0x0504_0504, 0x0908_0908, 0x0d0c_0d0c]
    };
    _mm512_shuffle_epi8(lanes, _mm512_broadcast_i32x4(_mm_setr_epi32(order[0], order[1], order[2], order[3])))
}

/// Floats in half precision, each twice.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves_twice(values: __m512) -> __m512i {
    let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
    twice::<false>(_mm512_cvtepu16_epi32(halves))
}

/// What is the same for all codes of a group.
struct Line {
    scale: __m512i,
    offset: __m512i,
    exponent: __m512i,
}

impl Line {
    /// Two lines of two columns from codes of four.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn put(&self, codes: __m512i, out: &mut [u8]) {
        const FIRST: i32 = 0x8001_8000_u32 as i32;
        let value = |first: i32| {
            // Two of four bytes as 16-bit integers: the others are zero.
            let order = _mm_setr_epi32(first, first + 0x0004_0004, first + 0x0008_0008, first + 0x000c_000c);
            let code = halves_of(_mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(order)));
            let value = product_plus(code, self.scale, self.offset);
            // Rounded and three bits to the right; a sign is kept, its copies are not.
            let value = _mm512_mulhrs_epi16(value, _mm512_set1_epi16(1 << 12));
            let value = _mm512_and_si512(value, _mm512_set1_epi16(0x8fff_u16 as i16));
            _mm512_add_epi16(value, self.exponent)
        };
        store(&mut out[..LINE_BYTES], value(FIRST));
        store(&mut out[LINE_BYTES..], value(FIRST + 0x0002_0002));
    }
}

/// Writes lines of four columns, up to eight, by [`Line::put`]. Line by line, since the compiler would not unroll a loop,
/// and codes would go through memory.
macro_rules! put_halves {
    ($out:expr, $codes:ident, $n:ident, $line:ident) => {{
        let out = &mut $out[..2 * $n * LINE_BYTES];
        put_halves!(@ out, $codes, $n, $line, 0 1 2 3 4 5 6 7);
    }};
    (@ $out:ident, $codes:ident, $n:ident, $line:ident, $($i:literal)*) => {
        $(if $i < $n {
            $line.put($codes[$i % $n], &mut $out[2 * $i * LINE_BYTES..][..2 * LINE_BYTES]);
        })*
    };
}

/// What takes powers of two out of the exponents of bf16, twice a lane; nothing where there are no values.
#[inline]
#[target_feature(enable = "avx512f")]
fn exponent_without(is_some: __mmask16, power: __m512) -> __m512i {
    let exponent = _mm512_sub_ps(_mm512_set1_ps(BIAS as f32), power);
    let exponent = _mm512_slli_epi32::<7>(_mm512_maskz_cvtps_epi32(is_some, exponent));
    _mm512_or_si512(exponent, _mm512_slli_epi32::<16>(exponent))
}

/// Whether all numbers are finite.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn are_finite(values: __m512) -> bool {
    // Infinities and what is not a number, quiet or signalling.
    _mm512_fpclass_ps_mask::<0x99>(values) == 0
}

/// Minus a power of two in half precision.
const fn minus(log2: u16) -> u16 {
    0x8000 | (15 + log2) << 10
}

/// The largest code of those that begin with zero, and the largest distance from 128.
const MOST_FROM_0: f32 = 31.0;
const MOST_FROM_128: f32 = 128.0;

/// How large powers of two may be that blocks are multiplied by, either way: in the exponents of bf16 there is room for all
/// values of such blocks.
const MOST_POWER: f32 = 112.0;

/// Quant blocks in tile order.
pub(crate) struct HalfBlocks<L>(PhantomData<L>);

impl<L: Layout<Rows = TileRows>> Source for HalfBlocks<L> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]) {
        let (rows, blocks) = blocks_of::<L>(weights, tile, start, n_cols);
        let mut fill = Fill { panel, start };
        for block in blocks {
            // SAFETY: the rows have these blocks.
            unsafe { L::visit(rows, block, &mut fill) };
        }
    }
}

/// Writes groups of codes into sixteen rows' part of a panel.
struct Fill<'a> {
    panel: &'a mut [u8],
    /// The panel's first column.
    start: usize,
}

impl Visitor for Fill<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn group<L: Layout, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512,
        offset: __m512,
    ) {
        // The largest value, up to a power of two: without offsets half of all codes stand for less than zero.
        let (most, bits) = match (L::OFFSETS, L::ZERO) {
            (false, zero) => (scale, zero.log2()),
            (true, zero) => {
                let most = if matches!(zero, Zero::Is0) { MOST_FROM_0 } else { MOST_FROM_128 };
                let (scale, offset) = (_mm512_abs_ps(scale), _mm512_abs_ps(offset));
                (_mm512_fmadd_ps(scale, _mm512_set1_ps(most), offset), 0)
            }
        };
        let is_some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(most, _mm512_setzero_ps());
        let power = _mm512_sub_ps(_mm512_set1_ps((TOP - bits) as f32), _mm512_getexp_ps(most));
        let fits = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_abs_ps(power), _mm512_set1_ps(MOST_POWER));
        if fits | !is_some != !0 {
            let mut fill = wide::Fill { panel: self.panel, start: self.start };
            // SAFETY: passes the caller's promise on.
            unsafe { fill.group::<L, N>(col, codes, scale, offset) };
            return;
        }
        let halves = |values| halves_twice(_mm512_maskz_scalef_ps(is_some, values, power));
        let scale = halves(scale);
        let zero = _mm512_set1_epi16(minus(L::ZERO.log2() as u16) as i16);
        let offset = match (L::OFFSETS, L::ZERO) {
            (false, _) => product(scale, zero),
            (true, Zero::Is0) => halves(offset),
            (true, _) => product_plus(scale, zero, halves(offset)),
        };
        let line = Line { scale, offset, exponent: exponent_without(is_some, power) };
        put_halves!(self.panel[(col - self.start) * N_ROWS * 2..], codes, N, line);
    }
}

/// Super-blocks in tile order.
pub(crate) struct HalfSuperBlocks<S>(PhantomData<S>);

impl<S: SuperBlock> Source for HalfSuperBlocks<S> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]) {
        let (rows, blocks) = super_blocks_of::<S>(weights, tile, start, n_cols);
        for (block, out) in blocks.zip(panel.chunks_exact_mut(BLOCK_COLS * N_ROWS * 2)) {
            let mut last = OnlyHeads(None);
            // SAFETY: the rows have these blocks.
            unsafe {
                S::visit(rows, block, &mut last);
                let heads = last.0.expect("heads come last");
                if are_finite(heads.d) && are_finite(heads.d_min) {
                    let heads = HalfHeads::new::<S>(&heads);
                    S::visit(rows, block, &mut FillBlock { out, heads });
                } else {
                    S::visit(rows, block, &mut wide::FillBlock { out, heads });
                }
            }
        }
    }
}

/// As [`Heads`], times powers of two, each number twice a lane.
struct HalfHeads {
    minima: [__m512i; super_blocks::MAX_PAIRS],
    d: __m512i,
    /// Negative.
    d_min: __m512i,
    exponent: __m512i,
}

impl HalfHeads {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    fn new<S: SuperBlock>(heads: &Heads) -> Self {
        // The largest product of scale and code, and the largest minimum.
        let most = if S::ZERO == 0 { 63.0 * ((1 << S::BITS) - 1) as f32 } else { (128 * S::ZERO) as f32 };
        let of = |factor: __m512, most: f32| _mm512_mul_ps(_mm512_abs_ps(factor), _mm512_set1_ps(most));
        let most = _mm512_max_ps(of(heads.d, most), of(heads.d_min, 63.0));
        let is_some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(most, _mm512_setzero_ps());
        let power = _mm512_sub_ps(_mm512_set1_ps(TOP as f32), _mm512_getexp_ps(most));
        let minus = _mm512_sub_ps(_mm512_setzero_ps(), heads.d_min);
        Self {
            minima: heads.minima,
            d: halves_twice(_mm512_maskz_scalef_ps(is_some, heads.d, power)),
            d_min: halves_twice(_mm512_maskz_scalef_ps(is_some, minus, power)),
            exponent: exponent_without(is_some, power),
        }
    }
}

/// Writes a super-block of sixteen rows.
struct FillBlock<'a> {
    out: &'a mut [u8],
    heads: HalfHeads,
}

impl super_blocks::Visitor for FillBlock<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn group<S: SuperBlock, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512i,
    ) {
        let heads = &self.heads;
        let scale = product(halves_of(twice::<false>(scale)), heads.d);
        let offset = if S::ZERO == 0 {
            let (pair, is_high) = super_blocks::place_of_minimum(col / S::GROUP);
            let pair = heads.minima[pair];
            let minimum = if is_high { twice::<true>(pair) } else { twice::<false>(pair) };
            product(halves_of(minimum), heads.d_min)
        } else {
            product(scale, _mm512_set1_epi16(minus(5) as i16))
        };
        let line = Line { scale, offset, exponent: heads.exponent };
        put_halves!(self.out[col * N_ROWS * 2..], codes, N, line);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn heads<S: SuperBlock>(&mut self, _: &Heads) {}
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use mlxr_tensor::conformance::data::{self, Noise};
    use mlxr_tensor::{DType, Format, HostTensor};

    use super::*;
    use crate::avx512::layouts::{
        Iq4Nl, Iq4Xs, Mlx4Bf16, Mlx4F16, Mlx8Bf16, Mlx8F16, Mxfp4, Q2K, Q3K, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,
    };
    use crate::avx512::super_blocks::{Q4K, Q5K, Q6K};
    use crate::avx512::{self, wide::Blocks, wide::PANEL_TILE, wide::SuperBlocks};
    use crate::kernels::Kernels;
    use crate::linear::tiled::TileRoom;
    use crate::pool::ThreadPool;
    use crate::room::Room;
    use crate::weight::Matrix;

    const COLS: usize = 512;

    /// Sixteen rows with any scales.
    fn tensor(dtype: DType, scales: &[usize], some: impl Fn(usize) -> u16) -> HostTensor {
        let tensor = data::tensor(Format::Plain(dtype), &[N_ROWS, COLS], &mut Noise::new(3));
        let mut bytes = tensor.data().to_vec();
        for (i, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
            for &at in scales {
                block[at..at + 2].copy_from_slice(&some(i * 2 + at).to_le_bytes());
            }
        }
        HostTensor::new("w", &[N_ROWS, COLS], dtype, Bytes::from(bytes)).expect("sizes fit")
    }

    /// The values a source fills a panel with, row by row.
    fn filled<S: Source>(tensor: &HostTensor) -> Vec<f32> {
        let kernels = Kernels { wide: None, ..avx512::TABLE };
        let Ok(Matrix::Tiled(matrix)) = Matrix::new(tensor, &kernels, &ThreadPool::new(1), &Room::default())
        else {
            panic!("a tile order")
        };
        let mut room = TileRoom::empty();
        let (weights, mut panel) =
            (WideRows::Tiled(matrix.tiles(0..N_ROWS, &mut room)), vec![0xffu8; PANEL_TILE]);
        // SAFETY: the instructions are there.
        unsafe { S::fill(&weights, 0, 0, COLS, &mut panel) };
        let at = |row: usize, col: usize| col / 2 * LINE_BYTES + row * 4 + col % 2 * 2;
        let number = |at: usize| half::bf16::from_le_bytes([panel[at], panel[at + 1]]).to_f32();
        (0..N_ROWS * COLS).map(|i| number(at(i / COLS, i % COLS))).collect()
    }

    /// Values beside those of a panel, and by how much these may be off: by some of themselves and some of the largest of
    /// their block.
    fn check<H: Source, S: Source>(dtype: DType, scales: &[usize], (of_value, of_largest): (f32, f32)) {
        let near_zero = |i: usize| [0, 1, 0x8003, 0x03ff, 0x0400, 0x1234, 0x9999, 0x2abc][i % 8];
        let usual = |i: usize| 0x1000 + (i * 7919 % 0x1800) as u16;
        let large = |i: usize| [0x7bff, 0xfbff, 0x0001, 0x3c00, 0, 0x6000, 0x1234][i % 7];
        let any = [
            tensor(dtype, scales, usual),
            tensor(dtype, scales, near_zero),
            tensor(dtype, scales, large),
            tensor(dtype, scales, |i| (i * 40503) as u16 & 0xbfff),
        ];
        for (n, tensor) in any.iter().enumerate() {
            let (got, values) = (filled::<H>(tensor), tensor.to_f32().expect("numbers"));
            let blocks = values.chunks_exact(dtype.block_len()).zip(got.chunks_exact(dtype.block_len()));
            for (i, (values, got)) in blocks.enumerate() {
                let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (value, got) in values.iter().zip(got) {
                    let limit = value.abs() * of_value + largest * of_largest;
                    assert!(
                        (got - value).abs() <= limit,
                        "{} {n} {i}: {got} {value} of {largest}",
                        dtype.name()
                    );
                }
            }
        }
        // What is no number stays what it was.
        let none = tensor(dtype, scales, |i| [0x7c00, 0x7e00, 0xfc00, 0x2222][i % 4]);
        let (half, single) = (filled::<H>(&none), filled::<S>(&none));
        assert!(single.iter().any(|value| !value.is_finite()));
        assert!(half.iter().zip(&single).all(|(h, s)| h.is_finite() == s.is_finite()), "{}", dtype.name());
    }

    #[test]
    fn panels_in_half_precision_have_the_values() {
        if !avx512::is_available() || avx512::wide_if_any().is_none() || !is_available() {
            return;
        }
        check::<HalfBlocks<Q4_0>, Blocks<Q4_0>>(DType::Q4_0, &[0], (0.004_5, 1e-8));
        check::<HalfBlocks<Q8_0>, Blocks<Q8_0>>(DType::Q8_0, &[0], (0.004_5, 1e-8));
        check::<HalfBlocks<Q5_0>, Blocks<Q5_0>>(DType::Q5_0, &[0], (0.004_5, 1e-8));
        check::<HalfBlocks<Iq4Nl>, Blocks<Iq4Nl>>(DType::IQ4_NL, &[0], (0.004_5, 1e-8));
        check::<HalfBlocks<Iq4Xs>, Blocks<Iq4Xs>>(DType::IQ4_XS, &[0], (0.005, 1e-8));
        check::<HalfBlocks<Q3K>, Blocks<Q3K>>(DType::Q3_K, &[108], (0.005, 1e-8));
        check::<HalfBlocks<Q4_1>, Blocks<Q4_1>>(DType::Q4_1, &[0, 2], (0.005, 0.001));
        check::<HalfBlocks<Q5_1>, Blocks<Q5_1>>(DType::Q5_1, &[0, 2], (0.005, 0.001));
        check::<HalfBlocks<Q2K>, Blocks<Q2K>>(DType::Q2_K, &[80, 82], (0.005, 0.001));
        check::<HalfSuperBlocks<Q6K>, SuperBlocks<Q6K>>(DType::Q6_K, &[208], (0.005, 1e-8));
        check::<HalfSuperBlocks<Q5K>, SuperBlocks<Q5K>>(DType::Q5_K, &[0, 2], (0.005, 0.001));
        check::<HalfSuperBlocks<Q4K>, SuperBlocks<Q4K>>(DType::Q4_K, &[0, 2], (0.005, 0.001));
    }

    /// Values of a panel beside those of a tensor, by how much they may be off as above, the largest being that of 32.
    fn assert_near(got: &[f32], values: &[f32], (of_value, of_largest): (f32, f32), what: &str) {
        for (values, got) in values.chunks_exact(32).zip(got.chunks_exact(32)) {
            let largest = values.iter().fold(0f32, |m, v| m.max(v.abs())).min(f32::MAX);
            for (value, got) in values.iter().zip(got) {
                let limit = (value.abs() * of_value + largest * of_largest).min(f32::MAX);
                assert!(got == value || (got - value).abs() <= limit, "{what}: {got} {value} of {largest}");
            }
        }
    }

    #[test]
    fn every_exponent_that_a_scale_may_be_gives_numbers() {
        if !avx512::is_available() || avx512::wide_if_any().is_none() {
            return;
        }
        let tensor = data::tensor(Format::Plain(DType::MXFP4), &[N_ROWS, COLS], &mut Noise::new(4));
        for first in (0..=255u8).step_by(N_ROWS) {
            let mut bytes = tensor.data().to_vec();
            for (i, block) in bytes.chunks_exact_mut(17).enumerate() {
                // Rows that share a tile have the same or different exponents.
                block[0] = first.saturating_add((i / (COLS / 32) * (i % 2)) as u8);
            }
            let tensor =
                HostTensor::new("w", &[N_ROWS, COLS], DType::MXFP4, bytes.into()).expect("sizes fit");
            let values = tensor.to_f32().expect("numbers");
            // The least values are no normal bf16: steps of 2^-133 are left of them.
            let is_normal = |v: f32| v == 0.0 || f32::MIN_POSITIVE <= v.abs();
            let near = |got: &[f32]| {
                let both = got.iter().zip(&values).filter(|(_, v)| is_normal(**v));
                let (got, values): (Vec<f32>, Vec<f32>) = both.unzip();
                assert!(got.iter().all(|v| !v.is_nan()), "exponents from {first}");
                let whole = values.len() / 32 * 32;
                assert_near(
                    &got[..whole],
                    &values[..whole],
                    (0.004_5, 1e-8),
                    &format!("exponents from {first}"),
                );
            };
            near(&filled::<Blocks<Mxfp4>>(&tensor));
            if is_available() {
                near(&filled::<HalfBlocks<Mxfp4>>(&tensor));
            }
        }
    }

    #[test]
    fn panels_of_groups_in_half_precision_have_the_values() {
        if !avx512::is_available() || avx512::wide_if_any().is_none() || !is_available() {
            return;
        }
        let mut noise = Noise::new(8);
        for (bits, scale) in [(4, DType::F16), (4, DType::BF16), (8, DType::F16), (8, DType::BF16)] {
            for group_size in [32, 64, 128] {
                let format = Format::MlxAffine { bits, group_size, scale };
                let tensor = data::tensor(format, &[N_ROWS, COLS], &mut noise);
                // Scales and biases of any size that both types have.
                for power in [-14i32, -9, 0, 5, 9] {
                    let moved = |bytes: &[u8]| -> Bytes {
                        let by = |bytes: &[u8; 2]| match scale {
                            DType::F16 => half::f16::from_f32(
                                half::f16::from_le_bytes(*bytes).to_f32() * 2f32.powi(power),
                            )
                            .to_le_bytes(),
                            _ => {
                                let power = power * 13;
                                half::bf16::from_f32(
                                    half::bf16::from_le_bytes(*bytes).to_f32() * 2f32.powi(power),
                                )
                                .to_le_bytes()
                            }
                        };
                        bytes.as_chunks::<2>().0.iter().flat_map(by).collect()
                    };
                    let [scales, biases] = [tensor.scales(), tensor.biases()].map(|bytes| moved(bytes));
                    let data = tensor.data().clone();
                    let tensor = HostTensor::with_scales("w", &[N_ROWS, COLS], format, data, scales, biases)
                        .expect("sizes fit");
                    let got = match (bits, scale) {
                        (4, DType::F16) => filled::<HalfBlocks<Mlx4F16>>(&tensor),
                        (4, _) => filled::<HalfBlocks<Mlx4Bf16>>(&tensor),
                        (_, DType::F16) => filled::<HalfBlocks<Mlx8F16>>(&tensor),
                        _ => filled::<HalfBlocks<Mlx8Bf16>>(&tensor),
                    };
                    let values = tensor.to_f32().expect("numbers");
                    assert_near(&got, &values, (0.005, 0.001), &format!("{} 2^{power}", format.name()));
                }
            }
        }
    }
}
