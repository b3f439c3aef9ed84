//! Super-blocks meet thirty-two activation rows at a time in the tile unit.
//!
//! A code less its zero, times its group's scale, has at most fourteen bits: the panel keeps its low byte and what is
//! above it. So the unit adds up whole super-blocks, and vectors read two tiles of sums for 256 columns. The sums are
//! those of AVX-512's kernels, and so are the products.

use core::arch::asm;
use core::arch::x86_64::*;

use super::unit::{self, Config, ROW_BYTES, Shape, TILE_ROWS};
use crate::avx512::rows::TileRows;
use crate::avx512::super_blocks::{Heads, SuperBlock, Visitor};
use crate::avx512::super_tile::{
    HEADS_BYTES, Multiply, Panel, block_kernels, dot, heads_at, put_heads, put_lines, through_panel,
};
use crate::avx512::tile::TILES;
use crate::kernels::{DotBlocks, TILE_ROWS as OUT_STRIDE};
use crate::linear::blocks::{
    BLOCK_COLS, BlockRows, PACKED_BYTES, PACKED_SCALES_AT, PACKED_SUMS32_AT, TILE_BYTES,
};
use crate::linear::packed::PackedRows;
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{LINE_BYTES, N_ROWS, Tiles};

/// A super-block in the panel: the low bytes, what is above them, the heads.
const HIGH_AT: usize = BLOCK_COLS * N_ROWS;
const HEADS_AT: usize = 2 * HIGH_AT;
const PANEL_BYTES: usize = HEADS_AT + HEADS_BYTES;

/// Super-blocks of a row that a panel holds: it stays in the first-level cache while activations, which do not, pass by
/// once for both tiles.
const PANEL_BLOCKS: usize = 2;

/// Cache lines of a packed block of activations.
const PACKED_LINES: usize = PACKED_BYTES / LINE_BYTES;

/// A tile of sums, and those of a step: low and high ones of two blocks of activations.
const SUMS_BYTES: usize = TILE_ROWS * ROW_BYTES;
const STEP_BYTES: usize = 4 * SUMS_BYTES;

/// Sums of the steps under way; whole pages, see `panel::Ring`.
#[repr(C, align(4096))]
struct Ring([u8; TILES * STEP_BYTES]);

