//! Products of sixteen or thirty-two weight rows with quantised activations.
//!
//! A weight row is a lane: one `vpdpbusd` multiplies four columns of sixteen rows with four codes of an activation
//! row, so a group's integer sum needs no reduction and is exact. Codes meet eight activation rows at a time in
//! registers, as they are unpacked, or from a panel that is unpacked once and stays in the first-level cache. Both do
//! the same operations for a product, so a result does not depend on how many rows there are.

use core::arch::asm;
use core::arch::x86_64::*;
use std::cell::Cell;
use std::marker::PhantomData;

use super::bytes;
use super::layouts::{Layout, Unpacked, UnpackedRows, Visitor, Zero};
use super::rows::TileRows;
use crate::aligned::AlignedBytes;
use crate::kernels::{DotTiles, TILE_ROWS};
use crate::linear::codes::{CodeKind, QuantRow};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
use crate::linear::tiled::{LINE_BYTES, N_ROWS, Tiles};

/// Activation rows that meet codes in registers at once.
pub(super) const MAX_BLOCK: usize = 8;

/// Activation rows that share a load from the panel at most.
pub(super) const PANEL_BLOCK: usize = 6;

/// Tiles of sixteen rows that one call takes.
pub(crate) const TILES: usize = TILE_ROWS / N_ROWS;

/// Columns of a panel.
pub(crate) const PANEL_COLS: usize = 512;

/// Groups of a panel at most.
const PANEL_GROUPS: usize = PANEL_COLS / 16;

/// Bytes of codes, of scales and of offsets that sixteen rows take in a panel.
const PANEL_CODES: usize = PANEL_COLS * N_ROWS;
const PANEL_SCALES: usize = PANEL_GROUPS * N_ROWS * 4;
const PANEL_BYTES: usize = PANEL_CODES + 2 * PANEL_SCALES;

/// Makes `$find`, which gives the kernel of a format in tile order: `$body`, compiled for each as `$name`, which is what
/// `$module` calls it.
macro_rules! format_kernels {
    (
        $module:ident as $name:ident, [$($format:pat => $layout:ident),*],
        fn $find:ident() -> $kernel:ty, $features:literal, |$($arg:ident: $type:ty),*| $body:expr
    ) => {
        /// The kernel of a format in tile order.
        pub(super) fn $find(format: mlxr_tensor::Format) -> Option<$kernel> {
            #[allow(unused_imports, reason = "not every list has all of them")]
            use mlxr_tensor::{DType, Format, MlxFloat};
            use $crate::avx512::$module;
            macro_rules! kernel {
                ($of:ident) => {{
                    type $name = $module::$of;
                    #[target_feature(enable = $features)]
                    fn kernel($($arg: $type),*) { $body }
                    Some(kernel)
                }};
            }
            match format {
                $($format => kernel!($layout),)*
                _ => None,
            }
        }
    };
}
pub(crate) use format_kernels;

/// [`format_kernels!`] of the formats whose groups have scales of their own, as `Tiled`.
macro_rules! tiled_kernels {
    ($($kernels:tt)*) => {
        $crate::avx512::tile::format_kernels! {
            layouts as Tiled,
            [
                Format::Plain(DType::Q4_0) => Q4_0,
                Format::Plain(DType::Q8_0) => Q8_0,
                Format::MlxAffine { bits: 4, scale: DType::F16, .. } => Mlx4F16,
                Format::MlxAffine { bits: 4, scale: DType::BF16, .. } => Mlx4Bf16,
                Format::MlxAffine { bits: 8, scale: DType::F16, .. } => Mlx8F16,
                Format::MlxAffine { bits: 8, scale: DType::BF16, .. } => Mlx8Bf16,
                Format::Plain(DType::Q4_1) => Q4_1,
                Format::Plain(DType::Q5_0) => Q5_0,
                Format::Plain(DType::Q5_1) => Q5_1,
                Format::Plain(DType::IQ4_NL) => Iq4Nl,
                Format::Plain(DType::MXFP4) | Format::MlxFloat(MlxFloat::Mxfp4) => Mxfp4,
                Format::Plain(DType::IQ4_XS) => Iq4Xs,
                Format::Plain(DType::Q3_K) => Q3K,
                Format::Plain(DType::Q2_K) => Q2K
            ],
            $($kernels)*
        }
    };
}
pub(crate) use tiled_kernels;

