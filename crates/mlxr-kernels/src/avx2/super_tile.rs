//! Products of rows of super-blocks with quantised activations, see `avx512::super_blocks`: integer sums of groups
//! times their scales are added up for a whole super-block, so all instruction sets give the same bits.

use core::arch::x86_64::*;

use super::dots::{Dots, word};
use super::layouts::LOW_NIBBLES;
use super::rows::{EightRows, LANES, bits};
use super::tile::{MAX_BLOCK, fetch, for_parts, store};
use crate::kernels::TILE_ROWS;
use crate::linear::blocks::{BLOCK_BYTES, BLOCK_COLS, BlockRows, SCALE_AT, SUMS16_AT, SUMS32_AT};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{N_ROWS, Tiles};
use crate::tiles::each_line;

/// What belongs to all columns of a super-block of eight rows.
pub(super) struct Heads {
    /// Two 16-bit minima a lane, in the order that sums of codes have.
    minima: [__m256i; BLOCK_COLS / 32],
    d: __m256,
    d_min: __m256,
}

/// A format's super-blocks.
pub(super) trait SuperBlock {
    /// Bytes of one.
    const BYTES: usize;
    /// Pairs of groups that have minima.
    const PAIRS: usize;
    /// Where a block of activations keeps the sums of groups.
    const SUMS_AT: usize;

    /// Adds the products of codes of super-block `block` with `acts`, times their scales, to `sums`.
    ///
    /// # Safety
    /// The CPU has what `D` needs, and the rows have the block.
    unsafe fn add<D: Dots, const X: usize>(
        rows: EightRows,
        block: usize,
        acts: [*const u8; X],
        sums: &mut [__m256i; X],
    ) -> Heads;

    /// What the sums of codes times scales, and of minima times sums of codes, stand for.
    ///
    /// # Safety
    /// The CPU has AVX2 and FMA.
    #[inline(always)]
    unsafe fn value(s: __m256i, m: __m256i, heads: &Heads) -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe {
            let of_codes = _mm256_mul_ps(_mm256_cvtepi32_ps(s), heads.d);
            _mm256_fnmadd_ps(_mm256_cvtepi32_ps(m), heads.d_min, of_codes)
        }
    }
}

/// The head of a super-block of Q4_K or Q5_K: factors, and 6-bit numbers four to a lane.
struct KScales {
    d: __m256,
    d_min: __m256,
    scales: [__m256i; 2],
    minima: [__m256i; 2],
}

impl KScales {
    /// From the 16-byte heads of the super-blocks.
    ///
    /// # Safety
    /// The CPU has AVX2 and F16C.
    #[inline(always)]
    unsafe fn new([factors, a, b, c]: [__m256i; 4]) -> Self {
        const LOW_6: i32 = 0x3f3f_3f3f;
        const TOP_2: i32 = 0x3030_3030;
        // SAFETY: by the caller's promise.
        unsafe {
            let [d, d_min] = halves(factors);
            Self {
                d,
                d_min,
                scales: [bits(a, 0, LOW_6), _mm256_or_si256(bits(c, 0, LOW_NIBBLES), bits(a, 2, TOP_2))],
                minima: [bits(b, 0, LOW_6), _mm256_or_si256(bits(c, 4, LOW_NIBBLES), bits(b, 2, TOP_2))],
            }
        }
    }

    /// The scale of sub-block `i`.
    ///
    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn scale(&self, i: usize) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { bits(self.scales[i / 4], 8 * (i as u32 % 4), 0xff) }
    }

    /// # Safety
    /// The CPU has AVX2.
    #[inline(always)]
    unsafe fn heads(&self) -> Heads {
        const LOW_BYTES: i32 = 0x00ff_00ff;
        // SAFETY: by the caller's promise.
        unsafe {
            let mut minima = [_mm256_setzero_si256(); BLOCK_COLS / 32];
            for (minima, &four) in minima.chunks_exact_mut(2).zip(&self.minima) {
                minima[0] = bits(four, 0, LOW_BYTES);
                minima[1] = bits(four, 8, LOW_BYTES);
            }
            Heads { minima, d: self.d, d_min: self.d_min }
        }
    }
}

