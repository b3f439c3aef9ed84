//! Formats in tile order as groups of codes with a scale, sixteen rows at a time.

use core::arch::x86_64::*;

use super::rows::{Rows, TileRows, bits_of};
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
    Is128,
}

impl Zero {
    /// What a number is shifted left by to multiply it with the code. A shift by 32 leaves nothing.
    #[inline(always)]
    pub(crate) fn log2(self) -> i32 {
        match self {
            Zero::Is0 => 32,
            Zero::Is8 => 3,
            Zero::Is128 => 7,
        }
    }

    pub(crate) const fn value(self) -> u8 {
        match self {
            Zero::Is0 => 0,
            Zero::Is8 => 8,
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
    const DIRECT_ROWS: usize;
    /// Whether codes are stored as signed bytes, which [`super::bytes`] knows how to multiply.
    const IS_BYTES: bool = false;
    /// Columns of a group: 16 or 32.
    const GROUP: usize;
    /// The code of zero.
    const ZERO: Zero;
    /// Whether offsets are other than zero.
    const OFFSETS: bool;

    /// Hands the groups of a block to `visitor`, from one place in the code: only then it is compiled in line, and codes
    /// stay in registers.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and VNNI, and the rows have that block.
    unsafe fn visit<V: Visitor>(rows: Self::Rows, block: usize, visitor: &mut V);
}

pub(super) const LOW_NIBBLES: i32 = 0x0f0f_0f0f;

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
    const IS_BYTES: bool = true;
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
