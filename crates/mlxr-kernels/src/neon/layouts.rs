//! Formats in tile order as groups of codes with a scale, four rows at a time: as `avx512::layouts` has them.

use core::arch::aarch64::*;

use super::dots::Dots;
use super::halves::widened;
use super::rows::{FourRows, high_nibbles, low_nibbles, two_halves, with_bits};
use super::tile::Layout;
use crate::unpack::{E2M1_VALUES, HALF_LEAST_E8M0, IQ4_VALUES};

/// Codes in the low and in the high nibbles of lines `line` and that after it.
///
/// # Safety
/// The CPU has NEON, and the tile has the lines.
#[inline(always)]
pub(super) unsafe fn nibbles<D: Dots>(rows: FourRows, line: usize) -> [[uint8x16_t; 2]; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let bytes = D::arranged(rows.lines::<2>(line));
        [bytes.map(|v| low_nibbles(v)), bytes.map(|v| high_nibbles(v))]
    }
}

/// As [`nibbles`] of lines `2 * PAIR` and after it from `first` on, with the fifth bits from line `high`, of which each byte
/// has those of its codes.
///
/// # Safety
/// The CPU has NEON, and the tile has the lines.
#[inline(always)]
unsafe fn five_bits<D: Dots, const PAIR: usize>(
    rows: FourRows,
    high: usize,
    first: usize,
) -> [[uint8x16_t; 2]; 2] {
    // SAFETY: by the caller's promise.
    unsafe {
        let [low, above] = nibbles::<D>(rows, first + 2 * PAIR);
        let [high] = rows.lines::<1>(high);
        let high = D::arranged([high, high]);
        // By how many bits those of each line are moved.
        let to_bit_4 = |from: [i8; 2]| D::arranged(from.map(|from| vdupq_n_u8((4 - from) as u8)));
        let line = 2 * PAIR as i8;
        let (of_low, of_above) = (to_bit_4([line, line + 1]), to_bit_4([line + 4, line + 5]));
        let with_high = |nibbles: [uint8x16_t; 2], by: [uint8x16_t; 2]| {
            std::array::from_fn(|i| with_bits(nibbles[i], vshlq_u8(high[i], vreinterpretq_s8_u8(by[i])), 16))
        };
        [with_high(low, of_low), with_high(above, of_above)]
    }
}

/// What nibbles stand for in a table.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn looked_up(table: &[i8; 16], codes: [[uint8x16_t; 2]; 2]) -> [[uint8x16_t; 2]; 2] {
    // SAFETY: sixteen bytes are loaded; by the caller's promise.
    unsafe {
        let table = vreinterpretq_u8_s8(vld1q_s8(table.as_ptr()));
        codes.map(|two| two.map(|codes| vqtbl1q_u8(table, codes)))
    }
}

/// Bytes of eight columns, and of those sixteen on, of which a block has eight lines from `first` on.
///
/// # Safety
/// The CPU has NEON, and the tile has the lines.
#[inline(always)]
unsafe fn whole_bytes<D: Dots, const PAIR: usize>(rows: FourRows, first: usize) -> [[uint8x16_t; 2]; 2] {
    // SAFETY: by the caller's promise.
    unsafe { [0, 4].map(|half| D::arranged(rows.lines::<2>(first + half + 2 * PAIR))) }
}

/// Half of `2^(code - 127)` for the code in each lane, as [`crate::unpack::half_e8m0`].
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn half_e8m0(codes: uint32x4_t) -> float32x4_t {
    // SAFETY: by the caller's promise.
    unsafe {
        let normal = vshlq_n_u32::<23>(vsubq_u32(codes, vdupq_n_u32(1)));
        let least = vshlq_u32(vdupq_n_u32(HALF_LEAST_E8M0), vreinterpretq_s32_u32(codes));
        let is_least = vcltq_u32(codes, vdupq_n_u32(2));
        vreinterpretq_f32_u32(vbslq_u32(is_least, least, normal))
    }
}