block_kernels! {
    fn tiled() -> DotBlocks, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni",
    |tiles: &Tiles<'_>, xs: &BlockRows<'_>, scratch: &mut TileScratch, out: &mut [f32]|
        dot_packed::<Blocks>(tiles, xs, scratch, out)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot_packed<S: SuperBlock>(
    tiles: &Tiles<'_>,
    xs: &BlockRows<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    match xs.packed {
        Some(packed) => {
            assert!(tiles.n_blocks <= packed.n_groups(), "columns of weights and activations");
            // SAFETY: this table is only used where the unit is there.
            unsafe { Amx::begin(packed.n_rows()) };
            through_panel::<S, InTiles<Amx>>(tiles, (packed, packed.n_rows()), scratch, out);
            // SAFETY: as above.
            unsafe { Amx::end() };
        }
        None => dot::<S>(tiles, xs, scratch, out),
    }
}

/// What multiplies tiles of sixteen rows by 64 columns, in eight registers.
trait TileUnit {
    /// # Safety
    /// The unit is set up, and a tile is there.
    unsafe fn load<const TILE: u8>(from: *const u8);

    /// # Safety
    /// The unit is set up.
    unsafe fn clear<const TILE: u8>();

    /// Adds products of activations with low bytes, which are unsigned.
    ///
    /// # Safety
    /// The unit is set up.
    unsafe fn add_low<const SUMS: u8, const ACTS: u8, const WEIGHTS: u8>();

    /// Adds products of activations with what is above low bytes.
    ///
    /// # Safety
    /// The unit is set up.
    unsafe fn add_high<const SUMS: u8, const ACTS: u8, const WEIGHTS: u8>();

    /// # Safety
    /// The unit is set up, and there is room for a tile.
    unsafe fn store<const TILE: u8>(to: *mut u8);
}

/// Multiplication by a tile unit.
struct InTiles<U>(std::marker::PhantomData<U>);

impl<U: TileUnit> Multiply for InTiles<U> {
    const PANEL_BYTES: usize = PANEL_BYTES;
    const PANEL_BLOCKS: usize = PANEL_BLOCKS;

    type Xs<'a> = &'a PackedRows;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn fill<S: SuperBlock>(rows: TileRows, block: usize, out: &mut [u8]) {
        // SAFETY: passes the caller's promise on.
        unsafe { S::visit(rows, block, &mut Fill { out }) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn meet<S: SuperBlock>(panel: &Panel<'_>, xs: &PackedRows, out: &mut [f32]) {
        multiply::<S, U>(panel, xs, out);
    }
}

/// Writes codes, less their zero, times scales.
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
        // A byte of scale for the even codes of a lane, and for the odd ones.
        let even = _mm512_and_si512(scale, _mm512_set1_epi32(0xff));
        let even = _mm512_or_si512(even, _mm512_slli_epi32::<16>(even));
        let odd = _mm512_slli_epi32::<8>(even);
        let zero = _mm512_mullo_epi16(_mm512_srai_epi16::<8>(odd), _mm512_set1_epi16(S::ZERO as i16));
        let low_bytes = _mm512_set1_epi16(0xff);
        let (mut low, mut high) = (codes, codes);
        for ((low, high), code) in low.iter_mut().zip(&mut high).zip(codes) {
            let evens = _mm512_sub_epi16(_mm512_maddubs_epi16(code, even), zero);
            let odds = _mm512_sub_epi16(_mm512_maddubs_epi16(code, odd), zero);
            // The first where the mask is set, the second elsewhere.
            const CHOOSE: i32 = 0xe4;
            *low = _mm512_ternarylogic_epi32::<CHOOSE>(evens, _mm512_slli_epi16::<8>(odds), low_bytes);
            *high = _mm512_ternarylogic_epi32::<CHOOSE>(_mm512_srli_epi16::<8>(evens), odds, low_bytes);
        }
        put_lines(&mut self.out[col * N_ROWS..], &low);
        put_lines(&mut self.out[HIGH_AT + col * N_ROWS..], &high);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn heads<S: SuperBlock>(&mut self, heads: &Heads) {
        put_heads(&mut self.out[HEADS_AT..], heads);
    }
}

/// Sums of sixteen activation rows with sixteen weight rows that wait to be scaled.
#[derive(Clone, Copy)]
struct Half {
    acts: *const u8,
    /// Rows that are there.
    n: usize,
    out: *mut f32,
}

/// A super-block of a weight tile with two blocks of activations: where it is, where its sums go, and what is fetched
/// meanwhile.
#[derive(Clone, Copy)]
struct Step {
    weights: *const u8,
    halves: [Half; 2],
    ring: *mut u8,
    next: *const u8,
}

/// While a super-block is multiplied, the sums of the one before are scaled.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<S: SuperBlock, U: TileUnit>(panel: &Panel<'_>, xs: &PackedRows, out: &mut [f32]) {
    let mut ring = std::mem::MaybeUninit::<Ring>::uninit();
    let ring = ring.as_mut_ptr().cast::<u8>();
    let lines = panel.ahead.lines_each(panel.n_blocks * xs.blocks().count().div_ceil(2));
    let none = Half { acts: panel.bytes.as_ptr(), n: 0, out: out.as_mut_ptr() };
    let mut before = Step { weights: panel.bytes.as_ptr(), halves: [none; 2], ring, next: none.acts };
    let mut blocks = xs.blocks().zip(out.chunks_mut(TILE_ROWS * OUT_STRIDE));
    while let Some(((n_0, acts_0), out_0)) = blocks.next() {
        // A block that is not there is multiplied as the first, and nobody reads its sums.
        let ((n_1, acts_1), out_1) = match blocks.next() {
            Some(((n, acts), out)) => ((n, acts), out.as_mut_ptr()),
            None => ((0, acts_0), out_0.as_mut_ptr()),
        };
        let out = [out_0.as_mut_ptr(), out_1];
        for (i, slots) in panel.bytes.chunks_exact(TILES * PANEL_BYTES).take(panel.n_blocks).enumerate() {
            panel.ahead.fetch(lines);
            let at = (panel.first + i) * PACKED_BYTES;
            let acts = [&acts_0[at..][..PACKED_BYTES], &acts_1[at..][..PACKED_BYTES]].map(<[u8]>::as_ptr);
            for (t, slot) in slots.chunks_exact(PANEL_BYTES).enumerate() {
                // What the block of that number has next, or the one two further on has first.
                let next = match i + 1 < panel.n_blocks {
                    true => acts[t].wrapping_add(PACKED_BYTES),
                    false => {
                        acts_0.as_ptr().wrapping_add(panel.first * PACKED_BYTES + (2 + t) * xs.block_bytes())
                    }
                };
                let half =
                    |of: usize, n: usize| Half { acts: acts[of], n, out: out[of].wrapping_add(t * N_ROWS) };
                let ring = ring.wrapping_add(t * STEP_BYTES);
                let step = Step { weights: slot.as_ptr(), halves: [half(0, n_0), half(1, n_1)], ring, next };
                // SAFETY: the unit is set up; a packed block begins with four tiles, and a super-block in a panel with
                // two times four; the ring has room for the sums of each tile; rows of results are there (`blocks`).
                unsafe { multiply_step::<S, U>(&step, &before) };
                before = step;
            }
        }
    }
    // SAFETY: the sums were stored, and the rest is as above.
    unsafe { add_scaled::<S>(&before) };
}

/// Adds what row `$x` of the sums of `$step`, both halves counted, stands for to the results.
macro_rules! add_row {
    ($format:ty, $step:expr, $heads:expr, $x:expr) => {{
        let (half, x) = (&$step.halves[$x / TILE_ROWS], $x % TILE_ROWS);
        if x < half.n {
            let low = $step.ring.add($x / TILE_ROWS * 2 * SUMS_BYTES + x * ROW_BYTES);
            let (low, high) = (_mm512_loadu_si512(low.cast()), _mm512_loadu_si512(low.add(SUMS_BYTES).cast()));
            let sum = _mm512_add_epi32(low, _mm512_slli_epi32::<8>(high));
            let mut of_minima = _mm512_setzero_si512();
            // A zero that is not a minimum was taken off in the panel.
            if <$format>::ZERO == 0 {
                for (i, &minima) in $heads.minima[..<$format>::PAIRS].iter().enumerate() {
                    // Assembly, since the compiler makes it three instructions.
                    asm!(
                        "vpdpwssd {sums:z}, {minima:z}, dword ptr [{pairs}]{{1to16}}",
                        sums = inout(zmm_reg) of_minima,
                        minima = in(zmm_reg) minima,
                        pairs = in(reg) half.acts.add(PACKED_SUMS32_AT + i * LINE_BYTES + 4 * x),
                        options(nostack, preserves_flags, readonly, pure),
                    );
                }
            }
            let value = <$format>::value(sum, of_minima, $heads.d, $heads.d_min);
            let scale = half.acts.add(PACKED_SCALES_AT + 4 * x).cast::<f32>().read_unaligned();
            let out = half.out.add(x * OUT_STRIDE);
            _mm512_storeu_ps(out, _mm512_fmadd_ps(value, _mm512_set1_ps(scale), _mm512_loadu_ps(out)));
        }
    }};
}

/// Adds what all sums of a step stand for to the results, rows `OUT_STRIDE` apart.
///
/// # Safety
/// The sums were stored; weights, activations and results are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn add_scaled<S: SuperBlock>(step: &Step) {
    // SAFETY: by the caller's promise.
    unsafe {
        let heads = heads_at(step.weights.add(HEADS_AT));
        for x in 0..2 * TILE_ROWS {
            add_row!(S, step, heads, x);
        }
    }
}

