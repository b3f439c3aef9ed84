//! Formats in tile order as groups of codes with a scale, sixteen rows at a time.

use core::arch::x86_64::*;

pub(crate) use super::grouped::{Iq4Xs, Q2K, Q3K};
use super::rows::{Rows, TileRows, bits_of, low_half};
use crate::linear::codes::Panel;
use crate::linear::tiled::N_ROWS;
use crate::unpack::{E2M1_VALUES, HALF_LEAST_E8M0, IQ4_VALUES, above_zero};

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
    Is4,
    Is8,
    Is16,
    Is128,
}

impl Zero {
    /// What a number is shifted left by to multiply it with the code. A shift by 32 leaves nothing.
    #[inline(always)]
    pub(crate) fn log2(self) -> i32 {
        match self {
            Zero::Is0 => 32,
            Zero::Is4 => 2,
            Zero::Is8 => 3,
            Zero::Is16 => 4,
            Zero::Is128 => 7,
        }
    }

    pub(crate) const fn value(self) -> u8 {
        match self {
            Zero::Is0 => 0,
            Zero::Is4 => 4,
            Zero::Is8 => 8,
            Zero::Is16 => 16,
            Zero::Is128 => 128,
        }
    }

    /// Codes less it, as signed bytes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn taken_off(self, codes: __m512i) -> __m512i {
        match self {
            Zero::Is0 => codes,
            Zero::Is4 | Zero::Is8 | Zero::Is16 => {
                _mm512_sub_epi8(codes, _mm512_set1_epi8(self.value() as i8))
            }
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
    /// What stored bytes, each a block's code, differ by from unsigned ones: [`super::bytes`] multiplies such codes.
    const BYTES_BUT: Option<i8> = None;
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

    /// The scale and the offset of a block that is one group.
    ///
    /// # Safety
    /// As [`Self::visit`].
    unsafe fn factors(_: Self::Rows, _: usize) -> (__m512, __m512) {
        unreachable!("a block has many groups")
    }
}

pub(super) const LOW_NIBBLES: i32 = 0x0f0f_0f0f;

/// Activation rows up to which codes meet them as they are unpacked.
pub(super) const DIRECT_ROWS: usize = 8;

/// A format whose blocks are one group of 32 columns.
pub(crate) trait Block32 {
    /// Bytes of a block's lines, and of the number beside them.
    const BYTES: usize;
    /// As [`Layout::BYTES_BUT`].
    const BYTES_BUT: Option<i8>;
    const ZERO: Zero;
    const OFFSETS: bool = false;

    /// The codes of a block as unsigned bytes, four columns a vector.
    ///
    /// # Safety
    /// The CPU has AVX-512 F, BW, DQ, VL and VNNI, and the rows have that block.
    unsafe fn codes(rows: TileRows, block: usize) -> [__m512i; 8];

    /// The scale and the offset of a block.
    ///
    /// # Safety
    /// As [`Self::codes`].
    unsafe fn factors(rows: TileRows, block: usize) -> (__m512, __m512);
}

impl<B: Block32> Layout for B {
    type Rows = TileRows;
    const BLOCK_COLS: usize = 32;
    const BLOCK_BYTES: usize = B::BYTES;
    const DIRECT_ROWS: usize = DIRECT_ROWS;
    const BYTES_BUT: Option<i8> = B::BYTES_BUT;
    const GROUP: usize = 32;
    const ZERO: Zero = B::ZERO;
    const OFFSETS: bool = B::OFFSETS;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn visit<V: Visitor>(rows: TileRows, block: usize, visitor: &mut V) {
        // SAFETY: passes the caller's promise on.
        unsafe {
            let (scale, offset) = B::factors(rows, block);
            visitor.group::<Self, 8>(block * 32, B::codes(rows, block), scale, offset);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn factors(rows: TileRows, block: usize) -> (__m512, __m512) {
        // SAFETY: passes the caller's promise on.
        unsafe { B::factors(rows, block) }
    }
}

/// Codes of sixteen bytes of each row: low nibbles, then high ones.
///
/// # Safety
/// The tile has four lines from number `line` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn nibbles(rows: TileRows, line: usize) -> [__m512i; 8] {
    // SAFETY: by the caller's promise.
    let bytes = unsafe { rows.lines::<4>(line) };
    let [a, b, c, d] = bits_of(bytes, 0, LOW_NIBBLES);
    let [e, f, g, h] = bits_of(bytes, 4, LOW_NIBBLES);
    [a, b, c, d, e, f, g, h]
}

/// As [`nibbles`], with the fifth bits from line `bits`, of which each byte has those of its codes.
///
/// # Safety
/// The tile has these lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn five_bits(rows: TileRows, bits: usize, line: usize) -> [__m512i; 8] {
    // SAFETY: by the caller's promise.
    let (mut codes, [high]) = unsafe { (nibbles(rows, line), rows.lines::<1>(bits)) };
    let place = _mm512_set1_epi32(0x1010_1010);
    for (i, code) in codes.iter_mut().enumerate() {
        let by = |n: usize| _mm_cvtsi32_si128(n as i32);
        let moved = if i < 4 { _mm512_sll_epi32(high, by(4 - i)) } else { _mm512_srl_epi32(high, by(i - 4)) };
        // `code | moved & place`
        *code = _mm512_ternarylogic_epi32::<0xf8>(*code, moved, place);
    }
    codes
}

/// What nibbles stand for in a table.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn looked_up<const N: usize>(table: &[u8; 16], mut codes: [__m512i; N]) -> [__m512i; N] {
    // SAFETY: sixteen bytes are loaded, unaligned.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) });
    for code in &mut codes {
        *code = _mm512_shuffle_epi8(table, *code);
    }
    codes
}

