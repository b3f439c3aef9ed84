//! A filled panel of weights meets sixteen activation rows at a time in the tile unit.
//!
//! A panel's codes are in the order `tdpbssd` wants: four columns of sixteen weight rows to a line. One instruction
//! gives the integer sums of a group for sixteen by sixteen products; vectors scale and add them up. The unit works on
//! the next groups meanwhile: sums pass through a ring in the first-level cache.

use core::arch::asm;
use core::arch::x86_64::*;

use super::unit::{self, Config, ROW_BYTES, Shape, TILE_ROWS};
use crate::avx512::layouts::Layout;
use crate::avx512::tile::{
    Meet, Multiply, PANEL_COLS, PanelTile, Vnni, dot_tiled, dot_unpacked_with, load, store, tiled_kernels,
};
use crate::kernels::DotTiles;
use crate::kernels::TILE_ROWS as OUT_STRIDE;
use crate::linear::codes::{ACT_GROUP, CodeKind};
use crate::linear::packed::{CODE_BYTES, GROUP_BYTES, LINE, PackedRows, SCALES_AT, SUMS16_AT, SUMS32_AT};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
use crate::linear::tiled::{N_ROWS, Tiles};

/// Groups whose sums the ring holds.
const RING_GROUPS: usize = 4;

/// Bytes of one group's sums.
const SUMS_BYTES: usize = TILE_ROWS * ROW_BYTES;

/// Sums of the groups under way. Together they are one page: stores to the ring never look, by their low address bits,
/// like those a load waits for.
#[repr(C, align(4096))]
struct Ring([u8; RING_GROUPS * SUMS_BYTES]);

/// Multiplication by tiles.
pub(super) struct Amx;

tiled_kernels! {
    fn tiled() -> DotTiles, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    |tiles: &Tiles<'_>, xs: &ActRows<'_>, scratch: &mut TileScratch, out: &mut [f32]| match xs.packed {
        Some(packed) => dot_tiled::<Tiled, Amx>(tiles, packed, scratch, out),
        None => dot_tiled::<Tiled, Vnni>(tiles, xs.rows, scratch, out),
    }
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
    match xs.packed {
        Some(packed) => dot_unpacked_with::<Amx>(kind, weights, packed, scratch, out),
        None => dot_unpacked_with::<Vnni>(kind, weights, xs.rows, scratch, out),
    }
}

impl Multiply for Amx {
    const SIGNED: bool = true;

    type Xs<'a> = &'a PackedRows;

