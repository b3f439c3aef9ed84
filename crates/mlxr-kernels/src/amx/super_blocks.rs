//! Super-blocks meet sixteen activation rows at a time in the tile unit.
//!
//! A code times its group's scale has at most fourteen bits: the panel keeps its low byte and what is above it. So the
//! unit adds up whole super-blocks, and vectors read two tiles of sums for 256 columns. The sums are those of
//! AVX-512's kernels, and so are the products.

use core::arch::asm;
use core::arch::x86_64::*;

use super::unit::{self, Config, ROW_BYTES, Shape, TILE_ROWS};
use crate::avx512::rows::TileRows;
use crate::avx512::super_blocks::{Heads, SuperBlock, Visitor};
use crate::avx512::super_tile::{
    HEADS_BYTES, Multiply, Panel, block_kernels, dot, heads_at, put_heads, put_lines, through_panel,
};
use crate::avx512::tile::{TILES, load, store};
use crate::kernels::{DotBlocks, TILE_ROWS as OUT_STRIDE};
use crate::linear::blocks::{
    BLOCK_COLS, BlockRows, PACKED_BYTES, PACKED_SCALES_AT, PACKED_SUMS16_AT, PACKED_SUMS32_AT, TILE_BYTES,
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

/// Two tiles of sums.
const SUMS_BYTES: usize = 2 * TILE_ROWS * ROW_BYTES;

/// Sums of the super-blocks under way; one page, see `panel::Ring`.
#[repr(C, align(4096))]
struct Ring([u8; 2 * SUMS_BYTES]);

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

/// What multiplies tiles of sixteen rows by 64 columns.
trait TileUnit {
    /// Computes both sums of a super-block of weight tile `t`.
    ///
    /// # Safety
    /// The unit is set up; four tiles of activations, and the codes of a panel's super-block, are there.
    unsafe fn multiply(t: usize, acts: *const u8, panel: *const u8);

    /// Writes them.
    ///
    /// # Safety
    /// The unit is set up; there is room for two tiles.
    unsafe fn store(t: usize, to: *mut u8);
}

/// Multiplication by a tile unit.
struct InTiles<U>(std::marker::PhantomData<U>);

impl<U: TileUnit> Multiply for InTiles<U> {
    const PANEL_BYTES: usize = PANEL_BYTES;
    const PANEL_BLOCKS: usize = PANEL_BLOCKS;

    type Xs<'a> = &'a PackedRows<'a>;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn fill<S: SuperBlock>(rows: TileRows, block: usize, out: &mut [u8]) {
        // SAFETY: passes the caller's promise on.
        unsafe { S::visit(rows, block, &mut Fill { out }) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn meet<S: SuperBlock>(panel: &Panel<'_>, xs: &PackedRows<'_>, out: &mut [f32]) {
        multiply::<S, U>(panel, xs, out);
    }
}

/// Writes codes times scales.
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
        let low_bytes = _mm512_set1_epi16(0xff);
        let (mut low, mut high) = (codes, codes);
        for ((low, high), code) in low.iter_mut().zip(&mut high).zip(codes) {
            let (evens, odds) = (_mm512_maddubs_epi16(code, even), _mm512_maddubs_epi16(code, odd));
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

/// A super-block of weight tile `t` with a block of `n` activation rows.
#[derive(Clone, Copy)]
struct Sums {
    t: usize,
    /// Where its sums go.
    ring: *mut u8,
    weights: *const u8,
    acts: *const u8,
    n: usize,
    /// Where the results begin.
    first: usize,
}

/// A step multiplies a super-block, stores the sums of the one before, and scales those of the one before that: a load
/// that looks like a store by its low address bits waits for it, so stores are issued when their sums are ready.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn multiply<S: SuperBlock, U: TileUnit>(panel: &Panel<'_>, xs: &PackedRows<'_>, out: &mut [f32]) {
    let mut ring = std::mem::MaybeUninit::<Ring>::uninit();
    let ring = ring.as_mut_ptr().cast::<u8>();
    let lines = panel.ahead.lines_each(panel.n_blocks * xs.blocks().count());
    let (mut multiplied, mut stored): (Option<Sums>, Option<Sums>) = (None, None);
    let mut next = |sums: Option<Sums>| {
        // SAFETY: the unit is set up; a packed block begins with four tiles, and a super-block in a panel with two times
        // four; the ring has room for the sums of each tile.
        unsafe {
            sums.inspect(|sums| U::multiply(sums.t, sums.acts, sums.weights));
            multiplied.inspect(|sums| U::store(sums.t, sums.ring));
        }
        stored.inspect(|sums| add_scaled::<S>(sums, &mut out[sums.first..]));
        (multiplied, stored) = (sums, multiplied);
    };
    for (block, (n, acts)) in xs.blocks().enumerate() {
        for (i, slots) in panel.bytes.chunks_exact(TILES * PANEL_BYTES).take(panel.n_blocks).enumerate() {
            panel.ahead.fetch(lines);
            let acts = acts[(panel.first + i) * PACKED_BYTES..][..PACKED_BYTES].as_ptr();
            for t in 0..TILES {
                let weights = slots[t * PANEL_BYTES..].as_ptr();
                let first = block * TILE_ROWS * OUT_STRIDE + t * N_ROWS;
                next(Some(Sums { t, ring: ring.wrapping_add(t * SUMS_BYTES), weights, acts, n, first }));
            }
        }
    }
    next(None);
    next(None);
}

/// Adds what sums stand for to `out`, rows `OUT_STRIDE` apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn add_scaled<S: SuperBlock>(of: &Sums, out: &mut [f32]) {
    let pairs_at = if S::GROUP == 32 { PACKED_SUMS32_AT } else { PACKED_SUMS16_AT };
    // SAFETY: heads, two tiles of sums and a packed block are there, as `multiply` put them together.
    unsafe {
        let heads = heads_at(of.weights.add(HEADS_AT));
        let line = |at: usize| _mm512_loadu_si512(of.ring.add(at).cast());
        let word = |at: usize| _mm512_set1_epi32(of.acts.add(at).cast::<i32>().read_unaligned());
        for x in 0..of.n {
            let (low, high) = (line(x * ROW_BYTES), line(SUMS_BYTES / 2 + x * ROW_BYTES));
            let sum = _mm512_add_epi32(low, _mm512_slli_epi32::<8>(high));
            let mut of_minima = _mm512_setzero_si512();
            for (i, &minima) in heads.minima[..S::PAIRS].iter().enumerate() {
                of_minima = _mm512_dpwssd_epi32(of_minima, minima, word(pairs_at + i * LINE_BYTES + 4 * x));
            }
            let value = S::value(sum, of_minima, heads.d, heads.d_min);
            let scale = _mm512_castsi512_ps(word(PACKED_SCALES_AT + 4 * x));
            let out = &mut out[x * OUT_STRIDE..];
            store(out, _mm512_fmadd_ps(value, scale, load(out)));
        }
    }
}

/// The processor's. Registers 0 and 1 hold the sums of the first tile of weights, low ones first, 2 and 3 those of the
/// second; 4 and 5 activations, 6 and 7 weights.
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
    unsafe fn multiply(t: usize, acts: *const u8, panel: *const u8) {
        // SAFETY: passes the caller's promise on.
        unsafe { if t == 0 { multiply_0(acts, panel) } else { multiply_1(acts, panel) } }
    }

    #[inline(always)]
    unsafe fn store(t: usize, to: *mut u8) {
        // SAFETY: passes the caller's promise on.
        unsafe { if t == 0 { store_0(to) } else { store_1(to) } }
    }
}

