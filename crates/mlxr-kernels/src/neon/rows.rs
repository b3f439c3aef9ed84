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
    /// What is behind the lines of all sixteen, and where in a line of two-byte numbers those of the four are.
    beside: *const u8,
    halves_at: usize,
    log2_shared: u32,
}

impl FourRows {
    /// The parts of each tile, for as long as `tiles` lives.
    pub(super) fn of(tiles: &Tiles<'_>) -> impl Iterator<Item = [Self; PARTS]> {
        let (line_bytes, log2_shared) = (tiles.line_bytes, tiles.log2_shared);
        tiles.bytes.chunks_exact(tiles.tile_bytes.max(1)).map(move |tile| {
            let (lines, beside) = tile.split_at(line_bytes);
            std::array::from_fn(|part| Self {
                lines: lines.as_ptr().wrapping_add(part * LINE_BYTES / PARTS),
                beside: beside.as_ptr(),
                halves_at: part * HALVES_BYTES / PARTS,
                log2_shared,
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

    /// Line number `i` as a number for each row.
    ///
    /// # Safety
    /// The tile has it, and the CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn words(&self, i: usize) -> uint32x4_t {
        // SAFETY: passes the caller's promise on.
        unsafe { vreinterpretq_u32_u8(self.lines::<1>(i)[0]) }
    }

    /// The half-precision float beside the words of block `block`.
    ///
    /// # Safety
    /// The tile has that block, its blocks have such a number, and the CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn half(&self, block: usize) -> float32x4_t {
        // SAFETY: passes the caller's promise on.
        unsafe { widened(self.halves(block * HALVES_BYTES)) }
    }

    /// The two-byte numbers of the line at `at`.
    ///
    /// # Safety
    /// The tile has it, and the CPU has NEON.
    #[inline(always)]
    unsafe fn halves(&self, at: usize) -> uint16x4_t {
        // SAFETY: in bounds by the caller's promise; byte loads need no alignment.
        unsafe { vreinterpret_u16_u8(vld1_u8(self.beside.wrapping_add(at + self.halves_at))) }
    }

    /// The byte beside the words of block `block`.
    ///
    /// # Safety
    /// The tile has that block, its blocks have such a number, and the CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn byte(&self, block: usize) -> uint32x4_t {
        let at = self.beside.wrapping_add(block * N_ROWS + self.halves_at / 2);
        // SAFETY: in bounds by the caller's promise, read unaligned.
        unsafe {
            let bytes = vcreate_u8(at.cast::<u32>().read_unaligned().into());
            vmovl_u16(vget_low_u16(vmovl_u8(bytes)))
        }
    }

    /// The two-byte scale and bias of block `block`.
    ///
    /// # Safety
    /// The tile has that block, and such numbers stored apart; the CPU has NEON.
    #[inline(always)]
    pub(super) unsafe fn scale_and_bias(&self, block: usize) -> [uint16x4_t; 2] {
        let at = (block >> self.log2_shared) * 2 * HALVES_BYTES;
        // SAFETY: in bounds by the caller's promise.
        unsafe { [self.halves(at), self.halves(at + HALVES_BYTES)] }
    }
}

/// Each lane's bits shifted right by `n`, those that `mask` has.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn bits(lanes: uint32x4_t, n: u32, mask: u32) -> uint32x4_t {
    // SAFETY: by the caller's promise.
    unsafe { vandq_u32(vshlq_u32(lanes, vdupq_n_s32(-(n as i32))), vdupq_n_u32(mask)) }
}

/// Bytes shifted left by `n`, or right by as many as it is below zero.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn shifted(bytes: uint8x16_t, n: i32) -> uint8x16_t {
    // SAFETY: by the caller's promise.
    unsafe { vshlq_u8(bytes, vdupq_n_s8(n as i8)) }
}

/// Bytes with what `high` has where `mask` says.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn with_bits(low: uint8x16_t, high: uint8x16_t, mask: u8) -> uint8x16_t {
    // SAFETY: by the caller's promise.
    unsafe { vbslq_u8(vdupq_n_u8(mask), high, low) }
}

/// The half-precision floats in the low and the high 16 bits of each lane.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn two_halves(lanes: uint32x4_t) -> (float32x4_t, float32x4_t) {
    // SAFETY: by the caller's promise.
    unsafe { (widened(vmovn_u32(lanes)), widened(vshrn_n_u32::<16>(lanes))) }
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
