//! Half a tile: eight weight rows side by side, lane `i` of a vector being row `i`.

use core::arch::x86_64::*;

use crate::linear::tiled::{self, BlockCut, HALVES_BYTES, LINE_BYTES, N_ROWS, Tiles};

/// Rows of a vector.
pub(super) const LANES: usize = 8;

/// Vectors of a tile.
pub(super) const PARTS: usize = N_ROWS / LANES;

/// Eight rows in tile order.
#[derive(Clone, Copy)]
pub(super) struct EightRows {
    lines: *const u8,
    /// What is behind the lines of all sixteen, and where in a line of two-byte numbers those of the eight are.
    beside: *const u8,
    halves_at: usize,
    log2_shared: u32,
}

impl EightRows {
    /// Both parts of each tile, for as long as `tiles` lives.
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

    /// Where line `i` is.
    #[inline(always)]
    pub(super) fn line(&self, i: usize) -> *const u8 {
        self.lines.wrapping_add(i * LINE_BYTES)
    }

    /// `N` lines from number `first` on.
    ///
    /// # Safety
    /// The tile has them, and the CPU has AVX2.
    #[inline(always)]
    pub(super) unsafe fn lines<const N: usize>(&self, first: usize) -> [__m256i; N] {
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        std::array::from_fn(|i| unsafe { _mm256_loadu_si256(self.line(first + i).cast()) })
    }

    /// The half-precision float beside the words of block `block`.
    ///
    /// # Safety
    /// The tile has that block, its blocks have such a number, and the CPU has F16C.
    #[inline(always)]
    pub(super) unsafe fn half(&self, block: usize) -> __m256 {
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        unsafe { _mm256_cvtph_ps(self.halves(block * HALVES_BYTES)) }
    }

    /// The two-byte numbers of the line at `at`.
    ///
    /// # Safety
    /// The tile has it.
    #[inline(always)]
    unsafe fn halves(&self, at: usize) -> __m128i {
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        unsafe { _mm_loadu_si128(self.beside.wrapping_add(at + self.halves_at).cast()) }
    }

    /// The byte beside the words of block `block`.
    ///
    /// # Safety
    /// The tile has that block, its blocks have such a number, and the CPU has AVX2.
    #[inline(always)]
    pub(super) unsafe fn byte(&self, block: usize) -> __m256i {
        let at = self.beside.wrapping_add(block * N_ROWS + self.halves_at / 2);
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        unsafe { _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())) }
    }

    /// The two-byte scale and bias of block `block`.
    ///
    /// # Safety
    /// The tile has that block, and such numbers stored apart.
    #[inline(always)]
    pub(super) unsafe fn scale_and_bias(&self, block: usize) -> [__m128i; 2] {
        let at = (block >> self.log2_shared) * 2 * HALVES_BYTES;
        // SAFETY: in bounds by the caller's promise.
        unsafe { [self.halves(at), self.halves(at + HALVES_BYTES)] }
    }
}

/// Each lane's bits shifted right by `n`, those that `mask` has.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
pub(super) unsafe fn bits(lanes: __m256i, n: u32, mask: i32) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_and_si256(_mm256_srl_epi32(lanes, _mm_cvtsi32_si128(n as i32)), _mm256_set1_epi32(mask)) }
}

/// Puts sixteen stored rows in tile order.
#[target_feature(enable = "avx2")]
pub(super) fn put_in_order(cut: BlockCut, rows: &[u8], lines: &mut [u8], halves: &mut [u8]) {
    tiled::put_in_order(cut, rows, lines, halves, |rows| {
        // SAFETY: this function is compiled for AVX2; sixteen bytes are loaded from and stored to arrays of as many, unaligned.
        unsafe {
            let [a, b, c, d] = rows.map(|row| _mm_loadu_si128(row.as_ptr().cast()));
            let (low_ab, high_ab) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
            let (low_cd, high_cd) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
            let words = [
                _mm_unpacklo_epi64(low_ab, low_cd),
                _mm_unpackhi_epi64(low_ab, low_cd),
                _mm_unpacklo_epi64(high_ab, high_cd),
                _mm_unpackhi_epi64(high_ab, high_cd),
            ];
            words.map(|words| {
                let mut out = [0u8; 16];
                _mm_storeu_si128(out.as_mut_ptr().cast(), words);
                out
            })
        }
    });
}
