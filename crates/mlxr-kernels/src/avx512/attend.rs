//! Sixteen floats in one register, for [`crate::attend`].

use core::arch::x86_64::*;

use crate::attend::{Vector, attend_kernels};

attend_kernels!(__m512, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");

impl Vector for __m512 {
    const HAS_MANY: bool = true;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        // SAFETY: callers are compiled for AVX-512; so it is below.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn times(self, other: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_mul_ps(self, other) }
    }
    #[inline(always)]
    fn madd(self, other: Self, sum: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(self, other, sum) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the caller's promise; loads and stores here need no alignment.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_storeu_ps(to, self) }
    }
    #[inline(always)]
    unsafe fn splat_f16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(from.cast::<i16>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn of_f16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn of_bf16(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn of_e4m3(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            // Moved into place, a code is an f16 with an exponent that is 8 lower.
            let codes = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())));
            let halves = _mm256_and_si256(codes, _mm256_set1_epi16(0xbf80_u16 as i16));
            _mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.0))
        }
    }
    #[inline(always)]
    unsafe fn of_i8(from: *const u8) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn of_nibbles(from: *const u8, upper: bool) -> Self {
        // SAFETY: by the caller's promise.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let codes = if upper { _mm_srli_epi16::<4>(bytes) } else { bytes };
            let codes = _mm_sub_epi8(_mm_and_si128(codes, _mm_set1_epi8(15)), _mm_set1_epi8(8));
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
        }
    }
}