tiled_kernels! {
    fn tiled() -> DotTiles, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    |tiles: &Tiles<'_>, xs: &ActRows<'_>, scratch: &mut TileScratch, out: &mut [f32]|
        dot_tiled::<Tiled, Vnni>(tiles, xs.rows, scratch, out)
}

/// Products of rows in tile order, many activation rows by `M`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn dot_tiled<L: Layout<Rows = TileRows>, M: Multiply>(
    tiles: &Tiles<'_>,
    xs: M::Xs<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    assert!(
        tiles.n_blocks * L::BLOCK_BYTES * N_ROWS <= tiles.tile_bytes,
        "a tile of {} blocks",
        tiles.n_blocks
    );
    let mut rows = [None; TILES];
    for (rows, tile) in rows.iter_mut().zip(TileRows::of(tiles)) {
        *rows = Some(tile);
    }
    let job =
        Job { rows, n_blocks: tiles.n_blocks, stored: tiles.bytes.as_ptr(), tile_bytes: tiles.tile_bytes };
    if let (true, Some(xs), [Some(a), Some(b)]) = (L::BYTES_BUT.is_some(), M::rows(xs), rows)
        && bytes::FEW < xs.len()
    {
        let (n_bytes, (n_rows, cols)) = (TILES * tiles.tile_bytes, Vnni::size(xs));
        assert!(tiles.n_blocks * L::BLOCK_COLS <= cols, "columns of weights and activations");
        let end = tiles.bytes.as_ptr().wrapping_add(n_bytes);
        let ahead = Ahead::new(end, end.wrapping_add(n_bytes));
        // SAFETY: the tiles' blocks and the columns were checked, the shapes of rows by `size`.
        unsafe { bytes::dot_bytes::<L>([a, b], tiles.n_blocks, xs, &ahead, &mut out[..n_rows * TILE_ROWS]) };
        return;
    }
    job.run::<L, M>(xs, &mut scratch.panel, out);
}

/// As the kernels of [`tiled`], for rows unpacked to the common form.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn dot_unpacked(
    kind: CodeKind,
    weights: &UnpackedTile<'_>,
    xs: &ActRows<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    dot_unpacked_with::<Vnni>(kind, weights, xs.rows, scratch, out);
}

