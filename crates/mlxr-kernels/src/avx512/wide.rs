//! Weights as bf16 tiles meet bf16 activations: two by two tiles of sums stay in a unit while columns pass by.
//!
//! A unit adds the products of all columns in their order, so a product depends on its rows alone. It is not the same
//! bits as what other kernels give: weights and activations are rounded to bf16, and to nothing else.

use core::arch::asm;
use core::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::floats::Pair;
use super::layouts::{Layout, UnpackedRows, Visitor};
use super::rows::{TileRows, transposed};
use super::super_blocks::{self, Heads, SuperBlock};
use super::tile::{Ahead, load};
use crate::aligned::AlignedBytes;
use crate::linear::blocks::BLOCK_COLS;
use crate::linear::tile::{TileScratch, UnpackedTile};
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{
    BLOCK_FLOATS, BLOCK_ROWS, STEP_COLS, Sums, TILE_BYTES, TILE_FLOATS, WideActs, WideOut, WideRows,
};

/// Columns of a panel at most.
const MOST_COLS: usize = 1024;

/// Columns filled at a time: whole super-blocks.
const FILL_COLS: usize = BLOCK_COLS;

/// Blocks of activations up to which the memory is asked for the next panel while one is filled as well, and for how many
/// quarters of it.
const FEW_BLOCKS: usize = 1;
const FILLING: usize = 2;

/// Bytes that sixteen weight rows have in a panel.
pub(crate) const PANEL_TILE: usize = MOST_COLS / STEP_COLS * TILE_BYTES;

/// Bits that are the float 256, and how far above a code's lowest bit is then that of its mantissa worth one: a code put
/// there makes the float 256 more than itself without a conversion.
const BASE: i32 = 0x4380_0000;
const UNIT_BIT: u32 = 15;

/// Writes what `$value` makes of codes, 256 more than they are, for lines of four columns: two columns a line. A macro, since
/// the compiler would not put it in line, and codes would go through memory.
macro_rules! put_values {
    ($out:expr, $codes:expr, $value:expr) => {{
        let (codes, of_code) = ($codes, $value);
        let out = &mut $out[..2 * codes.len() * LINE_BYTES];
        for (codes, out) in codes.iter().zip(out.chunks_exact_mut(2 * LINE_BYTES)) {
            let value = |moved: __m512i| {
                let (byte, base) = (_mm512_set1_epi32(0xff << UNIT_BIT), _mm512_set1_epi32(BASE));
                // `moved & byte | base`
                let code = _mm512_ternarylogic_epi32::<0xea>(moved, byte, base);
                of_code(_mm512_castsi512_ps(code))
            };
            let a = value(_mm512_slli_epi32::<UNIT_BIT>(*codes));
            let b = value(_mm512_slli_epi32::<{ UNIT_BIT - 8 }>(*codes));
            let c = value(_mm512_srli_epi32::<{ 16 - UNIT_BIT }>(*codes));
            let d = value(_mm512_srli_epi32::<{ 24 - UNIT_BIT }>(*codes));
            store(&mut out[..LINE_BYTES], paired_products(a, b));
            store(&mut out[LINE_BYTES..], paired_products(c, d));
        }
    }};
}

/// What multiplies tiles.
pub(crate) trait Unit {
    /// Columns of a panel that meets so many blocks of activations, up to [`MOST_COLS`].
    fn panel_cols(n_blocks: usize) -> usize;

    /// Sets the unit up for this thread.
    ///
    /// # Safety
    /// The CPU has the unit.
    unsafe fn begin();

    /// Gives the unit back.
    ///
    /// # Safety
    /// As [`Self::begin`].
    unsafe fn end();

    /// Puts the sums of products of two tiles of activations a step with two of weights, [`PANEL_TILE`] apart, and of `from`
    /// if given, 32 by 32 of them.
    ///
    /// # Safety
    /// The unit is set up; tiles and sums are in bounds.
    unsafe fn two_by_two(acts: &[u8], panel: &[u8], n_steps: usize, from: Option<Sums>, to: Sums);

