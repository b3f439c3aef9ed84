//! Products in bf16 on the tile unit.

use core::arch::asm;

use mlxr_tensor::{DType, Format};

use super::peak;
use super::unit::{self, Config, ROW_BYTES, Shape, TILE_ROWS};
use crate::avx512::attend_bf16;
use crate::avx512::layouts::Unpacked;
use crate::avx512::super_tile::block_kernels;
use crate::avx512::tile::tiled_kernels;
use crate::avx512::wide::{self, Met, PANEL_TILE, Unit, wide_floats, wide_kernels};
use crate::avx512::wide_half::{self, HalfBlocks, HalfSuperBlocks};
use crate::kernels::{DotWide, WideKernels};
use crate::linear::codes::CodeKind;
use crate::linear::tile::TileScratch;
use crate::linear::wide::{Sums, TILE_BYTES, WideActs, WideOut, WideRows};

/// Activation rows from which on unpacking to bf16 pays.
const WIDE_FROM: usize = 32;

pub(super) const KERNELS: WideKernels = WideKernels {
    from_rows: WIDE_FROM,
    tiled,
    floats,
    unpacked: Some(unpacked),
    pack: wide::pack,
    pack_row: wide::pack_row,
    pack_sums: wide::pack_sums,
    attend: attend_bf16::kernels::<TileUnit>(),
    peak: peak::bf16,
};

/// The kernel of a format in tile order.
fn tiled(format: Format) -> Option<DotWide> {
    if wide_half::is_available()
        && let Some(dot) = half_blocks(format).or_else(|| half_super_blocks(format))
    {
        return Some(dot);
    }
    blocks(format).or_else(|| super_blocks(format)).or_else(|| float_tiles(format))
}

tiled_kernels! {
    fn blocks() -> DotWide, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    |weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>|
        wide::dot::<wide::Blocks<Tiled>, TileUnit>(weights, xs, scratch, out)
}

block_kernels! {
    fn super_blocks() -> DotWide, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    |weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>|
        wide::dot::<wide::SuperBlocks<Blocks>, TileUnit>(weights, xs, scratch, out)
}

tiled_kernels! {
    fn half_blocks() -> DotWide, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    |weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>|
        wide::dot::<HalfBlocks<Tiled>, TileUnit>(weights, xs, scratch, out)
}

block_kernels! {
    fn half_super_blocks() -> DotWide, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    |weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>|
        wide::dot::<HalfSuperBlocks<Blocks>, TileUnit>(weights, xs, scratch, out)
}

wide_floats!(TileUnit);

wide_kernels! {
    TileUnit:
    dot_unpacked_32: wide::Codes<Unpacked<false, 32>>;
    dot_unpacked_16: wide::Codes<Unpacked<false, 16>>;
    dot_signed_32: wide::Codes<Unpacked<true, 32>>;
    dot_signed_16: wide::Codes<Unpacked<true, 16>>;
}

/// The kernel for rows unpacked to the common form.
fn unpacked(kind: CodeKind) -> DotWide {
    match (kind.signed, kind.group) {
        (false, 32) => dot_unpacked_32,
        (false, _) => dot_unpacked_16,
        (true, 32) => dot_signed_32,
        (true, _) => dot_signed_16,
    }
}

/// AMX.
struct TileUnit;

impl Unit for TileUnit {
    /// Two tiles of 512 columns stay in the first-level cache, so many blocks of activations passing by. Taking up sums
    /// and putting them back, which longer panels save, takes as long as some thirty multiplications.
    #[inline]
    fn panel_cols(n_blocks: usize) -> usize {
        if n_blocks < 4 { 1024 } else { 512 }
    }

    #[inline]
    unsafe fn begin() {
        // SAFETY: passes the caller's promise on.
        unsafe { unit::configure(&Config::new([Shape { rows: TILE_ROWS, row_bytes: ROW_BYTES }; 8])) };
    }

    #[inline]
    unsafe fn end() {
        // SAFETY: passes the caller's promise on.
        unsafe { unit::release() };
    }

    #[inline]
    unsafe fn two_by_two(acts: &[u8], panel: &[u8], n_steps: usize, from: Option<Sums>, to: Sums) {
        let (acts, panel) = (acts.as_ptr(), panel.as_ptr());
        // SAFETY: by the caller's promise.
        unsafe {
            load(acts, panel);
            open(from);
            for step in 1..n_steps {
                multiply_and_load(acts.add(step * 2 * TILE_BYTES), panel.add(step * TILE_BYTES));
            }
            multiply();
            close(to);
        }
    }

