//! Formats in tile order as groups of codes with a scale, eight rows at a time: as `avx512::layouts` has them.

use core::arch::x86_64::*;

use super::rows::{EightRows, bits};
use super::tile::{Codes, Layout};
use crate::unpack::{E2M1_VALUES, HALF_LEAST_E8M0, IQ4_VALUES, above_zero};

pub(super) const LOW_NIBBLES: i32 = 0x0f0f_0f0f;

/// Codes in the low and in the high nibbles of line `line`.
///
/// # Safety
/// The CPU has AVX2, and the tile has the line.
#[inline(always)]
pub(super) unsafe fn nibbles(rows: EightRows, line: usize) -> [__m256i; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let [bytes] = rows.lines::<1>(line);
        [bits(bytes, 0, LOW_NIBBLES), bits(bytes, 4, LOW_NIBBLES)]
    }
}

/// As [`nibbles`] of line number `i` of a block's, with the fifth bits from line `high`, of which each byte has those of its
/// codes.
///
/// # Safety
/// The CPU has AVX2, and the tile has the lines.
#[inline(always)]
unsafe fn five_bits(rows: EightRows, high: usize, line: usize, i: usize) -> [__m256i; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let ([low, above], [high]) = (nibbles(rows, line + i), rows.lines::<1>(high));
        let place = _mm256_set1_epi32(0x1010_1010);
        let of_low = _mm256_sll_epi32(high, _mm_cvtsi32_si128(4 - i as i32));
        let of_above = _mm256_srl_epi32(high, _mm_cvtsi32_si128(i as i32));
        [
            _mm256_or_si256(low, _mm256_and_si256(of_low, place)),
            _mm256_or_si256(above, _mm256_and_si256(of_above, place)),
        ]
    }
}

/// What nibbles stand for in a table.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
pub(super) unsafe fn looked_up(table: &[u8; 16], codes: [__m256i; 2]) -> [__m256i; 2] {
    // SAFETY: sixteen bytes are loaded, unaligned; by the caller's promise.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
        [_mm256_shuffle_epi8(table, codes[0]), _mm256_shuffle_epi8(table, codes[1])]
    }
}

/// The half-precision floats in the low and the high 16 bits of each lane.
///
/// # Safety
/// The CPU has AVX2 and F16C.
#[inline(always)]
pub(super) unsafe fn two_halves(lanes: __m256i) -> (__m256, __m256) {
    // SAFETY: by the caller's promise.
    unsafe {
        // The halves of four rows each, low ones first; then those of all eight.
        let order =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
        let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_shuffle_epi8(lanes, order));
        let (low, high) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
        (_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
    }
}

/// Half of `2^(code - 127)` for the code in each lane, as [`crate::unpack::half_e8m0`].
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn half_e8m0(codes: __m256i) -> __m256 {
    // SAFETY: by the caller's promise.
    unsafe {
        let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(codes, _mm256_set1_epi32(1)));
        let least = _mm256_sllv_epi32(_mm256_set1_epi32(HALF_LEAST_E8M0 as i32), codes);
        let is_least = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), codes);
        _mm256_castsi256_ps(_mm256_blendv_epi8(normal, least, is_least))
    }
}

/// Makes types of formats: bytes of a block, what codes are, their zero, whether there are offsets, [`Layout::DIRECT_ROWS`],
/// codes of a line, scale and offset.
macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident $(<$type:ident: $bound:ident>)?:
        $bytes:literal, $codes_are:ident, $zero:expr, $offsets:literal $(, to $direct:expr)?,
        |$rows:ident, $group:ident, $line:ident| $codes:expr, $factors:expr;)*) => {
        $(
            $(#[$doc])*
            pub(super) struct $name $(<$type>(std::marker::PhantomData<$type>))?;

            impl $(<$type: $bound>)? Layout for $name $(<$type>)? {
                const BLOCK_BYTES: usize = $bytes;
                const CODES: Codes = Codes::$codes_are;
                const ZERO: Option<u32> = $zero;
                const OFFSETS: bool = $offsets;
                $(const DIRECT_ROWS: usize = $direct;)?

                #[inline(always)]
                unsafe fn codes($rows: EightRows, $group: usize, $line: usize) -> [__m256i; 2] {
                    // SAFETY: these are lines of the block.
                    unsafe { $codes }
                }

                #[inline(always)]
                unsafe fn factors($rows: EightRows, $group: usize) -> (__m256, __m256) {
                    // SAFETY: the block has these numbers.
                    unsafe { $factors }
                }
            }
        )*
    };
}

