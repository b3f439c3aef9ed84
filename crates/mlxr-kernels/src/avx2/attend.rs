//! Sixteen floats in two registers, for [`crate::attend`].

use core::arch::x86_64::*;

use crate::attend::{Vector, attend_kernels};

/// Lanes 0 to 7, then 8 to 15.
#[derive(Clone, Copy)]
pub(super) struct Pair(__m256, __m256);

attend_kernels!(Pair, "avx2,fma,f16c");

/// Eight sign-extended bytes each, from the lower and from the upper half.
#[inline(always)]
unsafe fn widened(codes: __m128i) -> Pair {
    // SAFETY: callers are compiled for AVX2.
    unsafe {
        Pair(
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(codes, codes))),
        )
    }
}

impl Vector for Pair {
    const HAS_MANY: bool = false;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: callers are compiled for AVX2; so it is below.
        let all = unsafe { _mm256_set1_ps(value) };
        Self(all, all)
    }
    #[inline(always)]
    fn times(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn madd(self, other: Self, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm256_fmadd_ps(self.0, other.0, sum.0), _mm256_fmadd_ps(self.1, other.1, sum.1)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the caller's promise; loads and stores here need no alignment.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by the caller's promise.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        let all = unsafe { _mm256_cvtph_ps(_mm_set1_epi16(from.cast::<i16>().read_unaligned())) };
        Self(all, all)
    }
    #[inline(always)]
    unsafe fn of_f16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            Self(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn of_bf16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16).cast()));
            Self(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn of_e4m3(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            // Moved into place, a code is an f16 with an exponent that is 8 lower.
            let codes = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())));
            let halves = _mm256_and_si256(codes, _mm256_set1_epi16(0xbf80_u16 as i16));
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
            Self(low, high).times(Self::splat(256.0))
        }
    }
    #[inline(always)]
    unsafe fn of_i8(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { widened(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn of_nibbles(from: *const u8, upper: bool) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let codes = if upper { _mm_srli_epi16::<4>(bytes) } else { bytes };
            widened(_mm_sub_epi8(_mm_and_si128(codes, _mm_set1_epi8(15)), _mm_set1_epi8(8)))
        }
    }
}
