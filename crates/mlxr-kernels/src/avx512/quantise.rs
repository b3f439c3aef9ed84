//! Activations to 8-bit codes, sixteen groups at a time; the same bits as [`crate::lanes::quantise`].

use core::arch::x86_64::*;

use crate::linear::blocks::{BLOCK_BYTES, BLOCK_COLS, SCALE_AT, SUMS16_AT, SUMS32_AT, place_of_sum};
use crate::linear::codes::{ACT_GROUP, QuantRowMut};

/// Groups whose scales and sums are computed together.
const GROUPS: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn quantise(x: &[f32], out: QuantRowMut<'_>) {
    let QuantRowMut { codes, scales, sums32, sums16, negated32, negated16 } = out;
    let blocks = x.chunks(GROUPS * ACT_GROUP).zip(codes.chunks_mut(GROUPS * ACT_GROUP));
    let blocks = blocks.zip(scales.chunks_exact_mut(GROUPS));
    let sums32 = sums32.chunks_exact_mut(GROUPS).zip(negated32.chunks_exact_mut(GROUPS));
    let sums16 = sums16.chunks_mut(2 * GROUPS).zip(negated16.chunks_mut(2 * GROUPS));
    for ((((x, codes), scales), (sums32, negated32)), (sums16, negated16)) in blocks.zip(sums32).zip(sums16) {
        // Groups that are not there are of zeros, and so is their padding.
        let mut largest = [0f32; GROUPS];
        for (largest, group) in largest.iter_mut().zip(x.chunks(ACT_GROUP)) {
            *largest = largest_magnitude(group);
        }
        // SAFETY: the array has sixteen floats.
        let largest = unsafe { _mm512_loadu_ps(largest.as_ptr()) };
        let limit = _mm512_set1_ps(127.0);
        let scale = _mm512_div_ps(largest, limit);
        let is_some = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(largest, _mm512_setzero_ps());
        let inverse = _mm512_maskz_div_ps(is_some, limit, largest);
        put_floats(scales, scale);

        let mut inverses = [0f32; GROUPS];
        put_floats(&mut inverses, inverse);
        let mut sums = [0i32; 2 * GROUPS];
        let groups = x.chunks(ACT_GROUP).zip(codes.chunks_exact_mut(ACT_GROUP));
        for (((group, codes), &inverse), sums) in groups.zip(&inverses).zip(sums.as_chunks_mut().0) {
            *sums = put_codes(group, inverse, codes);
        }
        // SAFETY: the array has 32 integers.
        let halves = unsafe {
            [_mm512_loadu_si512(sums.as_ptr().cast()), _mm512_loadu_si512(sums.as_ptr().add(16).cast())]
        };
        let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
        let whole = _mm512_add_epi32(
            _mm512_permutex2var_epi32(halves[0], evens, halves[1]),
            _mm512_permutex2var_epi32(halves[0], odds, halves[1]),
        );
        put_sums(sums32, negated32, whole, scale);
        let twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
        let sums16 = sums16.chunks_exact_mut(16).zip(negated16.chunks_exact_mut(16));
        for ((i, half), (sums, negated)) in halves.into_iter().enumerate().zip(sums16) {
            let of_half = _mm512_add_epi32(twice, _mm512_set1_epi32(8 * i as i32));
            put_sums(sums, negated, half, _mm512_permutexvar_ps(of_half, scale));
        }
    }
}

/// The group as two vectors, zeros behind its end.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load(group: &[f32]) -> [__m512; 2] {
    let mask = u32::MAX >> (ACT_GROUP - group.len());
    let at = group.as_ptr();
    // SAFETY: only the masked floats are read, and there are so many.
    unsafe {
        [
            _mm512_maskz_loadu_ps(mask as u16, at),
            _mm512_maskz_loadu_ps((mask >> 16) as u16, at.wrapping_add(16)),
        ]
    }
}

/// NaNs count as 0.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn largest_magnitude(group: &[f32]) -> f32 {
    // Of a NaN and a number the maximum is the second.
    let [low, high] = load(group).map(|v| _mm512_max_ps(_mm512_abs_ps(v), _mm512_setzero_ps()));
    _mm512_reduce_max_ps(_mm512_max_ps(low, high))
}

/// Writes 32 codes. Returns the sums of the first and the last sixteen.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn put_codes(group: &[f32], inverse: f32, codes: &mut [i8]) -> [i32; 2] {
    let [low, high] = load(group).map(|v| {
        let v = _mm512_mul_ps(v, _mm512_set1_ps(inverse));
        let v = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(v, v), v);
        let v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-128.0)), _mm512_set1_ps(127.0));
        let v = _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
        _mm512_cvtepi32_epi8(v)
    });
    let all = _mm256_set_m128i(high, low);
    assert!(codes.len() == ACT_GROUP, "the codes of a group");
    // SAFETY: there is room for 32 bytes.
    unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), all) };
    let fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), all);
    let pairs = _mm256_hadd_epi32(fours, fours);
    let sums = _mm256_hadd_epi32(pairs, pairs);
    [_mm256_extract_epi32::<0>(sums), _mm256_extract_epi32::<4>(sums)]
}

/// Writes sums of codes negated, and the sums of values that they stand for.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn put_sums(sums: &mut [f32], negated: &mut [i32], of_codes: __m512i, scale: __m512) {
    put_floats(sums, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(of_codes)));
    let negated = &mut negated[..16];
    // SAFETY: there is room for sixteen integers.
    unsafe {
        let value = _mm512_sub_epi32(_mm512_setzero_si512(), of_codes);
        _mm512_storeu_si512(negated.as_mut_ptr().cast(), value);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn put_floats(out: &mut [f32], values: __m512) {
    let out = &mut out[..16];
    // SAFETY: there is room for sixteen floats.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
}

/// Quantises whole blocks of 256 columns, see [`crate::linear::blocks`]; NaNs count as 0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn quantise_blocks(x: &[f32], out: &mut [u8]) {
    assert_eq!(x.len() / BLOCK_COLS * BLOCK_BYTES, out.len(), "a block for each 256 columns");
    for (x, out) in x.chunks_exact(BLOCK_COLS).zip(out.chunks_exact_mut(BLOCK_BYTES)) {
        let mut largest = _mm512_setzero_ps();
        for group in x.chunks_exact(ACT_GROUP) {
            let [low, high] = load(group).map(|v| _mm512_abs_ps(v));
            // Of a NaN and a number the maximum is the second.
            largest = _mm512_max_ps(high, _mm512_max_ps(low, largest));
        }
        let largest = _mm512_reduce_max_ps(largest);
        let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
        out[SUMS32_AT..].fill(0);
        for (g, group) in x.chunks_exact(ACT_GROUP).enumerate() {
            // SAFETY: plain bytes either way.
            let codes = unsafe { out[g * ACT_GROUP..(g + 1) * ACT_GROUP].align_to_mut::<i8>().1 };
            let sums = put_codes(group, inverse, codes);
            let mut put = |at: usize, sum: i32| out[at..at + 2].copy_from_slice(&(sum as i16).to_le_bytes());
            put(SUMS32_AT + 2 * place_of_sum(g), sums[0] + sums[1]);
            put(SUMS16_AT + 2 * place_of_sum(2 * g), sums[0]);
            put(SUMS16_AT + 2 * place_of_sum(2 * g + 1), sums[1]);
        }
        out[SCALE_AT..SCALE_AT + 4].copy_from_slice(&(largest / 127.0).to_le_bytes());
    }
}