/// The half-precision floats in the low and in the high 16 bits of each lane.
///
/// # Safety
/// The CPU has AVX2 and F16C.
#[inline(always)]
unsafe fn halves(lanes: __m256i) -> [__m256; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let low = _mm256_and_si256(lanes, _mm256_set1_epi32(0xffff));
        let both = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(lanes));
        // Of each half of the vector four low ones, then four high ones.
        let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(both);
        [_mm256_cvtph_ps(_mm256_castsi256_si128(both)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(both))]
    }
}

/// Nibbles with `high` above them.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn with_bits(nibbles: __m256i, high: __m256i) -> __m256i {
    // SAFETY: by the caller's promise.
    unsafe { _mm256_or_si256(nibbles, _mm256_slli_epi32::<4>(high)) }
}

/// [`Dots::fold`] of each activation row.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn fold<D: Dots, const X: usize>(sums: &mut [__m256i; X], steps: [__m256i; X], factor: __m256i) {
    for (sum, steps) in sums.iter_mut().zip(steps) {
        // SAFETY: by the caller's promise.
        *sum = unsafe { D::fold(*sum, steps, factor) };
    }
}

pub(super) struct Q4K;

impl SuperBlock for Q4K {
    const BYTES: usize = 144;
    const PAIRS: usize = 4;
    const SUMS_AT: usize = SUMS32_AT;

    #[inline(always)]
    unsafe fn add<D: Dots, const X: usize>(
        rows: EightRows,
        block: usize,
        acts: [*const u8; X],
        sums: &mut [__m256i; X],
    ) -> Heads {
        // SAFETY: a super-block is 36 words: a head of four, then four runs of eight, each of two sub-blocks. Passes the
        // caller's promise on.
        unsafe {
            let scales = KScales::new(rows.lines::<4>(36 * block));
            each_line!(4, |RUN| {
                let acts = acts.map(|x| x.wrapping_add(64 * RUN));
                let (mut low, mut high) = ([_mm256_setzero_si256(); X], [_mm256_setzero_si256(); X]);
                // Eight times two products of at most 15 times 127 fit sixteen bits.
                each_line!(8, |LINE| {
                    let [bytes] = rows.lines::<1>(36 * block + 4 + 8 * RUN + LINE);
                    let codes = bits(bytes, 0, LOW_NIBBLES);
                    for x in 0..X {
                        low[x] = D::step::<{ 4 * LINE }>(low[x], codes, acts[x]);
                    }
                    let codes = bits(bytes, 4, LOW_NIBBLES);
                    for x in 0..X {
                        high[x] = D::step::<{ 32 + 4 * LINE }>(high[x], codes, acts[x]);
                    }
                });
                fold::<D, X>(sums, low, D::factor(scales.scale(2 * RUN)));
                fold::<D, X>(sums, high, D::factor(scales.scale(2 * RUN + 1)));
            });
            scales.heads()
        }
    }
}

pub(super) struct Q5K;

impl SuperBlock for Q5K {
    const BYTES: usize = 176;
    const PAIRS: usize = 4;
    const SUMS_AT: usize = SUMS32_AT;