/// Makes types of formats: bytes of a block, the zero of codes, whether there are offsets, codes
/// of eight lines as `$dots` takes them, scale and offset.
macro_rules! layouts {
    ($($(#[$doc:meta])* $name:ident $(<$type:ident: $bound:ident>)?:
        $bytes:literal, $zero:expr, $offsets:literal,
        |$rows:ident, $group:ident| by <$dots:ident, $pair:ident> $codes:expr, $factors:expr;)*) => {
        $(
            $(#[$doc])*
            pub(super) struct $name $(<$type>(std::marker::PhantomData<$type>))?;

            impl $(<$type: $bound>)? Layout for $name $(<$type>)? {
                const BLOCK_BYTES: usize = $bytes;
                const ZERO: Option<i32> = $zero;
                const OFFSETS: bool = $offsets;

                #[inline(always)]
                unsafe fn codes<$dots: Dots, const $pair: usize>(
                    $rows: FourRows,
                    $group: usize,
                ) -> [[uint8x16_t; 2]; 2] {
                    // SAFETY: these are lines of the block.
                    unsafe { $codes }
                }

                #[inline(always)]
                unsafe fn factors($rows: FourRows, $group: usize) -> (float32x4_t, float32x4_t) {
                    // SAFETY: the block has these numbers.
                    unsafe { $factors }
                }
            }
        )*
    };
}

layouts! {
    Q4_0: 18, Some(3), false,
        |rows, block| by <D, PAIR> nibbles::<D>(rows, 4 * block + 2 * PAIR), alone(rows.half(block));
    Q8_0: 34, None, false,
        |rows, block| by <D, PAIR> whole_bytes::<D, PAIR>(rows, 8 * block), alone(rows.half(block));
    Q4_1: 20, None, true,
        |rows, block| by <D, PAIR> nibbles::<D>(rows, 5 * block + 1 + 2 * PAIR),
        two_halves(rows.words(5 * block));
    Q5_0: 22, Some(4), false,
        |rows, block| by <D, PAIR> five_bits::<D, PAIR>(rows, 5 * block, 5 * block + 1),
        alone(rows.half(block));
    Q5_1: 24, None, true,
        |rows, block| by <D, PAIR> five_bits::<D, PAIR>(rows, 6 * block + 1, 6 * block + 2),
        two_halves(rows.words(6 * block));
    Iq4Nl: 18, None, false,
        |rows, block| by <D, PAIR> looked_up(&IQ4_VALUES, nibbles::<D>(rows, 4 * block + 2 * PAIR)),
        alone(rows.half(block));
    /// Of GGUF files and of MLX.
    Mxfp4: 17, None, false,
        |rows, block| by <D, PAIR> looked_up(&E2M1_VALUES, nibbles::<D>(rows, 4 * block + 2 * PAIR)),
        alone(half_e8m0(rows.byte(block)));
    /// MLX's affine groups of any size, in four bits.
    Mlx4<N: Numbers>: 16, None, true,
        |rows, block| by <D, PAIR> nibbles::<D>(rows, 4 * block + 2 * PAIR),
        N::factors(rows.scale_and_bias(block));
    /// As [`Mlx4`], in eight bits; offsets are those of codes less 128, as rows are unpacked to.
    Mlx8<N: Numbers>: 32, None, true, |rows, block| by <D, PAIR> {
        let sign = vdupq_n_u8(128);
        whole_bytes::<D, PAIR>(rows, 8 * block).map(|two| two.map(|codes| veorq_u8(codes, sign)))
    }, {
        let (scale, bias) = N::factors(rows.scale_and_bias(block));
        (scale, vaddq_f32(bias, vmulq_n_f32(scale, 128.0)))
    };
}

/// A scale without an offset.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub(super) unsafe fn alone(scale: float32x4_t) -> (float32x4_t, float32x4_t) {
    // SAFETY: by the caller's promise.
    (scale, unsafe { vdupq_n_f32(0.0) })
}

/// Numbers of two bytes.
pub(super) trait Numbers {
    /// Scales and biases as floats.
    ///
    /// # Safety
    /// The CPU has NEON.
    unsafe fn factors(numbers: [uint16x4_t; 2]) -> (float32x4_t, float32x4_t);
}

impl Numbers for half::f16 {
    #[inline(always)]
    unsafe fn factors([scale, bias]: [uint16x4_t; 2]) -> (float32x4_t, float32x4_t) {
        // SAFETY: by the caller's promise.
        unsafe { (widened(scale), widened(bias)) }
    }
}

impl Numbers for half::bf16 {
    #[inline(always)]
    unsafe fn factors([scale, bias]: [uint16x4_t; 2]) -> (float32x4_t, float32x4_t) {
        // SAFETY: by the caller's promise.
        unsafe {
            let [scale, bias] = [scale, bias].map(|v| vreinterpretq_f32_u32(vshll_n_u16::<16>(v)));
            (scale, bias)
        }
    }
}
