//! AArch64 with NEON and the dot product extension (Armv8.2 and later: every Apple silicon, Graviton 2 and up), and
//! with the 8-bit matrix products of I8MM (Armv8.6: Apple M2, Graviton 3 and up).

mod dot;
mod i8mm;
mod peak;

use crate::kernels::{CodeKernels, Isa, Kernels, PeakLoops};
use crate::lanes::{self, lane_table};
use crate::scalar;
use crate::unpack::{Portable, unpack_table};

lane_table!(lanes::Fused, "neon");
unpack_table!(Portable, "neon");

/// Whether this CPU runs the table.
pub(crate) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Whether this CPU runs [`I8MM`].
pub(crate) fn has_i8mm() -> bool {
    is_available() && std::arch::is_aarch64_feature_detected!("i8mm")
}

/// As [`TABLE`], with twice the 8-bit products per instruction.
pub(crate) const I8MM: Kernels = Kernels {
    isa: Isa::NeonI8mm,
    codes: CodeKernels::Rows(i8mm::dot_codes),
    peaks: Some(PeakLoops { codes: peak::codes_i8mm, floats: peak::floats }),
    ..TABLE
};

pub(crate) const TABLE: Kernels = Kernels {
    isa: Isa::Neon,
    dot_f32: dot::dot_f32,
    dot_f16: dot::dot_f16,
    dot_bf16: dot::dot_bf16,
    widen_f16: scalar::halves::widen,
    narrow_f16: scalar::halves::narrow,
    codes: CodeKernels::Rows(dot::dot_codes),
    wide: None,
    attend: None,
    unpack,
    lanes: LANES,
    peaks: Some(PeakLoops { codes: peak::codes, floats: peak::floats }),
};