    #[inline(always)]
    unsafe fn add<D: Dots, const X: usize>(
        rows: EightRows,
        block: usize,
        acts: [*const u8; X],
        sums: &mut [__m256i; X],
    ) -> Heads {
        // SAFETY: a super-block is 44 words: a head of four, eight of high bits, then four runs of eight. Passes the
        // caller's promise on.
        unsafe {
            let scales = KScales::new(rows.lines::<4>(44 * block));
            each_line!(8, |I| {
                let acts = acts.map(|x| x.wrapping_add(32 * I));
                let mut steps = [_mm256_setzero_si256(); X];
                let factor = D::factor(scales.scale(I));
                each_line!(8, |LINE| {
                    let [high] = rows.lines::<1>(44 * block + 4 + LINE);
                    let [low] = rows.lines::<1>(44 * block + 12 + I / 2 * 8 + LINE);
                    let nibbles = bits(low, 4 * (I as u32 % 2), LOW_NIBBLES);
                    let codes = with_bits(nibbles, bits(high, I as u32, 0x0101_0101));
                    for x in 0..X {
                        steps[x] = D::step::<{ 4 * LINE }>(steps[x], codes, acts[x]);
                    }
                    // Four times two products of at most 31 times 127 fit sixteen bits.
                    if LINE == 3 && !D::IS_WIDE {
                        fold::<D, X>(sums, steps, factor);
                        steps = [_mm256_setzero_si256(); X];
                    }
                });
                fold::<D, X>(sums, steps, factor);
            });
            scales.heads()
        }
    }
}

/// Its codes are less 32, which makes 32 times the scales minima, with the same factor.
pub(super) struct Q6K;

impl SuperBlock for Q6K {
    const BYTES: usize = 210;
    const PAIRS: usize = 8;
    const SUMS_AT: usize = SUMS16_AT;

    #[inline(always)]
    unsafe fn add<D: Dots, const X: usize>(
        rows: EightRows,
        block: usize,
        acts: [*const u8; X],
        sums: &mut [__m256i; X],
    ) -> Heads {
        const LOW_PAIRS: i32 = 0x0303_0303;
        // SAFETY: a super-block is 52 words, 32 of low nibbles, sixteen of high bits, four of scales, and their factor.
        // Passes the caller's promise on.
        unsafe {
            let scales = rows.lines::<4>(52 * block + 48);
            // What shares bytes comes together: half by half, then sixteen of every 32 columns.
            for half in 0..2 {
                let acts = acts.map(|x| x.wrapping_add(128 * half));
                each_line!(8, |I| {
                    const PART: usize = I / 4;
                    const RUN: usize = I % 4;
                    let low = 52 * block + 16 * half + 4 * PART + RUN % 2 * 8;
                    let high = 52 * block + 32 + 8 * half + 4 * PART;
                    // Sub-block `8 half + 2 run + part` has the scale of that number.
                    let [scales] = rows.lines::<1>(52 * block + 48 + 2 * half + RUN / 2);
                    const PLACE: i32 = (2 * (RUN % 2) + PART) as i32;
                    let scale = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<{ 24 - 8 * PLACE }>(scales));
                    let factor = D::factor(scale);
                    let mut steps = [_mm256_setzero_si256(); X];
                    each_line!(4, |LINE| {
                        let ([low], [high]) = (rows.lines::<1>(low + LINE), rows.lines::<1>(high + LINE));
                        let nibbles = bits(low, 4 * (RUN as u32 / 2), LOW_NIBBLES);
                        let codes = with_bits(nibbles, bits(high, 2 * RUN as u32, LOW_PAIRS));
                        for x in 0..X {
                            steps[x] =
                                D::step::<{ 16 * PART + 32 * RUN + 4 * LINE }>(steps[x], codes, acts[x]);
                        }
                        // Twice two products of at most 63 times 127 fit sixteen bits.
                        if LINE == 1 && !D::IS_WIDE {
                            fold::<D, X>(sums, steps, factor);
                            steps = [_mm256_setzero_si256(); X];
                        }
                    });
                    fold::<D, X>(sums, steps, factor);
                });
            }
            let mut minima = [_mm256_setzero_si256(); BLOCK_COLS / 32];
            for (minima, four) in minima.chunks_exact_mut(2).zip(scales) {
                minima[0] = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(four));
                minima[1] = _mm256_srai_epi16::<8>(four);
            }
            Heads { minima, d: rows.half(block), d_min: _mm256_setzero_ps() }
        }
    }

    #[inline(always)]
    unsafe fn value(s: __m256i, m: __m256i, heads: &Heads) -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe {
            let sum = _mm256_sub_epi32(s, _mm256_slli_epi32::<5>(m));
            _mm256_mul_ps(_mm256_cvtepi32_ps(sum), heads.d)
        }
    }
}

