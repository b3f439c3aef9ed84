//! Weights as bf16 tiles meet bf16 activations: two by two tiles of sums stay in the unit while columns pass by.
//!
//! The unit adds the products of all columns in their order, so a product depends on its rows alone. It is not the same
//! bits as what other kernels give: weights and activations are rounded to bf16, and to nothing else.

use core::arch::asm;
use core::arch::x86_64::*;

use mlxr_tensor::{DType, Format};

use super::unit::{self, Config, ROW_BYTES, Shape, TILE_ROWS};
use crate::aligned::AlignedBytes;
use crate::avx512::layouts::{Layout, Unpacked, UnpackedRows, Visitor};
use crate::avx512::rows::{TileRows, transposed};
use crate::avx512::tile::tiled_kernels;
use crate::kernels::{DotWide, WideKernels};
use crate::linear::codes::CodeKind;
use crate::linear::tile::{TileScratch, UnpackedTile};
use crate::linear::tiled::N_ROWS;
use crate::linear::wide::{BLOCK_ROWS, STEP_COLS, TILE_BYTES, WIDE_ROWS, WideActs, WideRows};

/// Columns of a panel.
const PANEL_COLS: usize = 512;

/// Bytes that sixteen weight rows take in a panel.
const PANEL_TILE: usize = PANEL_COLS / STEP_COLS * TILE_BYTES;

/// Activation rows from which on unpacking to bf16 pays.
const WIDE_FROM: usize = 32;

pub(super) const KERNELS: WideKernels = WideKernels { from_rows: WIDE_FROM, tiled, floats, unpacked, pack };

tiled_kernels! {
    fn tiled() -> DotWide, "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16",
    |weights: &WideRows<'_>, xs: &WideActs, scratch: &mut TileScratch, out: &mut [f32]|
        dot::<Blocks<Tiled>>(weights, xs, scratch, out)
}

/// The kernel of a plain float type.
fn floats(format: Format) -> Option<DotWide> {
    match format {
        Format::Plain(DType::F32) => Some(dot_f32),
        Format::Plain(DType::F16) => Some(dot_f16),
        Format::Plain(DType::BF16) => Some(dot_bf16),
        _ => None,
    }
}

/// The kernel for rows unpacked to the common form.
fn unpacked(kind: CodeKind) -> DotWide {
    match (kind.signed, kind.group) {
        (false, 32) => dot_unpacked_32,
        (false, _) => dot_unpacked_16,
        (true, 32) => dot_signed_32,
        (true, _) => dot_signed_16,
    }
}

