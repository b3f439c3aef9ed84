//! Formats in tile order as groups of codes with a scale, sixteen rows at a time.

use core::arch::x86_64::*;

use super::rows::{Rows, TileRows, bits, bits_of, low_half};
use crate::linear::codes::Panel;
use crate::linear::tiled::N_ROWS;

/// Takes the groups of a tile, one after the other.
pub(crate) trait Visitor {
    /// `codes[j]` are those of columns `col + 4j..col + 4j + 4`, as unsigned bytes; an element of row `i` is
    /// `scale[i] * (code - zero) + offset[i]`.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and VNNI, and the tile has these columns.
    unsafe fn group<L: Layout, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512,
        offset: __m512,
    );
}

/// The code that stands for zero.
#[derive(Clone, Copy)]
pub(crate) enum Zero {
    Is0,
    Is8,
    Is32,
    Is128,
}

impl Zero {
    /// What a number is shifted left by to multiply it with the code. A shift by 32 leaves nothing.
    #[inline(always)]
    pub(crate) fn log2(self) -> i32 {
        match self {
            Zero::Is0 => 32,
            Zero::Is8 => 3,
            Zero::Is32 => 5,
            Zero::Is128 => 7,
        }
    }

    pub(crate) const fn value(self) -> u8 {
        match self {
            Zero::Is0 => 0,
            Zero::Is8 => 8,
            Zero::Is32 => 32,
            Zero::Is128 => 128,
        }
    }

    /// Codes less it, as signed bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn taken_off(self, codes: __m512i) -> __m512i {
        match self {
            Zero::Is0 => codes,
            Zero::Is8 => _mm512_sub_epi8(codes, _mm512_set1_epi8(8)),
            Zero::Is32 => _mm512_sub_epi8(codes, _mm512_set1_epi8(32)),
            Zero::Is128 => _mm512_xor_si512(codes, _mm512_set1_epi8(-128)),
        }
    }
}

/// A format's blocks.
pub(crate) trait Layout {
    /// Sixteen rows of it.
    type Rows: Copy;
    /// Columns of a block.
    const BLOCK_COLS: usize;
    /// Bytes of a block in memory; 0 where rows are already in a cache.
    const BLOCK_BYTES: usize;
    /// Activation rows up to which codes meet them as they are unpacked, eight rows at a time. For more of them, codes
    /// that take some time to unpack go through a panel.
    const DIRECT_ROWS: usize = 16;
    /// Columns of a group: 16 or 32.
    const GROUP: usize;
    /// The code of zero.
    const ZERO: Zero;
    /// Whether offsets are other than zero.
    const OFFSETS: bool;

    /// The first column of the `group`th group of a row, in the order [`Self::visit`] has.
    #[inline(always)]
    fn column(group: usize) -> usize {
        group * Self::GROUP
    }

    /// Hands the groups of a block to `visitor`, from one place in the code: only then it is compiled in line, and codes
    /// stay in registers.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and VNNI, and the rows have that block.
    unsafe fn visit<V: Visitor>(rows: Self::Rows, block: usize, visitor: &mut V);
}

const LOW_NIBBLES: i32 = 0x0f0f_0f0f;
const LOW_PAIRS: i32 = 0x0303_0303;

pub(crate) struct Q4_0;

impl Layout for Q4_0 {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 32;
    const BLOCK_BYTES: usize = 18;
    const DIRECT_ROWS: usize = usize::MAX;
    const GROUP: usize = 32;
    const ZERO: Zero = Zero::Is8;
    const OFFSETS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a block is a scale and 32 nibbles.
        let (scale, bytes) = unsafe { (rows.half(block), rows.lines::<4>(4 * block)) };
        let [a, b, c, d] = bits_of(bytes, 0, LOW_NIBBLES);
        let [e, f, g, h] = bits_of(bytes, 4, LOW_NIBBLES);
        let codes = [a, b, c, d, e, f, g, h];
        // SAFETY: passes the caller's promise on.
        unsafe { visitor.group::<Self, 8>(block * 32, codes, scale, _mm512_setzero_ps()) };
    }
}

pub(crate) struct Q8_0;

impl Layout for Q8_0 {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 32;
    const BLOCK_BYTES: usize = 34;
    const DIRECT_ROWS: usize = usize::MAX;
    const GROUP: usize = 32;
    const ZERO: Zero = Zero::Is128;
    const OFFSETS: bool = false;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a block is a scale and 32 signed codes.
        let (scale, codes) = unsafe { (rows.half(block), rows.lines::<8>(8 * block)) };
        let codes = unsigned(codes);
        // SAFETY: passes the caller's promise on.
        unsafe { visitor.group::<Self, 8>(block * 32, codes, scale, _mm512_setzero_ps()) };
    }
}