/// As [`dot_tiled`], for rows unpacked to the common form.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn dot_unpacked_with<M: Multiply>(
    kind: CodeKind,
    weights: &UnpackedTile<'_>,
    xs: M::Xs<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    match (kind.signed, kind.group) {
        (false, 32) => dot_kind::<Unpacked<false, 32>, M>(weights, xs, scratch, out),
        (false, _) => dot_kind::<Unpacked<false, 16>, M>(weights, xs, scratch, out),
        (true, 32) => dot_kind::<Unpacked<true, 32>, M>(weights, xs, scratch, out),
        (true, _) => dot_kind::<Unpacked<true, 16>, M>(weights, xs, scratch, out),
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot_kind<L: Layout<Rows = UnpackedRows>, M: Multiply>(
    weights: &UnpackedTile<'_>,
    xs: M::Xs<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    let (_, cols) = M::size(xs);
    let n_blocks = cols.div_ceil(L::BLOCK_COLS);
    let mut rows = [None; TILES];
    for (i, rows) in rows[..weights.n_rows.div_ceil(N_ROWS)].iter_mut().enumerate() {
        // SAFETY: the panel outlives this call's use of the rows.
        *rows = Some(unsafe { UnpackedRows::of::<L>(weights.panel, i * N_ROWS, n_blocks) });
    }
    let job = Job { rows, n_blocks, stored: std::ptr::null(), tile_bytes: 0 };
    job.run::<L, M>(xs, &mut scratch.panel, out);
}

/// Weight rows to multiply, all checked to have `n_blocks` blocks.
struct Job<R> {
    rows: [Option<R>; TILES],
    n_blocks: usize,
    /// Where tiles in memory are, one after the other, and their size: only to prefetch what follows.
    stored: *const u8,
    tile_bytes: usize,
}

impl<R: Copy> Job<R> {
    /// Fills `out: [xs, TILE_ROWS]`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn run<L: Layout<Rows = R>, M: Multiply>(
        &self,
        xs: M::Xs<'_>,
        panel: &mut AlignedBytes,
        out: &mut [f32],
    ) {
        let (n_rows, cols) = M::size(xs);
        if n_rows == 0 {
            return;
        }
        assert!(self.n_blocks * L::BLOCK_COLS <= cols, "columns of weights and activations");
        assert!(n_rows * TILE_ROWS <= out.len(), "room for the products");
        match M::rows(xs) {
            Some(xs) if xs.len() <= L::DIRECT_ROWS => {
                for (xs, out) in xs.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
                    match xs.len() {
                        1 => self.in_registers::<L, 1>(xs, out),
                        2 => self.in_registers::<L, 2>(xs, out),
                        3 | 4 => self.in_registers::<L, 4>(xs, out),
                        _ => self.in_registers::<L, MAX_BLOCK>(xs, out),
                    }
                }
            }
            _ => self.through_panel::<L, M>(xs, &mut out[..n_rows * TILE_ROWS], panel),
        }
    }

    /// Each tile's codes meet all `xs` in registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn in_registers<L: Layout<Rows = R>, const X: usize>(&self, xs: &[QuantRow<'_>], out: &mut [f32]) {
        for (t, rows) in self.rows.iter().flatten().enumerate() {
            let ahead = self.stored.wrapping_add((t + 1) * self.tile_bytes);
            let mut block =
                Block { acts: Acts::<X>::new(xs, L::GROUP), acc: [_mm512_setzero_ps(); X], ahead };
            for i in 0..self.n_blocks {
                // SAFETY: the rows have `n_blocks` blocks, and `run` checked the activations' columns.
                unsafe { L::visit(*rows, i, &mut block) };
            }
            for (acc, out) in block.acc.iter().zip(out.chunks_exact_mut(TILE_ROWS)).take(xs.len()) {
                store(&mut out[t * N_ROWS..], *acc);
            }
        }
    }

    /// All tiles' codes are unpacked for some columns, then meet the `xs`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn through_panel<L: Layout<Rows = R>, M: Multiply>(
        &self,
        xs: M::Xs<'_>,
        out: &mut [f32],
        panel: &mut AlignedBytes,
    ) {
        if panel.bytes().len() < TILES * PANEL_BYTES {
            *panel = AlignedBytes::zeroed(TILES * PANEL_BYTES).expect("memory for a panel");
        }
        let blocks_per_panel = PANEL_COLS / L::BLOCK_COLS;
        out.fill(0.0);
        for start in (0..self.n_blocks).step_by(blocks_per_panel) {
            let end = (start + blocks_per_panel).min(self.n_blocks);
            for (rows, memory) in self.rows.iter().zip(panel.bytes_mut().chunks_exact_mut(PANEL_BYTES)) {
                let Some(rows) = *rows else { continue };
                let mut fill = Fill::<M>::new(memory);
                for block in start..end {
                    // SAFETY: the rows have `n_blocks` blocks; a panel has room for `blocks_per_panel`.
                    unsafe { L::visit(rows, block, &mut fill) };
                }
            }
            let n_tiles = self.rows.iter().flatten().count();
            // The same share of the tiles behind these.
            let n_bytes = n_tiles * self.tile_bytes;
            let at = |block: usize| self.stored.wrapping_add(n_bytes + n_bytes * block / self.n_blocks);
            let meet = Meet {
                panel: panel.bytes(),
                first: start * L::BLOCK_COLS,
                n_groups: (end - start) * L::BLOCK_COLS / L::GROUP,
                n_tiles,
                ahead: Ahead::new(at(start), at(end)),
            };
            // SAFETY: the panel was filled for `M` with these groups, and `run` checked the activations' columns.
            unsafe { M::meet::<L>(&meet, xs, out) };
        }
    }
}

