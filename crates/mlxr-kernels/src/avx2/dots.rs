//! Products of bytes: codes of eight weight rows, a row to a lane, with four codes of an activation row.
//!
//! What is here and in the modules above it is compiled in line into functions that name their instruction set, once
//! for each [`Dots`]. The multiplications are assembly, since the compiler, free to order the loads, starts so many that
//! sums no longer fit the registers.

use core::arch::asm;
use core::arch::x86_64::*;

/// The instructions that multiply bytes. All give the same integers.
pub(super) trait Dots {
    /// Whether sums of products have 32 bits, and so room for any number of columns.
    const IS_WIDE: bool;

    /// What is added to signed codes before they are multiplied, as a power of two; nothing where their signs are kept.
    const SIGNED_ZERO: Option<i32>;

    /// Adds to `sum` the products of unsigned codes with the four codes of activations at `AT`.
    ///
    /// # Safety
    /// The CPU has AVX2 and what the implementation names; the activations are there.
    unsafe fn step<const AT: usize>(sum: __m256i, codes: __m256i, acts: *const u8) -> __m256i;

    /// As [`Self::step`] of signed codes, to a sum of 32 bits; those less than their zero.
    ///
    /// # Safety
    /// As [`Self::step`].
    unsafe fn step_signed<const AT: usize>(sum: __m256i, codes: __m256i, acts: *const u8) -> __m256i;

    /// A factor for each row, which is at most fifteen bits long, as [`Self::fold`] takes it.
    ///
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn factor(scale: __m256i) -> __m256i;

    /// `sum` of 32 bits plus `factor` times what [`Self::step`] has added up.
    ///
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn fold(sum: __m256i, steps: __m256i, factor: __m256i) -> __m256i;
}

/// The four bytes at `at`, in every lane.
///
/// # Safety
/// They are there, and the CPU has AVX2.
#[inline(always)]
pub(super) unsafe fn word(from: *const u8, at: usize) -> __m256i {
    // SAFETY: in bounds by the caller's promise, read unaligned.
    unsafe { _mm256_set1_epi32(from.wrapping_add(at).cast::<i32>().read_unaligned()) }
}

/// AVX2: products of two bytes fit sixteen bits, and so do some sums of them.
pub(super) struct Pairs;

impl Dots for Pairs {
    const IS_WIDE: bool = false;
    const SIGNED_ZERO: Option<i32> = None;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn step<const AT: usize>(mut sum: __m256i, codes: __m256i, acts: *const u8) -> __m256i {
        // Named, since the compiler prints a register without a type wrongly.
        let _products: __m256i;
        // SAFETY: callers have AVX2; the codes of activations are there by the caller's promise.
        unsafe {
            asm!(
                "vpbroadcastd {products:y}, dword ptr [{acts} + {at}]",
                "vpmaddubsw {products:y}, {codes:y}, {products:y}",
                "vpaddw {sum:y}, {sum:y}, {products:y}",
                products = out(ymm_reg) _products,
                acts = in(reg) acts,
                at = const AT,
                codes = in(ymm_reg) codes,
                sum = inout(ymm_reg) sum,
                options(nostack, preserves_flags, readonly),
            );
        }
        sum
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn step_signed<const AT: usize>(mut sum: __m256i, codes: __m256i, acts: *const u8) -> __m256i {
        let _products: __m256i;
        // SAFETY: callers have AVX2; the codes of activations are there by the caller's promise. 128 times 127 twice
        // fits sixteen bits.
        unsafe {
            asm!(
                "vpbroadcastd {products:y}, dword ptr [{acts} + {at}]",
                "vpsignb {products:y}, {products:y}, {codes:y}",
                "vpmaddubsw {products:y}, {magnitudes:y}, {products:y}",
                "vpmaddwd {products:y}, {ones:y}, {products:y}",
                "vpaddd {sum:y}, {sum:y}, {products:y}",
                products = out(ymm_reg) _products,
                acts = in(reg) acts,
                at = const AT,
                codes = in(ymm_reg) codes,
                magnitudes = in(ymm_reg) _mm256_abs_epi8(codes),
                ones = in(ymm_reg) _mm256_set1_epi16(1),
                sum = inout(ymm_reg) sum,
                options(nostack, preserves_flags, readonly),
            );
        }
        sum
    }

    #[inline(always)]
    unsafe fn factor(scale: __m256i) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe {
            _mm256_or_si256(
                _mm256_and_si256(scale, _mm256_set1_epi32(0xffff)),
                _mm256_slli_epi32::<16>(scale),
            )
        }
    }

    #[inline(always)]
    unsafe fn fold(sum: __m256i, steps: __m256i, factor: __m256i) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(steps, factor)) }
    }
}

/// AVX-VNNI: four products are added up in 32 bits.
pub(super) struct Vnni;

impl Dots for Vnni {
    const IS_WIDE: bool = true;
    const SIGNED_ZERO: Option<i32> = Some(7);

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn step<const AT: usize>(mut sum: __m256i, codes: __m256i, acts: *const u8) -> __m256i {
        let _four: __m256i;
        // SAFETY: callers have AVX2 and AVX-VNNI; the codes of activations are there by the caller's promise.
        unsafe {
            asm!(
                "vpbroadcastd {four:y}, dword ptr [{acts} + {at}]",
                "{{vex}} vpdpbusd {sum:y}, {codes:y}, {four:y}",
                four = out(ymm_reg) _four,
                acts = in(reg) acts,
                at = const AT,
                codes = in(ymm_reg) codes,
                sum = inout(ymm_reg) sum,
                options(nostack, preserves_flags, readonly),
            );
        }
        sum
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn step_signed<const AT: usize>(sum: __m256i, codes: __m256i, acts: *const u8) -> __m256i {
        // SAFETY: passes the caller's promise on.
        unsafe { Self::step::<AT>(sum, _mm256_xor_si256(codes, _mm256_set1_epi8(-128)), acts) }
    }

    #[inline(always)]
    unsafe fn factor(scale: __m256i) -> __m256i {
        scale
    }

    #[inline(always)]
    unsafe fn fold(sum: __m256i, steps: __m256i, factor: __m256i) -> __m256i {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_add_epi32(sum, _mm256_mullo_epi32(steps, factor)) }
    }
}
