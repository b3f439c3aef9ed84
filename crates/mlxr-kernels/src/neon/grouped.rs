//! Super-blocks in tile order whose groups become floats one by one, four rows at a time: as `avx512::grouped` has them.

use core::arch::aarch64::*;

use super::dots::Dots;
use super::layouts::{alone, looked_up, nibbles};
use super::rows::{FourRows, bits, shifted, two_halves, with_bits};
use super::tile::Layout;
use crate::unpack::IQ4_VALUES;

pub(super) struct Iq4Xs;

impl Layout for Iq4Xs {
    const BLOCK_BYTES: usize = 136;
    const GROUPS: usize = 8;

    #[inline(always)]
    unsafe fn codes<D: Dots, const PAIR: usize>(rows: FourRows, group: usize) -> [[uint8x16_t; 2]; 2] {
        let (block, i) = (group / 8, group % 8);
        // SAFETY: a block has 32 words of nibbles behind two of scales.
        unsafe { looked_up(&IQ4_VALUES, nibbles::<D>(rows, 34 * block + 2 + 4 * i + 2 * PAIR)) }
    }

    #[inline(always)]
    unsafe fn factors(rows: FourRows, group: usize) -> (float32x4_t, float32x4_t) {
        let (block, i) = (group / 8, (group % 8) as u32);
        // SAFETY: a block begins with a factor, the high bits of eight scales, and a word of their low bits.
        unsafe {
            let (head, low) = (rows.words(34 * block), rows.words(34 * block + 1));
            let scale = six_bits(bits(low, 4 * i, 15), bits(head, 16 + 2 * i, 3));
            alone(scaled(two_halves(head).0, scale))
        }
    }
}

pub(super) struct Q2K;

impl Layout for Q2K {
    const BLOCK_BYTES: usize = 84;
    const GROUPS: usize = 16;
    const GROUP: usize = 16;
    const OFFSETS: bool = true;

    #[inline(always)]
    unsafe fn codes<D: Dots, const PAIR: usize>(rows: FourRows, group: usize) -> [[uint8x16_t; 2]; 2] {
        // SAFETY: a block has sixteen words of codes behind four of scales and minima.
        let codes = unsafe { low_pairs::<D, PAIR>(rows, 21 * (group / 16) + 4, group % 16) };
        [codes, codes]
    }

    #[inline(always)]
    unsafe fn factors(rows: FourRows, group: usize) -> (float32x4_t, float32x4_t) {
        let (first, i) = (21 * (group / 16), group % 16);
        // SAFETY: a block begins with four words of scales and minima, and ends with their factors.
        unsafe {
            let (d, d_min) = two_halves(rows.words(first + 20));
            let packed = rows.words(first + i / 4);
            let at = 8 * (i % 4) as u32;
            let d_min = vsubq_f32(vdupq_n_f32(0.0), d_min);
            let (scale, min) = (bits(packed, at, 15), bits(packed, at + 4, 15));
            (scaled(d, vreinterpretq_s32_u32(scale)), scaled(d_min, vreinterpretq_s32_u32(min)))
        }
    }
}

pub(super) struct Q3K;

impl Layout for Q3K {
    const BLOCK_BYTES: usize = 110;
    const GROUPS: usize = 16;
    const GROUP: usize = 16;
    const ZERO: Option<i32> = Some(2);

    #[inline(always)]
    unsafe fn codes<D: Dots, const PAIR: usize>(rows: FourRows, group: usize) -> [[uint8x16_t; 2]; 2] {
        let (first, i) = (27 * (group / 16), group % 16);
        // SAFETY: a block begins with eight words of high bits and sixteen of low pairs.
        unsafe {
            let high = D::arranged(rows.lines::<2>(first + 4 * (i % 2) + 2 * PAIR));
            let low = low_pairs::<D, PAIR>(rows, first + 8, i);
            let to_bit_2 = 2 - (i / 2) as i32;
            let codes = std::array::from_fn(|k| with_bits(low[k], shifted(high[k], to_bit_2), 4));
            [codes, codes]
        }
    }

    #[inline(always)]
    unsafe fn factors(rows: FourRows, group: usize) -> (float32x4_t, float32x4_t) {
        let (block, i) = (group / 16, group % 16);
        let (at, of) = (8 * (i % 4) as u32, i as u32);
        // SAFETY: a block ends with three words of scales; its factor is beside it.
        unsafe {
            let (low, high) = (rows.words(27 * block + 24 + i % 8 / 4), rows.words(27 * block + 26));
            let scale = six_bits(bits(low, at + 4 * (of / 8), 15), bits(high, at + 2 * (of / 4), 3));
            alone(scaled(rows.half(block), scale))
        }
    }
}

/// Two bits each for eight columns of group `i`, of which lines from number `first` on have four runs of 32 columns each.
///
/// # Safety
/// The CPU has NEON, and the tile has sixteen lines there.
#[inline(always)]
unsafe fn low_pairs<D: Dots, const PAIR: usize>(rows: FourRows, first: usize, i: usize) -> [uint8x16_t; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let pairs = D::arranged(rows.lines::<2>(first + i / 8 * 8 + i % 2 * 4 + 2 * PAIR));
        pairs.map(|pairs| vandq_u8(shifted(pairs, -((i / 2 % 4 * 2) as i32)), vdupq_n_u8(3)))
    }
}

/// Scales of four low and two high bits, less 32.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn six_bits(low: uint32x4_t, high: uint32x4_t) -> int32x4_t {
    // SAFETY: by the caller's promise.
    unsafe { vsubq_s32(vreinterpretq_s32_u32(vsliq_n_u32::<4>(low, high)), vdupq_n_s32(32)) }
}

/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn scaled(factor: float32x4_t, scale: int32x4_t) -> float32x4_t {
    // SAFETY: by the caller's promise.
    unsafe { vmulq_f32(factor, vcvtq_f32_s32(scale)) }
}