    /// As [`Self::two_by_two`], for all blocks of activations that meet a panel.
    ///
    /// # Safety
    /// As there, for each block.
    #[inline]
    unsafe fn meet(met: &Met) {
        for block in 0..met.n_blocks {
            // SAFETY: by the caller's promise.
            unsafe {
                let acts = met.acts.add(block * met.stride);
                let acts = std::slice::from_raw_parts(acts, met.n_steps * 2 * TILE_BYTES);
                let panel = std::slice::from_raw_parts(met.panel, PANEL_TILE + met.n_steps * TILE_BYTES);
                let (from, to) = met.sums_of(block);
                met.lines_due(block).for_each(fetch_for_writing);
                Self::two_by_two(acts, panel, met.n_steps, from, to);
            }
            met.fetch(met.n_steps);
        }
    }
}

/// A panel of two tiles of weights, and the activations it meets.
pub(crate) struct Met {
    /// Activations in the panel's columns, and bytes from block to block.
    pub(crate) acts: *const u8,
    pub(crate) stride: usize,
    pub(crate) n_blocks: usize,
    pub(crate) panel: *const u8,
    pub(crate) n_steps: usize,
    /// Whether there are sums already.
    add: bool,
    /// What the sums of so many blocks as below begin with instead.
    onto: Option<Sums>,
    /// Those of the first block; others follow, [`BLOCK_FLOATS`] apart.
    sums: Sums,
    /// Where the sums of so many blocks go instead, whose rows follow each other.
    rows: Option<Sums>,
    n_whole: usize,
    /// What the next panel is filled from, and how many lines of each are fetched a step.
    ahead: [Ahead; 2],
    n_ahead: usize,
}

impl Met {
    /// The sums that a block has, and where they go.
    #[inline]
    pub(crate) fn sums_of(&self, block: usize) -> (Option<Sums>, Sums) {
        let sums = Sums { at: self.sums.at.wrapping_add(block * BLOCK_FLOATS), ..self.sums };
        let from = if self.add { Some(sums) } else { self.block_rows(self.onto, block) };
        (from, self.block_rows(self.rows, block).unwrap_or(sums))
    }

    /// Those of `rows` that belong to a whole block.
    #[inline]
    fn block_rows(&self, rows: Option<Sums>, block: usize) -> Option<Sums> {
        let at = |rows: Sums| rows.at.wrapping_add(block * BLOCK_ROWS * rows.stride);
        rows.filter(|_| block < self.n_whole).map(|rows| Sums { at: at(rows), ..rows })
    }

    /// Lines of the result to be fetched while a block is multiplied: those that its sums go to, or that the next block
    /// begins with.
    #[inline(always)]
    pub(crate) fn lines_due(&self, block: usize) -> impl Iterator<Item = *const f32> {
        let due = match self.onto {
            Some(_) => self.block_rows(self.onto, block + 1),
            None => self.block_rows(self.rows, block),
        };
        let n = if due.is_some() { 2 * BLOCK_ROWS } else { 0 };
        let due = due.unwrap_or(self.sums);
        (0..n).map(move |i| due.at.wrapping_add(i / 2 * due.stride + i % 2 * due.right).cast_const())
    }

    /// Has fetched what is due after so many steps.
    #[inline(always)]
    pub(crate) fn fetch(&self, n_steps: usize) {
        self.ahead.iter().for_each(|ahead| ahead.fetch(n_steps * self.n_ahead));
    }
}

/// Has a line fetched that is going to be overwritten.
#[inline(always)]
pub(crate) fn fetch_for_writing(line: *const f32) {
    // SAFETY: a hint, on a processor that does not know it an instruction that does nothing; any address may be given.
    unsafe { asm!("prefetchw [{}]", in(reg) line, options(nostack, preserves_flags, readonly)) };
}

