//! x86-64 with AVX2, FMA and F16C, and with AVX-VNNI where there is one.

mod codes;
mod dot;
mod halves;
mod peak;

use core::arch::x86_64::{
    _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadu_si128, _mm_shuffle_epi8, _mm_storeu_si128,
};

use crate::kernels::{CodeKernels, Isa, Kernels, PeakLoops};
use crate::lanes::{self, lane_table};
use crate::unpack::{Primitives, unpack_table};

lane_table!(lanes::Fused, "avx2,fma,f16c");
unpack_table!(Avx2Primitives, "avx2,fma,f16c");

/// Widening by F16C's instruction, look-up by `pshufb`.
pub(crate) struct Avx2Primitives;

impl Primitives for Avx2Primitives {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        // SAFETY: used by kernels compiled with F16C only (`unpack_table!` here and in `avx512`).
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }

    #[inline(always)]
    fn look_up(table: &[i8; 16], codes: [u8; 16]) -> [u8; 16] {
        let mut out = [0u8; 16];
        // SAFETY: 16 bytes are loaded from and stored to arrays of 16, unaligned; used by kernels compiled with AVX2
        // only (`unpack_table!` here and in `avx512`).
        unsafe {
            let (table, codes) =
                (_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(codes.as_ptr().cast()));
            _mm_storeu_si128(out.as_mut_ptr().cast(), _mm_shuffle_epi8(table, codes));
        }
        out
    }
}

/// Whether this CPU runs the table.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

pub(crate) const TABLE: Kernels = Kernels {
    isa: Isa::Avx2,
    dot_f32: dot::dot_f32,
    dot_f16: dot::dot_f16,
    dot_bf16: dot::dot_bf16,
    widen_f16: halves::widen,
    narrow_f16: halves::narrow,
    codes: CodeKernels::Rows(codes::dot_codes),
    wide: None,
    attend: None,
    unpack,
    lanes: LANES,
    peaks: Some(peak::LOOPS),
};

/// Whether this CPU runs [`VNNI`].
pub(crate) fn has_vnni() -> bool {
    is_available() && is_x86_feature_detected!("avxvnni")
}

/// As [`TABLE`], with 8-bit products added up in fours by one instruction in place of two.
pub(crate) const VNNI: Kernels = Kernels {
    isa: Isa::AvxVnni,
    codes: CodeKernels::Rows(codes::dot_codes_vnni),
    peaks: Some(PeakLoops { codes: peak::codes_vnni, ..peak::LOOPS }),
    ..TABLE
};
