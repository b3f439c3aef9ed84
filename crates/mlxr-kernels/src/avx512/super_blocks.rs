//! K-quants in tile order as groups of codes with integer scales, sixteen rows at a time.
//!
//! An element of a super-block of 256 columns is `d * scale * code - d_min * minimum`, scale and minimum being integers
//! of its group of columns. The products of a super-block with codes of activations so are `d * s - d_min * m` for two
//! integer sums, which are exact: `s` over all columns, `m` over the sums of codes that `linear::blocks` keeps.

use core::arch::x86_64::*;

use super::layouts::LOW_NIBBLES;
use super::rows::{TileRows, bits, bits_of, low_half};
use crate::linear::blocks::{BLOCK_COLS, SUMS16_AT, SUMS32_AT, place_of_sum};

const LOW_PAIRS: i32 = 0x0303_0303;

/// Pairs of minima at most.
pub(crate) const MAX_PAIRS: usize = BLOCK_COLS / 32;

/// What belongs to all columns of a super-block, sixteen rows side by side.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    /// Two 16-bit minima a lane, in the order that sums of codes have; as many as there are pairs of groups.
    pub(crate) minima: [__m512i; MAX_PAIRS],
    pub(crate) d: __m512,
    /// Zero where `d` is the factor of minima as well.
    pub(crate) d_min: __m512,
}

impl Heads {
    /// What is taken off the values of the group that begins with column `col`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn minimum<S: SuperBlock>(&self, col: usize) -> __m512 {
        let (pair, is_high) = place_of_minimum(col / S::GROUP);
        let pair = self.minima[pair];
        let high = if is_high { pair } else { _mm512_slli_epi32::<16>(pair) };
        let minimum = _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(high));
        let zero = _mm512_set1_ps(S::ZERO as f32);
        let factor = if S::ZERO == 0 { self.d_min } else { _mm512_mul_ps(self.d, zero) };
        _mm512_mul_ps(factor, minimum)
    }
}

/// The pair that has the minimum of a group, and whether it is the high half.
#[inline(always)]
pub(super) fn place_of_minimum(group: usize) -> (usize, bool) {
    let place = place_of_sum(group);
    (place / 2, !place.is_multiple_of(2))
}

/// Takes a super-block: its groups, then its heads.
pub(crate) trait Visitor {
    /// `codes[j]` are those of columns `col + 4j..col + 4j + 4`, as unsigned bytes.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and VNNI, and the super-block has these columns.
    unsafe fn group<S: SuperBlock, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512i,
    );

    /// # Safety
    /// As [`Self::group`]; all groups came before.
    unsafe fn heads<S: SuperBlock>(&mut self, heads: &Heads);
}

/// A format's super-blocks.
pub(crate) trait SuperBlock {
    /// Bytes of one in memory.
    const BYTES: usize;
    /// Columns of a group: 16 or 32.
    const GROUP: usize;
    /// Bits of a code.
    const BITS: u32;
    /// Activation rows up to which codes meet them as they are unpacked.
    const DIRECT_ROWS: usize;
    /// Pairs of groups.
    const PAIRS: usize = BLOCK_COLS / Self::GROUP / 2;
    /// The code of zero, where `d` is the factor of minima as well.
    const ZERO: i32 = 0;
    /// Where a block of activations keeps the sums of groups.
    const SUMS_AT: usize = if Self::GROUP == 32 { SUMS32_AT } else { SUMS16_AT };

    /// What the sums of codes times scales, and of minima times sums of codes, stand for.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn value(s: __m512i, m: __m512i, d: __m512, d_min: __m512) -> __m512 {
        _mm512_fnmadd_ps(_mm512_cvtepi32_ps(m), d_min, _mm512_mul_ps(_mm512_cvtepi32_ps(s), d))
    }

    /// Hands a super-block to `visitor`, groups from one place in the code: only then they stay in registers.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and VNNI, and the rows have that block.
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V);
}

/// The head of a super-block of Q4_K or Q5_K: factors, and 6-bit numbers four to a lane.
struct KScales {
    d: __m512,
    d_min: __m512,
    scales: [__m512i; 2],
    minima: [__m512i; 2],
}

impl KScales {
    /// From the 16-byte heads of the super-blocks.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn new([factors, a, b, c]: [__m512i; 4]) -> Self {
        const LOW_6: i32 = 0x3f3f_3f3f;
        const TOP_2: i32 = 0x3030_3030;
        Self {
            d: low_half(factors),
            d_min: low_half(bits(factors, 16, 0xffff)),
            scales: [bits(a, 0, LOW_6), _mm512_or_si512(bits(c, 0, LOW_NIBBLES), bits(a, 2, TOP_2))],
            minima: [bits(b, 0, LOW_6), _mm512_or_si512(bits(c, 4, LOW_NIBBLES), bits(b, 2, TOP_2))],
        }
    }

    /// The scale of sub-block `i`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn scale(&self, i: usize) -> __m512i {
        bits(self.scales[i / 4], 8 * (i as u32 % 4), 0xff)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn heads(&self) -> Heads {
        const LOW_BYTES: i32 = 0x00ff_00ff;
        let mut minima = [_mm512_setzero_si512(); MAX_PAIRS];
        for (minima, &four) in minima.chunks_exact_mut(2).zip(&self.minima) {
            minima[0] = bits(four, 0, LOW_BYTES);
            minima[1] = bits(four, 8, LOW_BYTES);
        }
        Heads { minima, d: self.d, d_min: self.d_min }
    }
}

