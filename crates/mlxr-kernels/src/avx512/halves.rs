//! Halves to floats and back, sixteen at a time.

use core::arch::x86_64::*;

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn widen(bytes: &[u8], out: &mut [f32]) {
    let bytes = &bytes[..out.len() * 2];
    for (out, halves) in out.chunks_mut(16).zip(bytes.chunks(32)) {
        let mask = (u32::MAX >> (32 - out.len())) as u16;
        // SAFETY: only the masked halves and floats are accessed, and both are in bounds; no access needs alignment.
        unsafe {
            let halves = _mm256_maskz_loadu_epi16(mask, halves.as_ptr().cast());
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_cvtph_ps(halves));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) fn narrow(values: &[f32], out: &mut [u8]) {
    let out = &mut out[..values.len() * 2];
    for (out, values) in out.chunks_mut(32).zip(values.chunks(16)) {
        let mask = (u32::MAX >> (32 - values.len())) as u16;
        // SAFETY: only the masked floats and halves are accessed, and both are in bounds; no access needs alignment.
        unsafe {
            let values = _mm512_maskz_loadu_ps(mask, values.as_ptr());
            let halves = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(values);
            _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, halves);
        }
    }
}
