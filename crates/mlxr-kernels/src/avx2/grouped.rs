//! Super-blocks in tile order whose groups become floats one by one, eight rows at a time: as `avx512::grouped` has them.

use core::arch::x86_64::*;

use super::layouts::{looked_up, nibbles, two_halves};
use super::rows::{EightRows, bits};
use super::tile::{Codes, Layout};
use crate::unpack::{IQ4_VALUES, above_zero};

const LOW_PAIRS: i32 = 0x0303_0303;
const LOWEST: i32 = 0x0101_0101;

pub(super) struct Iq4Xs;

impl Layout for Iq4Xs {
    const BLOCK_BYTES: usize = 136;
    const GROUPS: usize = 8;
    const CODES: Codes = Codes::Bytes;

    #[inline(always)]
    unsafe fn codes(rows: EightRows, group: usize, line: usize) -> [__m256i; 2] {
        let (block, i) = (group / 8, group % 8);
        // SAFETY: a block has 32 words of nibbles behind two of scales.
        unsafe {
            looked_up(const { &above_zero(&IQ4_VALUES, 0) }, nibbles(rows, 34 * block + 2 + 4 * i + line))
        }
    }

    #[inline(always)]
    unsafe fn factors(rows: EightRows, group: usize) -> (__m256, __m256) {
        let (block, i) = (group / 8, (group % 8) as u32);
        // SAFETY: a block begins with a factor, the high bits of eight scales, and a word of their low bits.
        unsafe {
            let [head, low] = rows.lines::<2>(34 * block);
            let scale = six_bits(bits(low, 4 * i, 15), bits(head, 16 + 2 * i, 3));
            (scaled(two_halves(head).0, scale), _mm256_setzero_ps())
        }
    }
}

pub(super) struct Q2K;

impl Layout for Q2K {
    const BLOCK_BYTES: usize = 84;
    const GROUPS: usize = 16;
    const GROUP: usize = 16;
    const CODES: Codes = Codes::Nibbles;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn codes(rows: EightRows, group: usize, line: usize) -> [__m256i; 2] {
        // SAFETY: a block has sixteen words of codes behind four of scales and minima.
        unsafe { [low_pairs(rows, 21 * (group / 16) + 4, group % 16, line), _mm256_setzero_si256()] }
    }

    #[inline(always)]
    unsafe fn factors(rows: EightRows, group: usize) -> (__m256, __m256) {
        let (first, i) = (21 * (group / 16), group % 16);
        // SAFETY: a block begins with four words of scales and minima, and ends with their factors.
        unsafe {
            let (d, d_min) = two_halves(rows.lines::<1>(first + 20)[0]);
            let [packed] = rows.lines::<1>(first + i / 4);
            let at = 8 * (i % 4) as u32;
            let d_min = _mm256_sub_ps(_mm256_setzero_ps(), d_min);
            (scaled(d, bits(packed, at, 15)), scaled(d_min, bits(packed, at + 4, 15)))
        }
    }
}

pub(super) struct Q3K;

impl Layout for Q3K {
    const BLOCK_BYTES: usize = 110;
    const GROUPS: usize = 16;
    const GROUP: usize = 16;
    const CODES: Codes = Codes::Nibbles;
    const ZERO: Option<u32> = Some(2);

    #[inline(always)]
    unsafe fn codes(rows: EightRows, group: usize, line: usize) -> [__m256i; 2] {
        let (first, i) = (27 * (group / 16), group % 16);
        // SAFETY: a block begins with eight words of high bits and sixteen of low pairs.
        unsafe {
            let [high] = rows.lines::<1>(first + 4 * (i % 2) + line);
            let high = _mm256_slli_epi32::<2>(bits(high, i as u32 / 2, LOWEST));
            [_mm256_or_si256(low_pairs(rows, first + 8, i, line), high), _mm256_setzero_si256()]
        }
    }

    #[inline(always)]
    unsafe fn factors(rows: EightRows, group: usize) -> (__m256, __m256) {
        let (block, i) = (group / 16, group % 16);
        let (at, of) = (8 * (i % 4) as u32, i as u32);
        // SAFETY: a block ends with three words of scales; its factor is beside it.
        unsafe {
            let ([low], [high]) =
                (rows.lines::<1>(27 * block + 24 + i % 8 / 4), rows.lines::<1>(27 * block + 26));
            let scale = six_bits(bits(low, at + 4 * (of / 8), 15), bits(high, at + 2 * (of / 4), 3));
            (scaled(rows.half(block), scale), _mm256_setzero_ps())
        }
    }
}

/// Two bits each for four columns of group `i`, of which lines from number `first` on have four runs of 32 columns each.
///
/// # Safety
/// The CPU has AVX2, and the tile has sixteen lines there.
#[inline(always)]
unsafe fn low_pairs(rows: EightRows, first: usize, i: usize, line: usize) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe {
        let [pairs] = rows.lines::<1>(first + i / 8 * 8 + i % 2 * 4 + line);
        bits(pairs, i as u32 / 2 % 4 * 2, LOW_PAIRS)
    }
}

/// Scales of four low and two high bits, less 32.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn six_bits(low: __m256i, high: __m256i) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe {
        let scale = _mm256_or_si256(low, _mm256_slli_epi32::<4>(high));
        _mm256_sub_epi32(scale, _mm256_set1_epi32(32))
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn scaled(factor: __m256, scale: __m256i) -> __m256 {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_mul_ps(factor, _mm256_cvtepi32_ps(scale)) }
}
