//! Weights as bf16 tiles meet bf16 activations: two by two tiles of sums stay in a unit while columns pass by.
//!
//! A unit adds the products of all columns in their order, so a product depends on its rows alone. It is not the same
//! bits as what other kernels give: weights and activations are rounded to bf16, and to nothing else.

use core::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use super::floats::Pair;
use super::layouts::{Layout, UnpackedRows, Visitor};
use super::rows::{TileRows, transposed};
use super::super_blocks::{self, Heads, SuperBlock};
use super::tile::Ahead;
use crate::aligned::AlignedBytes;
use crate::linear::blocks::BLOCK_COLS;
use crate::linear::tile::{TileScratch, UnpackedTile};
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{
    BLOCK_FLOATS, BLOCK_ROWS, STEP_COLS, TILE_BYTES, TILE_FLOATS, WIDE_ROWS, WideActs, WideRows,
};

/// Columns of a panel at most.
const MOST_COLS: usize = 1024;

/// Bytes that sixteen weight rows have in a panel.
pub(crate) const PANEL_TILE: usize = MOST_COLS / STEP_COLS * TILE_BYTES;

/// Bits that are the float 256, and how far above a code's lowest bit is then that of its mantissa worth one: a code put
/// there makes the float 256 more than itself without a conversion.
const BASE: i32 = 0x4380_0000;
const UNIT_BIT: u32 = 15;