/// Where a few activation rows keep their parts, at the same offsets in all rows; the last row stands in for those that
/// are not there.
pub(super) struct Acts<const X: usize> {
    pub(super) rows: [*const u8; X],
    scales_at: usize,
    sums_at: usize,
    negated_at: usize,
}

impl<const X: usize> Acts<X> {
    pub(super) fn new(xs: &[QuantRow<'_>], group: usize) -> Self {
        let layout = xs[0].layout();
        Self {
            rows: std::array::from_fn(|i| xs[i.min(xs.len() - 1)].bytes().as_ptr()),
            scales_at: layout.scales_at(),
            sums_at: layout.sums_at(group),
            negated_at: layout.negated_at(group),
        }
    }

    /// The number at byte `at` of row `x`, in every lane.
    ///
    /// # Safety
    /// Its four bytes are inside the row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn word(&self, x: usize, at: usize) -> __m512i {
        // SAFETY: in bounds by the caller's promise, read unaligned.
        _mm512_set1_epi32(unsafe { self.rows[x].add(at).cast::<i32>().read_unaligned() })
    }

    /// What the integer sum of group `group` starts from: minus the zero point times the activations' codes.
    ///
    /// # Safety
    /// The rows have that group.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn start(&self, x: usize, group: usize, zero: Zero) -> __m512i {
        // SAFETY: there is one sum per group.
        let negated = unsafe { self.word(x, self.negated_at + group * 4) };
        _mm512_sll_epi32(negated, _mm_cvtsi32_si128(zero.log2()))
    }

    /// `acc` plus a group's products with row `x`.
    ///
    /// # Safety
    /// The rows have that group.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn add<const GROUP: usize, const OFFSETS: bool>(
        &self,
        x: usize,
        group: usize,
        sums: __m512i,
        (scale, offset): (__m512, __m512),
        acc: __m512,
    ) -> __m512 {
        // SAFETY: there is one scale per 32 columns.
        let x_scale = _mm512_castsi512_ps(unsafe { self.word(x, self.scales_at + group * GROUP / 32 * 4) });
        let acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), _mm512_mul_ps(scale, x_scale), acc);
        if !OFFSETS {
            return acc;
        }
        // SAFETY: there is one sum per group.
        let x_sum = _mm512_castsi512_ps(unsafe { self.word(x, self.sums_at + group * 4) });
        _mm512_fmadd_ps(offset, x_sum, acc)
    }
}

/// `X` activation rows that groups meet.
struct Block<const X: usize> {
    acts: Acts<X>,
    acc: [__m512; X],
    /// What is fetched meanwhile: the next sixteen rows, which are the next bytes.
    ahead: *const u8,
}

/// `$body` once for each row of up to eight. Written out, since the compiler leaves a loop where the body is long, and
/// sums in memory with it.
macro_rules! each_row {
    ($n_rows:expr, |$x:ident| $body:expr) => { $crate::avx512::tile::each_row!(@ $n_rows, $x, $body, 0 1 2 3 4 5 6 7) };
    (@ $n_rows:expr, $x:ident, $body:expr, $($row:literal)*) => {
        $(if $row < $n_rows {
            let $x = $row % $n_rows;
            $body
        })*
    };
}

pub(super) use each_row;