/// Multiplies a super-block and stores its sums. Of the sums of `before` two rows are scaled after each of the sixteen
/// multiplications: a processor looks some hundred instructions ahead, and has to find both kinds there. Registers 0 to
/// 3 hold sums, low ones of both blocks, then high ones; 4 and 5 activations, 6 and 7 weights, low and high.
///
/// # Safety
/// The unit is set up; both steps' weights, activations and results are there, and the sums of `before`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply_step<S: SuperBlock, U: TileUnit>(step: &Step, before: &Step) {
    // SAFETY: by the caller's promise; a fetch of an address that is not there does nothing.
    unsafe {
        let heads = heads_at(before.weights.add(HEADS_AT));
        let tile = |from: *const u8, number: usize| from.wrapping_add(number * TILE_BYTES);
        let [acts_0, acts_1] = step.halves.map(|half| half.acts);
        let (low, high) = (step.weights, step.weights.add(HIGH_AT));
        U::load::<4>(acts_0);
        U::load::<6>(low);
        macro_rules! meanwhile {
            ($n:expr) => {
                for line in $n * PACKED_LINES / 16..($n + 1) * PACKED_LINES / 16 {
                    _mm_prefetch::<_MM_HINT_T0>(step.next.wrapping_add(line * LINE_BYTES).cast());
                }
                add_row!(S, before, heads, 2 * $n);
                add_row!(S, before, heads, 2 * $n + 1);
            };
        }
        macro_rules! columns {
            ($number:literal) => {
                U::load::<5>(tile(acts_1, $number));
                if $number == 0 {
                    U::clear::<0>();
                }
                U::add_low::<0, 4, 6>();
                meanwhile!(4 * $number);
                U::load::<7>(tile(high, $number));
                if $number == 0 {
                    U::clear::<1>();
                }
                U::add_low::<1, 5, 6>();
                meanwhile!(4 * $number + 1);
                if $number < 3 {
                    U::load::<6>(tile(low, $number + 1));
                }
                if $number == 0 {
                    U::clear::<2>();
                }
                U::add_high::<2, 4, 7>();
                meanwhile!(4 * $number + 2);
                if $number < 3 {
                    U::load::<4>(tile(acts_0, $number + 1));
                }
                if $number == 0 {
                    U::clear::<3>();
                }
                U::add_high::<3, 5, 7>();
                meanwhile!(4 * $number + 3);
            };
        }
        columns!(0);
        columns!(1);
        columns!(2);
        columns!(3);
        U::store::<0>(step.ring);
        U::store::<1>(step.ring.add(2 * SUMS_BYTES));
        U::store::<2>(step.ring.add(SUMS_BYTES));
        U::store::<3>(step.ring.add(3 * SUMS_BYTES));
    }
}

