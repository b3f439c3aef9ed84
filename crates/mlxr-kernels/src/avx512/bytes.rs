//! Products of bytes in tile order with many activation rows: codes that need no unpacking meet four rows at a time
//! straight from memory, two tiles at once, so that a load of activations serves both.

use core::arch::asm;
use core::arch::x86_64::*;

use super::layouts::Layout;
use super::rows::TileRows;
use super::tile::{Acts, Ahead, TILES, add_products, load, store};
use crate::kernels::TILE_ROWS;
use crate::linear::codes::QuantRow;
use crate::linear::tiled::N_ROWS;

/// Activation rows up to which a tile at a time is as fast.
pub(super) const FEW: usize = 8;

/// Activation rows that share a load of codes.
const BLOCK: usize = 4;

/// Blocks of a row that all activation rows meet before the next: two tiles of them stay in the first-level cache.
const SPAN: usize = 16;

/// Columns of a block.
const COLS: usize = 32;

/// Fills `out: [xs, TILE_ROWS]` with the products of two tiles of blocks of 32 bytes by the operations of [`super::tile`], so a
/// result does not depend on how many rows there are.
///
/// # Safety
/// The tiles have `n_blocks` blocks, the rows their columns, and all rows are of one shape.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn dot_bytes<L: Layout<Rows = TileRows>>(
    tiles: [TileRows; TILES],
    n_blocks: usize,
    xs: &[QuantRow<'_>],
    ahead: &Ahead,
    out: &mut [f32],
) {
    let lines = ahead.lines_each(n_blocks * xs.len().div_ceil(BLOCK));
    for first in (0..n_blocks).step_by(SPAN) {
        let end = (first + SPAN).min(n_blocks);
        for (xs, out) in xs.chunks(BLOCK).zip(out.chunks_mut(BLOCK * TILE_ROWS)) {
            let acts = Acts::<BLOCK>::new(xs, COLS);
            let mut acc = [[_mm512_setzero_ps(); TILES]; BLOCK];
            if first > 0 {
                for (acc, out) in acc.iter_mut().zip(out.chunks_exact(TILE_ROWS)) {
                    for (t, acc) in acc.iter_mut().enumerate() {
                        *acc = load(&out[t * N_ROWS..]);
                    }
                }
            }
            for block in first..end {
                ahead.fetch(lines);
                // SAFETY: by the caller's promise.
                unsafe { add_block::<L>(tiles, block, &acts, &mut acc) };
            }
            for (acc, out) in acc.iter().zip(out.chunks_exact_mut(TILE_ROWS)) {
                for (t, acc) in acc.iter().enumerate() {
                    store(&mut out[t * N_ROWS..], *acc);
                }
            }
        }
    }
}

/// Loads lines of both tiles as unsigned bytes, and adds their products.
macro_rules! add_lines {
    ($codes:ident, $sign:ident, $rows:ident, $sums:ident, $($line:literal)*) => {
        $({
            const LINE: usize = $line;
            let (first, second): (__m512i, __m512i);
            asm!(
                "vpxorq {first:z}, {sign:z}, zmmword ptr [{codes_1} + {at}]",
                "vpxorq {second:z}, {sign:z}, zmmword ptr [{codes_2} + {at}]",
                first = out(zmm_reg) first,
                second = out(zmm_reg) second,
                sign = in(zmm_reg) $sign,
                codes_1 = in(reg) $codes[0],
                codes_2 = in(reg) $codes[1],
                at = const LINE * 64,
                options(nostack, preserves_flags, readonly),
            );
            add_products!(@rows BLOCK, LINE, $rows, $sums, first, second, 0 1 2 3 4 5);
        })*
    };
}

/// Adds the products of block `block`.
///
/// # Safety
/// Tiles and rows have it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_block<L: Layout<Rows = TileRows>>(
    tiles: [TileRows; TILES],
    block: usize,
    acts: &Acts<BLOCK>,
    acc: &mut [[__m512; TILES]; BLOCK],
) {
    let rows = acts.rows.map(|row| row.wrapping_add(block * COLS));
    let codes = tiles.map(|tile| tile.line(block * COLS / 4));
    let sign = _mm512_set1_epi8(L::BYTES_BUT.expect("bytes"));
    // SAFETY: by the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_si512(); TILES]; BLOCK];
        for (x, sums) in sums.iter_mut().enumerate() {
            *sums = [acts.start(x, block, L::ZERO); TILES];
        }
        add_lines!(codes, sign, rows, sums, 0 1 2 3 4 5 6 7);
        for (t, tile) in tiles.iter().enumerate() {
            let factors = L::factors(*tile, block);
            for (x, acc) in acc.iter_mut().enumerate() {
                acc[t] = match L::OFFSETS {
                    false => acts.add::<COLS, false>(x, block, sums[x][t], factors, acc[t]),
                    true => acts.add::<COLS, true>(x, block, sums[x][t], factors, acc[t]),
                };
            }
        }
    }
}
