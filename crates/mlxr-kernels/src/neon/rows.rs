//! A quarter of a tile: four weight rows side by side, lane `i` of a vector being row `i`.

use core::arch::aarch64::*;

use super::halves::widened;
use crate::linear::tiled::{self, BlockCut, HALVES_BYTES, LINE_BYTES, N_ROWS, Tiles};

/// Rows of a vector.
pub(super) const LANES: usize = 4;

/// Vectors of a tile.
pub(super) const PARTS: usize = N_ROWS / LANES;

/// Four rows in tile order.
#[derive(Clone, Copy)]
pub(super) struct FourRows {
    lines: *const u8,
    halves: *const u8,
}

impl FourRows {
    /// The parts of each tile, for as long as `tiles` lives.
    pub(super) fn of(tiles: &Tiles<'_>) -> impl Iterator<Item = [Self; PARTS]> {
        let line_bytes = tiles.line_bytes;
        tiles.bytes.chunks_exact(tiles.tile_bytes.max(1)).map(move |tile| {
            let (lines, halves) = tile.split_at(line_bytes);
            std::array::from_fn(|part| Self {
                lines: lines.as_ptr().wrapping_add(part * LINE_BYTES / PARTS),
                halves: halves.as_ptr().wrapping_add(part * HALVES_BYTES / PARTS),
            })
        })
    }

    /// `N` lines from number `first` on.
    ///
    /// # Safety
    /// The tile has them, and the CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn lines<const N: usize>(&self, first: usize) -> [uint8x16_t; N] {
        // SAFETY: in bounds by the caller's promise; byte loads need no alignment.
        std::array::from_fn(|i| unsafe { vld1q_u8(self.lines.wrapping_add((first + i) * LINE_BYTES)) })
    }

    /// The half-precision float beside the words of block `block`.
    ///
    /// # Safety
    /// The tile has that block, its blocks have such a number, and the CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn half(&self, block: usize) -> float32x4_t {
        // SAFETY: in bounds by the caller's promise; byte loads need no alignment.
        unsafe { widened(vreinterpret_u16_u8(vld1_u8(self.halves.wrapping_add(block * HALVES_BYTES)))) }
    }
}

/// The low four bits of each byte.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn low_nibbles(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: by the caller's promise.
    unsafe { vandq_u8(bytes, vdupq_n_u8(15)) }
}

/// The high four bits of each byte.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn high_nibbles(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: by the caller's promise.
    unsafe { vshrq_n_u8::<4>(bytes) }
}

/// Puts sixteen stored rows in tile order.
#[target_feature(enable = "neon")]
pub(super) fn put_in_order(cut: BlockCut, rows: &[u8], lines: &mut [u8], halves: &mut [u8]) {
    tiled::put_in_order(cut, rows, lines, halves, |rows| {
        // SAFETY: this function is compiled for NEON; sixteen bytes are loaded from and stored to arrays of as many.
        unsafe {
            let [a, b, c, d] = rows.map(|row| vreinterpretq_u32_u8(vld1q_u8(row.as_ptr())));
            let (even_ab, odd_ab) = (vtrn1q_u32(a, b), vtrn2q_u32(a, b));
            let (even_cd, odd_cd) = (vtrn1q_u32(c, d), vtrn2q_u32(c, d));
            let pairs = |ab: uint32x4_t, cd: uint32x4_t| {
                let (ab, cd) = (vreinterpretq_u64_u32(ab), vreinterpretq_u64_u32(cd));
                [vzip1q_u64(ab, cd), vzip2q_u64(ab, cd)]
            };
            let ([first, third], [second, fourth]) = (pairs(even_ab, even_cd), pairs(odd_ab, odd_cd));
            [first, second, third, fourth].map(|words| {
                let mut out = [0u8; 16];
                vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_u64(words));
                out
            })
        }
    });
}
