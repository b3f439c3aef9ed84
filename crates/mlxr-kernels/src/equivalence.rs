//! Every table's kernels against the scalar ones, with ragged sizes.

use std::sync::Arc;

use mlxr_tensor::conformance::data::{self, Noise};
use mlxr_tensor::{Activation, DType, Format, KvSpec};
use proptest::prelude::*;

use crate::acts::{ActPool, inputs, values_mut};
use crate::kernels::{
    CodeKernels, FLOAT_ROWS, Kernels, Operands, Products, Seen, Softened, TILE, TILE_ROWS, UNIT_TOKENS,
    Units, WideKernels,
};
use crate::kv;
use crate::linear::codes::{CodeKind, CodeRow, Panel, QuantActs, QuantRow, QuantRowMut, StoredRow};
use crate::linear::packed::{self, PackedRows};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
use crate::linear::tiled::TileRoom;
use crate::linear::{Output, Product, RowMap, matmul, stored_row};
use crate::pool::ThreadPool;
use crate::room::Room;
use crate::scalar;
use crate::weight::Matrix;

/// Difference of two sums of the same terms in different orders, relative to the sum of their magnitudes.
const ORDER_TOLERANCE: f32 = 1e-6;

/// Difference of element-wise functions with and without fused multiply-add.
const FUNCTION_TOLERANCE: f32 = 2e-6;

fn assert_close(got: &[f32], expected: &[f32], size: f32, tolerance: f32, kernels: &Kernels) {
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(
            (g - e).abs() <= tolerance * size,
            "{kernels:?}: element {i} is {g}, scalar {e}, size {size}"
        );
    }
}

/// What rows of a format are whole multiples of.
fn col_unit(format: Format) -> usize {
    match format {
        Format::Plain(dtype) => dtype.block_len().max(32),
        Format::MlxAffine { group_size, .. } => usize::from(group_size),
        Format::MlxFloat(_) => 32,
        Format::Scaled { .. } | Format::Codebook { .. } => 128,
    }
}

fn quantised(kernels: &Kernels, x: &[f32]) -> QuantActs {
    let mut acts = ActPool::default().codes(1, x.len());
    let layout = acts.layout();
    kernels.quantise(x, QuantRowMut::new(layout, acts.rows_mut(1)));
    acts
}

