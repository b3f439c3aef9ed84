//! Dot products of floats with 256-bit vectors.

use core::arch::x86_64::*;

use crate::kernels::TILE;
use crate::tiles::for_micro_tiles;

/// How eight stored elements become a vector of f32.
trait Element {
    const BYTES: usize;
    /// The eight elements at `bytes`.
    ///
    /// # Safety
    /// They are there, and the CPU has AVX2 and F16C.
    unsafe fn load(bytes: *const u8) -> __m256;
    /// One element.
    fn to_f32(bytes: &[u8]) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> __m256 {
        // SAFETY: by the caller's promise; the load needs no alignment.
        unsafe { _mm256_loadu_ps(bytes.cast()) }
    }
    #[inline(always)]
    fn to_f32(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> __m256 {
        // SAFETY: by the caller's promise; the load needs no alignment.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.cast())) }
    }
    #[inline(always)]
    fn to_f32(bytes: &[u8]) -> f32 {
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> __m256 {
        // SAFETY: by the caller's promise; the load needs no alignment.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn to_f32(bytes: &[u8]) -> f32 {
        half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_f32(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_f32(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_f16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_f16(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_bf16(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_bf16(w, x, &mut out[x0 * TILE + w0..]));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn micro_f32<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<F32, W, X>(w, x, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn micro_f16<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<F16, W, X>(w, x, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn micro_bf16<const W: usize, const X: usize>(w: &[&[u8]], x: &[&[f32]], out: &mut [f32]) {
    micro::<Bf16, W, X>(w, x, out);
}

/// `W` by `X` products, so many at a time that their sums stay in sixteen registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro<E: Element, const W: usize, const X: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    if X == 4 {
        micro_few::<E, W, 2>(weights, &xs[..2], out);
        micro_few::<E, W, 2>(weights, &xs[2..], &mut out[2 * TILE..]);
    } else {
        micro_few::<E, W, X>(weights, xs, out);
    }
}

/// One accumulator each over whole vectors, then the ragged tail.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_few<E: Element, const W: usize, const X: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    let weights: &[&[u8]; W] = weights.try_into().expect("W rows");
    let xs: &[&[f32]; X] = xs.try_into().expect("X rows");
    let cols = xs[0].len();
    let is_whole = |row: &&[u8]| row.len() == cols * E::BYTES;
    assert!(weights.iter().all(is_whole) && xs.iter().all(|x| x.len() == cols), "rows of one length");
    let mut acc = [[_mm256_setzero_ps(); W]; X];
    let whole = cols / 8 * 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: all rows have eight more elements; the load needs no alignment.
        unsafe {
            let w = weights.map(|row| E::load(row.as_ptr().add(at * E::BYTES)));
            for (acc, x) in acc.iter_mut().zip(xs) {
                let x = _mm256_loadu_ps(x.as_ptr().add(at));
                for (acc, &w) in acc.iter_mut().zip(&w) {
                    *acc = _mm256_fmadd_ps(w, x, *acc);
                }
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            let mut sum = reduce(acc[i][j]);
            for at in whole..cols {
                sum = E::to_f32(&row[at * E::BYTES..]).mul_add(x[at], sum);
            }
            out[i * TILE + j] = sum;
        }
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