impl<const X: usize> Visitor for Block<X> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group<L: Layout, const N: usize>(
        &mut self,
        col: usize,
        codes: [__m512i; N],
        scale: __m512,
        offset: __m512,
    ) {
        let n_bytes = L::BLOCK_BYTES * N_ROWS * L::GROUP / L::BLOCK_COLS;
        for line in (0..n_bytes).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(self.ahead.wrapping_add(line).cast());
        }
        self.ahead = self.ahead.wrapping_add(n_bytes);
        // SAFETY: the rows have the columns, by the caller's promise.
        each_row!(X, |x| unsafe {
            let mut sums = self.acts.start(x, col / L::GROUP, L::ZERO);
            for (j, &codes) in codes.iter().enumerate() {
                sums = _mm512_dpbusd_epi32(sums, codes, self.acts.word(x, col + 4 * j));
            }
            let (group, factors) = (col / L::GROUP, (scale, offset));
            self.acc[x] = match (L::GROUP, L::OFFSETS) {
                (32, false) => self.acts.add::<32, false>(x, group, sums, factors, self.acc[x]),
                (32, true) => self.acts.add::<32, true>(x, group, sums, factors, self.acc[x]),
                (_, false) => self.acts.add::<16, false>(x, group, sums, factors, self.acc[x]),
                (_, true) => self.acts.add::<16, true>(x, group, sums, factors, self.acc[x]),
            };
        });
    }
}

/// How a panel's codes meet activations.
pub(crate) trait Multiply {
    /// Whether codes are put in a panel less their zero, as signed bytes; as they come otherwise.
    const SIGNED: bool;

    /// The activation rows it takes.
    type Xs<'a>: Copy;

    /// How many rows there are, all of one shape, and their padded columns.
    fn size(xs: Self::Xs<'_>) -> (usize, usize);

    /// The rows, if they can meet codes in registers.
    fn rows<'a>(_: Self::Xs<'a>) -> Option<&'a [QuantRow<'a>]> {
        None
    }

    /// Adds the products of a panel with all rows to `out: [xs, TILE_ROWS]`.
    ///
    /// # Safety
    /// The CPU has what the implementation is compiled for. The panel was filled for it, and the rows have its columns.
    unsafe fn meet<L: Layout>(meet: &Meet<'_>, xs: Self::Xs<'_>, out: &mut [f32]);
}

/// Multiplication by `vpdpbusd`, a few rows at a time.
pub(crate) struct Vnni;

impl Multiply for Vnni {
    const SIGNED: bool = false;

    type Xs<'a> = &'a [QuantRow<'a>];

    fn size(xs: &[QuantRow<'_>]) -> (usize, usize) {
        let Some(first) = xs.first() else { return (0, 0) };
        assert!(xs.iter().all(|x| x.layout() == first.layout()), "rows of one shape");
        (xs.len(), first.cols())
    }

    fn rows<'a>(xs: Self::Xs<'a>) -> Option<&'a [QuantRow<'a>]> {
        Some(xs)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn meet<L: Layout>(meet: &Meet<'_>, xs: &[QuantRow<'_>], out: &mut [f32]) {
        let lines = meet.ahead.lines_each(meet.n_groups * xs.len().div_ceil(PANEL_BLOCK));
        for (xs, out) in xs.chunks(PANEL_BLOCK).zip(out.chunks_mut(PANEL_BLOCK * TILE_ROWS)) {
            match (L::GROUP, L::OFFSETS) {
                (32, false) => meet.some::<32, false>(L::ZERO, xs, lines, out),
                (32, true) => meet.some::<32, true>(L::ZERO, xs, lines, out),
                (_, false) => meet.some::<16, false>(L::ZERO, xs, lines, out),
                (_, true) => meet.some::<16, true>(L::ZERO, xs, lines, out),
            }
        }
    }
}

/// Writes groups into a panel for `M`, in the order they come.
struct Fill<M> {
    codes: *mut u8,
    scales: *mut u8,
    multiply: PhantomData<M>,
}

impl<M> Fill<M> {
    fn new(panel: &mut [u8]) -> Self {
        assert!(panel.len() == PANEL_BYTES, "a panel");
        let (codes, scales) = panel.split_at_mut(PANEL_CODES);
        Self { codes: codes.as_mut_ptr(), scales: scales.as_mut_ptr(), multiply: PhantomData }
    }
}