/// The half-precision floats in the low and the high 16 bits of each lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn two_halves(lanes: __m512i) -> (__m512, __m512) {
    (low_half(lanes), low_half(_mm512_srli_epi32::<16>(lanes)))
}

/// Makes types of formats with [`Block32`]: bytes, [`Layout::BYTES_BUT`], zero, whether there are offsets, codes, scale and offset.
macro_rules! blocks_32 {
    ($($(#[$doc:meta])* $name:ident $(<$type:ident: $bound:ident>)?:
        $bytes:literal, $bytes_but:expr, $zero:ident, $offsets:literal, |$rows:ident, $block:ident| $codes:expr, $factors:expr;)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name $(<$type>(std::marker::PhantomData<$type>))?;

            impl $(<$type: $bound>)? Block32 for $name $(<$type>)? {
                const BYTES: usize = $bytes;
                const BYTES_BUT: Option<i8> = $bytes_but;
                const ZERO: Zero = Zero::$zero;
                const OFFSETS: bool = $offsets;

                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
                unsafe fn codes($rows: TileRows, $block: usize) -> [__m512i; 8] {
                    // SAFETY: these are lines of the block.
                    unsafe { $codes }
                }

                #[inline]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
                unsafe fn factors($rows: TileRows, $block: usize) -> (__m512, __m512) {
                    // SAFETY: the block has these numbers.
                    unsafe { $factors }
                }
            }
        )*
    };
}

blocks_32! {
    Q4_0: 18, None, Is8, false, |rows, block| nibbles(rows, 4 * block), (rows.half(block), _mm512_setzero_ps());
    Q8_0: 34, Some(-128), Is128, false,
        |rows, block| unsigned(rows.lines::<8>(8 * block)), (rows.half(block), _mm512_setzero_ps());
    Q4_1: 20, None, Is0, true, |rows, block| nibbles(rows, 5 * block + 1), two_halves(rows.lines::<1>(5 * block)[0]);
    Q5_0: 22, None, Is16, false,
        |rows, block| five_bits(rows, 5 * block, 5 * block + 1), (rows.half(block), _mm512_setzero_ps());
    Q5_1: 24, None, Is0, true,
        |rows, block| five_bits(rows, 6 * block + 1, 6 * block + 2), two_halves(rows.lines::<1>(6 * block)[0]);
    Iq4Nl: 18, None, Is128, false,
        |rows, block| looked_up(const { &above_zero(&IQ4_VALUES, 128) }, nibbles(rows, 4 * block)),
        (rows.half(block), _mm512_setzero_ps());
    /// Of GGUF files and of MLX.
    Mxfp4: 17, None, Is16, false,
        |rows, block| looked_up(const { &above_zero(&E2M1_VALUES, 16) }, nibbles(rows, 4 * block)),
        (half_e8m0(rows.byte(block)), _mm512_setzero_ps());
    /// MLX's affine groups of any size, in four bits.
    Mlx4<N: Numbers>: 16, None, Is0, true,
        |rows, block| nibbles(rows, 4 * block), N::factors(rows.scale_and_bias(block));
    /// As [`Mlx4`], in eight bits; offsets are those of codes less 128, as rows are unpacked to.
    Mlx8<N: Numbers>: 32, Some(0), Is128, true, |rows, block| rows.lines::<8>(8 * block), {
        let (scale, bias) = N::factors(rows.scale_and_bias(block));
        (scale, _mm512_add_ps(bias, _mm512_mul_ps(_mm512_set1_ps(128.0), scale)))
    };
}

pub(crate) type Mlx4F16 = Mlx4<half::f16>;
pub(crate) type Mlx4Bf16 = Mlx4<half::bf16>;
pub(crate) type Mlx8F16 = Mlx8<half::f16>;
pub(crate) type Mlx8Bf16 = Mlx8<half::bf16>;

/// Numbers of two bytes.
pub(crate) trait Numbers {
    /// Scales and biases as floats.
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    unsafe fn factors(numbers: [__m256i; 2]) -> (__m512, __m512);
}

impl Numbers for half::f16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors([scale, bias]: [__m256i; 2]) -> (__m512, __m512) {
        (_mm512_cvtph_ps(scale), _mm512_cvtph_ps(bias))
    }
}

impl Numbers for half::bf16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn factors([scale, bias]: [__m256i; 2]) -> (__m512, __m512) {
        let float = |bits| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)));
        (float(scale), float(bias))
    }
}

/// Half of `2^(code - 127)` for the code in each lane, as [`unpack::half_e8m0`](crate::unpack::half_e8m0).
#[inline]
#[target_feature(enable = "avx512f")]
fn half_e8m0(codes: __m512i) -> __m512 {
    let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(codes, _mm512_set1_epi32(1)));
    let least = _mm512_sllv_epi32(_mm512_set1_epi32(HALF_LEAST_E8M0 as i32), codes);
    let is_least = _mm512_cmplt_epi32_mask(codes, _mm512_set1_epi32(2));
    _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_least, least))
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
    const DIRECT_ROWS: usize = DIRECT_ROWS;
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