/// Names the kernels of a unit.
macro_rules! wide_kernels {
    ($unit:ty: $($name:ident: $source:ty;)*) => {
        $(
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
            fn $name(weights: &[WideRows<'_>], xs: &WideActs, scratch: &mut TileScratch, out: &mut WideOut<'_>) {
                wide::dot::<$source, $unit>(weights, xs, scratch, out);
            }
        )*
    };
}
pub(crate) use wide_kernels;

/// Makes `tiled` and `floats`, which give a unit's kernels of plain float types in tile order and as they are stored.
macro_rules! wide_floats {
    ($unit:ty) => {
        wide_kernels! {
            $unit:
            dot_f32: wide::Floats<f32>;
            dot_f16: wide::Floats<half::f16>;
            dot_bf16: wide::Floats<half::bf16>;
            dot_f32_tiles: wide::FloatTiles<f32>;
            dot_f16_tiles: wide::FloatTiles<half::f16>;
            dot_bf16_tiles: wide::FloatTiles<half::bf16>;
        }

        fn floats(format: Format) -> Option<DotWide> {
            match format {
                Format::Plain(DType::F32) => Some(dot_f32),
                Format::Plain(DType::F16) => Some(dot_f16),
                Format::Plain(DType::BF16) => Some(dot_bf16),
                _ => None,
            }
        }

        fn float_tiles(format: Format) -> Option<DotWide> {
            match format {
                Format::Plain(DType::F32) => Some(dot_f32_tiles),
                Format::Plain(DType::F16) => Some(dot_f16_tiles),
                Format::Plain(DType::BF16) => Some(dot_bf16_tiles),
                _ => None,
            }
        }
    };
}
pub(crate) use wide_floats;

/// Rounds up to [`BLOCK_ROWS`] rows to bf16, and fills a block with them; rows that are not there are zero.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn pack(rows: &[&[f32]], block: &mut [u8]) {
    assert!(rows.len() <= BLOCK_ROWS, "rows of a block");
    // Step by step: lines a step apart would fall on each other in the cache.
    for (i, step) in block.chunks_exact_mut(2 * TILE_BYTES).enumerate() {
        step[rows.len() * LINE_BYTES..].fill(0);
        for (row, out) in rows.iter().zip(step.chunks_exact_mut(LINE_BYTES)) {
            let mut last = [0f32; STEP_COLS];
            let values = &row[i * STEP_COLS..];
            let values = if values.len() < STEP_COLS {
                last[..values.len()].copy_from_slice(values);
                &last[..]
            } else {
                values
            };
            // SAFETY: 32 floats are in bounds, and this function is compiled for the same features.
            store(out, unsafe { f32::load(values.as_ptr().cast()) });
        }
    }
}

/// Rounds a row to bf16, and puts it in steps of a block.
///
/// # Safety
/// A line is there from `first` on for every [`STEP_COLS`] columns, [`BLOCK_ROWS`] lines after the one before, which nobody
/// else reads or writes.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) unsafe fn pack_row(row: &[f32], first: *mut u8) {
    for (step, values) in row.chunks_exact(STEP_COLS).enumerate() {
        // SAFETY: by the caller's promise; 32 floats are in bounds.
        unsafe {
            let line = std::slice::from_raw_parts_mut(first.add(step * 2 * TILE_BYTES), LINE_BYTES);
            store(line, f32::load(values.as_ptr().cast()));
        }
    }
}

/// Rounds the sums of 32 rows with 32 columns, tile by tile, to bf16, and fills a step of a block with them.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(crate) fn pack_sums(sums: &[f32; BLOCK_FLOATS], step: &mut [u8]) {
    for (row, out) in step[..2 * TILE_BYTES].chunks_exact_mut(LINE_BYTES).enumerate() {
        let left = &sums[row / N_ROWS * 2 * TILE_FLOATS + row % N_ROWS * N_ROWS..];
        let (left, right) = (load(left), load(&left[TILE_FLOATS..]));
        // SAFETY: plain bits on both sides.
        store(out, unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(right, left)) });
    }
}

/// Where weights come from.
pub(crate) trait Source {
    /// Fills sixteen rows' part of a panel with `n_cols` columns from `start` on of tile `tile`.
    ///
    /// # Safety
    /// The CPU has what the kernels are compiled for.
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]);
}

