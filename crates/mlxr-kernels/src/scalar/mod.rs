//! The plain form of every kernel: runs anywhere, and what the others are tested against.

mod dot;
pub(crate) mod halves;

use crate::kernels::{CodeKernels, Isa, Kernels};
use crate::lanes::{self, lane_table};
use crate::unpack::{Portable, unpack_table};

lane_table!(lanes::Separate);
unpack_table!(Portable);

pub(crate) const TABLE: Kernels = Kernels {
    isa: Isa::Scalar,
    dot_f32: dot::dot_f32,
    dot_f16: dot::dot_f16,
    dot_bf16: dot::dot_bf16,
    widen_f16: halves::widen,
    narrow_f16: halves::narrow,
    codes: CodeKernels::Rows(dot::dot_codes),
    wide: None,
    attend: None,
    unpack,
    lanes: LANES,
    peaks: None,
};