/// The processor's.
struct Amx;

impl Amx {
    /// Sets the unit up for this thread.
    ///
    /// # Safety
    /// The CPU has it. Activations will have `n_rows` rows at most.
    unsafe fn begin(n_rows: usize) {
        let acts = Shape { rows: n_rows.min(TILE_ROWS), row_bytes: ROW_BYTES };
        let weights = Shape { rows: TILE_ROWS, row_bytes: ROW_BYTES };
        // SAFETY: passes the caller's promise on.
        unsafe { unit::configure(&Config::new([acts, acts, acts, acts, acts, acts, weights, weights])) };
    }

    /// # Safety
    /// As [`Self::begin`].
    unsafe fn end() {
        // SAFETY: passes the caller's promise on.
        unsafe { unit::release() };
    }
}

impl TileUnit for Amx {
    #[inline(always)]
    unsafe fn load<const TILE: u8>(from: *const u8) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{from} + {line}]",
                tile = const TILE,
                from = in(reg) from,
                line = in(reg) ROW_BYTES,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    #[inline(always)]
    unsafe fn clear<const TILE: u8>() {
        // SAFETY: by the caller's promise.
        unsafe { asm!("tilezero tmm{tile}", tile = const TILE, options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn add_low<const SUMS: u8, const ACTS: u8, const WEIGHTS: u8>() {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tdpbsud tmm{sums}, tmm{acts}, tmm{weights}",
                sums = const SUMS,
                acts = const ACTS,
                weights = const WEIGHTS,
                options(nomem, nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    unsafe fn add_high<const SUMS: u8, const ACTS: u8, const WEIGHTS: u8>() {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tdpbssd tmm{sums}, tmm{acts}, tmm{weights}",
                sums = const SUMS,
                acts = const ACTS,
                weights = const WEIGHTS,
                options(nomem, nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    unsafe fn store<const TILE: u8>(to: *mut u8) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!(
                "tilestored [{to} + {line}], tmm{tile}",
                tile = const TILE,
                to = in(reg) to,
                line = in(reg) ROW_BYTES,
                options(nostack, preserves_flags),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;

    use mlxr_tensor::conformance::data::{self, Noise};
    use mlxr_tensor::{DType, Format};
    use proptest::prelude::*;

    use super::*;
    use crate::acts::ActPool;
    use crate::avx512::super_blocks::{Q4K, Q5K, Q6K};
    use crate::avx512::{self, quantise::quantise_blocks};
    use crate::linear::blocks::{BLOCK_BYTES, pack, packed_room};
    use crate::linear::tiled::TileRoom;
    use crate::pool::ThreadPool;
    use crate::room::Room;
    use crate::weight::Matrix;

    /// What the manual says of the instructions, one product at a time.
    struct Model;

    thread_local! {
        static TILES: RefCell<[[u8; TILE_BYTES]; 8]> = const { RefCell::new([[0; TILE_BYTES]; 8]) };
    }

    /// Adds products of two tiles to a third; `weight` says what a byte of the second stands for.
    fn add_products([sums, acts, weights]: [u8; 3], weight: impl Fn(u8) -> i32) {
        TILES.with_borrow_mut(|tiles| {
            let (acts, weights) = (tiles[acts as usize], tiles[weights as usize]);
            for (i, sum) in tiles[sums as usize].chunks_exact_mut(4).enumerate() {
                let (m, n) = (i / 16, i % 16);
                let product = |k: usize| {
                    i32::from(acts[64 * m + k] as i8) * weight(weights[k / 4 * 64 + 4 * n + k % 4])
                };
                let before = i32::from_ne_bytes(sum.try_into().expect("four bytes"));
                let after = before + (0..64).map(product).sum::<i32>();
                sum.copy_from_slice(&after.to_ne_bytes());
            }
        });
    }

    impl TileUnit for Model {
        unsafe fn load<const TILE: u8>(from: *const u8) {
            // SAFETY: a tile is there, by the caller's promise.
            let tile = unsafe { from.cast::<[u8; TILE_BYTES]>().read_unaligned() };
            TILES.with_borrow_mut(|tiles| tiles[TILE as usize] = tile);
        }

        unsafe fn clear<const TILE: u8>() {
            TILES.with_borrow_mut(|tiles| tiles[TILE as usize].fill(0));
        }

        unsafe fn add_low<const SUMS: u8, const ACTS: u8, const WEIGHTS: u8>() {
            add_products([SUMS, ACTS, WEIGHTS], i32::from);
        }

        unsafe fn add_high<const SUMS: u8, const ACTS: u8, const WEIGHTS: u8>() {
            add_products([SUMS, ACTS, WEIGHTS], |byte| i32::from(byte as i8));
        }

        unsafe fn store<const TILE: u8>(to: *mut u8) {
            // SAFETY: there is room for a tile, by the caller's promise.
            TILES.with_borrow(|tiles| unsafe {
                to.cast::<[u8; TILE_BYTES]>().write_unaligned(tiles[TILE as usize])
            });
        }
    }

    /// Products by tiles and by vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn both<S: SuperBlock>(tiles: &Tiles<'_>, rows: &[&[u8]]) -> [Vec<f32>; 2] {
        let memory = Arc::<ActPool>::default();
        let packed = packed_room(rows.len(), rows[0].len(), &memory).filled(rows, pack);
        let mut out = [(); 2].map(|()| vec![f32::NAN; rows.len() * OUT_STRIDE]);
        let scratch = &mut TileScratch::empty();
        through_panel::<S, InTiles<Model>>(tiles, (&packed, rows.len()), scratch, &mut out[0]);
        dot::<S>(tiles, &BlockRows { rows, packed: None }, scratch, &mut out[1]);
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn tiles_give_the_products_of_vectors(n_blocks in 1usize..5, n_x in 1usize..40, n_w in 1usize..33, seed: u64) {
            if !avx512::is_available() {
                return Ok(());
            }
            let (mut noise, cols) = (Noise::new(seed), n_blocks * BLOCK_COLS);
            let kernels = crate::kernels::Kernels { wide: None, ..avx512::TABLE };
            let x = noise.values(n_x * cols);
            let mut acts = vec![0; n_x * n_blocks * BLOCK_BYTES];
            // SAFETY: AVX-512 is available.
            unsafe { quantise_blocks(&x, &mut acts) };
            let rows: Vec<&[u8]> = acts.chunks_exact(n_blocks * BLOCK_BYTES).collect();
            for dtype in [DType::Q4_K, DType::Q5_K, DType::Q6_K] {
                let tensor = data::tensor(Format::Plain(dtype), &[n_w, cols], &mut noise);
                let Ok(Matrix::Tiled(matrix)) = Matrix::new(&tensor, &kernels, &ThreadPool::new(1), &Room::default()) else {
                    panic!("a tile order")
                };
                let mut room = TileRoom::empty();
                let tiles = matrix.tiles(0..n_w, &mut room);
                // SAFETY: AVX-512 is available.
                let [by_tiles, by_vectors] = unsafe {
                    match dtype {
                        DType::Q4_K => both::<Q4K>(&tiles, &rows),
                        DType::Q5_K => both::<Q5K>(&tiles, &rows),
                        _ => both::<Q6K>(&tiles, &rows),
                    }
                };
                let columns = |out: Vec<f32>| -> Vec<f32> {
                    out.chunks_exact(OUT_STRIDE).flat_map(|row| row[..n_w].to_vec()).collect()
                };
                prop_assert_eq!(columns(by_tiles), columns(by_vectors), "{}", dtype.name());
            }
        }
    }
}