/// One product of rows of `cols` columns.
fn multiply(
    kernels: &Kernels,
    pool: &ThreadPool,
    (x, cols): (&[f32], usize),
    product: Product<'_>,
    outputs: &[Output<'_>],
) {
    let mut act = Arc::<ActPool>::default().act(x.len() / cols, cols);
    values_mut(&mut act).copy_from_slice(x);
    matmul(kernels, pool, &mut inputs(&act), &[product], outputs);
}

/// The rows packed, for tables that ever want that: here from two rows on.
fn packed(kernels: &Kernels, xs: &[QuantRow<'_>], memory: &Arc<ActPool>) -> Option<PackedRows> {
    (xs.len() > 1 && kernels.codes.packs(usize::MAX - 1))
        .then(|| packed::packed_room(xs.len(), xs[0].cols(), memory).filled(xs, packed::pack))
}

/// Products of the first `n_w` rows of a panel with all `xs`: `[xs, TILE_ROWS]`.
fn unpacked_products(
    kernels: &Kernels,
    kind: CodeKind,
    panel: &Panel,
    n_w: usize,
    xs: &[QuantRow<'_>],
) -> Vec<f32> {
    let mut out = vec![0f32; xs.len() * TILE_ROWS];
    match kernels.codes {
        CodeKernels::Tiles { unpacked, .. } => {
            let weights = UnpackedTile { panel, n_rows: n_w };
            let memory = Arc::<ActPool>::default();
            let packed = packed(kernels, xs, &memory);
            let xs = ActRows { rows: xs, packed: packed.as_ref() };
            // SAFETY: the table came from `Kernels::available`.
            unsafe { unpacked(kind, &weights, &xs, &mut TileScratch::empty(), &mut out) };
            out.chunks_exact_mut(TILE_ROWS).for_each(|row| row[n_w..].fill(0.0));
        }
        CodeKernels::Rows(dot) => {
            let rows: Vec<CodeRow<'_>> = (0..n_w).map(|i| panel.row(i)).collect();
            for (w, rows) in rows.chunks(TILE).enumerate() {
                for (x, xs) in xs.chunks(TILE).enumerate() {
                    let mut tile = [0f32; TILE * TILE];
                    // SAFETY: the table came from `Kernels::available`.
                    unsafe { dot(kind, rows, xs, &mut tile) };
                    for (i, products) in tile.chunks_exact(TILE).take(xs.len()).enumerate() {
                        let at = (x * TILE + i) * TILE_ROWS + w * TILE;
                        out[at..at + rows.len()].copy_from_slice(&products[..rows.len()]);
                    }
                }
            }
        }
    }
    out
}

/// The largest magnitude of a product's term, for activations below 4.
fn panel_size(kind: CodeKind, panel: &Panel, n_w: usize) -> f32 {
    let largest = |values: &[f32]| values.iter().fold(0f32, |m, v| m.max(v.abs()));
    let rows = (0..n_w).map(|i| panel.row(i));
    let size = rows.map(|row| largest(row.scales) * 128.0 + largest(row.offsets)).fold(0f32, f32::max);
    assert!(kind.offsets || size.is_finite());
    size * 4.0
}

proptest! {
    #[test]
    fn float_dots_equal_the_scalar_ones(cols in 1usize..200, n_w in 1..=TILE, n_x in 1..=TILE, seed: u64) {
        let mut noise = Noise::new(seed);
        let xs: Vec<Vec<f32>> = (0..n_x).map(|_| noise.values(cols)).collect();
        let xs: Vec<&[f32]> = xs.iter().map(Vec::as_slice).collect();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = data::tensor(Format::Plain(dtype), &[n_w, cols], &mut noise);
            let rows: Vec<&[u8]> = tensor.data().chunks_exact(tensor.data().len() / n_w).collect();
            let run = |kernels: &Kernels| {
                let dot = kernels.dot_floats(tensor.format()).expect("a float type");
                let mut out = [0f32; TILE * TILE];
                // SAFETY: the table came from `Kernels::available`.
                unsafe { dot(&rows, &xs, &mut out) };
                out
            };
            let expected = run(&scalar::TABLE);
            for kernels in Kernels::available() {
                assert_close(&run(&kernels), &expected, cols as f32 * 4.0, ORDER_TOLERANCE, &kernels);
            }
        }
    }

    #[test]
    fn float_tiles_equal_the_scalar_dots(
        n_blocks in 1usize..70, n_w in 1usize..FLOAT_ROWS + 30, n_x in 1usize..30, seed: u64,
    ) {
        let mut noise = Noise::new(seed);
        let (cols, pool) = (n_blocks * 8, ThreadPool::new(2));
        let x = noise.values(n_x * cols);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = data::unaligned(&data::tensor(Format::Plain(dtype), &[n_w, cols], &mut noise));
            let products = |kernels: &Kernels, x: &[f32]| {
                let n = x.len() / cols;
                let mut out = vec![0f32; n * n_w];
                let outputs = [Output::new(&mut out, n_w)];
                let weight = &Matrix::new(&tensor, kernels, &pool, &Room::default()).expect("memory");
                let product = Product { weight, bias: None, rows: RowMap::All(n), result: 0 };
                multiply(kernels, &pool, (x, cols), product, &outputs);
                out
            };
            let expected = products(&scalar::TABLE, &x);
            for kernels in Kernels::available() {
                let kernels = Kernels { wide: None, ..kernels };
                let got = products(&kernels, &x);
                assert_close(&got, &expected, cols as f32 * 4.0, ORDER_TOLERANCE, &kernels);
                for (x, got) in x.chunks_exact(cols).zip(got.chunks_exact(n_w)) {
                    prop_assert_eq!(got, products(&kernels, x), "{} alone and together", dtype);
                }
            }
        }
    }

    #[test]
    fn halves_are_the_scalar_ones(bits in proptest::collection::vec(any::<u32>(), 0..70)) {
        // All magnitudes, the special values, and what lies half-way between two halves.
        let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(if b % 3 == 0 { b & !0xfff } else { b })).collect();
        let halves: Vec<u8> = bits.iter().flat_map(|b| (*b as u16).to_le_bytes()).collect();
        let run = |kernels: &Kernels| {
            let (mut widened, mut narrowed) = (vec![0f32; bits.len()], vec![0u8; bits.len() * 2]);
            kernels.widen_f16(&halves, &mut widened);
            kernels.narrow_f16(&values, &mut narrowed);
            (widened.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), narrowed)
        };
        let expected = run(&scalar::TABLE);
        for kernels in Kernels::available() {
            prop_assert_eq!(run(&kernels), expected.clone(), "{:?}", kernels);
        }
    }

    #[test]
    fn code_dots_equal_the_scalar_ones(
        n_groups in 1usize..36, n_w in 1..=TILE_ROWS, n_x in 1usize..40, seed: u64,
        signed: bool, wide: bool, offsets: bool,
    ) {
        let kind = CodeKind { signed, group: if wide { 32 } else { 16 }, offsets };
        let cols = n_groups * 32;
        let mut noise = Noise::new(seed);
        let mut panel = Panel::empty();
        panel.reshape(TILE_ROWS, cols, kind);
        for row in 0..n_w {
            let out = panel.row_mut(row);
            // The extreme codes are where 16-bit steps would saturate.
            let code = |n: &mut Noise| [-128, -127, 127, n.next_u64() as i8][n.below(4)];
            out.codes.fill_with(|| if signed { code(&mut noise) } else { code(&mut noise) & 31 });
            out.scales.fill_with(|| noise.value());
            out.offsets.fill_with(|| if offsets { noise.value() } else { 0.0 });
        }
        let acts: Vec<QuantActs> =
            (0..n_x).map(|_| quantised(&scalar::TABLE, &noise.values(cols))).collect();
        let xs: Vec<QuantRow<'_>> = acts.iter().map(|a| a.row(0)).collect();
        let expected = unpacked_products(&scalar::TABLE, kind, &panel, n_w, &xs);
        for kernels in Kernels::available() {
            let got = unpacked_products(&kernels, kind, &panel, n_w, &xs);
            assert_close(&got, &expected, cols as f32 * 512.0, ORDER_TOLERANCE, &kernels);
            for (i, x) in xs.iter().enumerate() {
                let alone = unpacked_products(&kernels, kind, &panel, n_w, &[*x]);
                prop_assert_eq!(&got[i * TILE_ROWS..][..n_w], &alone[..n_w]);
            }
        }
    }

    #[test]
    fn tile_dots_equal_the_scalar_ones(n_cols in 1usize..1100, n_w in 1..=TILE_ROWS, n_x in 1usize..40, seed: u64) {
        let mut noise = Noise::new(seed);
        let pool = ThreadPool::new(1);
        for format in data::formats() {
            let Some((kind, unpack)) = (scalar::TABLE.unpack)(format) else { continue };
            let cols = n_cols.next_multiple_of(col_unit(format));
            let tensor = data::unaligned(&data::tensor(format, &[n_w, cols], &mut noise));
            let acts: Vec<QuantActs> =
                (0..n_x).map(|_| quantised(&scalar::TABLE, &noise.values(cols))).collect();
            let xs: Vec<QuantRow<'_>> = acts.iter().map(|a| a.row(0)).collect();
            let mut tile_products = None;
            for kernels in Kernels::available() {
                let CodeKernels::Tiles { tiled, .. } = kernels.codes else { continue };
                let Some(dot) = tiled(format) else { continue };
                let Ok(Matrix::Tiled(matrix)) = Matrix::new(&tensor, &kernels, &pool, &Room::default()) else {
                    panic!("{} has kernels and no tile order", format.name())
                };
                let mut panel = Panel::empty();
                panel.reshape(n_w, cols, kind);
                for i in 0..n_w {
                    // SAFETY: the scalar table runs everywhere.
                    unsafe { unpack(stored_row(&tensor, i), panel.row_mut(i)) };
                }
                let expected = unpacked_products(&scalar::TABLE, kind, &panel, n_w, &xs);
                let products = |xs: &[QuantRow<'_>]| {
                    let (mut out, mut room) = (vec![0f32; xs.len() * TILE_ROWS], TileRoom::empty());
                    let memory = Arc::<ActPool>::default();
                    let packed = packed(&kernels, xs, &memory);
                    let xs = ActRows { rows: xs, packed: packed.as_ref() };
                    // SAFETY: the table came from `Kernels::available`.
                    unsafe { dot(&matrix.tiles(0..n_w, &mut room), &xs, &mut TileScratch::empty(), &mut out) };
                    out
                };
                let got = products(&xs);
                // Magnitudes of the terms bound what another order of them can change.
                let size = panel_size(kind, &panel, n_w) * cols as f32;
                for (i, x) in xs.iter().enumerate() {
                    let row = i * TILE_ROWS..i * TILE_ROWS + n_w;
                    assert_close(&got[row.clone()], &expected[row.clone()], size, ORDER_TOLERANCE, &kernels);
                    prop_assert_eq!(&got[row], &products(&[*x])[..n_w], "{} alone and together", format.name());
                }
                // Tables that share kernels for few rows give the same bits for many.
                let whole: Vec<&[f32]> = got.chunks_exact(TILE_ROWS).map(|row| &row[..n_w]).collect();
                let before = tile_products.get_or_insert_with(|| whole.concat());
                prop_assert_eq!(&*before, &whole.concat(), "{} {:?}", format.name(), kernels);
            }
        }
    }

    #[test]
    fn quantised_activations_are_the_same_everywhere(
        n_cols in 1usize..1200, seed: u64, zero: bool, odd in prop::option::of((0usize..1200, prop::num::f32::ANY)),
    ) {
        let mut x = Noise::new(seed).values(n_cols);
        if zero {
            x[..n_cols.min(32)].fill(0.0);
        }
        if let Some((at, value)) = odd {
            x[at % n_cols] = value;
        }
        let expected = quantised(&scalar::TABLE, &x);
        for kernels in Kernels::available() {
            let got = quantised(&kernels, &x);
            let (got, expected) = (got.row(0), expected.row(0));
            prop_assert_eq!(got.bytes(), expected.bytes());
        }
    }

    #[test]
    fn element_wise_loops_equal_the_scalar_ones(n in 1usize..120, seed: u64) {
        let mut noise = Noise::new(seed);
        let (x, w) = (noise.values(n), noise.values(n));
        let scalar = scalar::TABLE;
        for kernels in Kernels::available() {
            let both = |op: &dyn Fn(&Kernels, &mut [f32])| {
                let (mut got, mut expected) = (x.clone(), x.clone());
                op(&kernels, &mut got);
                op(&scalar, &mut expected);
                assert_close(&got, &expected, 8.0, FUNCTION_TOLERANCE, &kernels);
            };
            prop_assert_eq!(kernels.max(&x), scalar.max(&x));
            both(&|k, x| x[0] = k.exp_sum(&mut x.to_vec(), 3.0));
            both(&|k, x| x[0] = k.sum_squares(x) / n as f32);
            both(&|k, x| { k.exp_sum(x, 3.0); });
            both(&|k, x| { k.soften(x, 0.5, None); });
            both(&|k, x| x[0] = k.soften(&mut x.to_vec(), 0.5, Some(3.0)).1 / n as f32);
            both(&|k, x| x[0] = k.sum(x) / n as f32);
            both(&|k, x| k.subtract(x, &w, 0.3));
            for kind in [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Silu, Activation::Relu, Activation::Tanh] {
                both(&|k, x| k.activate(x, kind));
            }
            both(&|k, x| k.softcap(x, 2.0));
            both(&|k, x| k.add_scaled(x, &w, 0.5));
            both(&|k, x| k.norm_in_place(x, &w, 0.7));
            both(&|k, x| { let n = x.len() / 2; k.rotate_half(&mut x[..2 * n], &w[..n], &w[n..2 * n]) });
            both(&|k, x| { let n = x.len() / 2; k.rotate_pairs(&mut x[..2 * n], &w[..n], &w[n..2 * n]) });
        }
    }
}