/// Names what multiplies into two registers, and what stores them. Low bytes are unsigned, what is above them signed.
macro_rules! slots {
    ($($multiply:ident, $store:ident: $low:literal, $high:literal;)*) => {
        $(
            /// # Safety
            /// As [`TileUnit::multiply`].
            #[inline(always)]
            unsafe fn $multiply(acts: *const u8, panel: *const u8) {
                // SAFETY: by the caller's promise.
                unsafe {
                    asm!(
                        concat!("tilezero ", $low),
                        concat!("tilezero ", $high),
                        slots!(@step "0", "tmm4", $low, $high),
                        slots!(@step "1", "tmm5", $low, $high),
                        slots!(@step "2", "tmm4", $low, $high),
                        slots!(@step "3", "tmm5", $low, $high),
                        acts = in(reg) acts,
                        weights = in(reg) panel,
                        line = in(reg) ROW_BYTES,
                        tile = const TILE_BYTES,
                        high = const HIGH_AT,
                        options(nostack, preserves_flags, readonly),
                    );
                }
            }

            /// # Safety
            /// As [`TileUnit::store`].
            #[inline(always)]
            unsafe fn $store(to: *mut u8) {
                // SAFETY: by the caller's promise.
                unsafe {
                    asm!(
                        concat!("tilestored [{to} + {line}], ", $low),
                        concat!("tilestored [{to} + {line} + {tile}], ", $high),
                        to = in(reg) to,
                        line = in(reg) ROW_BYTES,
                        tile = const TILE_ROWS * ROW_BYTES,
                        options(nostack, preserves_flags),
                    );
                }
            }
        )*
    };
    // Sixty-four columns.
    (@step $number:literal, $acts:literal, $low:literal, $high:literal) => {
        concat!(
            "tileloadd ", $acts, ", [{acts} + {line} + ", $number, " * {tile}]\n",
            "tileloadd tmm6, [{weights} + {line} + ", $number, " * {tile}]\n",
            "tdpbsud ", $low, ", ", $acts, ", tmm6\n",
            "tileloadd tmm7, [{weights} + {line} + ", $number, " * {tile} + {high}]\n",
            "tdpbssd ", $high, ", ", $acts, ", tmm7",
        )
    };
}