/// Fills `out` as [`crate::kernels::DotWide`] says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(crate) fn dot<S: Source, U: Unit>(
    weights: &[WideRows<'_>],
    xs: &WideActs,
    scratch: &mut TileScratch,
    out: &mut WideOut<'_>,
) {
    const PAIR: usize = 2 * PANEL_TILE;
    let n_tiles = out.checked_tiles(weights, xs);
    let (n_cols, n_blocks) = (xs.n_steps() * STEP_COLS, xs.n_blocks());
    let [others @ .., last] = weights else { return };
    // The matrix that a tile belongs to, and which it is there.
    let of = |mut tile: usize| {
        for weights in others {
            match tile.checked_sub(weights.n_tiles()) {
                Some(rest) => tile = rest,
                None => return (weights, tile),
            }
        }
        (last, tile)
    };
    let panel_cols = U::panel_cols(n_blocks);
    if scratch.panel.bytes().len() < PAIR {
        scratch.panel = AlignedBytes::zeroed(PAIR).expect("memory for a panel");
    }
    let panel = &mut scratch.panel.bytes_mut()[..PAIR];
    // SAFETY: a unit's table is only used where the unit is there.
    unsafe { U::begin() };
    for start in (0..n_cols).step_by(panel_cols) {
        let n = panel_cols.min(n_cols - start);
        for pair in (0..n_tiles).step_by(2) {
            // What the panel after this one is filled from: perhaps of the rows that follow.
            let after = match (pair + 2 < n_tiles, start + n < n_cols) {
                (true, _) => (pair + 2, start..start + n),
                (_, true) => (0, start + n..start + n + panel_cols),
                _ => (n_tiles, 0..panel_cols),
            };
            let ahead = [0, 1].map(|i| {
                let (weights, tile) = of(after.0 + i);
                weights.ahead(tile, &after.1, n_cols)
            });
            // Few blocks are multiplied in less time than the memory takes.
            let is_short = n_blocks <= FEW_BLOCKS;
            let (fill_cols, quarters) = if is_short { (FILL_COLS, FILLING) } else { (n, 0) };
            let n_filling = ahead[0].lines_each(n.div_ceil(fill_cols)) * quarters / 4;
            let tiles = pair..n_tiles.min(pair + 2);
            for ((tile, panel), ahead) in tiles.zip(panel.chunks_exact_mut(PANEL_TILE)).zip(&ahead) {
                let (weights, tile) = of(tile);
                for first in (0..n).step_by(fill_cols) {
                    let panel = &mut panel[first / STEP_COLS * TILE_BYTES..];
                    // SAFETY: this kernel is compiled for the same features.
                    unsafe { S::fill(weights, tile, start + first, fill_cols.min(n - first), panel) };
                    ahead.fetch(n_filling);
                }
            }
            let n_steps = n / STEP_COLS;
            let rows = out.rows.map(|(at, stride)| Sums::in_rows(at.wrapping_add(pair * N_ROWS), stride));
            let met = Met {
                acts: xs.bytes()[start / STEP_COLS * 2 * TILE_BYTES..].as_ptr(),
                stride: xs.block_bytes().1,
                n_blocks,
                panel: panel.as_ptr(),
                n_steps,
                add: start > 0,
                sums: Sums::in_tiles(out.sums[pair / 2 * n_blocks * BLOCK_FLOATS..].as_mut_ptr()),
                onto: rows.filter(|_| out.adds && start == 0),
                rows: rows.filter(|_| n_cols <= start + n),
                n_whole: out.n_whole,
                n_ahead: ahead[0].lines_each(n_blocks * n_steps),
                ahead,
            };
            // SAFETY: the panel and each block of activations have `n_steps` steps; there are sums for each block, and rows
            // of the result for whole ones (`WideOut::with_rows`).
            unsafe { U::meet(&met) };
        }
    }
    // SAFETY: as above.
    unsafe { U::end() };
}

impl WideRows<'_> {
    /// What tile `tile` has in memory of columns of `n_cols`, if it is to be fetched.
    fn ahead(&self, tile: usize, columns: &Range<usize>, n_cols: usize) -> Ahead {
        let WideRows::Tiled(tiles) = self else { return Ahead::new(std::ptr::null(), std::ptr::null()) };
        let lines = tiles.bytes.as_ptr().wrapping_add(tile * tiles.tile_bytes);
        let at = |col: usize| lines.wrapping_add(tiles.line_bytes * col.min(n_cols) / n_cols);
        Ahead::new(at(columns.start), at(columns.end))
    }
}

/// A tile's rows, and the blocks of `n_cols` columns from `start` on.
#[inline]
pub(super) fn blocks_of<L: Layout>(
    weights: &WideRows<'_>,
    tile: usize,
    start: usize,
    n_cols: usize,
) -> (TileRows, Range<usize>) {
    tile_blocks(weights, tile, L::BLOCK_BYTES, start / L::BLOCK_COLS..(start + n_cols) / L::BLOCK_COLS)
}

/// As [`blocks_of`], super-blocks.
#[inline]
pub(super) fn super_blocks_of<S: SuperBlock>(
    weights: &WideRows<'_>,
    tile: usize,
    start: usize,
    n_cols: usize,
) -> (TileRows, Range<usize>) {
    tile_blocks(weights, tile, S::BYTES, start / BLOCK_COLS..(start + n_cols) / BLOCK_COLS)
}

