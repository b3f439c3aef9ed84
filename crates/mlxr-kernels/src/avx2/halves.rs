//! Halves to floats and back, eight at a time.

use core::arch::x86_64::*;

use crate::scalar::halves;

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn widen(bytes: &[u8], out: &mut [f32]) {
    let bytes = &bytes[..out.len() * 2];
    let (whole, rest) = out.as_chunks_mut::<8>();
    let (halves, halves_rest) = bytes.as_chunks::<16>();
    for (out, halves) in whole.iter_mut().zip(halves) {
        // SAFETY: the arrays are sixteen bytes and eight floats; neither access needs alignment.
        unsafe {
            let halves = _mm_loadu_si128(halves.as_ptr().cast());
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(halves));
        }
    }
    halves::widen(halves_rest, rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn narrow(values: &[f32], out: &mut [u8]) {
    let out = &mut out[..values.len() * 2];
    let (whole, rest) = values.as_chunks::<8>();
    let (halves, halves_rest) = out.as_chunks_mut::<16>();
    for (out, values) in halves.iter_mut().zip(whole) {
        // SAFETY: the arrays are eight floats and sixteen bytes; neither access needs alignment.
        unsafe {
            let values = _mm256_loadu_ps(values.as_ptr());
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
            _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
        }
    }
    halves::narrow(rest, halves_rest);
}
