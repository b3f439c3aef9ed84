//! Dot products with 512-bit vectors; integer ones through `vpdpbusd`.

use core::arch::x86_64::*;

use crate::kernels::TILE;
use crate::linear::codes::{CODE_PAD, CodeKind, CodeRow, QuantRow};
use crate::tiles::for_micro_tiles;

/// How sixteen stored elements become a vector of f32.
trait Element {
    const BYTES: usize;
    /// The sixteen elements at the start of `bytes`.
    fn load(bytes: &[u8]) -> __m512;
    /// The first elements of `bytes`, as many as `mask` has bits from the lowest; zeros for the rest.
    fn load_first(mask: u16, bytes: &[u8]) -> __m512;
}

struct F32;
struct F16;
struct Bf16;

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
        for (j, row) in weights.iter().enumerate() {
            let mut sum = acc[i][j];
            if mask != 0 {
                let x = &x[whole..];
                // SAFETY: only the masked floats are read: those of the tail.
                let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) };
                sum = _mm512_fmadd_ps(E::load_first(mask, &row[whole * E::BYTES..]), x, sum);
            }
            out[i * TILE + j] = _mm512_reduce_add_ps(sum);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn dot_codes(kind: CodeKind, weights: &[CodeRow<'_>], xs: &[QuantRow<'_>], out: &mut [f32]) {
    for_micro_tiles!(weights, xs, |w, x, w0, x0| micro_codes(kind, w, x, &mut out[x0 * TILE + w0..]));
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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

/// One accumulator per product: the integer sums of 64 columns, four to a lane, scaled lane by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn micro_groups<const W: usize, const X: usize, const SIGNED: bool, const GROUP: usize>(
    offsets: bool,
    weights: &[CodeRow<'_>],
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    let weights: &[CodeRow<'_>; W] = weights.try_into().expect("W rows");
    let xs: &[QuantRow<'_>; X] = xs.try_into().expect("X rows");
    let zero = _mm512_setzero_si512();
    let mut acc = [[_mm512_setzero_ps(); W]; X];
    for step in 0..xs[0].codes.len() / CODE_PAD {
        let at = step * CODE_PAD;
        let mut w = [zero; W];
        let mut negative = [0u64; W];
        let mut w_scale = [_mm512_setzero_ps(); W];
        for (j, row) in weights.iter().enumerate() {
            w[j] = load_codes(&row.codes[at..]);
            if SIGNED {
                negative[j] = _mm512_movepi8_mask(w[j]);
                w[j] = _mm512_abs_epi8(w[j]);
            }
            w_scale[j] = if GROUP == 32 {
                spread_2(&row.scales[2 * step..])
            } else {
                spread_4(&row.scales[4 * step..])
            };
        }
        for (acc, x) in acc.iter_mut().zip(xs) {
            let codes = load_codes(&x.codes[at..]);
            let x_scale = spread_2(&x.scales[2 * step..]);
            for j in 0..W {
                let codes =
                    if SIGNED { _mm512_mask_sub_epi8(codes, negative[j], zero, codes) } else { codes };
                let sums = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(zero, w[j], codes));
                acc[j] = _mm512_fmadd_ps(_mm512_mul_ps(w_scale[j], x_scale), sums, acc[j]);
            }
        }
    }
    for (i, x) in xs.iter().enumerate() {
        for (j, row) in weights.iter().enumerate() {
            let mut sum = acc[i][j];
            if offsets {
                let sums = if GROUP == 32 { x.sums32 } else { x.sums16 };
                sum = add_offsets(sum, row.offsets, sums);
            }
            out[i * TILE + j] = _mm512_reduce_add_ps(sum);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load_codes(codes: &[i8]) -> __m512i {
    let codes = &codes[..CODE_PAD];
    // SAFETY: 64 bytes are in bounds; the load needs no alignment.
    unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
}

/// The first two values, eight lanes each.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread_2(values: &[f32]) -> __m512 {
    let values = &values[..2];
    // SAFETY: eight bytes are in bounds; an `f64` is only the carrier of two floats and is read unaligned.
    let pair = unsafe { values.as_ptr().cast::<f64>().read_unaligned() };
    let lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    _mm512_permutexvar_ps(lanes, _mm512_castpd_ps(_mm512_set1_pd(pair)))
}

/// The first four values, four lanes each.
#[inline]
#[target_feature(enable = "avx512f")]
fn spread_4(values: &[f32]) -> __m512 {
    let values = &values[..4];
    // SAFETY: sixteen bytes are in bounds; the load needs no alignment.
    let four = unsafe { _mm_loadu_ps(values.as_ptr()) };
    let lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    _mm512_permutexvar_ps(lanes, _mm512_broadcast_f32x4(four))
}

/// `acc + offsets * sums`, both padded to whole vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_offsets(mut acc: __m512, offsets: &[f32], sums: &[f32]) -> __m512 {
    for (a, b) in offsets.as_chunks::<16>().0.iter().zip(sums.as_chunks::<16>().0) {
        // SAFETY: sixteen floats each; the loads need no alignment.
        let (a, b) = unsafe { (_mm512_loadu_ps(a.as_ptr()), _mm512_loadu_ps(b.as_ptr())) };
        acc = _mm512_fmadd_ps(a, b, acc);
    }
    acc
}