impl<M: Multiply> Visitor for Fill<M> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn group<L: Layout, const N: usize>(
        &mut self,
        _: usize,
        codes: [__m512i; N],
        scale: __m512,
        offset: __m512,
    ) {
        // SAFETY: a panel has room for the groups of `PANEL_COLS` columns, and no more come.
        unsafe {
            for code in codes {
                let code = if M::SIGNED { L::ZERO.taken_off(code) } else { code };
                _mm512_storeu_si512(self.codes.cast(), code);
                self.codes = self.codes.add(64);
            }
            _mm512_storeu_ps(self.scales.cast(), scale);
            _mm512_storeu_ps(self.scales.add(64).cast(), offset);
            self.scales = self.scales.add(128);
        }
    }
}

/// A filled panel.
pub(crate) struct Meet<'a> {
    panel: &'a [u8],
    /// Its first column, and how many groups it holds.
    pub(crate) first: usize,
    pub(crate) n_groups: usize,
    /// Tiles of sixteen weight rows it holds.
    n_tiles: usize,
    pub(crate) ahead: Ahead,
}

/// Bytes that are fetched while something else is used.
pub(crate) struct Ahead {
    next: Cell<*const u8>,
    end: *const u8,
}

/// Where a panel keeps one tile: `GROUP / 4` lines of codes a group, and a line of scales and one of offsets.
#[derive(Clone, Copy)]
pub(crate) struct PanelTile {
    pub(crate) codes: *const u8,
    pub(crate) scales: *const u8,
}

/// Adds to `sums: [rows][tiles]` the products of a group of `4 * lines` columns: two tiles' codes, a line of four columns
/// at a time, with up to six rows. Assembly, since the compiler, free to order the loads, starts so many that the sums
/// no longer fit the registers.
macro_rules! add_products {
    ($lines:expr, $n_rows:expr, $codes:expr, $tile_bytes:expr, $rows:ident, $sums:ident) => {
        $crate::avx512::tile::add_products!(@lines $lines, $n_rows, $codes, $tile_bytes, $rows, $sums, 0 1 2 3 4 5 6 7)
    };
    (@lines $lines:expr, $n_rows:expr, $codes:expr, $tile_bytes:expr, $rows:ident, $sums:ident, $($line:literal)*) => {
        $(if $line < $lines {
            const LINE: usize = $line;
            let (first, second): (__m512i, __m512i);
            asm!(
                "vmovdqu64 {first:z}, zmmword ptr [{codes} + {at}]",
                "vmovdqu64 {second:z}, zmmword ptr [{codes} + {tile} + {at}]",
                first = out(zmm_reg) first,
                second = out(zmm_reg) second,
                codes = in(reg) $codes,
                at = const LINE * 64,
                tile = const $tile_bytes,
                options(nostack, preserves_flags, readonly),
            );
            $crate::avx512::tile::add_products!(@rows $n_rows, LINE, $rows, $sums, first, second, 0 1 2 3 4 5);
        })*
    };
    (@rows $n_rows:expr, $line:ident, $rows:ident, $sums:ident, $first:ident, $second:ident, $($row:literal)*) => {
        $(if $row < $n_rows {
            // Named, since the compiler prints a register without a type wrongly.
            let _codes: __m512i;
            asm!(
                "vpbroadcastd {codes:z}, dword ptr [{row} + {at}]",
                "vpdpbusd {sum_1:z}, {first:z}, {codes:z}",
                "vpdpbusd {sum_2:z}, {second:z}, {codes:z}",
                codes = out(zmm_reg) _codes,
                row = in(reg) $rows[$row % $n_rows],
                at = const $line * 4,
                first = in(zmm_reg) $first,
                second = in(zmm_reg) $second,
                sum_1 = inout(zmm_reg) $sums[$row % $n_rows][0],
                sum_2 = inout(zmm_reg) $sums[$row % $n_rows][1],
                options(nostack, preserves_flags, readonly),
            );
        })*
    };
}

pub(crate) use add_products;

impl Ahead {
    pub(crate) fn new(start: *const u8, end: *const u8) -> Self {
        Self { next: Cell::new(start), end }
    }

