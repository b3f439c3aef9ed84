//! Weights as bf16 tiles meet bf16 activations: two by two tiles of sums stay in a unit while columns pass by.
//!
//! A unit adds the products of all columns in their order, so a product depends on its rows alone. It is not the same
//! bits as what other kernels give: weights and activations are rounded to bf16, and to nothing else.

use core::arch::x86_64::*;

use super::floats::Pair;
use super::layouts::{Layout, UnpackedRows, Visitor};
use super::rows::{TileRows, transposed};
use super::super_blocks::{self, Heads, SuperBlock};
use crate::aligned::AlignedBytes;
use crate::linear::blocks::BLOCK_COLS;
use crate::linear::tile::{TileScratch, UnpackedTile};
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{BLOCK_ROWS, STEP_COLS, TILE_BYTES, WIDE_ROWS, WideActs, WideRows};

/// Columns of a panel.
const PANEL_COLS: usize = 512;

/// Bytes that sixteen weight rows take in a panel.
pub(crate) const PANEL_TILE: usize = PANEL_COLS / STEP_COLS * TILE_BYTES;

/// What multiplies tiles.
pub(crate) trait Unit {
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

    /// Adds the products of two tiles of activations a step with two of weights, [`PANEL_TILE`] apart, to 32 by 32 sums,
    /// or sets the sums.
    ///
    /// # Safety
    /// The unit is set up; tiles and sums are in bounds.
    unsafe fn two_by_two(acts: &[u8], panel: &[u8], n_steps: usize, add: bool, out: Sums);
}

/// Where sums are, and how many floats their rows are apart.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) at: *mut f32,
    pub(crate) stride: usize,
}

/// Names the kernels of a unit.
macro_rules! wide_kernels {
    ($unit:ty: $($name:ident: $source:ty;)*) => {
        $(
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
            fn $name(weights: &WideRows<'_>, xs: &WideActs<'_>, scratch: &mut TileScratch, out: &mut [f32]) {
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

/// Where weights come from.
pub(crate) trait Source {
    /// Fills a panel with `n_cols` columns from `start` on.
    ///
    /// # Safety
    /// The CPU has what the kernels are compiled for.
    unsafe fn fill(weights: &WideRows<'_>, start: usize, n_cols: usize, panel: &mut [u8]);
}

/// Fills `out: [xs, WIDE_ROWS]`, rows rounded up to whole blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(crate) fn dot<S: Source, U: Unit>(
    weights: &WideRows<'_>,
    xs: &WideActs<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    let n_tiles = weights.n_tiles().next_multiple_of(2);
    assert!(n_tiles * N_ROWS <= WIDE_ROWS, "weight rows of one call");
    assert!(xs.n_blocks() * BLOCK_ROWS * WIDE_ROWS <= out.len(), "room for the products");
    if scratch.panel.bytes().len() < n_tiles * PANEL_TILE {
        scratch.panel = AlignedBytes::zeroed(n_tiles * PANEL_TILE).expect("memory for a panel");
    }
    let panel = &mut scratch.panel.bytes_mut()[..n_tiles * PANEL_TILE];
    let n_cols = xs.n_steps() * STEP_COLS;
    // SAFETY: a unit's table is only used where the unit is there.
    unsafe { U::begin() };
    for start in (0..n_cols).step_by(PANEL_COLS) {
        // SAFETY: this kernel is compiled for the same features.
        unsafe { S::fill(weights, start, PANEL_COLS.min(n_cols - start), panel) };
        let (first, n_steps) = (start / STEP_COLS, (n_cols - start).min(PANEL_COLS) / STEP_COLS);
        for block in 0..xs.n_blocks() {
            let acts =
                &xs.bytes()[block * xs.block_bytes() + first * 2 * TILE_BYTES..][..n_steps * 2 * TILE_BYTES];
            let out = &mut out[block * BLOCK_ROWS * WIDE_ROWS..(block + 1) * BLOCK_ROWS * WIDE_ROWS];
            for (pair, panel) in panel.chunks_exact(2 * PANEL_TILE).enumerate() {
                let sums = Sums { at: out[pair * 2 * N_ROWS..].as_mut_ptr(), stride: WIDE_ROWS };
                // SAFETY: `n_steps` tiles of both kinds are in bounds, and 32 by 32 sums from `out` on; the unit is set up.
                unsafe { U::two_by_two(acts, panel, n_steps, start > 0, sums) };
            }
        }
    }
    // SAFETY: as above.
    unsafe { U::end() };
}

/// Quant blocks in tile order.
pub(crate) struct Blocks<L>(std::marker::PhantomData<L>);

impl<L: Layout<Rows = TileRows>> Source for Blocks<L> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
        let n_blocks = (start + n_cols) / L::BLOCK_COLS;
        assert!(
            n_blocks <= tiles.n_blocks && tiles.n_blocks * L::BLOCK_BYTES * N_ROWS <= tiles.tile_bytes,
            "a tile of {} blocks",
            tiles.n_blocks
        );
        for (rows, panel) in TileRows::of(tiles).zip(panel.chunks_exact_mut(PANEL_TILE)) {
            let mut fill = Fill { panel, start };
            for block in start / L::BLOCK_COLS..n_blocks {
                // SAFETY: the rows have these blocks.
                unsafe { L::visit(rows, block, &mut fill) };
            }
        }
    }
}

/// Super-blocks in tile order.
pub(crate) struct SuperBlocks<S>(std::marker::PhantomData<S>);

impl<S: SuperBlock> Source for SuperBlocks<S> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
        let n_blocks = (start + n_cols) / BLOCK_COLS;
        assert!(
            n_blocks <= tiles.n_blocks && tiles.n_blocks * S::BYTES * N_ROWS <= tiles.tile_bytes,
            "a tile of {} blocks",
            tiles.n_blocks
        );
        for (rows, panel) in TileRows::of(tiles).zip(panel.chunks_exact_mut(PANEL_TILE)) {
            for (block, out) in
                (start / BLOCK_COLS..n_blocks).zip(panel.chunks_exact_mut(BLOCK_COLS * N_ROWS * 2))
            {
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
}

/// Looks at what comes after the groups.
struct OnlyHeads(Option<Heads>);

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
struct FillBlock<'a> {
    out: &'a mut [u8],
    heads: Heads,
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
        put_values(&mut self.out[col * N_ROWS * 2..], codes, scale, offset);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn heads<S: SuperBlock>(&mut self, _: &Heads) {}
}

/// Rows in the common form.
pub(crate) struct Codes<L>(std::marker::PhantomData<L>);

impl<L: Layout<Rows = UnpackedRows>> Source for Codes<L> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Unpacked(UnpackedTile { panel: weights, n_rows }) = weights else {
            unreachable!("unpacked rows")
        };
        let blocks = start / L::BLOCK_COLS..(start + n_cols).div_ceil(L::BLOCK_COLS);
        for (i, panel) in panel.chunks_exact_mut(PANEL_TILE).take(n_rows.div_ceil(N_ROWS)).enumerate() {
            // SAFETY: the panel outlives this loop.
            let rows = unsafe { UnpackedRows::of::<L>(weights, i * N_ROWS, blocks.end) };
            let mut fill = Fill { panel, start };
            for block in blocks.clone() {
                // SAFETY: the rows have these blocks, padding included.
                unsafe { L::visit(rows, block, &mut fill) };
            }
        }
    }
}

