//! Sixteen weight rows side by side: vectors whose lane `i` belongs to row `i`.

use core::arch::x86_64::*;

use crate::linear::tiled::{self, BlockCut, HALVES_BYTES, LINE_BYTES, N_ROWS, Tiles};

/// Sixteen rows in tile order.
#[derive(Clone, Copy)]
pub(crate) struct TileRows {
    lines: *const u8,
    /// What is behind them.
    beside: *const u8,
    log2_shared: u32,
}

impl TileRows {
    /// Each tile, for as long as `tiles` lives.
    pub(crate) fn of(tiles: &Tiles<'_>) -> impl Iterator<Item = Self> {
        let (line_bytes, log2_shared) = (tiles.line_bytes, tiles.log2_shared);
        tiles.bytes.chunks_exact(tiles.tile_bytes.max(1)).map(move |tile| {
            let (lines, beside) = tile.split_at(line_bytes);
            Self { lines: lines.as_ptr(), beside: beside.as_ptr(), log2_shared }
        })
    }

    /// Where line `i` is.
    #[inline(always)]
    pub(crate) fn line(&self, i: usize) -> *const u8 {
        self.lines.wrapping_add(i * LINE_BYTES)
    }

    /// `N` lines from number `first` on.
    ///
    /// # Safety
    /// The tile has them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) unsafe fn lines<const N: usize>(&self, first: usize) -> [__m512i; N] {
        let mut lines = [_mm512_setzero_si512(); N];
        for (i, line) in lines.iter_mut().enumerate() {
            // SAFETY: in bounds by the caller's promise; the load needs no alignment.
            *line = unsafe { _mm512_loadu_si512(self.line(first + i).cast()) };
        }
        lines
    }

    /// The half-precision float beside the words of block `block`.
    ///
    /// # Safety
    /// The tile has that block, and its blocks have such a number.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) unsafe fn half(&self, block: usize) -> __m512 {
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(self.beside.add(block * HALVES_BYTES).cast()) })
    }

    /// The byte beside the words of block `block`.
    ///
    /// # Safety
    /// The tile has that block, and its blocks have such a number.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn byte(&self, block: usize) -> __m512i {
        // SAFETY: in bounds by the caller's promise; the load needs no alignment.
        _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(self.beside.add(block * N_ROWS).cast()) })
    }

    /// The two-byte scale and bias of block `block`, in the low sixteen bits of each lane.
    ///
    /// # Safety
    /// The tile has that block, and such numbers stored apart.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn scale_and_bias(&self, block: usize) -> [__m256i; 2] {
        // SAFETY: in bounds by the caller's promise; the loads need no alignment.
        unsafe {
            let at = self.beside.add((block >> self.log2_shared) * 2 * HALVES_BYTES);
            [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(HALVES_BYTES).cast())]
        }
    }
}

/// Puts sixteen stored rows in tile order.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn put_in_order(cut: BlockCut, rows: &[u8], lines: &mut [u8], halves: &mut [u8]) {
    let (stride, block_bytes) = (rows.len() / N_ROWS, cut.block_bytes());
    let n_blocks = stride / block_bytes;
    assert!(rows.len() == N_ROWS * n_blocks * block_bytes && cut.n_words() >= 4, "whole blocks");
    let stored = rows;
    // SAFETY: sixteen rows, which outlive the result.
    let rows = unsafe { Rows::new(rows.as_ptr(), stride) };
    let blocks = lines.chunks_exact_mut(cut.n_words() * LINE_BYTES).enumerate();
    for (block, lines) in blocks.take(n_blocks) {
        for word in cut.runs() {
            // SAFETY: the words of a block that the rows have.
            let words = unsafe { rows.sixteen_bytes(block * block_bytes + cut.words_at() + 4 * word) };
            for (line, word) in lines[word * LINE_BYTES..].chunks_exact_mut(LINE_BYTES).zip(words) {
                // SAFETY: a line is as long as a vector; the store needs no alignment.
                unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), word) };
            }
        }
        cut.move_bits(lines);
    }
    let Some((half_at, 2)) = cut.number() else { return tiled::put_numbers(cut, stored, halves) };
    for (block, halves) in halves.chunks_exact_mut(HALVES_BYTES).take(n_blocks).enumerate() {
        // SAFETY: two bytes of a block that the rows have; so many halves are as long as a vector.
        unsafe {
            let numbers = rows.two_bytes(block * block_bytes + half_at);
            _mm256_storeu_si256(halves.as_mut_ptr().cast(), numbers);
        }
    }
}

/// Sixteen rows `stride` bytes apart.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// Rows 0, 4, 8 and 12.
    quarters: [*const u8; 4],
    stride: usize,
}

impl Rows {
    /// # Safety
    /// Memory holds sixteen rows of `stride` bytes from `first`, for as long as the result is used.
    pub(crate) unsafe fn new(first: *const u8, stride: usize) -> Self {
        // SAFETY: all four are starts of rows, by the caller's promise.
        Self { quarters: std::array::from_fn(|i| unsafe { first.add(4 * i * stride) }), stride }
    }