pub(crate) struct Q4K;

impl SuperBlock for Q4K {
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const BITS: u32 = 4;
    const DIRECT_ROWS: usize = 8;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a super-block is 36 words: a head of four, then four runs of eight.
        let scales = KScales::new(unsafe { rows.lines::<4>(36 * block) });
        for i in 0..8 {
            // SAFETY: as above; two sub-blocks share a run. Passes the caller's promise on.
            unsafe {
                let bytes = rows.lines::<8>(36 * block + 4 + i / 2 * 8);
                let codes = bits_of(bytes, 4 * (i as u32 % 2), LOW_NIBBLES);
                visitor.group::<Self, 8>(32 * i, codes, scales.scale(i));
            }
        }
        // SAFETY: passes the caller's promise on.
        unsafe { visitor.heads::<Self>(&scales.heads()) };
    }
}

pub(crate) struct Q5K;

impl SuperBlock for Q5K {
    const BYTES: usize = 176;
    const GROUP: usize = 32;
    const BITS: u32 = 5;
    const DIRECT_ROWS: usize = 8;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a super-block is 44 words: a head of four, eight of high bits, then four runs of eight.
        let scales = KScales::new(unsafe { rows.lines::<4>(44 * block) });
        for i in 0..8 {
            // SAFETY: as above. Passes the caller's promise on.
            unsafe {
                let (high, low) =
                    (rows.lines::<8>(44 * block + 4), rows.lines::<8>(44 * block + 12 + i / 2 * 8));
                let nibbles = bits_of(low, 4 * (i as u32 % 2), LOW_NIBBLES);
                let codes = with_bits(nibbles, bits_of(high, i as u32, 0x0101_0101));
                visitor.group::<Self, 8>(32 * i, codes, scales.scale(i));
            }
        }
        // SAFETY: passes the caller's promise on.
        unsafe { visitor.heads::<Self>(&scales.heads()) };
    }
}

/// Nibbles with `high` above them.
#[inline]
#[target_feature(enable = "avx512f")]
fn with_bits<const N: usize>(mut nibbles: [__m512i; N], high: [__m512i; N]) -> [__m512i; N] {
    for (nibble, high) in nibbles.iter_mut().zip(high) {
        *nibble = _mm512_or_si512(*nibble, _mm512_slli_epi32::<4>(high));
    }
    nibbles
}

/// Its codes are less 32, which makes 32 times the scales minima, with the same factor.
pub(crate) struct Q6K;

impl SuperBlock for Q6K {
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const BITS: u32 = 6;
    const DIRECT_ROWS: usize = 8;
    const ZERO: i32 = 32;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn value(s: __m512i, m: __m512i, d: __m512, _: __m512) -> __m512 {
        let sum = _mm512_sub_epi32(s, _mm512_slli_epi32::<5>(m));
        _mm512_mul_ps(_mm512_cvtepi32_ps(sum), d)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a super-block is 52 words, 32 of low nibbles, sixteen of high bits, four of scales, and their factor.
        let (scales, d) = unsafe { (rows.lines::<4>(52 * block + 48), rows.half(block)) };
        // What shares bytes comes together: half by half, then sixteen of every 32 columns.
        for i in 0..16 {
            let (half, part, run) = (i / 8, i / 4 % 2, i % 4);
            let low = 52 * block + 16 * half + 4 * part + run % 2 * 8;
            let high = 52 * block + 32 + 8 * half + 4 * part;
            // Sub-block `8 half + 2 run + part` has the scale of that number.
            let scale = signed_byte(scales[2 * half + run / 2], (2 * (run % 2) + part) as u32);
            // SAFETY: as above. Passes the caller's promise on.
            unsafe {
                let (low, high) = (rows.lines::<4>(low), rows.lines::<4>(high));
                let nibbles = bits_of(low, 4 * (run as u32 / 2), LOW_NIBBLES);
                let codes = with_bits(nibbles, bits_of(high, 2 * run as u32, LOW_PAIRS));
                visitor.group::<Self, 4>(128 * half + 16 * part + 32 * run, codes, scale);
            }
        }
        let mut minima = [_mm512_setzero_si512(); MAX_PAIRS];
        for (minima, four) in minima.chunks_exact_mut(2).zip(scales) {
            minima[0] = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(four));
            minima[1] = _mm512_srai_epi16::<8>(four);
        }
        // SAFETY: passes the caller's promise on.
        unsafe { visitor.heads::<Self>(&Heads { minima, d, d_min: _mm512_setzero_ps() }) };
    }
}

/// Byte `i` of each lane, sign-extended.
#[inline]
#[target_feature(enable = "avx512f")]
fn signed_byte(lanes: __m512i, i: u32) -> __m512i {
    let top = _mm512_sll_epi32(lanes, _mm_cvtsi32_si128(24 - 8 * i as i32));
    _mm512_srai_epi32::<24>(top)
}