/// Writes groups of codes into sixteen rows' part of a panel as the numbers they stand for.
struct Fill<'a> {
    panel: &'a mut [u8],
    /// The panel's first column.
    start: usize,
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
        // The code of zero times the scale is exact.
        let zero = _mm512_set1_ps(-(L::ZERO.value() as f32));
        let offset =
            if L::OFFSETS { _mm512_fmadd_ps(zero, scale, offset) } else { _mm512_mul_ps(zero, scale) };
        put_values(&mut self.panel[(col - self.start) * N_ROWS * 2..], codes, scale, offset);
    }
}

/// Writes `scale * code + offset` for lines of four columns: two columns a line.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn put_values<const N: usize>(out: &mut [u8], codes: [__m512i; N], scale: __m512, offset: __m512) {
    let out = &mut out[..2 * N * LINE_BYTES];
    for (codes, out) in codes.iter().zip(out.chunks_exact_mut(2 * LINE_BYTES)) {
        let byte = _mm512_set1_epi32(0xff);
        let value = |codes: __m512i| _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), scale, offset);
        let a = value(_mm512_and_si512(*codes, byte));
        let b = value(_mm512_and_si512(_mm512_srli_epi32::<8>(*codes), byte));
        let c = value(_mm512_and_si512(_mm512_srli_epi32::<16>(*codes), byte));
        let d = value(_mm512_srli_epi32::<24>(*codes));
        store(&mut out[..LINE_BYTES], paired(a, b));
        store(&mut out[LINE_BYTES..], paired(c, d));
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

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(out: &mut [u8], value: __m512i) {
    let out = &mut out[..LINE_BYTES];
    // SAFETY: in bounds; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), value) };
}

/// Plain floats in tile order.
pub(crate) struct FloatTiles<P>(std::marker::PhantomData<P>);

impl<P: Pair> Source for FloatTiles<P> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill(weights: &WideRows<'_>, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
        let rows = tiles.bytes.chunks_exact(tiles.tile_bytes.max(1));
        for (rows, panel) in rows.zip(panel.chunks_exact_mut(PANEL_TILE)) {
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
}

/// Rows of plain floats.
pub(crate) struct Floats<E>(std::marker::PhantomData<E>);

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
    unsafe fn fill(weights: &WideRows<'_>, start: usize, n_cols: usize, panel: &mut [u8]) {
        let WideRows::Floats { data, row_bytes } = weights else { unreachable!("rows of floats") };
        for (rows, panel) in data.chunks(N_ROWS * row_bytes).zip(panel.chunks_exact_mut(PANEL_TILE)) {
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
}