#[inline]
fn tile_blocks(
    weights: &WideRows<'_>,
    tile: usize,
    block_bytes: usize,
    blocks: Range<usize>,
) -> (TileRows, Range<usize>) {
    let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
    assert!(
        blocks.end <= tiles.n_blocks && tiles.n_blocks * block_bytes * N_ROWS <= tiles.tile_bytes,
        "a tile of {} blocks",
        tiles.n_blocks
    );
    (TileRows::of(tiles).nth(tile).expect("a tile"), blocks)
}

/// Quant blocks in tile order.
pub(crate) struct Blocks<L>(PhantomData<L>);

impl<L: Layout<Rows = TileRows>> Source for Blocks<L> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]) {
        let (rows, blocks) = blocks_of::<L>(weights, tile, start, n_cols);
        let mut fill = Fill { panel, start };
        for block in blocks {
            // SAFETY: the rows have these blocks.
            unsafe { L::visit(rows, block, &mut fill) };
        }
    }
}

/// Super-blocks in tile order.
pub(crate) struct SuperBlocks<S>(PhantomData<S>);

impl<S: SuperBlock> Source for SuperBlocks<S> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]) {
        let (rows, blocks) = super_blocks_of::<S>(weights, tile, start, n_cols);
        for (block, out) in blocks.zip(panel.chunks_exact_mut(BLOCK_COLS * N_ROWS * 2)) {
            let mut last = OnlyHeads(None);
            // SAFETY: the rows have these blocks.
            unsafe {
                S::visit(rows, block, &mut last);
                let heads = last.0.expect("heads come last");
                S::visit(rows, block, &mut FillBlock { out, heads });
            }
        }
    }
}

/// Looks at what comes after the groups.
pub(super) struct OnlyHeads(pub(super) Option<Heads>);

impl super_blocks::Visitor for OnlyHeads {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group<S: SuperBlock, const N: usize>(&mut self, _: usize, _: [__m512i; N], _: __m512i) {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn heads<S: SuperBlock>(&mut self, heads: &Heads) {
        self.0 = Some(*heads);
    }
}

/// Writes a super-block of sixteen rows as the numbers that its codes stand for.
pub(super) struct FillBlock<'a> {
    pub(super) out: &'a mut [u8],
    pub(super) heads: Heads,
}

impl super_blocks::Visitor for FillBlock<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn group<S: SuperBlock, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512i,
    ) {
        let scale = _mm512_mul_ps(self.heads.d, _mm512_cvtepi32_ps(scale));
        let offset = _mm512_sub_ps(_mm512_setzero_ps(), self.heads.minimum::<S>(col));
        let offset = _mm512_fnmadd_ps(_mm512_set1_ps(256.0), scale, offset);
        let value = |code| _mm512_fmadd_ps(code, scale, offset);
        put_values!(&mut self.out[col * N_ROWS * 2..], codes, value);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn heads<S: SuperBlock>(&mut self, _: &Heads) {}
}

/// Rows in the common form.
pub(crate) struct Codes<L>(PhantomData<L>);

impl<L: Layout<Rows = UnpackedRows>> Source for Codes<L> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Unpacked(UnpackedTile { panel: weights, n_rows }) = weights else {
            unreachable!("unpacked rows")
        };
        let blocks = start / L::BLOCK_COLS..(start + n_cols).div_ceil(L::BLOCK_COLS);
        assert!(tile < n_rows.div_ceil(N_ROWS), "a tile");
        // SAFETY: the panel outlives this loop.
        let rows = unsafe { UnpackedRows::of::<L>(weights, tile * N_ROWS, blocks.end) };
        let mut fill = Fill { panel, start };
        for block in blocks {
            // SAFETY: the rows have these blocks, padding included.
            unsafe { L::visit(rows, block, &mut fill) };
        }
    }
}

/// Writes groups of codes into sixteen rows' part of a panel as the numbers they stand for.
pub(super) struct Fill<'a> {
    pub(super) panel: &'a mut [u8],
    /// The panel's first column.
    pub(super) start: usize,
}

impl Visitor for Fill<'_> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn group<L: Layout, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512,
        offset: __m512,
    ) {
        // Taken off before anything is multiplied: of the largest scales no more than the values are numbers.
        let zero = _mm512_set1_ps(256.0 + f32::from(L::ZERO.value()));
        let value = |code| {
            let code = _mm512_sub_ps(code, zero);
            if L::OFFSETS { _mm512_fmadd_ps(code, scale, offset) } else { _mm512_mul_ps(code, scale) }
        };
        put_values!(&mut self.panel[(col - self.start) * N_ROWS * 2..], codes, value);
    }
}