slots! {
    multiply_0, store_0: "tmm0", "tmm1";
    multiply_1, store_1: "tmm2", "tmm3";
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use mlxr_tensor::conformance::data::{self, Noise};
    use mlxr_tensor::{DType, Format};
    use proptest::prelude::*;

    use super::*;
    use crate::acts::ActPool;
    use crate::avx512::super_blocks::{Q4K, Q5K, Q6K};
    use crate::avx512::{self, quantise::quantise_blocks};
    use crate::linear::blocks::{BLOCK_BYTES, pack, packed_room};
    use crate::pool::ThreadPool;
    use crate::weight::Matrix;

    /// What the manual says of `tdpbsud` and `tdpbssd`, one product at a time.
    struct Model;

    thread_local! {
        static SUMS: RefCell<[[i32; 512]; 2]> = const { RefCell::new([[0; 512]; 2]) };
    }

    impl TileUnit for Model {
        unsafe fn multiply(t: usize, acts: *const u8, panel: *const u8) {
            // SAFETY: four tiles, and two times four, by the caller's promise.
            let (acts, panel) = unsafe {
                (
                    std::slice::from_raw_parts(acts, 4 * TILE_BYTES),
                    std::slice::from_raw_parts(panel, 8 * TILE_BYTES),
                )
            };
            SUMS.with_borrow_mut(|sums| {
                sums[t].fill(0);
                for (step, acts) in acts.chunks_exact(TILE_BYTES).enumerate() {
                    for i in 0..16 * 16 * 64 {
                        let (m, n, k) = (i / 1024, i / 64 % 16, i % 64);
                        let weight = step * TILE_BYTES + k / 4 * 64 + 4 * n + k % 4;
                        let act = i32::from(acts[64 * m + k] as i8);
                        sums[t][16 * m + n] += act * i32::from(panel[weight]);
                        sums[t][256 + 16 * m + n] += act * i32::from(panel[HIGH_AT + weight] as i8);
                    }
                }
            });
        }

        unsafe fn store(t: usize, to: *mut u8) {
            // SAFETY: there is room for two tiles, by the caller's promise.
            SUMS.with_borrow(|sums| unsafe { to.cast::<[i32; 512]>().write_unaligned(sums[t]) });
        }
    }

    /// Products by tiles and by vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn both<S: SuperBlock>(tiles: &Tiles<'_>, rows: &[&[u8]]) -> [Vec<f32>; 2] {
        let memory = ActPool::default();
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
                let Ok(Matrix::Tiled(matrix)) = Matrix::new(&tensor, &kernels, &ThreadPool::new(1)) else {
                    panic!("a tile order")
                };
                let tiles = matrix.tiles(0..n_w);
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
