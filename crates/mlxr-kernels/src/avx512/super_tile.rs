//! Products of sixteen or thirty-two rows of super-blocks with quantised activations.
//!
//! As in [`super::tile`], a weight row is a lane. The sums of a group, times its scale, are added up as integers for a
//! whole super-block; codes meet up to eight activation rows in registers, or many from a panel. Sums being exact, all
//! ways give the same bits.

use core::arch::asm;
use core::arch::x86_64::*;

use super::rows::TileRows;
use super::super_blocks::{Heads, MAX_PAIRS, SuperBlock, Visitor};
use super::tile::{Ahead, MAX_BLOCK, PANEL_BLOCK, TILES, add_products, each_row, load, store};
use crate::aligned::AlignedBytes;
use crate::kernels::{DotBlocks, TILE_ROWS};
use crate::linear::blocks::{BLOCK_BYTES, BLOCK_COLS, BlockRows, SCALE_AT};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{LINE_BYTES, N_ROWS, Tiles};

/// [`super::tile::format_kernels!`] of the formats with super-blocks, as `Blocks`.
macro_rules! block_kernels {
    ($($kernels:tt)*) => {
        $crate::avx512::tile::format_kernels! {
            super_blocks as Blocks,
            [
                Format::Plain(DType::Q4_K) => Q4K,
                Format::Plain(DType::Q5_K) => Q5K,
                Format::Plain(DType::Q6_K) => Q6K
            ],
            $($kernels)*
        }
    };
}
pub(crate) use block_kernels;

block_kernels! {
    fn tiled() -> DotBlocks, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    |tiles: &Tiles<'_>, xs: &BlockRows<'_>, scratch: &mut TileScratch, out: &mut [f32]|
        dot::<Blocks>(tiles, xs, scratch, out)
}

/// Products of rows of super-blocks with `xs`: `out[x * TILE_ROWS + w]`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn dot<S: SuperBlock>(
    tiles: &Tiles<'_>,
    xs: &BlockRows<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    let xs = xs.rows;
    assert!(xs.iter().all(|x| tiles.n_blocks * BLOCK_BYTES <= x.len()), "columns of weights and activations");
    if S::DIRECT_ROWS < xs.len() {
        return through_panel::<S, Vnni>(tiles, (xs, xs.len()), scratch, out);
    }
    check::<S>(tiles, xs.len(), out);
    for (xs, out) in xs.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
        match xs.len() {
            1 => in_registers::<S, 1>(tiles, xs, out),
            2 => in_registers::<S, 2>(tiles, xs, out),
            3 | 4 => in_registers::<S, 4>(tiles, xs, out),
            _ => in_registers::<S, MAX_BLOCK>(tiles, xs, out),
        }
    }
}

fn check<S: SuperBlock>(tiles: &Tiles<'_>, n_xs: usize, out: &[f32]) {
    assert!(tiles.n_blocks * S::BYTES * N_ROWS <= tiles.tile_bytes, "a tile of {} blocks", tiles.n_blocks);
    assert!(tiles.bytes.len() <= TILES * tiles.tile_bytes, "tiles of one call");
    assert!(n_xs * TILE_ROWS <= out.len(), "room for the products");
}

/// Each tile's codes meet all `xs` in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn in_registers<S: SuperBlock, const X: usize>(tiles: &Tiles<'_>, xs: &[&[u8]], out: &mut [f32]) {
    for (t, rows) in TileRows::of(tiles).enumerate() {
        let ahead = tiles.bytes.as_ptr().wrapping_add((t + 1) * tiles.tile_bytes);
        let mut few =
            Few { rows: starts(xs), sums: [_mm512_setzero_si512(); X], acc: [_mm512_setzero_ps(); X], ahead };
        for block in 0..tiles.n_blocks {
            // SAFETY: the rows have `n_blocks` blocks, and so have the activations (`dot`).
            unsafe { S::visit(rows, block, &mut few) };
        }
        for (acc, out) in few.acc.iter().zip(out.chunks_exact_mut(TILE_ROWS)).take(xs.len()) {
            store(&mut out[t * N_ROWS..], *acc);
        }
    }
}