proptest! {
    // Every case goes through all formats and tables.
    #![proptest_config(ProptestConfig::with_cases((ProptestConfig::default().cases / 16).max(1)))]
    #[test]
    fn products_are_the_same_bits_where_there_is_no_memory_for_copies(
        n_w in 1usize..80, n_cols in 1usize..600, n_x in 1usize..20, seed: u64,
    ) {
        let (mut noise, pool) = (Noise::new(seed), ThreadPool::new(2));
        let wide = with_wide_products().into_iter().map(|kernels| {
            Kernels { wide: kernels.wide.map(|wide| WideKernels { from_rows: 2, ..wide }), ..kernels }
        });
        let tables = Kernels::available().into_iter().map(|kernels| Kernels { wide: None, ..kernels });
        let tables: Vec<Kernels> = tables.chain(wide).collect();
        for format in data::formats() {
            let cols = n_cols.next_multiple_of(col_unit(format));
            let weight = data::unaligned(&data::tensor(format, &[n_w, cols], &mut noise));
            if weight.to_f32().is_err() {
                continue;
            }
            let x = noise.values(n_x * cols);
            for kernels in &tables {
                let [copied, stored] = [Room::of(|| None), Room::exhausted()].map(|room| {
                    let matrix = Matrix::new(&weight, kernels, &pool, &room).expect("a matrix");
                    let mut values = vec![0f32; cols];
                    matrix.dequantise_row(n_w - 1, &mut values);
                    for n in [1, n_x] {
                        let mut out = vec![0f32; n * n_w];
                        let outputs = [Output::new(&mut out, n_w)];
                        let product = Product { weight: &matrix, bias: None, rows: RowMap::All(n), result: 0 };
                        multiply(kernels, &pool, (&x[..n * cols], cols), product, &outputs);
                        values.extend(out);
                    }
                    values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                });
                prop_assert!(copied == stored, "{} {kernels:?}", format.name());
            }
        }
    }
}

