//! AArch64 with NEON and the dot product extension (Armv8.2 and later: every Apple silicon, Graviton 2 and up), and
//! with the 8-bit matrix products of I8MM (Armv8.6: Apple M2, Graviton 3 and up). Those CPUs also have products in bf16.

mod attend;
mod attend_bf16;
mod codes;
mod dot;
mod dots;
mod grouped;
mod halves;
mod i8mm;
mod layouts;
mod panel;
mod peak;
mod rows;
mod super_tile;
mod tile;
mod wide;

use core::arch::aarch64::{vld1q_s8, vld1q_u8, vqtbl1q_s8, vreinterpretq_u8_s8, vst1q_u8};

use crate::kernels::{Isa, Kernels, PeakLoops, WideKernels};
use crate::lanes::{self, lane_table};
use crate::unpack::{Primitives, unpack_table};

lane_table!(lanes::Fused, "neon");
unpack_table!(NeonPrimitives, "neon");

/// Widening by `fcvt`, look-up by `tbl`.
struct NeonPrimitives;

impl Primitives for NeonPrimitives {
    #[inline(always)]
    fn to_f32(bits: u16) -> f32 {
        // SAFETY: used by kernels compiled with NEON only.
        unsafe { halves::one_widened(bits) }
    }

    #[inline(always)]
    fn look_up(table: &[i8; 16], codes: [u8; 16]) -> [u8; 16] {
        let mut out = [0u8; 16];
        // SAFETY: 16 bytes are loaded from and stored to arrays of 16; used by kernels compiled with NEON only.
        unsafe {
            let (table, codes) = (vld1q_s8(table.as_ptr()), vld1q_u8(codes.as_ptr()));
            vst1q_u8(out.as_mut_ptr(), vreinterpretq_u8_s8(vqtbl1q_s8(table, codes)));
        }
        out
    }
}

/// Whether this CPU runs the table.
pub(crate) fn is_available() -> bool {
    std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
}

/// Whether this CPU runs [`I8MM`].
pub(crate) fn has_i8mm() -> bool {
    is_available() && std::arch::is_aarch64_feature_detected!("i8mm")
}

/// Products in bf16, where the CPU has them.
pub(crate) fn wide() -> Option<WideKernels> {
    std::arch::is_aarch64_feature_detected!("bf16").then_some(wide::KERNELS)
}

#[target_feature(enable = "neon")]
fn quantise_blocks(x: &[f32], out: &mut [u8]) {
    lanes::quantise::quantise_blocks(x, out);
}

/// Makes the module `$module` with `CODES`, the kernels that multiply by `$dots`.
macro_rules! code_kernels {
    ($module:ident, $features:literal, $dots:ident, $unpacked:expr) => {
        mod $module {
            use half::{bf16, f16};
            use mlxr_tensor::{DType, Format, MlxFloat};

            use super::dots::$dots;
            use super::{grouped, layouts, rows, super_tile, tile};
            use crate::kernels::{BlockKernels, CodeKernels, DotBlocks, DotTiles};
            use crate::linear::blocks::BlockRows;
            use crate::linear::tile::{ActRows, TileScratch};
            use crate::linear::tiled::Tiles;

            pub(super) const CODES: CodeKernels = CodeKernels::Tiles {
                tiled,
                blocks: BlockKernels {
                    tiled: blocks,
                    quantise: super::quantise_blocks,
                    packs_from: usize::MAX,
                },
                floats: |_| None,
                put_in_order: rows::put_in_order,
                unpacked: $unpacked,
                packs_from: usize::MAX,
            };

            macro_rules! kernel {
                ($run:expr, $xs:ident) => {{
                    #[target_feature(enable = $features)]
                    fn kernel(tiles: &Tiles<'_>, xs: &$xs<'_>, scratch: &mut TileScratch, out: &mut [f32]) {
                        // SAFETY: this is compiled for what the products need.
                        unsafe { $run(tiles, xs, scratch, out) }
                    }
                    Some(kernel)
                }};
            }

            macro_rules! tiled {
                ($layout:ty) => {
                    kernel!(tile::dot::<$layout, $dots>, ActRows)
                };
            }

            fn tiled(format: Format) -> Option<DotTiles> {
                match format {
                    Format::Plain(DType::Q4_0) => tiled!(layouts::Q4_0),
                    Format::Plain(DType::Q8_0) => tiled!(layouts::Q8_0),
                    Format::MlxAffine { bits: 4, scale: DType::F16, .. } => tiled!(layouts::Mlx4<f16>),
                    Format::MlxAffine { bits: 4, scale: DType::BF16, .. } => tiled!(layouts::Mlx4<bf16>),
                    Format::MlxAffine { bits: 8, scale: DType::F16, .. } => tiled!(layouts::Mlx8<f16>),
                    Format::MlxAffine { bits: 8, scale: DType::BF16, .. } => tiled!(layouts::Mlx8<bf16>),
                    Format::Plain(DType::Q4_1) => tiled!(layouts::Q4_1),
                    Format::Plain(DType::Q5_0) => tiled!(layouts::Q5_0),
                    Format::Plain(DType::Q5_1) => tiled!(layouts::Q5_1),
                    Format::Plain(DType::IQ4_NL) => tiled!(layouts::Iq4Nl),
                    Format::Plain(DType::MXFP4) | Format::MlxFloat(MlxFloat::Mxfp4) => tiled!(layouts::Mxfp4),
                    Format::Plain(DType::IQ4_XS) => tiled!(grouped::Iq4Xs),
                    Format::Plain(DType::Q3_K) => tiled!(grouped::Q3K),
                    Format::Plain(DType::Q2_K) => tiled!(grouped::Q2K),
                    _ => None,
                }
            }

            fn blocks(format: Format) -> Option<DotBlocks> {
                match format {
                    Format::Plain(DType::Q4_K) => {
                        kernel!(super_tile::dot::<super_tile::Q4K, $dots, 8>, BlockRows)
                    }
                    Format::Plain(DType::Q5_K) => {
                        kernel!(super_tile::dot::<super_tile::Q5K, $dots, 8>, BlockRows)
                    }
                    Format::Plain(DType::Q6_K) => {
                        kernel!(super_tile::dot::<super_tile::Q6K, $dots, 16>, BlockRows)
                    }
                    _ => None,
                }
            }
        }
    };
}

code_kernels!(by_sdot, "neon,dotprod", Sdot, super::codes::dot_unpacked);
code_kernels!(by_smmla, "neon,dotprod,i8mm", Smmla, super::i8mm::dot_unpacked);

/// As [`TABLE`], with twice the 8-bit products per instruction.
pub(crate) const I8MM: Kernels = Kernels {
    isa: Isa::NeonI8mm,
    codes: by_smmla::CODES,
    peaks: Some(PeakLoops { codes: peak::codes_i8mm, floats: peak::floats }),
    ..TABLE
};

pub(crate) const TABLE: Kernels = Kernels {
    isa: Isa::Neon,
    dot_f32: dot::dot_f32,
    dot_f16: dot::dot_f16,
    dot_bf16: dot::dot_bf16,
    widen_f16: halves::widen,
    narrow_f16: halves::narrow,
    codes: by_sdot::CODES,
    wide: None,
    attend: Some(attend::KERNELS),
    unpack,
    lanes: LANES,
    peaks: Some(PeakLoops { codes: peak::codes, floats: peak::floats }),
};