    /// The sixteen bytes of each row at `at`, as four vectors: vector `j` holds bytes `4j..4j + 4`.
    ///
    /// # Safety
    /// The bytes are inside the rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) unsafe fn sixteen_bytes(&self, at: usize) -> [__m512i; 4] {
        // Vector `i` holds rows i, i + 4, i + 8 and i + 12: what transposing four by four in each quarter puts in order.
        let mut loaded = [_mm512_setzero_si512(); 4];
        for (i, vector) in loaded.iter_mut().enumerate() {
            let at = at + i * self.stride;
            let [a, b, c, d] = self.quarters;
            // SAFETY: in bounds by the caller's promise; the loads need no alignment.
            *vector = unsafe {
                let vector = _mm512_castsi128_si512(_mm_loadu_si128(a.add(at).cast()));
                let vector = _mm512_inserti32x4::<1>(vector, _mm_loadu_si128(b.add(at).cast()));
                let vector = _mm512_inserti32x4::<2>(vector, _mm_loadu_si128(c.add(at).cast()));
                _mm512_inserti32x4::<3>(vector, _mm_loadu_si128(d.add(at).cast()))
            };
        }
        let low_01 = _mm512_unpacklo_epi32(loaded[0], loaded[1]);
        let high_01 = _mm512_unpackhi_epi32(loaded[0], loaded[1]);
        let low_23 = _mm512_unpacklo_epi32(loaded[2], loaded[3]);
        let high_23 = _mm512_unpackhi_epi32(loaded[2], loaded[3]);
        [
            _mm512_unpacklo_epi64(low_01, low_23),
            _mm512_unpackhi_epi64(low_01, low_23),
            _mm512_unpacklo_epi64(high_01, high_23),
            _mm512_unpackhi_epi64(high_01, high_23),
        ]
    }

    /// As [`Self::sixteen_bytes`], for the next sixteen bytes as well.
    ///
    /// # Safety
    /// The 32 bytes are inside the rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(crate) unsafe fn thirty_two_bytes(&self, at: usize) -> [__m512i; 8] {
        // SAFETY: in bounds by the caller's promise.
        let ([a, b, c, d], [e, f, g, h]) = unsafe { (self.sixteen_bytes(at), self.sixteen_bytes(at + 16)) };
        [a, b, c, d, e, f, g, h]
    }

    /// The two bytes of each row at `at`.
    ///
    /// # Safety
    /// They are inside the rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn two_bytes(&self, at: usize) -> __m256i {
        // SAFETY: in bounds by the caller's promise.
        let (low, high) = unsafe { (self.eight_words(0, at), self.eight_words(2, at)) };
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(low), high)
    }

    /// Two bytes at `at` of the eight rows from quarter `first`.
    ///
    /// # Safety
    /// They are inside the rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn eight_words(&self, first: usize, at: usize) -> __m128i {
        let (a, b) = (self.quarters[first].wrapping_add(at), self.quarters[first + 1].wrapping_add(at));
        let stride = self.stride;
        // SAFETY: in bounds by the caller's promise, read unaligned.
        unsafe {
            let word =
                |p: *const u8, row: usize| i32::from(p.add(row * stride).cast::<u16>().read_unaligned());
            let v = _mm_cvtsi32_si128(word(a, 0));
            let v = _mm_insert_epi16::<1>(v, word(a, 1));
            let v = _mm_insert_epi16::<2>(v, word(a, 2));
            let v = _mm_insert_epi16::<3>(v, word(a, 3));
            let v = _mm_insert_epi16::<4>(v, word(b, 0));
            let v = _mm_insert_epi16::<5>(v, word(b, 1));
            let v = _mm_insert_epi16::<6>(v, word(b, 2));
            _mm_insert_epi16::<7>(v, word(b, 3))
        }
    }
}

/// The half-precision float in the low 16 bits of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn low_half(lanes: __m512i) -> __m512 {
    _mm512_cvtph_ps(_mm512_cvtepi32_epi16(lanes))
}

/// Each lane's bits shifted right by `n`, those that `mask` has.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn bits(lanes: __m512i, n: u32, mask: i32) -> __m512i {
    _mm512_and_si512(_mm512_srl_epi32(lanes, _mm_cvtsi32_si128(n as i32)), _mm512_set1_epi32(mask))
}

/// [`bits`] of each vector.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn bits_of<const N: usize>(mut vectors: [__m512i; N], n: u32, mask: i32) -> [__m512i; N] {
    for vector in &mut vectors {
        *vector = bits(*vector, n, mask);
    }
    vectors
}

/// Sixteen by sixteen 32-bit values, rows and columns exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut pairs, mut fours, mut eights, mut out) = ([zero; 16], [zero; 16], [zero; 16], [zero; 16]);
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        fours[4 * i] = _mm512_unpacklo_epi64(a, c);
        fours[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        fours[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        fours[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Quarter `q` of `fours[4 * i + j]` holds column `4 * q + j` of rows `4 * i..4 * i + 4`.
    for j in 0..4 {
        eights[j] = _mm512_shuffle_i32x4::<0x88>(fours[j], fours[4 + j]);
        eights[4 + j] = _mm512_shuffle_i32x4::<0xdd>(fours[j], fours[4 + j]);
        eights[8 + j] = _mm512_shuffle_i32x4::<0x88>(fours[8 + j], fours[12 + j]);
        eights[12 + j] = _mm512_shuffle_i32x4::<0xdd>(fours[8 + j], fours[12 + j]);
    }
    for j in 0..4 {
        out[j] = _mm512_shuffle_i32x4::<0x88>(eights[j], eights[8 + j]);
        out[8 + j] = _mm512_shuffle_i32x4::<0xdd>(eights[j], eights[8 + j]);
        out[4 + j] = _mm512_shuffle_i32x4::<0x88>(eights[4 + j], eights[12 + j]);
        out[12 + j] = _mm512_shuffle_i32x4::<0xdd>(eights[4 + j], eights[12 + j]);
    }
    out
}
