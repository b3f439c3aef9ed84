//! Dot products of floats with 512-bit vectors.

use core::arch::x86_64::*;

use crate::kernels::TILE;
use crate::tiles::for_micro_tiles;

/// How sixteen stored elements become a vector of f32.
pub(super) trait Element {
    const BYTES: usize;
    /// The sixteen elements at the start of `bytes`.
    fn load(bytes: &[u8]) -> __m512;
    /// The first elements of `bytes`, as many as `mask` has bits from the lowest; zeros for the rest.
    fn load_first(mask: u16, bytes: &[u8]) -> __m512;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load(bytes: &[u8]) -> __m512 {
        let bytes = &bytes[..64];
        // SAFETY: 64 bytes are in bounds; the load needs no alignment; callers have AVX-512.
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_first(mask: u16, bytes: &[u8]) -> __m512 {
        let bytes = &bytes[..mask.count_ones() as usize * 4];
        // SAFETY: only the masked elements are read, and they are in bounds; callers have AVX-512.
        unsafe { _mm512_maskz_loadu_ps(mask, bytes.as_ptr().cast()) }
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8]) -> __m512 {
        let bytes = &bytes[..32];
        // SAFETY: 32 bytes are in bounds; the load needs no alignment; callers have AVX-512.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_first(mask: u16, bytes: &[u8]) -> __m512 {
        let bytes = &bytes[..mask.count_ones() as usize * 2];
        // SAFETY: only the masked elements are read, and they are in bounds; callers have AVX-512 BW and VL.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, bytes.as_ptr().cast())) }
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8]) -> __m512 {
        let bytes = &bytes[..32];
        // SAFETY: 32 bytes are in bounds; the load needs no alignment; callers have AVX-512.
        unsafe { widen_bf16(_mm256_loadu_si256(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_first(mask: u16, bytes: &[u8]) -> __m512 {
        let bytes = &bytes[..mask.count_ones() as usize * 2];
        // SAFETY: only the masked elements are read, and they are in bounds; callers have AVX-512 BW and VL.
        unsafe { widen_bf16(_mm256_maskz_loadu_epi16(mask, bytes.as_ptr().cast())) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn widen_bf16(values: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn dot_f32(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_f32(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn dot_f16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_f16(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn dot_bf16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_bf16(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn micro_f32<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<F32, W, X>(w, x, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn micro_f16<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<F16, W, X>(w, x, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn micro_bf16<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<Bf16, W, X>(w, x, out);
}

/// `W` by `X` products: one accumulator each over whole vectors, then the ragged tail under a mask.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn micro<E: Element, const W: usize, const X: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    let weights: &[&[u8]; W] = weights.try_into().expect("W rows");
    let xs: &[&[f32]; X] = xs.try_into().expect("X rows");
    let cols = xs[0].len();
    let mut acc = [[_mm512_setzero_ps(); W]; X];
    let whole = cols / 16 * 16;
    for at in (0..whole).step_by(16) {
        let mut w = [_mm512_setzero_ps(); W];
        for (vector, row) in w.iter_mut().zip(weights) {
            *vector = E::load(&row[at * E::BYTES..]);
        }
        for (acc, x) in acc.iter_mut().zip(xs) {
            let x = &x[at..at + 16];
            // SAFETY: sixteen floats are in bounds; the load needs no alignment.
            let x = unsafe { _mm512_loadu_ps(x.as_ptr()) };
            for (acc, &w) in acc.iter_mut().zip(&w) {
                *acc = _mm512_fmadd_ps(w, x, *acc);
            }
        }
    }
    let mask = (1u16 << (cols - whole)) - 1;
    for (i, x) in xs.iter().enumerate() {
        let mut sums = [_mm512_setzero_ps(); TILE];
        for (j, row) in weights.iter().enumerate() {
            let mut sum = acc[i][j];
            if mask != 0 {
                let x = &x[whole..];
                // SAFETY: only the masked floats are read: those of the tail.
                let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) };
                sum = _mm512_fmadd_ps(E::load_first(mask, &row[whole * E::BYTES..]), x, sum);
            }
            sums[j] = sum;
        }
        out[i * TILE..][..W].copy_from_slice(&totals(sums)[..W]);
    }
}

/// The sums of four vectors' lanes, each by halves: lanes 8 apart first, then 4, 2 and 1. Whatever the other vectors
/// hold, a vector's sum is computed the same way.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn totals([a, b, c, d]: [__m512; TILE]) -> [f32; TILE] {
    let pair = |a, b| {
        let (low, high) =
            (_mm512_shuffle_f32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b));
        _mm512_add_ps(low, high)
    };
    let (ab, cd) = (pair(a, b), pair(c, d));
    let (even, odd) =
        (_mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd), _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd));
    // A quarter for each vector from here on.
    let sums = _mm512_add_ps(even, odd);
    let sums = _mm512_add_ps(sums, _mm512_permute_ps::<0b01_00_11_10>(sums));
    let sums = _mm512_add_ps(sums, _mm512_permute_ps::<0b10_11_00_01>(sums));
    let firsts =
        _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), sums);
    let mut totals = [0f32; TILE];
    // SAFETY: an array of four floats; the store needs no alignment.
    unsafe { _mm_storeu_ps(totals.as_mut_ptr(), _mm512_castps512_ps128(firsts)) };
    totals
}
