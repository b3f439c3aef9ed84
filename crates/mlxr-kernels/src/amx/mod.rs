//! x86-64 with AMX's 8-bit tiles beside everything the AVX-512 table needs.
//!
//! Few activation rows run through AVX-512's kernels and many through the tile unit. Both add the same exact integer
//! sums of a group, scaled in the same order, so a row's result is the same bits either way, and equal to AVX-512's.

mod panel;
mod peak;
mod super_blocks;
mod unit;
mod wide;

use crate::avx512;
use crate::kernels::{BlockKernels, CodeKernels, Isa, Kernels, PeakLoops, WideKernels};

/// Whether this CPU, known to run the AVX-512 table, runs this one, and the system lets it.
pub(crate) fn is_available() -> bool {
    unit::is_available()
}

/// Activation rows from which on the tile unit is faster.
const TILES_FROM: usize = 48;

/// As [`TILES_FROM`], for super-blocks.
const BLOCKS_FROM: usize = 32;

pub(crate) const TABLE: Kernels = Kernels {
    isa: Isa::Amx,
    codes: CodeKernels::Tiles {
        tiled: panel::tiled,
        blocks: BlockKernels {
            tiled: super_blocks::tiled,
            quantise: avx512::quantise::quantise_blocks,
            packs_from: BLOCKS_FROM,
        },
        floats: avx512::floats::tiled,
        put_in_order: avx512::rows::put_in_order,
        unpacked: panel::dot_unpacked,
        packs_from: TILES_FROM,
    },
    peaks: Some(PeakLoops { codes: peak::codes, floats: avx512::peak::LOOPS.floats }),
    ..avx512::TABLE
};

/// Products in bf16, where the unit has them.
pub(crate) fn wide() -> Option<WideKernels> {
    unit::has_bf16_tiles().then_some(wide::KERNELS)
}