/// Sixteen pairs of bf16, the first of each from `a`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) fn paired(a: __m512, b: __m512) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            order[2 * i] = i as u16;
            order[2 * i + 1] = i as u16 + 16;
            i += 1;
        }
        order
    };
    // SAFETY: sixty-four bytes; plain bits on both sides.
    let (order, both) = unsafe {
        (
            _mm512_loadu_si512(ORDER.as_ptr().cast()),
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a)),
        )
    };
    _mm512_permutexvar_epi16(order, both)
}

/// As [`paired`], faster, but for what lies halfway between two: that is rounded away from zero. Floats of a file lie there
/// often, products of scales and codes do not.
#[inline]
#[target_feature(enable = "avx512f")]
fn paired_products(a: __m512, b: __m512) -> __m512i {
    let half = _mm512_set1_epi32(0x8000);
    let [a, b] = [a, b].map(|v| _mm512_add_epi32(_mm512_castps_si512(v), half));
    // The high half of `b`, and that of `a` below it.
    _mm512_ternarylogic_epi32::<0xec>(b, _mm512_srli_epi32::<16>(a), _mm512_set1_epi32(!0xffff))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(out: &mut [u8], value: __m512i) {
    let out = &mut out[..LINE_BYTES];
    // SAFETY: in bounds; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), value) };
}

/// Plain floats in tile order.
pub(crate) struct FloatTiles<P>(PhantomData<P>);

impl<P: Pair> Source for FloatTiles<P> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
        let rows = &tiles.bytes[tile * tiles.tile_bytes..(tile + 1) * tiles.tile_bytes];
        let pairs = rows[..tiles.line_bytes][start / 2 * P::BYTES..].chunks_exact(P::BYTES);
        let (out, _) = panel[..n_cols / 2 * LINE_BYTES].as_chunks_mut::<LINE_BYTES>();
        // The last step's columns may be fewer, and missing ones are zero.
        out[pairs.len().min(n_cols / 2)..].fill([0; LINE_BYTES]);
        for (pair, out) in pairs.zip(out) {
            // SAFETY: `BYTES` bytes are in bounds.
            let [first, second] = unsafe { P::columns(pair.as_ptr()) };
            store(out, paired(first, second));
        }
    }
}

/// Rows of plain floats.
pub(crate) struct Floats<E>(PhantomData<E>);

/// A plain float type.
pub(crate) trait Element {
    const BYTES: usize;

    /// 32 values as bf16.
    ///
    /// # Safety
    /// They are there, and the CPU has what the kernels are compiled for.
    unsafe fn load(from: *const u8) -> __m512i;
}

impl Element for f32 {
    const BYTES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: 128 bytes are there, by the caller's promise; plain bits on both sides.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from.cast()), _mm512_loadu_ps(from.add(64).cast()));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

impl Element for half::f16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: 64 bytes are there, by the caller's promise; plain bits on both sides.
        unsafe {
            let low = _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
            let high = _mm512_cvtph_ps(_mm256_loadu_si256(from.add(32).cast()));
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

impl Element for half::bf16 {
    const BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn load(from: *const u8) -> __m512i {
        // SAFETY: 64 bytes are there, by the caller's promise.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
}

impl<E: Element> Source for Floats<E> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, tile: usize, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Floats { data, row_bytes } = weights else { unreachable!("rows of floats") };
        let rows = data.chunks(N_ROWS * row_bytes).nth(tile).expect("a tile");
        for (step, out) in panel.chunks_exact_mut(TILE_BYTES).take(n_cols / STEP_COLS).enumerate() {
            let from = (start + step * STEP_COLS) * E::BYTES;
            let mut lines = [_mm512_setzero_si512(); N_ROWS];
            for (line, row) in lines.iter_mut().zip(rows.chunks_exact(*row_bytes)) {
                // A row's last columns may be fewer, and missing ones are zero.
                let mut last = [0u8; STEP_COLS * 4];
                let row = &row[from.min(row.len())..];
                let row = if row.len() < STEP_COLS * E::BYTES {
                    last[..row.len()].copy_from_slice(row);
                    &last[..]
                } else {
                    row
                };
                // SAFETY: 32 values are in bounds.
                *line = unsafe { E::load(row.as_ptr()) };
            }
            for (line, out) in transposed(lines).into_iter().zip(out.chunks_exact_mut(LINE_BYTES)) {
                store(out, line);
            }
        }
    }
}
