//! Dot products with 256-bit vectors.

use core::arch::x86_64::*;

use crate::kernels::TILE;
use crate::linear::codes::{ACT_GROUP, CodeKind, CodeRow, QuantRow};
use crate::tiles::for_micro_tiles;

/// How eight stored elements become a vector of f32.
trait Element {
    const BYTES: usize;
    /// The eight elements at the start of `bytes`.
    fn load(bytes: &[u8]) -> __m256;
    /// One element.
    fn to_f32(bytes: &[u8]) -> f32;
}

struct F32;
struct F16;
struct Bf16;

impl Element for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn load(bytes: &[u8]) -> __m256 {
        let bytes = &bytes[..32];
        // SAFETY: 32 bytes are in bounds; the load needs no alignment; callers have AVX2.
        unsafe { _mm256_loadu_ps(bytes.as_ptr().cast()) }
    }
    #[inline(always)]
    fn to_f32(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

impl Element for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8]) -> __m256 {
        let bytes = &bytes[..16];
        // SAFETY: 16 bytes are in bounds; the load needs no alignment; callers have AVX2 and F16C.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    fn to_f32(bytes: &[u8]) -> f32 {
        half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
    }
}

impl Element for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn load(bytes: &[u8]) -> __m256 {
        let bytes = &bytes[..16];
        // SAFETY: 16 bytes are in bounds; the load needs no alignment; callers have AVX2.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(bytes.as_ptr().cast()));
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

/// `W` by `X` products: one accumulator each over whole vectors, then the ragged tail.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro<E: Element, const W: usize, const X: usize>(weights: &[&[u8]], xs: &[&[f32]], out: &mut [f32]) {
    let weights: &[&[u8]; W] = weights.try_into().expect("W rows");
    let xs: &[&[f32]; X] = xs.try_into().expect("X rows");
    let cols = xs[0].len();
    let mut acc = [[_mm256_setzero_ps(); W]; X];
    let whole = cols / 8 * 8;
    for at in (0..whole).step_by(8) {
        let mut w = [_mm256_setzero_ps(); W];
        for (vector, row) in w.iter_mut().zip(weights) {
            *vector = E::load(&row[at * E::BYTES..]);
        }
        for (acc, x) in acc.iter_mut().zip(xs) {
            let x = &x[at..at + 8];
            // SAFETY: eight floats are in bounds; the load needs no alignment.
            let x = unsafe { _mm256_loadu_ps(x.as_ptr()) };
            for (acc, &w) in acc.iter_mut().zip(&w) {
                *acc = _mm256_fmadd_ps(w, x, *acc);
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
fn reduce(v: __m256) -> f32 {
    let sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_codes(kind: CodeKind, weights: &[CodeRow<'_>], xs: &[QuantRow<'_>], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_codes(kind, w, x, &mut out[x0 * TILE + w0..]));
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_codes<const W: usize, const X: usize>(
    kind: CodeKind,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    match (kind.signed, kind.group) {
        (false, 32) => micro_groups::<W, X, false, 32>(kind.offsets, weights, xs, out),
        (false, _) => micro_groups::<W, X, false, 16>(kind.offsets, weights, xs, out),
        (true, 32) => micro_groups::<W, X, true, 32>(kind.offsets, weights, xs, out),
        (true, _) => micro_groups::<W, X, true, 16>(kind.offsets, weights, xs, out),
    }
}

/// One accumulator per product: the integer sums of 32 columns, scaled, lane by lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_groups<const W: usize, const X: usize, const SIGNED: bool, const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    let weights: &[CodeRow<'_>; W] = weights.try_into().expect("W rows");
    let xs: &[QuantRow<'_>; X] = xs.try_into().expect("X rows");
    let mut acc = [[_mm256_setzero_ps(); W]; X];
    let parts = xs.each_ref().map(|x| (x.codes(), x.scales()));
    for step in 0..xs[0].cols() / ACT_GROUP {
        let at = step * ACT_GROUP;
        let mut w = [_mm256_setzero_si256(); W];
        let mut w_scale = [_mm256_setzero_ps(); W];
        for ((codes, scale), row) in w.iter_mut().zip(&mut w_scale).zip(weights) {
            *codes = load_codes(&row.codes[at..]);
            *scale = if GROUP == 32 {
                _mm256_set1_ps(row.scales[step])
            } else {
                let pair = &row.scales[2 * step..2 * step + 2];
                _mm256_set_m128(_mm_set1_ps(pair[1]), _mm_set1_ps(pair[0]))
            };
        }
        for (acc, (x_codes, x_scales)) in acc.iter_mut().zip(&parts) {
            let codes = load_codes(&x_codes[at..]);
            let x_scale = _mm256_set1_ps(x_scales[step]);
            for ((acc, &w), &w_scale) in acc.iter_mut().zip(&w).zip(&w_scale) {
                let pairs = if SIGNED {
                    _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(codes, w))
                } else {
                    _mm256_maddubs_epi16(w, codes)
                };
                let sums = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
                let scale = _mm256_mul_ps(w_scale, x_scale);
                *acc = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(sums), *acc);
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            let mut sum = acc[i][j];
            if offsets {
                let sums = x.sums(GROUP);
                sum = add_offsets(sum, row.offsets, sums);
            }
            out[i * TILE + j] = reduce(sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_codes(codes: &[i8]) -> __m256i {
    let codes = &codes[..32];
    // SAFETY: 32 bytes are in bounds; the load needs no alignment.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

/// `acc + offsets * sums`, both padded to whole vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_offsets(mut acc: __m256, offsets: &[f32], sums: &[f32]) -> __m256 {
    for (a, b) in offsets.as_chunks::<8>().0.iter().zip(sums.as_chunks::<8>().0) {
        // SAFETY: eight floats each; the loads need no alignment.
        let (a, b) = unsafe { (_mm256_loadu_ps(a.as_ptr()), _mm256_loadu_ps(b.as_ptr())) };
        acc = _mm256_fmadd_ps(a, b, acc);
    }
    acc
}