    /// Lines to fetch each time if all are to be fetched in `n` times.
    pub(crate) fn lines_each(&self, n: usize) -> usize {
        (self.end as usize).saturating_sub(self.next.get() as usize).div_ceil(LINE_BYTES).div_ceil(n.max(1))
    }

    /// Has up to `n` of the lines fetched that follow.
    #[inline]
    pub(crate) fn fetch(&self, n: usize) {
        let mut next = self.next.get();
        for _ in 0..n {
            if self.end <= next {
                break;
            }
            // SAFETY: a hint; any address may be given.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(next.cast()) };
            next = next.wrapping_add(LINE_BYTES);
        }
        self.next.set(next);
    }
}

impl Meet<'_> {
    pub(crate) fn tiles(&self) -> impl Iterator<Item = PanelTile> {
        self.panel.chunks_exact(PANEL_BYTES).take(self.n_tiles).map(|tile| {
            let (codes, scales) = tile.split_at(PANEL_CODES);
            PanelTile { codes: codes.as_ptr(), scales: scales.as_ptr() }
        })
    }

    /// Adds the products with up to `PANEL_BLOCK` rows to `out: [xs, TILE_ROWS]`, with some lines fetched at each group.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn some<const GROUP: usize, const OFFSETS: bool>(
        &self,
        zero: Zero,
        xs: &[QuantRow<'_>],
        lines: usize,
        out: &mut [f32],
    ) {
        match xs.len() {
            1 | 2 => self.block::<GROUP, OFFSETS, 2>(zero, xs, lines, out),
            _ => self.block::<GROUP, OFFSETS, PANEL_BLOCK>(zero, xs, lines, out),
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn block<const GROUP: usize, const OFFSETS: bool, const X: usize>(
        &self,
        zero: Zero,
        xs: &[QuantRow<'_>],
        lines: usize,
        out: &mut [f32],
    ) {
        assert!(TILES * PANEL_BYTES <= self.panel.len() && self.n_groups * GROUP <= PANEL_COLS, "a panel");
        let acts = Acts::<X>::new(xs, GROUP);
        let mut acc = [[_mm512_setzero_ps(); TILES]; X];
        for (acc, out) in acc.iter_mut().zip(out.chunks_exact(TILE_ROWS)) {
            for (t, acc) in acc.iter_mut().enumerate() {
                *acc = load(&out[t * N_ROWS..]);
            }
        }
        let mut codes = self.panel.as_ptr();
        let mut scales = self.panel[PANEL_CODES..].as_ptr();
        for col in (self.first..).step_by(GROUP).take(self.n_groups) {
            self.ahead.fetch(lines);
            // SAFETY: the panel holds these groups of all tiles; the rows have the columns, as `Job::run` checked.
            unsafe {
                let mut sums = [[_mm512_setzero_si512(); TILES]; X];
                for (x, sums) in sums.iter_mut().enumerate() {
                    *sums = [acts.start(x, col / GROUP, zero); TILES];
                }
                let rows = acts.rows.map(|row| row.wrapping_add(col));
                add_products!(GROUP / 4, X, codes, PANEL_BYTES, rows, sums);
                for t in 0..TILES {
                    let scale = _mm512_loadu_ps(scales.add(t * PANEL_BYTES).cast());
                    let offset = _mm512_loadu_ps(scales.add(t * PANEL_BYTES + 64).cast());
                    for x in 0..X {
                        let factors = (scale, offset);
                        acc[x][t] =
                            acts.add::<GROUP, OFFSETS>(x, col / GROUP, sums[x][t], factors, acc[x][t]);
                    }
                }
                codes = codes.add(GROUP * N_ROWS);
                scales = scales.add(128);
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_exact_mut(TILE_ROWS)) {
            for (t, acc) in acc.iter().enumerate() {
                store(&mut out[t * N_ROWS..], *acc);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn load(values: &[f32]) -> __m512 {
    let values = &values[..N_ROWS];
    // SAFETY: sixteen floats are in bounds; the load needs no alignment.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn store(out: &mut [f32], values: __m512) {
    let out = &mut out[..N_ROWS];
    // SAFETY: sixteen floats are in bounds; the store needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
}