/// Writes `scale * code + offset` for lines of four columns: two columns a line. A macro, since the compiler would not put
/// it in line, and codes would go through memory.
macro_rules! put_values {
    ($out:expr, $codes:expr, $scale:expr, $offset:expr) => {{
        let (codes, scale, offset) = ($codes, $scale, $offset);
        let offset = _mm512_fnmadd_ps(_mm512_set1_ps(256.0), scale, offset);
        let out = &mut $out[..2 * codes.len() * LINE_BYTES];
        for (codes, out) in codes.iter().zip(out.chunks_exact_mut(2 * LINE_BYTES)) {
            let value = |moved: __m512i| {
                let (byte, base) = (_mm512_set1_epi32(0xff << UNIT_BIT), _mm512_set1_epi32(BASE));
                // `moved & byte | base`
                let code = _mm512_ternarylogic_epi32::<0xea>(moved, byte, base);
                _mm512_fmadd_ps(_mm512_castsi512_ps(code), scale, offset)
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
    /// Whether vectors do something else while it multiplies. Then [`Self::open`], [`Self::step`] and [`Self::close`] are
    /// the parts of [`Self::two_by_two`], between which the unit keeps the sums.
    const IS_BESIDE: bool = false;

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

    /// Adds the products of two tiles of activations a step with two of weights, [`PANEL_TILE`] apart, to 32 by 32 sums,
    /// or sets the sums.
    ///
    /// # Safety
    /// The unit is set up; tiles and sums are in bounds.
    unsafe fn two_by_two(acts: &[u8], panel: &[u8], n_steps: usize, add: bool, out: Sums);

    /// Takes up the sums, or begins with zeros.
    ///
    /// # Safety
    /// As [`Self::two_by_two`].
    unsafe fn open(_add: bool, _out: Sums) {
        unreachable!("not a unit beside vectors")
    }

    /// Adds the products of one step.
    ///
    /// # Safety
    /// As [`Self::two_by_two`]; sums were taken up.
    unsafe fn step(_acts: *const u8, _panel: *const u8) {
        unreachable!("not a unit beside vectors")
    }

    /// Puts the sums where they belong.
    ///
    /// # Safety
    /// As [`Self::two_by_two`]; sums were taken up.
    unsafe fn close(_out: Sums) {
        unreachable!("not a unit beside vectors")
    }
}

/// Where two by two tiles of sums are, and how many floats apart: rows of a tile, tiles of the same activations, and of the
/// same weights.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) at: *mut f32,
    pub(crate) stride: usize,
    pub(crate) right: usize,
    pub(crate) low: usize,
}

impl Sums {
    /// In 32 rows.
    pub(crate) fn in_rows(at: *mut f32, stride: usize) -> Self {
        Self { at, stride, right: N_ROWS, low: N_ROWS * stride }
    }

    /// Tile by tile.
    fn in_tiles(at: *mut f32) -> Self {
        Self { at, stride: N_ROWS, right: TILE_FLOATS, low: 2 * TILE_FLOATS }
    }
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
    /// Fills sixteen rows' part of a panel with `n_cols` columns from `start` on of tile `tile`.
    ///
    /// # Safety
    /// The CPU has what the kernels are compiled for.
    unsafe fn fill<M: Meanwhile>(
        weights: &WideRows<'_>,
        tile: usize,
        start: usize,
        n_cols: usize,
        panel: &mut [u8],
        meanwhile: &mut M,
    );
}

/// What else is done while a panel is filled.
pub(crate) trait Meanwhile {
    /// So many more lines were filled, a multiple of [`LINES`].
    fn filled(&mut self, n_lines: usize);
}

/// The fewest lines that are filled at once: sixteen columns.
const LINES: usize = 8;

/// Nothing.
impl Meanwhile for () {
    #[inline(always)]
    fn filled(&mut self, _: usize) {}
}

/// Fills `out` as [`crate::kernels::DotWide`] says.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(crate) fn dot<S: Source, U: Unit>(
    weights: &WideRows<'_>,
    xs: &WideActs<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    const PAIR: usize = 2 * PANEL_TILE;
    let (n_tiles, n_cols) = (weights.n_tiles(), xs.n_steps() * STEP_COLS);
    let panel_cols = U::panel_cols(xs.n_blocks());
    assert!(n_tiles * N_ROWS <= WIDE_ROWS, "weight rows of one call");
    assert!(n_tiles.div_ceil(2) * xs.n_blocks() * BLOCK_FLOATS <= out.len(), "room for the products");
    if scratch.panel.bytes().len() < 2 * PAIR {
        scratch.panel = AlignedBytes::zeroed(2 * PAIR).expect("memory for a panel");
    }
    let (mut full, mut next) = scratch.panel.bytes_mut()[..2 * PAIR].split_at_mut(PAIR);
    // SAFETY: a unit's table is only used where the unit is there.
    unsafe { U::begin() };
    let mut under_way = UnderWay::<U>::nothing();
    for start in (0..n_cols).step_by(panel_cols) {
        let n = panel_cols.min(n_cols - start);
        for pair in (0..n_tiles).step_by(2) {
            let tiles = pair..n_tiles.min(pair + 2);
            under_way.spread(tiles.len() * n / 2);
            // What the panel after this one is filled from: perhaps of the rows that follow.
            let after = match (pair + 2 < n_tiles, start + n < n_cols) {
                (true, _) => (pair + 2, start..start + n),
                (_, true) => (0, start + n..start + n + panel_cols),
                _ => (n_tiles, 0..panel_cols),
            };
            for (i, (tile, panel)) in tiles.zip(next.chunks_exact_mut(PANEL_TILE)).enumerate() {
                under_way.ahead = weights.ahead(after.0 + i, &after.1, n_cols);
                under_way.n_ahead = under_way.ahead.lines_each(n / 2 / LINES);
                // SAFETY: this kernel is compiled for the same features.
                unsafe { S::fill(weights, tile, start, n, panel, &mut under_way) };
            }
            under_way.finish();
            std::mem::swap(&mut full, &mut next);
            let (n, stride) = (n / STEP_COLS, xs.block_bytes().1);
            under_way = UnderWay {
                acts: xs.bytes()[start / STEP_COLS * 2 * TILE_BYTES..].as_ptr(),
                stride,
                panel: full.as_ptr(),
                n_blocks: xs.n_blocks(),
                n_steps: n,
                add: start > 0,
                sums: Sums::in_tiles(out[pair / 2 * xs.n_blocks() * BLOCK_FLOATS..].as_mut_ptr()),
                ..UnderWay::nothing()
            };
        }
    }
    under_way.finish();
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

/// A panel of two tiles of weights that meets all activations, step by step, while the next panel is filled.
struct UnderWay<U> {
    /// Activations of the block under way, in the panel's columns, and how far those of the next are.
    acts: *const u8,
    stride: usize,
    panel: *const u8,
    /// Blocks that are left, the one under way included.
    n_blocks: usize,
    /// The block's next step, and how many it has.
    step: usize,
    n_steps: usize,
    /// Whether products are added to the sums.
    add: bool,
    sums: Sums,
    /// Steps for a line that is filled, and steps that are due, in parts of [`ONE`].
    each: usize,
    due: usize,
    /// What is fetched, and how many lines at a time.
    ahead: Ahead,
    n_ahead: usize,
    unit: PhantomData<U>,
}

/// One step, see [`UnderWay`].
const ONE: usize = 1 << 16;

impl<U: Unit> UnderWay<U> {
    fn nothing() -> Self {
        Self {
            acts: std::ptr::null(),
            stride: 0,
            panel: std::ptr::null(),
            n_blocks: 0,
            step: 0,
            n_steps: 0,
            add: false,
            sums: Sums::in_tiles(std::ptr::null_mut()),
            each: 0,
            due: 0,
            ahead: Ahead::new(std::ptr::null(), std::ptr::null()),
            n_ahead: 0,
            unit: PhantomData,
        }
    }

    /// Has all steps done while so many lines are filled.
    fn spread(&mut self, n_lines: usize) {
        self.each = self.n_blocks * self.n_steps * ONE / n_lines;
    }

    /// Does the next step, if one is left.
    #[inline(always)]
    fn advance(&mut self) {
        if self.n_blocks == 0 {
            return;
        }
        // SAFETY: the panel and each block of activations have `n_steps` steps, and there are sums for each block (`dot`,
        // which set the unit up).
        unsafe {
            if self.step == 0 {
                U::open(self.add, self.sums);
            }
            let acts = self.acts.wrapping_add(self.step * 2 * TILE_BYTES);
            U::step(acts, self.panel.wrapping_add(self.step * TILE_BYTES));
            self.step += 1;
            if self.step == self.n_steps {
                U::close(self.sums);
                self.next_block();
            }
        }
    }

    fn next_block(&mut self) {
        self.step = 0;
        self.n_blocks -= 1;
        self.acts = self.acts.wrapping_add(self.stride);
        self.sums.at = self.sums.at.wrapping_add(BLOCK_FLOATS);
    }

    /// Does all steps that are left.
    fn finish(&mut self) {
        while self.n_blocks > 0 {
            if U::IS_BESIDE {
                self.advance();
                continue;
            }
            // SAFETY: as in `advance`.
            unsafe {
                let acts = std::slice::from_raw_parts(self.acts, self.n_steps * 2 * TILE_BYTES);
                let panel = std::slice::from_raw_parts(self.panel, 2 * PANEL_TILE);
                U::two_by_two(acts, panel, self.n_steps, self.add, self.sums);
            }
            self.next_block();
        }
    }
}

impl<U: Unit> Meanwhile for UnderWay<U> {
    #[inline(always)]
    fn filled(&mut self, n_lines: usize) {
        self.ahead.fetch(n_lines / LINES * self.n_ahead);
        if U::IS_BESIDE {
            self.due += n_lines * self.each;
            while self.due >= ONE {
                self.due -= ONE;
                self.advance();
            }
        }
    }
}

/// Quant blocks in tile order.
pub(crate) struct Blocks<L>(PhantomData<L>);

impl<L: Layout<Rows = TileRows>> Source for Blocks<L> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn fill<M: Meanwhile>(
        weights: &WideRows<'_>,
        tile: usize,
        start: usize,
        n_cols: usize,
        panel: &mut [u8],
        meanwhile: &mut M,
    ) {
        let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
        let n_blocks = (start + n_cols) / L::BLOCK_COLS;
        assert!(
            n_blocks <= tiles.n_blocks && tiles.n_blocks * L::BLOCK_BYTES * N_ROWS <= tiles.tile_bytes,
            "a tile of {} blocks",
            tiles.n_blocks
        );
        let rows = TileRows::of(tiles).nth(tile).expect("a tile");
        let mut fill = Fill { panel, start, meanwhile };
        for block in start / L::BLOCK_COLS..n_blocks {
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
    unsafe fn fill<M: Meanwhile>(
        weights: &WideRows<'_>,
        tile: usize,
        start: usize,
        n_cols: usize,
        panel: &mut [u8],
        meanwhile: &mut M,
    ) {
        let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
        let n_blocks = (start + n_cols) / BLOCK_COLS;
        assert!(
            n_blocks <= tiles.n_blocks && tiles.n_blocks * S::BYTES * N_ROWS <= tiles.tile_bytes,
            "a tile of {} blocks",
            tiles.n_blocks
        );
        let rows = TileRows::of(tiles).nth(tile).expect("a tile");
        for (block, out) in
            (start / BLOCK_COLS..n_blocks).zip(panel.chunks_exact_mut(BLOCK_COLS * N_ROWS * 2))
        {
            let mut last = OnlyHeads(None);
            // SAFETY: the rows have these blocks.
            unsafe {
                S::visit(rows, block, &mut last);
                let heads = last.0.expect("heads come last");
                S::visit(rows, block, &mut FillBlock { out, heads, meanwhile });
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
struct FillBlock<'a, M> {
    out: &'a mut [u8],
    heads: Heads,
    meanwhile: &'a mut M,
}

impl<M: Meanwhile> super_blocks::Visitor for FillBlock<'_, M> {
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
        put_values!(&mut self.out[col * N_ROWS * 2..], codes, scale, offset);
        self.meanwhile.filled(2 * N);
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
    unsafe fn fill<M: Meanwhile>(
        weights: &WideRows<'_>,
        tile: usize,
        start: usize,
        n_cols: usize,
        panel: &mut [u8],
        meanwhile: &mut M,
    ) {
        let WideRows::Unpacked(UnpackedTile { panel: weights, n_rows }) = weights else {
            unreachable!("unpacked rows")
        };
        let blocks = start / L::BLOCK_COLS..(start + n_cols).div_ceil(L::BLOCK_COLS);
        assert!(tile < n_rows.div_ceil(N_ROWS), "a tile");
        // SAFETY: the panel outlives this loop.
        let rows = unsafe { UnpackedRows::of::<L>(weights, tile * N_ROWS, blocks.end) };
        let mut fill = Fill { panel, start, meanwhile };
        for block in blocks {
            // SAFETY: the rows have these blocks, padding included.
            unsafe { L::visit(rows, block, &mut fill) };
        }
    }
}

/// Writes groups of codes into sixteen rows' part of a panel as the numbers they stand for.
struct Fill<'a, M> {
    panel: &'a mut [u8],
    /// The panel's first column.
    start: usize,
    meanwhile: &'a mut M,
}

impl<M: Meanwhile> Visitor for Fill<'_, M> {
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
        put_values!(&mut self.panel[(col - self.start) * N_ROWS * 2..], codes, scale, offset);
        self.meanwhile.filled(2 * N);
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
    unsafe fn fill<M: Meanwhile>(
        weights: &WideRows<'_>,
        tile: usize,
        start: usize,
        n_cols: usize,
        panel: &mut [u8],
        meanwhile: &mut M,
    ) {
        let WideRows::Tiled(tiles) = weights else { unreachable!("tiles") };
        let rows = &tiles.bytes[tile * tiles.tile_bytes..(tile + 1) * tiles.tile_bytes];
        let pairs = rows[..tiles.line_bytes][start / 2 * P::BYTES..].chunks_exact(P::BYTES);
        let (out, _) = panel[..n_cols / 2 * LINE_BYTES].as_chunks_mut::<LINE_BYTES>();
        // The last step's columns may be fewer, and missing ones are zero.
        out[pairs.len().min(n_cols / 2)..].fill([0; LINE_BYTES]);
        for (i, (pair, out)) in pairs.zip(out).enumerate() {
            // SAFETY: `BYTES` bytes are in bounds.
            let [first, second] = unsafe { P::columns(pair.as_ptr()) };
            store(out, paired(first, second));
            if i % 16 == 15 {
                meanwhile.filled(16);
            }
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
    unsafe fn fill<M: Meanwhile>(
        weights: &WideRows<'_>,
        tile: usize,
        start: usize,
        n_cols: usize,
        panel: &mut [u8],
        meanwhile: &mut M,
    ) {
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
            meanwhile.filled(N_ROWS);
        }
    }
}