/// Rounds up to [`BLOCK_ROWS`] rows to bf16, and puts them in a block.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack(rows: &[&[f32]], block: &mut [u8]) {
    assert!(rows.len() <= BLOCK_ROWS, "rows of a block");
    // Step by step: lines a step apart would fall on each other in the cache.
    for (i, step) in block.chunks_exact_mut(2 * TILE_BYTES).enumerate() {
        for (row, out) in rows.iter().zip(step.chunks_exact_mut(ROW_BYTES)) {
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

/// Names the kernels.
macro_rules! kernels {
    ($($name:ident: $source:ty;)*) => {
        $(
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
            fn $name(weights: &WideRows<'_>, xs: &WideActs, scratch: &mut TileScratch, out: &mut [f32]) {
                dot::<$source>(weights, xs, scratch, out);
            }
        )*
    };
}

kernels! {
    dot_f32: Floats<f32>;
    dot_f16: Floats<half::f16>;
    dot_bf16: Floats<half::bf16>;
    dot_unpacked_32: Codes<Unpacked<false, 32>>;
    dot_unpacked_16: Codes<Unpacked<false, 16>>;
    dot_signed_32: Codes<Unpacked<true, 32>>;
    dot_signed_16: Codes<Unpacked<true, 16>>;
}

/// Where weights come from.
trait Source {
    /// Fills a panel with `n_cols` columns from `start` on.
    ///
    /// # Safety
    /// The CPU has what the kernels are compiled for.
    unsafe fn fill(weights: &WideRows<'_>, start: usize, n_cols: usize, panel: &mut [u8]);
}

/// Fills `out: [xs, WIDE_ROWS]`, rows rounded up to whole blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn dot<S: Source>(weights: &WideRows<'_>, xs: &WideActs, scratch: &mut TileScratch, out: &mut [f32]) {
    let n_tiles = weights.n_tiles().next_multiple_of(2);
    assert!(n_tiles * N_ROWS <= WIDE_ROWS, "weight rows of one call");
    assert!(xs.n_blocks() * BLOCK_ROWS * WIDE_ROWS <= out.len(), "room for the products");
    if scratch.panel.bytes().len() < n_tiles * PANEL_TILE {
        scratch.panel = AlignedBytes::zeroed(n_tiles * PANEL_TILE).expect("memory for a panel");
    }
    let panel = &mut scratch.panel.bytes_mut()[..n_tiles * PANEL_TILE];
    let n_cols = xs.n_steps() * STEP_COLS;
    // SAFETY: this table is only used where the unit is there.
    unsafe { unit::configure(&Config::new([Shape { rows: TILE_ROWS, row_bytes: ROW_BYTES }; 8])) };
    for start in (0..n_cols).step_by(PANEL_COLS) {
        // SAFETY: this kernel is compiled for the same features.
        unsafe { S::fill(weights, start, PANEL_COLS.min(n_cols - start), panel) };
        let (first, n_steps) = (start / STEP_COLS, (n_cols - start).min(PANEL_COLS) / STEP_COLS);
        for block in 0..xs.n_blocks() {
            let acts =
                &xs.bytes()[block * xs.block_bytes() + first * 2 * TILE_BYTES..][..n_steps * 2 * TILE_BYTES];
            let out = &mut out[block * BLOCK_ROWS * WIDE_ROWS..(block + 1) * BLOCK_ROWS * WIDE_ROWS];
            for (pair, panel) in panel.chunks_exact(2 * PANEL_TILE).enumerate() {
                // SAFETY: `n_steps` tiles of both kinds are in bounds, and 32 by 32 sums from `out` on, rows
                // `WIDE_ROWS` apart; the shapes are set.
                unsafe { two_by_two(acts, panel, n_steps, start > 0, out[pair * 2 * N_ROWS..].as_mut_ptr()) };
            }
        }
    }
    // SAFETY: as above.
    unsafe { unit::release() };
}

/// Adds the products of two tiles of activations a step with two of weights to 32 by 32 sums, or sets the sums.
///
/// # Safety
/// The shapes of all registers are whole tiles; tiles and sums are in bounds.
#[inline]
unsafe fn two_by_two(acts: &[u8], panel: &[u8], n_steps: usize, add: bool, out: *mut f32) {
    const STRIDE: usize = WIDE_ROWS * 4;
    let low = out.wrapping_add(TILE_ROWS * WIDE_ROWS);
    // SAFETY: by the caller's promise.
    unsafe {
        if add {
            asm!(
                "tileloadd tmm0, [{high} + {stride}]",
                "tileloadd tmm1, [{high} + {stride} + 64]",
                "tileloadd tmm2, [{low} + {stride}]",
                "tileloadd tmm3, [{low} + {stride} + 64]",
                high = in(reg) out,
                low = in(reg) low,
                stride = in(reg) STRIDE,
                options(nostack, preserves_flags, readonly),
            );
        } else {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nomem, nostack, preserves_flags),
            );
        }
        asm!(
            "2:",
            "tileloadd tmm4, [{acts} + {line}]",
            "tileloadd tmm6, [{panel} + {line}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{panel} + {line} + {panel_tile}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{acts} + {line} + {tile}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {acts}, {step}",
            "add {panel}, {tile}",
            "dec {n}",
            "jnz 2b",
            acts = inout(reg) acts.as_ptr() => _,
            panel = inout(reg) panel.as_ptr() => _,
            n = inout(reg) n_steps => _,
            line = in(reg) ROW_BYTES,
            tile = const TILE_BYTES,
            panel_tile = const PANEL_TILE,
            step = const 2 * TILE_BYTES,
            options(nostack, readonly),
        );
        asm!(
            "tilestored [{high} + {stride}], tmm0",
            "tilestored [{high} + {stride} + 64], tmm1",
            "tilestored [{low} + {stride}], tmm2",
            "tilestored [{low} + {stride} + 64], tmm3",
            high = in(reg) out,
            low = in(reg) low,
            stride = in(reg) STRIDE,
            options(nostack, preserves_flags),
        );
    }
}

/// Quant blocks in tile order.
struct Blocks<L>(std::marker::PhantomData<L>);

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

/// Rows in the common form.
struct Codes<L>(std::marker::PhantomData<L>);

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
        // Two columns a line.
        let at = (col - self.start) * N_ROWS * 2;
        let out = &mut self.panel[at..at + 2 * N * ROW_BYTES];
        for (codes, out) in codes.iter().zip(out.chunks_exact_mut(2 * ROW_BYTES)) {
            let byte = _mm512_set1_epi32(0xff);
            let value = |codes: __m512i| _mm512_fmadd_ps(_mm512_cvtepi32_ps(codes), scale, offset);
            let a = value(_mm512_and_si512(*codes, byte));
            let b = value(_mm512_and_si512(_mm512_srli_epi32::<8>(*codes), byte));
            let c = value(_mm512_and_si512(_mm512_srli_epi32::<16>(*codes), byte));
            let d = value(_mm512_srli_epi32::<24>(*codes));
            store(&mut out[..ROW_BYTES], paired(a, b));
            store(&mut out[ROW_BYTES..], paired(c, d));
        }
    }
}

/// Sixteen pairs of bf16, the first of each from `a`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn paired(a: __m512, b: __m512) -> __m512i {
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
fn store(out: &mut [u8], value: __m512i) {
    let out = &mut out[..ROW_BYTES];
    // SAFETY: in bounds; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), value) };
}

/// Rows of plain floats.
struct Floats<E>(std::marker::PhantomData<E>);

/// A plain float type.
trait Element {
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
                for (line, out) in transposed(lines).into_iter().zip(out.chunks_exact_mut(ROW_BYTES)) {
                    store(out, line);
                }
            }
        }
    }
}
