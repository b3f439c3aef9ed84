//! x86-64 with AVX2, FMA and F16C.

mod dot;

use crate::kernels::{Isa, Kernels};
use crate::lanes::{self, lane_table};
use crate::scalar;

lane_table!(lanes::Fused, "avx2,fma,f16c");

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
    lanes: LANES,
    ..scalar::TABLE
};