/// Where rows begin; the last one stands in for those that are not there.
fn starts<const X: usize>(xs: &[&[u8]]) -> [*const u8; X] {
    std::array::from_fn(|i| xs[i.min(xs.len() - 1)].as_ptr())
}

/// `X` activation rows that groups meet.
struct Few<const X: usize> {
    /// The block that comes next of each.
    rows: [*const u8; X],
    /// Sums of the super-block under way.
    sums: [__m512i; X],
    acc: [__m512; X],
    /// What is fetched meanwhile: the next sixteen rows, which are the next bytes.
    ahead: *const u8,
}

impl<const X: usize> Visitor for Few<X> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group<S: SuperBlock, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512i,
    ) {
        let n_bytes = S::BYTES * N_ROWS * S::GROUP / BLOCK_COLS;
        for line in (0..n_bytes).step_by(LINE_BYTES) {
            _mm_prefetch::<_MM_HINT_T0>(self.ahead.wrapping_add(line).cast());
        }
        self.ahead = self.ahead.wrapping_add(n_bytes);
        // SAFETY: the rows have the columns, by the caller's promise.
        each_row!(X, |x| unsafe {
            let mut sums = _mm512_setzero_si512();
            for (j, &codes) in codes.iter().enumerate() {
                sums = _mm512_dpbusd_epi32(sums, codes, word(self.rows[x], col + 4 * j));
            }
            self.sums[x] = _mm512_add_epi32(self.sums[x], _mm512_mullo_epi32(sums, scale));
        });
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn heads<S: SuperBlock>(&mut self, heads: &Heads) {
        // SAFETY: the rows have this block, by the caller's promise.
        each_row!(X, |x| unsafe {
            self.acc[x] = add_block::<S>(self.acc[x], self.sums[x], heads, self.rows[x]);
            self.sums[x] = _mm512_setzero_si512();
            self.rows[x] = self.rows[x].wrapping_add(BLOCK_BYTES);
        });
    }
}

/// The four bytes at `at`, in every lane.
///
/// # Safety
/// They are there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn word(from: *const u8, at: usize) -> __m512i {
    // SAFETY: in bounds by the caller's promise, read unaligned.
    _mm512_set1_epi32(unsafe { from.add(at).cast::<i32>().read_unaligned() })
}

/// `acc` plus what the sums of a super-block stand for, with the block of activations at `x`.
///
/// # Safety
/// The block is there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_block<S: SuperBlock>(acc: __m512, sums: __m512i, heads: &Heads, x: *const u8) -> __m512 {
    // SAFETY: sums and scale are inside the block; this function is compiled for more than `value`.
    unsafe {
        let mut of_minima = _mm512_setzero_si512();
        for (i, &minima) in heads.minima[..S::PAIRS].iter().enumerate() {
            of_minima = _mm512_dpwssd_epi32(of_minima, minima, word(x, S::SUMS_AT + 4 * i));
        }
        let value = S::value(sums, of_minima, heads.d, heads.d_min);
        _mm512_fmadd_ps(value, _mm512_castsi512_ps(word(x, SCALE_AT)), acc)
    }
}

/// How the super-blocks of a panel meet activations.
pub(crate) trait Multiply {
    /// Bytes of a super-block of sixteen rows.
    const PANEL_BYTES: usize;

    /// Super-blocks of a row that a panel holds.
    const PANEL_BLOCKS: usize;

    /// The activation rows it takes.
    type Xs<'a>: Copy;

    /// Unpacks a super-block.
    ///
    /// # Safety
    /// The CPU has what the implementation is compiled for, and the rows have the block.
    unsafe fn fill<S: SuperBlock>(rows: TileRows, block: usize, out: &mut [u8]);

    /// Adds the products of a panel with all rows to `out: [xs, TILE_ROWS]`.
    ///
    /// # Safety
    /// The CPU has what the implementation is compiled for. The panel was filled by [`Self::fill`], and the rows have
    /// its blocks.
    unsafe fn meet<S: SuperBlock>(panel: &Panel<'_>, xs: Self::Xs<'_>, out: &mut [f32]);
}