    /// Operands of a step, also of the first of a block, are loaded while those of the step before are multiplied. Lines of
    /// the result's rows are fetched before sums are put there.
    #[inline]
    unsafe fn meet(met: &Met) {
        let mut acts = met.acts;
        // SAFETY: by the caller's promise.
        unsafe {
            load(acts, met.panel);
            for block in 0..met.n_blocks {
                let (from, to) = met.sums_of(block);
                let mut lines = met.lines_due(block);
                open(from);
                for step in 1..met.n_steps {
                    multiply_and_load(acts.add(step * 2 * TILE_BYTES), met.panel.add(step * TILE_BYTES));
                    met.fetch(1);
                    lines.by_ref().take(LINES_EACH).for_each(wide::fetch_for_writing);
                }
                let is_last = block + 1 == met.n_blocks;
                let after = if is_last { acts } else { acts.add(met.stride) };
                multiply_and_load(after, met.panel);
                met.fetch(1);
                close(to);
                acts = after;
            }
        }
    }
}

/// Lines of the result that are fetched a step: all 64 of a block in the sixteen steps of a short panel.
const LINES_EACH: usize = 4;

/// Takes up sums, or begins with zeros.
///
/// # Safety
/// As [`Unit::two_by_two`].
#[inline(always)]
unsafe fn open(from: Option<Sums>) {
    let Some(from) = from else {
        // SAFETY: the unit is set up.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nomem, nostack, preserves_flags),
            );
        }
        return;
    };
    let (high, stride, right) = (from.at, from.stride * 4, from.at.wrapping_add(from.right));
    let (low, low_right) = (high.wrapping_add(from.low), right.wrapping_add(from.low));
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm0, [{high} + {stride}]",
            "tileloadd tmm1, [{right} + {stride}]",
            "tileloadd tmm2, [{low} + {stride}]",
            "tileloadd tmm3, [{low_right} + {stride}]",
            high = in(reg) high,
            right = in(reg) right,
            low = in(reg) low,
            low_right = in(reg) low_right,
            stride = in(reg) stride,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Loads the operands of a step: activations with the hint that they come from the second-level cache once, so that they
/// leave the panel in the first.
///
/// # Safety
/// As [`Unit::two_by_two`].
#[inline(always)]
unsafe fn load(acts: *const u8, panel: *const u8) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tileloaddt1 tmm4, [{acts} + {line}]",
            "tileloadd tmm6, [{panel} + {line}]",
            "tileloadd tmm7, [{panel} + {line} + {panel_tile}]",
            "tileloaddt1 tmm5, [{acts} + {line} + {tile}]",
            acts = in(reg) acts,
            panel = in(reg) panel,
            line = in(reg) ROW_BYTES,
            tile = const TILE_BYTES,
            panel_tile = const PANEL_TILE,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Adds the products of the operands loaded before, and loads those of another step.
///
/// # Safety
/// As [`Unit::two_by_two`].
#[inline(always)]
unsafe fn multiply_and_load(acts: *const u8, panel: *const u8) {
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloaddt1 tmm4, [{acts} + {line}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm6, [{panel} + {line}]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm7, [{panel} + {line} + {panel_tile}]",
            "tileloaddt1 tmm5, [{acts} + {line} + {tile}]",
            acts = in(reg) acts,
            panel = in(reg) panel,
            line = in(reg) ROW_BYTES,
            tile = const TILE_BYTES,
            panel_tile = const PANEL_TILE,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// Adds the products of the operands loaded before.
///
/// # Safety
/// As [`Unit::two_by_two`].
#[inline(always)]
unsafe fn multiply() {
    // SAFETY: the unit is set up.
    unsafe {
        asm!(
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            options(nomem, nostack, preserves_flags),
        );
    }
}

/// Puts the sums where they belong.
///
/// # Safety
/// As [`Unit::two_by_two`].
#[inline(always)]
unsafe fn close(out: Sums) {
    let (high, stride, right) = (out.at, out.stride * 4, out.at.wrapping_add(out.right));
    let (low, low_right) = (high.wrapping_add(out.low), right.wrapping_add(out.low));
    // SAFETY: by the caller's promise.
    unsafe {
        asm!(
            "tilestored [{high} + {stride}], tmm0",
            "tilestored [{right} + {stride}], tmm1",
            "tilestored [{low} + {stride}], tmm2",
            "tilestored [{low_right} + {stride}], tmm3",
            high = in(reg) high,
            right = in(reg) right,
            low = in(reg) low,
            low_right = in(reg) low_right,
            stride = in(reg) stride,
            options(nostack, preserves_flags),
        );
    }
}
