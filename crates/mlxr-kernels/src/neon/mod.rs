//! AArch64 with NEON and the dot product extension (Armv8.2 and later: every Apple silicon, Graviton 2 and up).

mod dot;

use crate::kernels::{CodeKernels, Isa, Kernels};
use crate::lanes::{self, lane_table};
use crate::scalar;
use crate::unpack::{Portable, unpack_table};

lane_table!(lanes::Fused, "neon");
unpack_table!(Portable, "neon");

/// Whether this CPU runs the table.
pub(crate) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
}

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
};
