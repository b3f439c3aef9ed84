//! x86-64 with AVX2, FMA and F16C.

mod dot;

use core::arch::x86_64::{_mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32};

use crate::kernels::{Isa, Kernels};
use crate::lanes::{self, lane_table};
use crate::unpack::{Half, unpack_table};

lane_table!(lanes::Fused, "avx2,fma,f16c");
unpack_table!(F16c, "avx2,fma,f16c");

/// Widening by the F16C instruction.
pub(crate) struct F16c;

impl Half for F16c {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        // SAFETY: used by kernels compiled with F16C only (`unpack_table!` here and in `avx512`).
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
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
    dot_codes: dot::dot_codes,
    unpack,
    lanes: LANES,
};