/// Unpacked super-blocks: those of all [`TILES`], some perhaps left over from before, then the next of all.
pub(crate) struct Panel<'a> {
    pub(crate) bytes: &'a [u8],
    /// The number of its first super-blocks, and how many of a row it holds.
    pub(crate) first: usize,
    pub(crate) n_blocks: usize,
    pub(crate) ahead: Ahead,
}

/// Some super-blocks of all tiles are unpacked, then meet the `n_xs` rows `xs`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn through_panel<S: SuperBlock, M: Multiply>(
    tiles: &Tiles<'_>,
    (xs, n_xs): (M::Xs<'_>, usize),
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    check::<S>(tiles, n_xs, out);
    let (n_bytes, memory) = (M::PANEL_BLOCKS * TILES * M::PANEL_BYTES, &mut scratch.panel);
    if memory.bytes().len() < n_bytes {
        *memory = AlignedBytes::zeroed(n_bytes).expect("memory for a panel");
    }
    let out = &mut out[..n_xs * TILE_ROWS];
    out.fill(0.0);
    for first in (0..tiles.n_blocks).step_by(M::PANEL_BLOCKS) {
        let end = (first + M::PANEL_BLOCKS).min(tiles.n_blocks);
        for (block, slots) in (first..end).zip(memory.bytes_mut().chunks_exact_mut(TILES * M::PANEL_BYTES)) {
            for (rows, slot) in TileRows::of(tiles).zip(slots.chunks_exact_mut(M::PANEL_BYTES)) {
                // SAFETY: the rows have `n_blocks` blocks; a table is only used where the CPU has its features.
                unsafe { M::fill::<S>(rows, block, slot) };
            }
        }
        // The same share of the tiles behind these.
        let stored = tiles.bytes.as_ptr_range().end;
        let at = |block: usize| stored.wrapping_add(tiles.bytes.len() * block / tiles.n_blocks);
        let ahead = Ahead::new(at(first), at(end));
        let panel = Panel { bytes: memory.bytes(), first, n_blocks: end - first, ahead };
        // SAFETY: as above; the caller checked the activations' columns.
        unsafe { M::meet::<S>(&panel, xs, out) };
    }
}

/// Multiplication by `vpdpbusd`. A super-block in its panel: a line of each four columns of codes, lines of scales, then
/// the heads.
struct Vnni;

const SCALES_AT: usize = BLOCK_COLS * N_ROWS;
const HEADS_AT: usize = SCALES_AT + BLOCK_COLS / 16 * LINE_BYTES;
const VNNI_BYTES: usize = HEADS_AT + HEADS_BYTES;

impl Multiply for Vnni {
    const PANEL_BYTES: usize = VNNI_BYTES;
    const PANEL_BLOCKS: usize = 2;

    type Xs<'a> = &'a [&'a [u8]];

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn fill<S: SuperBlock>(rows: TileRows, block: usize, out: &mut [u8]) {
        // SAFETY: passes the caller's promise on.
        unsafe { S::visit(rows, block, &mut Fill { out }) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn meet<S: SuperBlock>(panel: &Panel<'_>, xs: &[&[u8]], out: &mut [f32]) {
        let n_groups = panel.n_blocks * BLOCK_COLS / S::GROUP;
        let lines = panel.ahead.lines_each(n_groups * xs.len().div_ceil(PANEL_BLOCK));
        for (xs, out) in xs.chunks(PANEL_BLOCK).zip(out.chunks_mut(PANEL_BLOCK * TILE_ROWS)) {
            match xs.len() {
                1 | 2 => some_rows::<S, 2>(panel, xs, lines, out),
                _ => some_rows::<S, PANEL_BLOCK>(panel, xs, lines, out),
            }
        }
    }
}

struct Fill<'a> {
    out: &'a mut [u8],
}

impl Visitor for Fill<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group<S: SuperBlock, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512i,
    ) {
        put_lines(&mut self.out[col * N_ROWS..], &codes);
        put_lines(&mut self.out[SCALES_AT + col / S::GROUP * LINE_BYTES..], &[scale]);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn heads<S: SuperBlock>(&mut self, heads: &Heads) {
        put_heads(&mut self.out[HEADS_AT..], heads);
    }
}

/// Writes vectors, one after the other.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn put_lines(out: &mut [u8], lines: &[__m512i]) {
    for (line, out) in lines.iter().zip(out[..lines.len() * LINE_BYTES].chunks_exact_mut(LINE_BYTES)) {
        // SAFETY: a line is as long as a vector; the store needs no alignment.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *line) };
    }
}

