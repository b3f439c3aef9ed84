//! Dot products of floats with 256-bit vectors.

use core::arch::x86_64::*;

use crate::dot::{Vectors, dot_kernels};

dot_kernels! { Avx2, "avx2,fma,f16c": dot_f32 F32, dot_f16 F16, dot_bf16 Bf16 }

/// AVX2 with FMA and F16C, whose sixteen registers hold eight sums besides what is multiplied.
struct Avx2;

impl Vectors for Avx2 {
    type Eight = __m256;
    type Sum = __m256;
    const MOST_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> __m256 {
        // SAFETY: by the caller's promise; the load needs no alignment.
        unsafe { _mm256_loadu_ps(bytes.cast()) }
    }

    #[inline(always)]
    unsafe fn load_f16(bytes: *const u8) -> __m256 {
        // SAFETY: by the caller's promise; the load needs no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(bytes: *const u8) -> __m256 {
        // SAFETY: by the caller's promise; the load needs no alignment.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn add_products(sum: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: by the caller's promise.
        unsafe { _mm256_fmadd_ps(a, b, sum) }
    }

    #[inline(always)]
    unsafe fn total(sum: __m256) -> f32 {
        // SAFETY: by the caller's promise.
        unsafe { reduce(sum) }
    }
}

/// The sum of eight lanes, halving.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn reduce(v: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)))
}
