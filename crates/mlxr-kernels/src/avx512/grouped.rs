//! Super-blocks in tile order whose groups become floats one by one, sixteen rows at a time.

use core::arch::x86_64::*;

use super::layouts::{DIRECT_ROWS, Layout, Visitor, Zero, looked_up, nibbles, two_halves};
use super::rows::{TileRows, bits, bits_of, low_half};
use crate::unpack::{IQ4_VALUES, above_zero};

const LOW_PAIRS: i32 = 0x0303_0303;
const LOWEST: i32 = 0x0101_0101;

pub(crate) struct Iq4Xs;

impl Layout for Iq4Xs {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 256;
    const BLOCK_BYTES: usize = 136;
    const DIRECT_ROWS: usize = DIRECT_ROWS;
    const GROUP: usize = 32;
    const ZERO: Zero = Zero::Is128;
    const OFFSETS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        let first = 34 * block;
        // SAFETY: a block is a factor with the high bits of eight scales, a word of their low bits, and 32 words of nibbles.
        unsafe {
            let [head, low] = rows.lines::<2>(first);
            let d = low_half(head);
            for i in 0..8 {
                let high = _mm512_slli_epi32::<4>(bits(head, 16 + 2 * i, 3));
                let scale = _mm512_or_si512(bits(low, 4 * i, 15), high);
                let scale = scaled(d, _mm512_sub_epi32(scale, _mm512_set1_epi32(32)));
                let i = i as usize;
                let codes =
                    looked_up(const { &above_zero(&IQ4_VALUES, 128) }, nibbles(rows, first + 2 + 4 * i));
                visitor.group::<Self, 8>(256 * block + 32 * i, codes, scale, _mm512_setzero_ps());
            }
        }
    }
}

pub(crate) struct Q2K;

impl Layout for Q2K {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 256;
    const BLOCK_BYTES: usize = 84;
    const DIRECT_ROWS: usize = DIRECT_ROWS;
    const GROUP: usize = 16;
    const ZERO: Zero = Zero::Is0;
    const OFFSETS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        let first = 21 * block;
        // SAFETY: a block is four words of scales and minima, sixteen of codes, and their factors.
        unsafe {
            let (d, d_min) = two_halves(rows.lines::<1>(first + 20)[0]);
            let d_min = _mm512_sub_ps(_mm512_setzero_ps(), d_min);
            for i in 0..16 {
                let [packed] = rows.lines::<1>(first + i / 4);
                let at = 8 * (i % 4) as u32;
                let scale = scaled(d, bits(packed, at, 15));
                let offset = scaled(d_min, bits(packed, at + 4, 15));
                let codes = low_pairs(rows, first + 4, i);
                visitor.group::<Self, 4>(256 * block + 16 * i, codes, scale, offset);
            }
        }
    }
}

pub(crate) struct Q3K;

impl Layout for Q3K {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 256;
    const BLOCK_BYTES: usize = 110;
    const DIRECT_ROWS: usize = DIRECT_ROWS;
    const GROUP: usize = 16;
    const ZERO: Zero = Zero::Is4;
    const OFFSETS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        let first = 27 * block;
        // SAFETY: a block is eight words of high bits, sixteen of low pairs, and three of scales; its factor is beside it.
        unsafe {
            let d = rows.half(block);
            let [high_scales] = rows.lines::<1>(first + 26);
            for i in 0..16 {
                let [low_scales] = rows.lines::<1>(first + 24 + i % 8 / 4);
                let (at, of) = (8 * (i % 4) as u32, i as u32);
                let high = _mm512_slli_epi32::<4>(bits(high_scales, at + 2 * (of / 4), 3));
                let scale = _mm512_or_si512(bits(low_scales, at + 4 * (of / 8), 15), high);
                let scale = scaled(d, _mm512_sub_epi32(scale, _mm512_set1_epi32(32)));
                let mut codes = low_pairs(rows, first + 8, i);
                let high = bits_of(rows.lines::<4>(first + 4 * (i % 2)), of / 2, LOWEST);
                for (code, high) in codes.iter_mut().zip(high) {
                    *code = _mm512_or_si512(*code, _mm512_slli_epi32::<2>(high));
                }
                visitor.group::<Self, 4>(256 * block + 16 * i, codes, scale, _mm512_setzero_ps());
            }
        }
    }
}

/// Two bits each for the columns of group `i`, of which lines from number `first` on have four runs of 32 columns each.
///
/// # Safety
/// The tile has sixteen lines there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn low_pairs(rows: TileRows, first: usize, i: usize) -> [__m512i; 4] {
    // SAFETY: by the caller's promise.
    bits_of(unsafe { rows.lines::<4>(first + i / 8 * 8 + i % 2 * 4) }, i as u32 / 2 % 4 * 2, LOW_PAIRS)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn scaled(factor: __m512, scale: __m512i) -> __m512 {
    _mm512_mul_ps(factor, _mm512_cvtepi32_ps(scale))
}