/// Blocks of columns, and activation rows, below which products in bf16 are tested: an emulator takes a microsecond for each
/// instruction of AArch64's, whose panels are shorter.
const MOST_WIDE: (usize, usize) = if cfg!(target_arch = "aarch64") { (4, 40) } else { (6, 70) };

/// Tables with products in bf16, also where these are slower than others; those of AArch64 share theirs.
pub(crate) fn with_wide_products() -> Vec<Kernels> {
    let mut tables = if cfg!(target_arch = "aarch64") { vec![Kernels::best()] } else { Kernels::available() };
    #[cfg(target_arch = "x86_64")]
    for kernels in tables.iter_mut().filter(|kernels| kernels.isa() == crate::Isa::Avx512) {
        kernels.wide = crate::avx512::wide_if_any();
    }
    tables.retain(|kernels| kernels.wide.is_some());
    tables
}

proptest! {
    // Every case goes through many formats; where fewer cases are asked for, as in emulation, one has to do.
    #![proptest_config(ProptestConfig::with_cases((ProptestConfig::default().cases / 8).clamp(1, 6)))]
    #[test]
    fn bf16_products_are_those_of_rounded_values(
        n_w in 1usize..300, n_blocks in 1..MOST_WIDE.0, n_x in 1..MOST_WIDE.1, ragged in 0usize..16, seed: u64,
    ) {
        let mut noise = Noise::new(seed);
        let pool = ThreadPool::new(2);
        for mut kernels in with_wide_products() {
            let Some(wide) = &mut kernels.wide else { continue };
            wide.from_rows = 1;
            let mut n_dequantised = 0;
            for format in data::formats() {
                // Plain floats may have any number of columns.
                let ragged = if let Format::Plain(DType::F32 | DType::F16 | DType::BF16) = format { ragged } else { 0 };
                let cols = n_blocks * 256 + ragged;
                if kernels.operands(format, n_x, Products::Bf16) != Operands::Bf16 {
                    continue;
                }
                // Formats that become floats all meet the kernel for these.
                if kernels.dot_floats(format).is_none() && (kernels.unpack)(format).is_none() {
                    n_dequantised += 1;
                    if n_dequantised > 1 {
                        continue;
                    }
                }
                let weight = data::unaligned(&data::tensor(format, &[n_w, cols], &mut noise));
                let Ok(values) = weight.to_f32() else { continue };
                let x = noise.values(n_x * cols);
                let matrix = Matrix::new(&weight, &kernels, &pool, &Room::default()).expect("memory");
                let products = |x: &[f32], rows: RowMap<'_>, n: usize| {
                    let mut out = vec![0f32; n * n_w];
                    let outputs = [Output::new(&mut out, n_w)];
                    let product = Product { weight: &matrix, bias: None, rows, result: 0 };
                    multiply(&kernels, &pool, (x, cols), product, &outputs);
                    out
                };
                let got = products(&x, RowMap::All(n_x), n_x);
                for (i, &got) in got.iter().enumerate() {
                    let terms = x[i / n_w * cols..][..cols].iter().zip(&values[i % n_w * cols..][..cols]);
                    let (sum, size) = terms.fold((0f64, 0f64), |(sum, size), (&x, &w)| {
                        let term = f64::from(x) * f64::from(w);
                        (sum + term, size + term.abs())
                    });
                    // Each factor is rounded to eight bits, by at most 1/256 of it.
                    let limit = size * (2f64.powi(-7) + 1e-4) + 1e-30;
                    prop_assert!((f64::from(got) - sum).abs() <= limit, "{} {}: {} {}", format.name(), i, got, sum);
                }
                let last = products(&x[(n_x - 1) * cols..], RowMap::All(1), 1);
                prop_assert_eq!(&got[(n_x - 1) * n_w..], &last, "{} alone and together", format.name());
                let pairs: Vec<(u32, u32)> = (0..n_x as u32).map(|i| (n_x as u32 - 1 - i, i)).collect();
                let gathered = products(&x, RowMap::Pairs(&pairs), n_x);
                for (row, turned) in got.chunks_exact(n_w).zip(gathered.rchunks_exact(n_w)) {
                    prop_assert_eq!(row, turned, "{} gathered", format.name());
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn bf16_attention_is_that_of_rounded_values(
        n_units in 1usize..6, n_last in 1..=UNIT_TOKENS, n_queries in 1usize..70, dim in 1usize..7, seed: u64,
    ) {
        let (mut noise, dim) = (Noise::new(seed), dim * UNIT_TOKENS);
        let n = n_units * UNIT_TOKENS;
        let n_stored = n - UNIT_TOKENS + n_last;
        let rounded = |values: &[f32]| -> Vec<f64> {
            values.iter().map(|&v| half::bf16::from_f32(v).to_f64()).collect()
        };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let tensor = data::tensor(Format::Plain(dtype), &[n_stored, dim], &mut noise);
            let stored = rounded(&tensor.to_f32().expect("numbers"));
            let row_bytes = dim * dtype.block_bytes();
            let values: Vec<&[u8]> = tensor.data().chunks(UNIT_TOKENS * row_bytes).collect();
            let turned: Vec<Vec<u8>> = values.iter().map(|unit| kv::turned(dtype, unit, row_bytes)).collect();
            let turned: Vec<&[u8]> = turned.iter().map(Vec::as_slice).collect();
            let units = |units| Units { dtype, units, dim, ahead: &[] };
            let queries = noise.values(n_queries * dim);
            let rows: Vec<&[f32]> = queries.chunks_exact(dim).collect();
            let (given, scale) = (noise.values(n_queries * n), 3.0);
            let visible = |query: usize| {
                let to = (n_stored + query).saturating_sub(n_queries / 2).min(n_stored);
                (query / 3).min(to)..to
            };
            for kernels in with_wide_products() {
                let Some(wide) = kernels.wide else { continue };
                let (mut scores, mut acc) = (vec![0f32; n_queries * n], vec![1f32; n_queries * dim]);
                let (mut max, mut sum) = (vec![-1f32; n_queries], vec![-1f32; n_queries]);
                let memory = &mut Vec::new();
                let (keys, values) = (units(&turned), units(&values));
                // SAFETY: the table came from `Kernels::available`.
                unsafe {
                    (wide.attend.scores)(&keys, &rows, memory, &mut scores);
                    let seen = Seen { scores: &given, visible: &visible, scale };
                    let state = Softened { max: &mut max, sum: &mut sum, acc: &mut acc };
                    (wide.attend.add_softened)(&values, seen, memory, state);
                }
                let queries = rounded(&queries);
                for query in 0..n_queries {
                    let q = &queries[query * dim..][..dim];
                    for key in 0..n_stored {
                        let sum: f64 = q.iter().zip(&stored[key * dim..]).map(|(a, b)| a * b).sum();
                        let got = f64::from(scores[query * n + key]);
                        prop_assert!((got - sum).abs() <= 1e-5 * dim as f64, "{} {kernels:?}: {} {}", dtype, got, sum);
                    }
                    let seen = visible(query);
                    if seen.is_empty() {
                        prop_assert_eq!((max[query], sum[query]), (-1.0, -1.0));
                        prop_assert!(acc[query * dim..][..dim].iter().all(|&v| v == 1.0));
                        continue;
                    }
                    let scores = given[query * n..][seen.clone()].iter().map(|&score| f64::from(score * scale));
                    let largest = scores.clone().fold(f64::MIN, f64::max);
                    prop_assert!((f64::from(max[query]) - largest).abs() <= 1e-6 * largest.abs());
                    let weights: Vec<f64> = scores.map(|score| (score - largest).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    prop_assert!((f64::from(sum[query]) - total).abs() <= 1e-4 * total, "{} {}", sum[query], total);
                    for col in 0..dim {
                        let terms = seen.clone().zip(&weights).map(|(key, weight)| weight * stored[key * dim + col]);
                        let size = terms.clone().map(f64::abs).sum::<f64>();
                        let (sum, got) = (1.0 + terms.sum::<f64>(), f64::from(acc[query * dim + col]));
                        // A weight is rounded to eight bits.
                        let limit = size * 2f64.powi(-8) + 1e-5 * n as f64;
                        prop_assert!((got - sum).abs() <= limit, "{} {kernels:?}: {} {}", dtype, got, sum);
                    }
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn attention_is_the_same_bits_for_any_number_of_queries_and_with_any_vectors(
        n_units in 1usize..7, n_last in 1..=UNIT_TOKENS, n_queries in 1usize..20, dim in 1usize..9, seed: u64,
    ) {
        let mut noise = Noise::new(seed);
        let n = n_units * UNIT_TOKENS;
        let n_stored = n - UNIT_TOKENS + n_last;
        for dtype in KvSpec::DTYPES {
            let dim = dim * dtype.block_len().max(UNIT_TOKENS);
            let given = noise.values(n_stored * dim);
            let row_bytes = dtype.bytes_for(dim).expect("whole blocks");
            let mut bytes = vec![0; n_stored * row_bytes];
            let mut stored = vec![0f32; n_stored * dim];
            kv::encode(&scalar::TABLE, dtype, &given, &mut bytes);
            kv::decode(&scalar::TABLE, dtype, &bytes, &mut stored);
            let values: Vec<&[u8]> = bytes.chunks(UNIT_TOKENS * row_bytes).collect();
            let turned: Vec<Vec<u8>> = values.iter().map(|unit| kv::turned(dtype, unit, row_bytes)).collect();
            let turned: Vec<&[u8]> = turned.iter().map(Vec::as_slice).collect();
            let keys = Units { dtype, units: &turned, dim, ahead: &values };
            let values = Units { dtype, units: &values, dim, ahead: &turned };
            let (queries, weights) = (noise.values(n_queries * dim), noise.values(n_queries * n));
            let rows: Vec<&[f32]> = queries.chunks_exact(dim).collect();
            for kernels in Kernels::available() {
                let Some(attend) = kernels.attend else { continue };
                let run = |rows: &[&[f32]], weights: &[f32]| {
                    let (mut scores, mut acc) = (vec![0f32; rows.len() * n], vec![1f32; rows.len() * dim]);
                    // SAFETY: the table came from `Kernels::available`.
                    unsafe {
                        (attend.scores)(&keys, rows, &mut Vec::new(), &mut scores);
                        (attend.add_values)(&values, weights, &mut Vec::new(), &mut acc);
                    }
                    (scores, acc)
                };
                let (scores, acc) = run(&rows, &weights);
                for query in 0..n_queries {
                    let (row, weights) = (rows[query], &weights[query * n..][..n]);
                    let (alone, alone_acc) = run(&[row], weights);
                    for key in 0..n_stored {
                        let stored = &stored[key * dim..][..dim];
                        let sum = row.iter().zip(stored).fold(0f32, |sum, (q, k)| q.mul_add(*k, sum));
                        prop_assert_eq!(sum, scores[query * n + key], "{} {:?}", dtype, kernels);
                        prop_assert_eq!(sum, alone[key], "{} {:?}", dtype, kernels);
                    }
                    for col in 0..dim {
                        let column = stored[col..].iter().step_by(dim).zip(weights);
                        let sum = column.fold(1f32, |sum, (v, w)| v.mul_add(*w, sum));
                        prop_assert_eq!(sum, acc[query * dim + col], "{} {:?}", dtype, kernels);
                        prop_assert_eq!(sum, alone_acc[col], "{} {:?}", dtype, kernels);
                    }
                }
            }
        }
    }
}

#[test]
fn unpacked_rows_are_the_same_bits_everywhere() {
    for format in data::formats() {
        let Some((kind, _)) = (scalar::TABLE.unpack)(format) else { continue };
        let cols = 768;
        let tensor = data::unaligned(&data::tensor(format, &[1, cols], &mut Noise::new(9)));
        let group_size = match format {
            Format::MlxAffine { group_size, .. } => group_size.into(),
            _ => 32,
        };
        let row =
            StoredRow { data: tensor.data(), scales: tensor.scales(), biases: tensor.biases(), group_size };
        let run = |kernels: &Kernels| {
            let (found, unpack) = (kernels.unpack)(format).expect("every table unpacks the same formats");
            assert_eq!(found, kind);
            let mut panel = Panel::empty();
            panel.reshape(1, cols, kind);
            // SAFETY: the table came from `Kernels::available`.
            unsafe { unpack(row, panel.row_mut(0)) };
            panel
        };
        let expected = run(&scalar::TABLE);
        // What the codes mean is what the codec says.
        let values = tensor.to_f32().expect("numbers");
        let stored = expected.row(0);
        for (i, &value) in values.iter().enumerate() {
            let group = i / kind.group;
            let unpacked = stored.scales[group] * f32::from(stored.codes[i]) + stored.offsets[group];
            let limit = 1e-5 * (stored.scales[group].abs() * 128.0 + stored.offsets[group].abs());
            assert!((unpacked - value).abs() <= limit, "{}: {unpacked} {value}", format.name());
        }
        for kernels in Kernels::available() {
            let got = run(&kernels);
            let (got, expected) = (got.row(0), expected.row(0));
            assert_eq!(got.codes, expected.codes, "{} {kernels:?}", format.name());
            assert_eq!(got.scales, expected.scales, "{} {kernels:?}", format.name());
            assert_eq!(got.offsets, expected.offsets, "{} {kernels:?}", format.name());
        }
    }
}

#[test]
fn rows_in_tile_order_read_back_as_stored() {
    let mut noise = Noise::new(7);
    for kernels in Kernels::available() {
        for (format, n_rows, pool) in data::formats().into_iter().flat_map(|format| {
            [
                (format, 1, ThreadPool::new(1)),
                (format, 16, ThreadPool::new(2)),
                (format, 53, ThreadPool::new(3)),
            ]
        }) {
            let tensor = data::unaligned(&data::tensor(format, &[n_rows, 768], &mut noise));
            let matrix = Matrix::new(&tensor, &kernels, &pool, &Room::default()).expect("memory");
            assert_eq!((matrix.format(), matrix.rows()), (format, n_rows));
            let expected = tensor.to_f32().expect("numbers");
            let mut row = vec![0f32; 768];
            for (i, expected) in expected.chunks_exact(768).enumerate() {
                matrix.dequantise_row(i, &mut row);
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&row), bits(expected), "{} row {i} {kernels:?}", format.name());
            }
        }
    }
}

/// Formats that have a tile order on all processors, but floats.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const TILED: [Format; 16] = [
    Format::Plain(DType::Q4_0),
    Format::Plain(DType::Q8_0),
    Format::Plain(DType::Q4_K),
    Format::Plain(DType::Q5_K),
    Format::Plain(DType::Q6_K),
    Format::Plain(DType::Q4_1),
    Format::Plain(DType::Q5_0),
    Format::Plain(DType::Q5_1),
    Format::Plain(DType::IQ4_NL),
    Format::Plain(DType::IQ4_XS),
    Format::Plain(DType::MXFP4),
    Format::Plain(DType::Q2_K),
    Format::Plain(DType::Q3_K),
    Format::MlxAffine { bits: 4, group_size: 64, scale: DType::BF16 },
    Format::MlxAffine { bits: 8, group_size: 32, scale: DType::F16 },
    Format::MlxFloat(mlxr_tensor::MlxFloat::Mxfp4),
];

/// The bits of products by each table that keeps rows in the lanes of vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn bits_by_vectors(weight: &mlxr_tensor::HostTensor, x: &[f32]) -> Vec<(crate::Isa, Vec<u32>)> {
    use crate::Isa;
    let (pool, n_w, cols) = (ThreadPool::new(1), weight.rows(), weight.cols());
    let tables = Kernels::available().into_iter();
    let tables = tables.filter(|k| !matches!(k.isa(), Isa::Scalar | Isa::Amx));
    let products = |kernels: Kernels| {
        let mut out = vec![0f32; x.len() / cols * n_w];
        let outputs = [Output::new(&mut out, n_w)];
        let weight = &Matrix::new(weight, &kernels, &pool, &Room::default()).expect("memory");
        let product = Product { weight, bias: None, rows: RowMap::All(x.len() / cols), result: 0 };
        multiply(&kernels, &pool, (x, cols), product, &outputs);
        (kernels.isa(), out.iter().map(|v| v.to_bits()).collect())
    };
    tables.map(products).collect()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
proptest! {
    // Every case goes through many formats, as above.
    #![proptest_config(ProptestConfig::with_cases((ProptestConfig::default().cases / 8).max(1)))]
    #[test]
    fn vectors_of_any_width_give_the_same_bits(n_w in 1usize..80, n_cols in 1usize..800, n_x in 1usize..14, seed: u64) {
        let mut noise = Noise::new(seed);
        for format in data::formats() {
            let is_tiled = |kernels: Kernels| kernels.codes.put_in_order(format).is_some();
            if !Kernels::available().into_iter().any(is_tiled) || scalar::TABLE.dot_floats(format).is_some() {
                continue;
            }
            let cols = n_cols.next_multiple_of(col_unit(format));
            let weight = data::tensor(format, &[n_w, cols], &mut noise);
            let products = bits_by_vectors(&data::unaligned(&weight), &noise.values(n_x * cols));
            for pair in products.windows(2) {
                prop_assert!(pair[0].1 == pair[1].1, "{}: {:?} and {:?}", format.name(), pair[0].0, pair[1].0);
            }
        }
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn processors_of_all_kinds_give_the_same_bits() {
    // Checksums of products of each format, as AVX2 gives them: with few activation rows, and with more.
    const EXPECTED: [[u64; TILED.len()]; 2] = [
        [
            1929370480206888546,
            15820700449139359313,
            9202324738320998919,
            17789437199542390905,
            13570970076460640400,
            6711203636854296107,
            3946029565693921646,
            3762583735932157609,
            4309504983328794732,
            14164737930680713450,
            6338396703290988803,
            12987475139385074386,
            6321256267089731541,
            9770565839727121604,
            9737151217524158834,
            514338939924904431,
        ],
        [
            9898923296849202914,
            9342741685775721009,
            14537762086878951814,
            14825512815287361469,
            9245499200781362352,
            7970234027449896451,
            8429092520362142025,
            12223267577007243049,
            9636595169233121177,
            3676138362065183682,
            4181883386809229436,
            419220361615671112,
            14632880780096406312,
            7249683110519051636,
            13007832753281528071,
            8186801504385828670,
        ],
    ];
    let mut noise = Noise::new(11);
    let step = |sum: u64, &bits: &u32| (sum ^ u64::from(bits)).wrapping_mul(0x100_0000_01b3);
    let sums = [7, 11].map(|n_x| {
        TILED.map(|format| {
            let weight = data::tensor(format, &[53, 1024], &mut noise);
            let products = bits_by_vectors(&weight, &noise.values(n_x * 1024)).into_iter();
            products.map(|(isa, bits)| (isa, bits.iter().fold(0, step))).collect::<Vec<_>>()
        })
    });
    for (table, &(isa, _)) in sums[0][0].iter().enumerate() {
        let sums = sums.each_ref().map(|sums| sums.each_ref().map(|sums| sums[table].1));
        assert_eq!(sums, EXPECTED, "{isa:?}");
    }
}
