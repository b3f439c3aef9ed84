//! x86-64 with AVX2, FMA and F16C, and the same with AVX-VNNI.

mod attend;
mod codes;
mod dot;
mod dots;
mod grouped;
mod halves;
mod layouts;
mod peak;
mod rows;
mod super_tile;
mod tile;

use core::arch::x86_64::{
    _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadu_si128, _mm_shuffle_epi8, _mm_storeu_si128,
    _mm256_and_si256, _mm256_cmpeq_epi8, _mm256_set1_epi32, _mm256_set1_epi64x, _mm256_setr_epi64x,
    _mm256_shuffle_epi8, _mm256_storeu_si256,
};

use crate::kernels::{Isa, Kernels, PeakLoops};
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

    #[inline(always)]
    fn spread(bits: u32) -> [u8; 32] {
        let mut out = [0u8; 32];
        // SAFETY: 32 bytes are stored to an array of 32, unaligned; used by kernels compiled with AVX2 only
        // (`unpack_table!` here and in `avx512`).
        unsafe {
            // Each byte of the four eight times, then its own bit of it.
            let byte =
                _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), byte);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), set);
        }
        out
    }
}

/// Whether this CPU runs the table.
pub(crate) fn is_available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether this CPU, known to run the table, also multiplies bytes by AVX-VNNI.
pub(crate) fn has_vnni() -> bool {
    is_x86_feature_detected!("avxvnni")
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantise_blocks(x: &[f32], out: &mut [u8]) {
    lanes::quantise::quantise_blocks(x, out);
}

/// Makes the module `$module` with `CODES`, the kernels that multiply by `$dots`.
macro_rules! code_kernels {
    ($module:ident, $features:literal, $dots:ident) => {
        mod $module {
            use half::{bf16, f16};
            use mlxr_tensor::{DType, Format, MlxFloat};

            use super::dots::$dots;
            use super::{codes, grouped, layouts, rows, super_tile, tile};
            use crate::kernels::{BlockKernels, CodeKernels, DotBlocks, DotTiles};
            use crate::linear::blocks::BlockRows;
            use crate::linear::codes::CodeKind;
            use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
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
                unpacked,
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
                        kernel!(super_tile::dot::<super_tile::Q4K, $dots>, BlockRows)
                    }
                    Format::Plain(DType::Q5_K) => {
                        kernel!(super_tile::dot::<super_tile::Q5K, $dots>, BlockRows)
                    }
                    Format::Plain(DType::Q6_K) => {
                        kernel!(super_tile::dot::<super_tile::Q6K, $dots>, BlockRows)
                    }
                    _ => None,
                }
            }

            #[target_feature(enable = $features)]
            fn unpacked(
                kind: CodeKind,
                weights: &UnpackedTile<'_>,
                xs: &ActRows<'_>,
                scratch: &mut TileScratch,
                out: &mut [f32],
            ) {
                // SAFETY: this is compiled for what the products need.
                unsafe { codes::dot_unpacked::<$dots>(kind, weights, xs, scratch, out) }
            }
        }
    };
}

code_kernels!(by_pairs, "avx2,fma,f16c", Pairs);
code_kernels!(by_vnni, "avx2,fma,f16c,avxvnni", Vnni);

pub(crate) const TABLE: Kernels = Kernels {
    isa: Isa::Avx2,
    dot_f32: dot::dot_f32,
    dot_f16: dot::dot_f16,
    dot_bf16: dot::dot_bf16,
    widen_f16: halves::widen,
    narrow_f16: halves::narrow,
    codes: by_pairs::CODES,
    wide: None,
    attend: Some(attend::KERNELS),
    unpack,
    lanes: LANES,
    peaks: Some(peak::LOOPS),
};

/// With AVX-VNNI, on CPUs without AVX-512.
pub(crate) const VNNI: Kernels = Kernels {
    isa: Isa::AvxVnni,
    codes: by_vnni::CODES,
    peaks: Some(PeakLoops { codes: peak::codes_vnni, ..peak::LOOPS }),
    ..TABLE
};