/// Signed bytes plus 128.
#[inline]
#[target_feature(enable = "avx512f")]
fn unsigned<const N: usize>(mut codes: [__m512i; N]) -> [__m512i; N] {
    for code in &mut codes {
        *code = _mm512_xor_si512(*code, _mm512_set1_epi8(-128));
    }
    codes
}

/// The scales of a super-block of Q4_K or Q5_K: factors, and 6-bit numbers four to a vector.
struct KScales {
    d: __m512,
    negated_d_min: __m512,
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
        let d_min = low_half(bits(factors, 16, 0xffff));
        Self {
            d: low_half(factors),
            negated_d_min: _mm512_sub_ps(_mm512_setzero_ps(), d_min),
            scales: [bits(a, 0, LOW_6), _mm512_or_si512(bits(c, 0, LOW_NIBBLES), bits(a, 2, TOP_2))],
            minima: [bits(b, 0, LOW_6), _mm512_or_si512(bits(c, 4, LOW_NIBBLES), bits(b, 2, TOP_2))],
        }
    }

    /// Scale and offset of sub-block `i`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn of(&self, i: usize) -> (__m512, __m512) {
        let shift = 8 * (i as u32 % 4);
        let scale = _mm512_cvtepi32_ps(bits(self.scales[i / 4], shift, 0xff));
        let minimum = _mm512_cvtepi32_ps(bits(self.minima[i / 4], shift, 0xff));
        (_mm512_mul_ps(self.d, scale), _mm512_mul_ps(self.negated_d_min, minimum))
    }
}

pub(crate) struct Q4K;

impl Layout for Q4K {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 256;
    const BLOCK_BYTES: usize = 144;
    const GROUP: usize = 32;
    const ZERO: Zero = Zero::Is0;
    const OFFSETS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a super-block is 36 words: a head of four, then four runs of eight.
        let scales = KScales::new(unsafe { rows.lines::<4>(36 * block) });
        for i in 0..8 {
            // SAFETY: as above; two sub-blocks share a run.
            let bytes = unsafe { rows.lines::<8>(36 * block + 4 + i / 2 * 8) };
            let codes = bits_of(bytes, 4 * (i as u32 % 2), LOW_NIBBLES);
            let (scale, offset) = scales.of(i);
            // SAFETY: passes the caller's promise on.
            unsafe { visitor.group::<Self, 8>(block * 256 + 32 * i, codes, scale, offset) };
        }
    }
}

pub(crate) struct Q5K;

impl Layout for Q5K {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 256;
    const BLOCK_BYTES: usize = 176;
    const GROUP: usize = 32;
    const ZERO: Zero = Zero::Is0;
    const OFFSETS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a super-block is 44 words: a head of four, eight of high bits, then four runs of eight.
        let scales = KScales::new(unsafe { rows.lines::<4>(44 * block) });
        for i in 0..8 {
            // SAFETY: as above; two sub-blocks share a run.
            let (high, low) =
                unsafe { (rows.lines::<8>(44 * block + 4), rows.lines::<8>(44 * block + 12 + i / 2 * 8)) };
            let nibbles = bits_of(low, 4 * (i as u32 % 2), LOW_NIBBLES);
            let codes = with_bits(nibbles, bits_of(high, i as u32, 0x0101_0101));
            let (scale, offset) = scales.of(i);
            // SAFETY: passes the caller's promise on.
            unsafe { visitor.group::<Self, 8>(block * 256 + 32 * i, codes, scale, offset) };
        }
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

pub(crate) struct Q6K;

impl Layout for Q6K {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 256;
    const BLOCK_BYTES: usize = 210;
    const GROUP: usize = 16;
    const ZERO: Zero = Zero::Is32;
    const OFFSETS: bool = false;

