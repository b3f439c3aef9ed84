//! x86-64 with AVX-512 (F, BW, DQ, VL) and VNNI; includes everything the AVX2 table needs.

mod attend;
pub(crate) mod attend_bf16;
mod bf16;
mod bytes;
mod dot;
pub(crate) mod floats;
pub(crate) mod grouped;
mod halves;
pub(crate) mod layouts;
pub(crate) mod peak;
pub(crate) mod quantise;
pub(crate) mod rows;
pub(crate) mod super_blocks;
pub(crate) mod super_tile;
pub(crate) mod tile;
pub(crate) mod wide;
pub(crate) mod wide_half;

use crate::avx2;
use crate::kernels::{BlockKernels, CodeKernels, Isa, Kernels, WideKernels};
use crate::lanes::{self, Lanes, lane_table};
use crate::unpack::unpack_table;

lane_table!(lanes::Fused, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");
unpack_table!(avx2::Avx2Primitives, "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl");

/// Whether this CPU, known to run the AVX2 table, runs this one.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

pub(crate) const TABLE: Kernels = Kernels {
    isa: Isa::Avx512,
    dot_f32: dot::dot_f32,
    dot_f16: dot::dot_f16,
    dot_bf16: dot::dot_bf16,
    widen_f16: halves::widen,
    narrow_f16: halves::narrow,
    codes: CodeKernels::Tiles {
        tiled: tile::tiled,
        blocks: BlockKernels {
            tiled: super_tile::tiled,
            quantise: quantise::quantise_blocks,
            packs_from: usize::MAX,
        },
        floats: floats::tiled,
        put_in_order: rows::put_in_order,
        unpacked: tile::dot_unpacked,
        packs_from: usize::MAX,
    },
    wide: None,
    attend: Some(attend::KERNELS),
    unpack,
    lanes: Lanes { quantise: quantise::quantise, ..LANES },
    peaks: Some(peak::LOOPS),
};

/// Products in bf16, where the CPU has them and they are faster than those of floats.
pub(crate) fn wide() -> Option<WideKernels> {
    wide_if_any().filter(|_| bf16::is_fast())
}

/// As [`wide`], however fast.
pub(crate) fn wide_if_any() -> Option<WideKernels> {
    is_x86_feature_detected!("avx512bf16").then_some(bf16::KERNELS)
}