/// Bytes of heads in a panel.
pub(crate) const HEADS_BYTES: usize = (MAX_PAIRS + 2) * LINE_BYTES;

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn put_heads(out: &mut [u8], heads: &Heads) {
    let factors = [_mm512_castps_si512(heads.d), _mm512_castps_si512(heads.d_min)];
    put_lines(out, &heads.minima);
    put_lines(&mut out[MAX_PAIRS * LINE_BYTES..], &factors);
}

/// # Safety
/// Heads were put there.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn heads_at(from: *const u8) -> Heads {
    let mut minima = [_mm512_setzero_si512(); MAX_PAIRS];
    // SAFETY: in bounds by the caller's promise; loads need no alignment.
    unsafe {
        for (i, minima) in minima.iter_mut().enumerate() {
            *minima = _mm512_loadu_si512(from.add(i * LINE_BYTES).cast());
        }
        let factors = from.add(MAX_PAIRS * LINE_BYTES);
        let (d, d_min) = (_mm512_loadu_ps(factors.cast()), _mm512_loadu_ps(factors.add(LINE_BYTES).cast()));
        Heads { minima, d, d_min }
    }
}

/// Adds a panel's products with up to `X` rows to `out: [xs, TILE_ROWS]`, with some lines fetched at each group.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn some_rows<S: SuperBlock, const X: usize>(panel: &Panel<'_>, xs: &[&[u8]], lines: usize, out: &mut [f32]) {
    assert!(panel.n_blocks * TILES * VNNI_BYTES <= panel.bytes.len(), "a panel");
    let mut rows: [*const u8; X] =
        starts(xs).map(|row: *const u8| row.wrapping_add(panel.first * BLOCK_BYTES));
    for slots in panel.bytes.chunks_exact(TILES * VNNI_BYTES).take(panel.n_blocks) {
        let mut acc = [[_mm512_setzero_si512(); TILES]; X];
        for col in (0..BLOCK_COLS).step_by(S::GROUP) {
            panel.ahead.fetch(lines);
            let mut sums = [[_mm512_setzero_si512(); TILES]; X];
            let codes = slots[col * N_ROWS..].as_ptr();
            let at_col = rows.map(|row| row.wrapping_add(col));
            // SAFETY: both tiles have all groups of a super-block, and so have the rows (`dot`).
            unsafe {
                add_products!(S::GROUP / 4, X, codes, VNNI_BYTES, at_col, sums);
                let scales = slots.as_ptr().add(SCALES_AT + col / S::GROUP * LINE_BYTES);
                for t in 0..TILES {
                    let scale = _mm512_loadu_si512(scales.add(t * VNNI_BYTES).cast());
                    for x in 0..X {
                        acc[x][t] = _mm512_add_epi32(acc[x][t], _mm512_mullo_epi32(sums[x][t], scale));
                    }
                }
            }
        }
        for (t, slot) in slots.chunks_exact(VNNI_BYTES).enumerate() {
            // SAFETY: heads are behind the groups.
            let heads = unsafe { heads_at(slot[HEADS_AT..].as_ptr()) };
            for (x, out) in out.chunks_exact_mut(TILE_ROWS).take(X).enumerate() {
                let out = &mut out[t * N_ROWS..];
                // SAFETY: the rows have this block.
                store(out, unsafe { add_block::<S>(load(out), acc[x][t], &heads, rows[x]) });
            }
        }
        rows = rows.map(|row| row.wrapping_add(BLOCK_BYTES));
    }
}