    /// Half by half, then sixteen of every 32 columns: what shares bytes comes together.
    #[inline(always)]
    fn column(group: usize) -> usize {
        let (block, half, part, run) = (group / 16, group / 8 % 2, group / 4 % 2, group % 4);
        256 * block + 128 * half + 16 * part + 32 * run
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: a super-block is 52 words, 32 of low nibbles, sixteen of high bits, four of scales, and their factor.
        let (scales, d) = unsafe { (rows.lines::<4>(52 * block + 48), rows.half(block)) };
        for i in 0..16 {
            let (half, part, run) = (i / 8, i / 4 % 2, i % 4);
            let low = 52 * block + 16 * half + 4 * part + run % 2 * 8;
            let high = 52 * block + 32 + 8 * half + 4 * part;
            // SAFETY: as above.
            let (low, high) = unsafe { (rows.lines::<4>(low), rows.lines::<4>(high)) };
            let nibbles = bits_of(low, 4 * (run as u32 / 2), LOW_NIBBLES);
            let codes = with_bits(nibbles, bits_of(high, 2 * run as u32, LOW_PAIRS));
            // Sub-block `8 half + 2 run + part` has the scale of that number.
            let number = signed_byte(scales[2 * half + run / 2], (2 * (run % 2) + part) as u32);
            let scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(number));
            let col = Self::column(16 * block + i);
            // SAFETY: passes the caller's promise on.
            unsafe { visitor.group::<Self, 4>(col, codes, scale, _mm512_setzero_ps()) };
        }
    }
}

/// Byte `i` of each lane, sign-extended.
#[inline]
#[target_feature(enable = "avx512f")]
fn signed_byte(lanes: __m512i, i: u32) -> __m512i {
    let top = _mm512_sll_epi32(lanes, _mm_cvtsi32_si128(24 - 8 * i as i32));
    _mm512_srai_epi32::<24>(top)
}

/// Rows in the common form, see `linear::codes`.
#[derive(Clone, Copy)]
pub(crate) struct UnpackedRows {
    codes: Rows,
    scales: Rows,
    offsets: Rows,
}

impl UnpackedRows {
    /// Sixteen rows of a panel from row `first` on, `n_blocks` of `L` long.
    ///
    /// # Safety
    /// The panel outlives the use of the rows.
    #[inline]
    pub(crate) unsafe fn of<L: Layout>(panel: &Panel, first: usize, n_blocks: usize) -> UnpackedRows {
        let (codes, scales, offsets) = panel.rows_from(first, N_ROWS);
        assert!(n_blocks * L::BLOCK_COLS <= codes.len() / N_ROWS, "padded codes");
        assert!(n_blocks * 4 <= scales.len() / N_ROWS && scales.len() == offsets.len(), "padded scales");
        let stride = scales.len() / N_ROWS * 4;
        // SAFETY: the slices are sixteen rows each and outlive the result by the caller's promise.
        unsafe {
            UnpackedRows {
                codes: Rows::new(codes.as_ptr().cast(), codes.len() / N_ROWS),
                scales: Rows::new(scales.as_ptr().cast(), stride),
                offsets: Rows::new(offsets.as_ptr().cast(), stride),
            }
        }
    }
}

/// The common form, for formats without a layout of their own: four groups count as a block.
pub(crate) struct Unpacked<const SIGNED: bool, const GROUP: usize>;

impl<const SIGNED: bool, const GROUP: usize> Layout for Unpacked<SIGNED, GROUP> {
    type Rows = UnpackedRows;
    const BLOCK_COLS: usize = 4 * GROUP;
    const BLOCK_BYTES: usize = 0;
    const DIRECT_ROWS: usize = 8;
    const GROUP: usize = GROUP;
    const ZERO: Zero = if SIGNED { Zero::Is128 } else { Zero::Is0 };
    const OFFSETS: bool = true;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: UnpackedRows, block: usize, visitor: &mut V) {
        // SAFETY: rows are padded to whole blocks of 128 codes and sixteen scales.
        let (scales, offsets) =
            unsafe { (rows.scales.sixteen_bytes(16 * block), rows.offsets.sixteen_bytes(16 * block)) };
        for i in 0..4 {
            let col = (4 * block + i) * GROUP;
            let (scale, offset) = (_mm512_castsi512_ps(scales[i]), _mm512_castsi512_ps(offsets[i]));
            // SAFETY: as above; passes the caller's promise on.
            unsafe {
                if GROUP == 32 {
                    let codes = rows.codes.thirty_two_bytes(col);
                    let codes = if SIGNED { unsigned(codes) } else { codes };
                    visitor.group::<Self, 8>(col, codes, scale, offset);
                } else {
                    let codes = rows.codes.sixteen_bytes(col);
                    let codes = if SIGNED { unsigned(codes) } else { codes };
                    visitor.group::<Self, 4>(col, codes, scale, offset);
                }
            }
        }
    }
}