/// Products of rows of super-blocks with `xs`: `out[x * TILE_ROWS + w]`.
///
/// # Safety
/// The CPU has what `D` needs.
#[inline(always)]
pub(super) unsafe fn dot<S: SuperBlock, D: Dots>(
    tiles: &Tiles<'_>,
    xs: &BlockRows<'_>,
    _: &mut TileScratch,
    out: &mut [f32],
) {
    let n_bytes = tiles.n_blocks * BLOCK_BYTES;
    assert!(xs.rows.iter().all(|x| n_bytes <= x.len()), "columns of weights and activations");
    assert!(tiles.n_blocks * S::BYTES * N_ROWS <= tiles.tile_bytes, "a tile of {} blocks", tiles.n_blocks);
    assert!(tiles.bytes.len() <= TILE_ROWS / N_ROWS * tiles.tile_bytes, "tiles of one call");
    for (xs, out) in xs.rows.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
        // SAFETY: the shapes were checked; passes the caller's promise on.
        unsafe {
            match xs.len() {
                1 => some::<S, D, 1>(tiles, xs, out),
                2 => some::<S, D, 2>(tiles, xs, out),
                _ => some::<S, D, MAX_BLOCK>(tiles, xs, out),
            }
        }
    }
}

/// Up to `X` activation rows.
///
/// # Safety
/// The CPU has what `D` needs, and tiles and rows have the same columns.
#[inline(always)]
unsafe fn some<S: SuperBlock, D: Dots, const X: usize>(tiles: &Tiles<'_>, xs: &[&[u8]], out: &mut [f32]) {
    // The last row stands in for those that are not there.
    let starts: [*const u8; X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)].as_ptr());
    for (t, parts) in EightRows::of(tiles).enumerate() {
        let ahead = tiles.bytes.as_ptr().wrapping_add((t + 1) * tiles.tile_bytes);
        for_parts!(X, |these| {
            // SAFETY: callers have what `D` needs.
            let mut acc = unsafe { [[_mm256_setzero_ps(); X]; N] };
            for block in 0..tiles.n_blocks {
                fetch(ahead, these.start, block, S::BYTES);
                let acts = starts.map(|x| x.wrapping_add(block * BLOCK_BYTES));
                for (&rows, acc) in parts[these.clone()].iter().zip(&mut acc) {
                    // SAFETY: rows and activations have the block.
                    unsafe {
                        let mut sums = [_mm256_setzero_si256(); X];
                        let heads = S::add::<D, X>(rows, block, acts, &mut sums);
                        for x in 0..X {
                            let mut of_minima = _mm256_setzero_si256();
                            for (i, &minima) in heads.minima[..S::PAIRS].iter().enumerate() {
                                let sums = word(acts[x], S::SUMS_AT + 4 * i);
                                of_minima = _mm256_add_epi32(of_minima, _mm256_madd_epi16(minima, sums));
                            }
                            let value = S::value(sums[x], of_minima, &heads);
                            let x_scale = _mm256_castsi256_ps(word(acts[x], SCALE_AT));
                            acc[x] = _mm256_fmadd_ps(value, x_scale, acc[x]);
                        }
                    }
                }
            }
            for (part, acc) in these.zip(&acc) {
                for (acc, out) in acc.iter().zip(out.chunks_exact_mut(TILE_ROWS)).take(xs.len()) {
                    // SAFETY: callers have AVX.
                    unsafe { store(&mut out[t * N_ROWS + part * LANES..], *acc) };
                }
            }
        });
    }
}
