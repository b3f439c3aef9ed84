//! Half a tile: eight weight rows side by side, lane `i` of a vector being row `i`.

use core::arch::x86_64::*;

use crate::linear::tiled::{BlockCut, HALVES_BYTES, LINE_BYTES, N_ROWS, Tiles};

/// Rows of a vector.
pub(super) const LANES: usize = 8;

/// Vectors of a tile.
pub(super) const PARTS: usize = N_ROWS / LANES;

/// Eight rows in tile order.
#[derive(Clone, Copy)]
pub(super) struct EightRows {
    lines: *const u8,
    halves: *const u8,
}

impl EightRows {
    /// Both parts of each tile, for as long as `tiles` lives.
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
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(self.halves.wrapping_add(block * HALVES_BYTES).cast())) }
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
    let (stride, block_bytes) = (rows.len() / N_ROWS, cut.block_bytes());
    let n_blocks = stride / block_bytes;
    assert!(rows.len() == N_ROWS * n_blocks * block_bytes && cut.n_words().is_multiple_of(4), "whole blocks");
    let blocks = lines.chunks_exact_mut(cut.n_words() * LINE_BYTES).enumerate();
    for (block, lines) in blocks.take(n_blocks) {
        for (i, lines) in lines.chunks_exact_mut(4 * LINE_BYTES).enumerate() {
            let at = block * block_bytes + cut.words_at() + 16 * i;
            for four in 0..N_ROWS / 4 {
                let words = four_by_four(std::array::from_fn(|row| &rows[(4 * four + row) * stride + at..]));
                for (line, words) in lines.chunks_exact_mut(LINE_BYTES).zip(words) {
                    let line = &mut line[16 * four..16 * four + 16];
                    // SAFETY: there is room for sixteen bytes; the store needs no alignment.
                    unsafe { _mm_storeu_si128(line.as_mut_ptr().cast(), words) };
                }
            }
        }
    }
    let Some(half_at) = cut.half_at() else { return };
    for (block, halves) in halves.chunks_exact_mut(HALVES_BYTES).take(n_blocks).enumerate() {
        for (half, row) in halves.chunks_exact_mut(2).zip(rows.chunks_exact(stride)) {
            half.copy_from_slice(&row[block * block_bytes + half_at..][..2]);
        }
    }
}

/// Word `j` of each of four rows, as vector `j`.
#[inline]
#[target_feature(enable = "avx2")]
fn four_by_four(rows: [&[u8]; 4]) -> [__m128i; 4] {
    let [a, b, c, d] = rows.map(|row| {
        let row = &row[..16];
        // SAFETY: sixteen bytes are in bounds; the load needs no alignment.
        unsafe { _mm_loadu_si128(row.as_ptr().cast()) }
    });
    let (low_ab, high_ab) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let (low_cd, high_cd) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    [
        _mm_unpacklo_epi64(low_ab, low_cd),
        _mm_unpackhi_epi64(low_ab, low_cd),
        _mm_unpacklo_epi64(high_ab, high_cd),
        _mm_unpackhi_epi64(high_ab, high_cd),
    ]
}