    fn size(xs: &PackedRows) -> (usize, usize) {
        (xs.n_rows(), xs.n_groups() * ACT_GROUP)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn meet<L: Layout>(meet: &Meet<'_>, xs: &PackedRows, out: &mut [f32]) {
        meet.ahead.fetch(usize::MAX);
        match (L::GROUP, L::OFFSETS) {
            (32, false) => multiply::<32, false>(meet, xs, out),
            (32, true) => multiply::<32, true>(meet, xs, out),
            (_, false) => multiply::<16, false>(meet, xs, out),
            (_, true) => multiply::<16, true>(meet, xs, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<const GROUP: usize, const OFFSETS: bool>(meet: &Meet<'_>, xs: &PackedRows, out: &mut [f32]) {
    // Tile by tile: it stays in the first-level cache while the activations pass by.
    for (t, tile) in meet.tiles().enumerate() {
        let mut configured = 0;
        for ((n, block), out) in xs.blocks().zip(out.chunks_mut(TILE_ROWS * OUT_STRIDE)) {
            if n != configured {
                // SAFETY: this table is only used where the unit is there.
                unsafe { unit::configure(&shapes(n, GROUP)) };
                configured = n;
            }
            let (job, out) = (TileJob { meet, tile, n }, &mut out[t * N_ROWS..]);
            match n {
                ..=8 => job.run::<GROUP, OFFSETS, 8>(block, out),
                _ => job.run::<GROUP, OFFSETS, TILE_ROWS>(block, out),
            }
        }
    }
    // SAFETY: as above.
    unsafe { unit::release() };
}

/// Registers 0 to 3 hold sums, 4 and 5 activations, 6 and 7 weights.
fn shapes(n_xs: usize, group: usize) -> Config {
    let sums = Shape { rows: n_xs, row_bytes: ROW_BYTES };
    let acts = Shape { rows: n_xs, row_bytes: group };
    let weights = Shape { rows: group / 4, row_bytes: ROW_BYTES };
    Config::new([sums, sums, sums, sums, acts, acts, weights, weights])
}

/// The body once for each row of a tile below a limit, `ROW` being its number.
macro_rules! for_each_row {
    ($limit:expr, $body:block) => {
        for_each_row!($limit, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($limit:expr, $body:block, $($row:literal)*) => {
        $(if $row < $limit {
            const ROW: usize = $row;
            $body
        })*
    };
}

/// Scales the sums of a group, one row after the other, and adds them to the accumulators: a macro, since the compiler
/// would not put so long a function in line, and assembly, since it would start all rows at once and spill.
macro_rules! add_group {
    ($block:expr, $i:expr, $sums:expr, $acc:ident) => {{
        let column = $block.column::<GROUP>($i);
        let scales = $block.tile.scales.wrapping_add($i * 128);
        let acts = $block.group(column);
        let act_sums =
            if GROUP == 32 { acts.wrapping_add(SUMS32_AT) } else { acts.wrapping_add(SUMS16_AT + column / 16 % 2 * LINE) };
        let (scale, offset) = (_mm512_loadu_ps(scales.cast()), _mm512_loadu_ps(scales.add(64).cast()));
        for_each_row!(X, {
            // Named, since the compiler prints a register without a type wrongly.
            let (_converted, _factor): (__m512, __m512);
            asm!(
                "vcvtdq2ps {t:z}, zmmword ptr [{sums} + {at}]",
                "vmulps {s:z}, {scale:z}, dword ptr [{acts} + {scale_at}]{{1to16}}",
                "vfmadd231ps {acc:z}, {t:z}, {s:z}",
                t = out(zmm_reg) _converted,
                s = out(zmm_reg) _factor,
                sums = in(reg) $sums,
                at = const ROW * ROW_BYTES,
                scale = in(zmm_reg) scale,
                acts = in(reg) acts,
                scale_at = const SCALES_AT + ROW * 4,
                acc = inout(zmm_reg) $acc[ROW],
                options(nostack, preserves_flags, readonly),
            );
            if OFFSETS {
                asm!(
                    "vfmadd231ps {acc:z}, {offset:z}, dword ptr [{sums} + {at}]{{1to16}}",
                    offset = in(zmm_reg) offset,
                    sums = in(reg) act_sums,
                    at = const ROW * 4,
                    acc = inout(zmm_reg) $acc[ROW],
                    options(nostack, preserves_flags, readonly),
                );
            }
        });
    }};
}

/// One tile of a panel, to meet a block of `n` rows.
struct TileJob<'a> {
    meet: &'a Meet<'a>,
    tile: PanelTile,
    n: usize,
}

impl TileJob<'_> {
    /// Adds the products to `out`, rows `OUT_STRIDE` apart.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn run<const GROUP: usize, const OFFSETS: bool, const X: usize>(&self, acts: &[u8], out: &mut [f32]) {
        let Self { meet, tile, n } = *self;
        assert!((GROUP..=PANEL_COLS).contains(&(meet.n_groups * GROUP)), "a panel's columns");
        let mut ring = std::mem::MaybeUninit::<Ring>::uninit();
        let ring = ring.as_mut_ptr().cast();
        let block = Block::<X> { meet, tile, acts: acts.as_ptr(), block_bytes: acts.len(), ring };
        let mut acc = [_mm512_setzero_ps(); TILE_ROWS];
        // By number: an array walked by a loop of unknown length would be kept in memory.
        for_each_row!(n, { acc[ROW] = load(&out[ROW * OUT_STRIDE..]) });
        block.run::<GROUP, OFFSETS>(&mut acc);
        for_each_row!(n, { store(&mut out[ROW * OUT_STRIDE..], acc[ROW]) });
    }
}

/// A block of activation rows and one tile of a panel.
struct Block<'a, const X: usize> {
    meet: &'a Meet<'a>,
    tile: PanelTile,
    acts: *const u8,
    block_bytes: usize,
    ring: *mut u8,
}

impl<const X: usize> Block<'_, X> {
    /// The first column of the panel's `i`th group.
    #[inline(always)]
    fn column<const GROUP: usize>(&self, i: usize) -> usize {
        self.meet.first + i * GROUP
    }

    /// The group of 32 columns that holds `column`.
    #[inline(always)]
    fn group(&self, column: usize) -> *const u8 {
        self.acts.wrapping_add(column / ACT_GROUP * GROUP_BYTES)
    }

    /// Fetches what the next block has in the group of 32 columns that holds `column`.
    #[inline(always)]
    fn fetch<const GROUP: usize>(&self, column: usize) {
        if GROUP == 32 || column.is_multiple_of(32) {
            let ahead = self.group(column).wrapping_add(self.block_bytes);
            for line in (0..GROUP_BYTES).step_by(64) {
                // SAFETY: a fetch of an address that is not there does nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(line).cast()) };
            }
        }
    }

    /// Adds all groups' products to `acc`.
    ///
    /// A step stores the sums of one group, multiplies the next, loads the one after it and scales what was stored a
    /// step before: an instruction's operands were ready long ago, and nothing waits at the head of the processor's
    /// queue.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn run<const GROUP: usize, const OFFSETS: bool>(&self, acc: &mut [__m512; TILE_ROWS]) {
        let codes = |i: usize| {
            let column = self.column::<GROUP>(i);
            self.group(column).wrapping_add(column % ACT_GROUP)
        };
        let n = self.meet.n_groups;
        let weights = |i: usize| self.tile.codes.wrapping_add(i * GROUP * N_ROWS);
        let ring = |i: usize| self.ring.wrapping_add(i % RING_GROUPS * SUMS_BYTES);
        // SAFETY: the panel holds the first of its groups, as below.
        unsafe { load_even(codes(0), weights(0)) };
        for first in (0..n + 2).step_by(RING_GROUPS) {
            // Written out, so that registers are known.
            macro_rules! step {
                ($step:literal, $store:ident, $multiply:ident, $load:ident) => {
                    let i = first + $step;
                    // SAFETY: the panel holds every group below `n`; the rows have its columns (`Job::run`); the ring has room for the sums; the shapes were set in `Amx::meet`. Groups are scaled
                    // after they were stored.
                    unsafe {
                        if (1..=n).contains(&i) {
                            $store(ring(i - 1));
                        }
                        if i < n {
                            $multiply();
                        }
                        if i + 1 < n {
                            $load(codes(i + 1), weights(i + 1));
                            self.fetch::<GROUP>(self.column::<GROUP>(i + 1));
                        }
                        if i >= 2 && i - 2 < n {
                            add_group!(self, i - 2, ring(i - 2), acc);
                        }
                    }
                };
            }
            step!(0, store_3, multiply_0, load_odd);
            step!(1, store_0, multiply_1, load_even);
            step!(2, store_1, multiply_2, load_odd);
            step!(3, store_2, multiply_3, load_even);
        }
    }
}

/// Loads the operands of even groups into registers 4 and 6, of odd ones into 5 and 7.
macro_rules! loads {
    ($($name:ident: $acts:literal, $weights:literal;)*) => {
        $(
            /// # Safety
            /// The shapes are set; the operands are tiles of these shapes.
            #[inline(always)]
            unsafe fn $name(acts: *const u8, weights: *const u8) {
                // SAFETY: by the caller's promise.
                unsafe {
                    asm!(
                        concat!("tileloadd ", $acts, ", [{acts} + {stride}]"),
                        concat!("tileloadd ", $weights, ", [{weights} + {line}]"),
                        acts = in(reg) acts,
                        stride = in(reg) CODE_BYTES,
                        weights = in(reg) weights,
                        line = in(reg) ROW_BYTES,
                        options(nostack, preserves_flags, readonly),
                    );
                }
            }
        )*
    };
}

loads! {
    load_even: "tmm4", "tmm6";
    load_odd: "tmm5", "tmm7";
}

/// Names functions that multiply a group, and that store its sums, by the register of the sums.
macro_rules! sums {
    ($($multiply:ident, $store:ident: $sums:literal, $acts:literal, $weights:literal;)*) => {
        $(
            /// # Safety
            /// The operands were loaded.
            #[inline(always)]
            unsafe fn $multiply() {
                // SAFETY: the operands were loaded, by the caller's promise.
                unsafe {
                    asm!(
                        concat!("tilezero ", $sums),
                        concat!("tdpbssd ", $sums, ", ", $acts, ", ", $weights),
                        options(nomem, nostack, preserves_flags),
                    );
                }
            }

            /// # Safety
            /// The shapes are set, and there is room for a tile of sums.
            #[inline(always)]
            unsafe fn $store(to: *mut u8) {
                // SAFETY: by the caller's promise.
                unsafe {
                    asm!(
                        concat!("tilestored [{to} + {line}], ", $sums),
                        to = in(reg) to,
                        line = in(reg) ROW_BYTES,
                        options(nostack, preserves_flags),
                    );
                }
            }
        )*
    };
}

sums! {
    multiply_0, store_0: "tmm0", "tmm4", "tmm6";
    multiply_1, store_1: "tmm1", "tmm5", "tmm7";
    multiply_2, store_2: "tmm2", "tmm4", "tmm6";
    multiply_3, store_3: "tmm3", "tmm5", "tmm7";
}