layouts! {
    Q4_0: 18, Nibbles, Some(3), false, to usize::MAX,
        |rows, block, i| nibbles(rows, 4 * block + i), (rows.half(block), _mm256_setzero_ps());
    Q8_0: 34, Bytes, None, false, to usize::MAX, |rows, block, i| {
        let ([low], [high]) = (rows.lines::<1>(8 * block + i), rows.lines::<1>(8 * block + 4 + i));
        [low, high]
    }, (rows.half(block), _mm256_setzero_ps());
    Q4_1: 20, Nibbles, None, true,
        |rows, block, i| nibbles(rows, 5 * block + 1 + i), two_halves(rows.lines::<1>(5 * block)[0]);
    Q5_0: 22, FiveBits, Some(4), false,
        |rows, block, i| five_bits(rows, 5 * block, 5 * block + 1, i), (rows.half(block), _mm256_setzero_ps());
    Q5_1: 24, FiveBits, None, true,
        |rows, block, i| five_bits(rows, 6 * block + 1, 6 * block + 2, i),
        two_halves(rows.lines::<1>(6 * block)[0]);
    Iq4Nl: 18, Bytes, None, false,
        |rows, block, i| looked_up(const { &above_zero(&IQ4_VALUES, 0) }, nibbles(rows, 4 * block + i)),
        (rows.half(block), _mm256_setzero_ps());
    /// Of GGUF files and of MLX.
    Mxfp4: 17, FiveBits, Some(4), false,
        |rows, block, i| looked_up(const { &above_zero(&E2M1_VALUES, 16) }, nibbles(rows, 4 * block + i)),
        (half_e8m0(rows.byte(block)), _mm256_setzero_ps());
    /// MLX's affine groups of any size, in four bits.
    Mlx4<N: Numbers>: 16, Nibbles, None, true,
        |rows, block, i| nibbles(rows, 4 * block + i), N::factors(rows.scale_and_bias(block));
    /// As [`Mlx4`], in eight bits; offsets are those of codes less 128, as rows are unpacked to.
    Mlx8<N: Numbers>: 32, Bytes, None, true, |rows, block, i| {
        let ([low], [high]) = (rows.lines::<1>(8 * block + i), rows.lines::<1>(8 * block + 4 + i));
        let sign = _mm256_set1_epi8(-128);
        [_mm256_xor_si256(low, sign), _mm256_xor_si256(high, sign)]
    }, {
        let (scale, bias) = N::factors(rows.scale_and_bias(block));
        (scale, _mm256_add_ps(bias, _mm256_mul_ps(_mm256_set1_ps(128.0), scale)))
    };
}

/// Numbers of two bytes.
pub(super) trait Numbers {
    /// Scales and biases as floats.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn factors(numbers: [__m128i; 2]) -> (__m256, __m256);
}

impl Numbers for half::f16 {
    #[inline(always)]
    unsafe fn factors([scale, bias]: [__m128i; 2]) -> (__m256, __m256) {
        // SAFETY: by the caller's promise.
        unsafe { (_mm256_cvtph_ps(scale), _mm256_cvtph_ps(bias)) }
    }
}

impl Numbers for half::bf16 {
    #[inline(always)]
    unsafe fn factors([scale, bias]: [__m128i; 2]) -> (__m256, __m256) {
        // SAFETY: by the caller's promise.
        unsafe {
            let (scale, bias) = (_mm256_cvtepu16_epi32(scale), _mm256_cvtepu16_epi32(bias));
            let (scale, bias) = (_mm256_slli_epi32::<16>(scale), _mm256_slli_epi32::<16>(bias));
            (_mm256_castsi256_ps(scale), _mm256_castsi256_ps(bias))
        }
    }
}
