//! Matrix products: activation rows times the transpose of weights in any format.
//!
//! Output columns (weight rows) are cut in parts that threads take one after the other. A part is walked in tiles, which
//! are made usable once (in registers where they are floats or in tile order, unpacked to codes or dequantised into
//! scratch elsewhere) and meet all activation rows. One (row, column) product never depends on the others.

pub(crate) mod blocks;
pub(crate) mod codes;
pub(crate) mod gated;
pub(crate) mod packed;
pub(crate) mod tile;
pub(crate) mod tiled;
pub(crate) mod wide;

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use mlxr_tensor::{DType, Format, HostTensor};

use crate::acts::{ActPool, CpuAct};
use crate::aligned::{as_bytes, prefetch_for_writing};
use crate::disjoint::{Disjoint, for_each_row, split};
use crate::kernels::{
    BlockKernels, CodeKernels, DotBlocks, DotCodes, DotFloatTiles, DotFloats, DotTiles, DotUnpacked, DotWide,
    FLOAT_ROWS, Kernels, Meeting, TILE, TILE_ROWS, Unpack, WideKernels,
};
use crate::pool::ThreadPool;
use crate::weight::Matrix;
use blocks::{BlockActs, BlockRows};
use codes::{CodeKind, CodeRow, Panel, QuantActs, QuantRow, QuantRowMut, StoredRow};
use packed::PackedRows;
use tile::{ActRows, TileScratch, UnpackedTile};
use tiled::{N_ROWS, TileRoom, TiledMatrix};
use wide::{WIDE_ROWS, WideActs, WideOut, WideRows};

/// Quantised forms of activations, each made once something asked for it.
#[derive(Default)]
pub(crate) struct Coded {
    pub(crate) groups: OnceLock<QuantActs>,
    pub(crate) blocks: OnceLock<BlockActs>,
    /// All rows in bf16; there may be no others.
    pub(crate) wide: OnceLock<WideActs>,
}

/// Activation rows `[rows, cols]`.
pub(crate) struct Inputs<'a> {
    act: &'a CpuAct,
    /// All rows of codes once more, if the kernels want so many packed.
    packed: Option<PackedRows>,
    packed_blocks: Option<PackedRows>,
}

/// Which rows of the inputs a matrix meets, and which rows of the result it writes.
#[derive(Clone, Copy)]
pub(crate) enum RowMap<'a> {
    /// Row `i` to row `i`, for so many rows.
    All(usize),
    /// `(input row, result row)` pairs.
    Pairs(&'a [(u32, u32)]),
}

/// One matrix of a product.
pub(crate) struct Product<'a> {
    pub(crate) weight: &'a Matrix,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) rows: RowMap<'a>,
    /// Which of the results it writes to.
    pub(crate) result: usize,
}

/// A result `[rows, cols]` shared by the threads.
pub(crate) struct Output<'a> {
    values: Disjoint<'a, f32>,
    cols: usize,
    /// Whether products are added to what it holds, which only those in bf16 can be.
    adds: bool,
}

impl<'a> Output<'a> {
    pub(crate) fn new(values: &'a mut [f32], cols: usize) -> Self {
        Self { values: Disjoint::new(values), cols, adds: false }
    }

    /// One that products in bf16 of all rows, without a bias, are added to.
    pub(crate) fn onto(values: &'a mut [f32], cols: usize) -> Self {
        Self { adds: true, ..Self::new(values, cols) }
    }
}

impl RowMap<'_> {
    fn len(&self) -> usize {
        match self {
            RowMap::All(n) => *n,
            RowMap::Pairs(pairs) => pairs.len(),
        }
    }

    fn at(&self, i: usize) -> (usize, usize) {
        match self {
            RowMap::All(_) => (i, i),
            RowMap::Pairs(pairs) => (pairs[i].0 as usize, pairs[i].1 as usize),
        }
    }
}

impl<'a> Inputs<'a> {
    pub(crate) fn new(act: &'a CpuAct) -> Self {
        Self { act, packed: None, packed_blocks: None }
    }

    fn n_rows(&self) -> usize {
        self.act.n_rows()
    }

    fn cols(&self) -> usize {
        self.act.cols()
    }

    fn row(&self, row: usize) -> &[f32] {
        self.act.row(row)
    }

    fn memory(&self) -> &'a Arc<ActPool> {
        self.act.pool()
    }

    /// Quantises every row, unless that was done before.
    fn quantise(&mut self, kernels: &Kernels, pool: &ThreadPool) {
        let n_rows = self.n_rows();
        let codes = self.act.coded().groups.get_or_init(|| {
            let mut acts = self.memory().codes(n_rows, self.cols());
            let layout = acts.layout();
            let bytes = acts.rows_mut(n_rows);
            for_each_row(pool, bytes, layout.row_bytes(), |row, bytes| {
                kernels.quantise(self.row(row), QuantRowMut::new(layout, bytes));
            });
            acts
        });
        if kernels.codes.packs(n_rows) && self.packed.is_none() {
            let rows: Vec<QuantRow<'_>> = (0..n_rows).map(|row| codes.row(row)).collect();
            let packed = packed::packed_room(n_rows, codes.row(0).cols(), self.memory());
            self.packed = Some(packed.filled_by(pool, &rows, packed::pack));
        }
    }

    /// As [`Self::quantise`], with a scale per super-block.
    fn quantise_blocks(&mut self, kernels: &BlockKernels, pool: &ThreadPool) {
        let n_rows = self.n_rows();
        let acts = self.act.coded().blocks.get_or_init(|| {
            let mut acts = BlockActs::new(n_rows, self.cols(), self.memory());
            let row_bytes = acts.row_bytes();
            for_each_row(pool, acts.rows_mut(n_rows), row_bytes, |row, bytes| {
                // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
                unsafe { (kernels.quantise)(self.row(row), bytes) };
            });
            acts
        });
        if kernels.packs_from <= n_rows && self.packed_blocks.is_none() {
            let rows: Vec<&[u8]> = (0..n_rows).map(|row| acts.row(row)).collect();
            let packed = blocks::packed_room(n_rows, acts.row_bytes(), self.memory());
            self.packed_blocks = Some(packed.filled_by(pool, &rows, blocks::pack));
        }
    }

    /// All rows quantised, if they are.
    fn quantised(&self) -> Vec<QuantRow<'_>> {
        let codes = self.act.coded().groups.get();
        codes.map_or_else(Vec::new, |codes| (0..self.n_rows()).map(|row| codes.row(row)).collect())
    }

    /// All rows quantised with a scale per super-block, if they are.
    fn quantised_blocks(&self) -> Vec<&[u8]> {
        let acts = self.act.coded().blocks.get();
        acts.map_or_else(Vec::new, |acts| (0..self.n_rows()).map(|row| acts.row(row)).collect())
    }
}

/// All rows in bf16.
fn widened(wide: &WideKernels, inputs: &Inputs<'_>, pool: &ThreadPool) -> WideActs {
    let n_rows = inputs.n_rows();
    let mut acts = WideActs::new(n_rows, inputs.cols(), inputs.memory());
    let (n, stride) = acts.block_bytes();
    let (n_blocks, bytes) = (acts.n_blocks(), Disjoint::new(acts.bytes_mut()));
    pool.run(|part, n_parts| {
        for block in split(n_blocks, part, n_parts, 1) {
            let rows = block * wide::BLOCK_ROWS..n_rows.min((block + 1) * wide::BLOCK_ROWS);
            let rows: Vec<&[f32]> = rows.map(|row| inputs.row(row)).collect();
            // SAFETY: `split` gives each block to one part only; a table is only handed out where the CPU has its
            // features (`Kernels::available`).
            unsafe { (wide.pack)(&rows, &mut bytes.row(block, stride)[..n]) };
        }
    });
    acts
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::empty());
}

/// What a thread unpacks weight rows into.
struct Scratch {
    panel: Panel,
    floats: Vec<f32>,
    tile: TileScratch,
    /// Results of a tile: `[rows, TILE_ROWS]`.
    products: Vec<f32>,
    /// Tiles of the matrices that a kernel meets.
    tiles: [TileRoom; 2],
}

impl Scratch {
    fn empty() -> Self {
        Self {
            panel: Panel::empty(),
            floats: Vec::new(),
            tile: TileScratch::empty(),
            products: Vec::new(),
            tiles: [TileRoom::empty(), TileRoom::empty()],
        }
    }
}

/// So many floats, which may be any; none of them is cleared again for a smaller part.
fn room(floats: &mut Vec<f32>, n: usize) -> &mut [f32] {
    floats.resize(floats.len().max(n), 0.0);
    &mut floats[..n]
}

/// Computes all `products` of the same inputs, each into its result, in one pass of the pool.
pub(crate) fn matmul(
    kernels: &Kernels,
    pool: &ThreadPool,
    inputs: &mut Inputs<'_>,
    products: &[Product<'_>],
    outputs: &[Output<'_>],
) {
    for product in products {
        match (kernels.meeting(product.weight, product.rows.len()), product.rows) {
            (Meeting::Floats, _) => {}
            (Meeting::Codes, _) => inputs.quantise(kernels, pool),
            (Meeting::Blocks(kernels, _), _) => inputs.quantise_blocks(kernels, pool),
            (Meeting::Wide(wide), RowMap::All(_)) => {
                inputs.act.coded().wide.get_or_init(|| widened(wide, inputs, pool));
            }
            // Rows that are gathered for each product are widened there.
            (Meeting::Wide(_), _) => {}
        }
    }
    let inputs = &*inputs;
    let (rows, blocks) = (inputs.quantised(), inputs.quantised_blocks());
    let parts = parts(kernels, products, pool.n_threads());
    pool.share(parts.len(), 1, |range| {
        for (product, columns) in &parts[range] {
            let pass = Pass {
                kernels,
                inputs,
                rows: &rows,
                blocks: &blocks,
                product,
                output: &outputs[product.result],
            };
            SCRATCH.with_borrow_mut(|scratch| pass.columns(columns.clone(), scratch));
        }
    });
}

/// Every product's output columns in parts that threads claim: small ones, of which a thread that is put aside takes
/// fewer, unless a panel is filled for each.
fn parts<'a>(
    kernels: &Kernels,
    products: &'a [Product<'a>],
    n_threads: usize,
) -> Vec<(&'a Product<'a>, Range<usize>)> {
    // Sizes with how many parts of them a thread is to have at least: fewer where the next one is half a tile.
    const SIZES: [(usize, usize); 4] =
        [(WIDE_ROWS, 12), (WIDE_ROWS / 2, 12), (2 * TILE_ROWS, 12), (TILE_ROWS, 8)];
    const WIDE_PARTS: usize = 2;
    let is_wide = |p: &Product<'_>| matches!(kernels.meeting(p.weight, p.rows.len()), Meeting::Wide(_));
    let is_wide = products.iter().any(is_wide);
    let count = |size: usize| products.iter().map(|p| p.weight.rows().div_ceil(size)).sum::<usize>();
    let suits = |&(size, n): &(usize, usize)| n_threads * if is_wide { WIDE_PARTS } else { n } <= count(size);
    let size = SIZES.into_iter().find(suits).map_or(TILE_ROWS / 2, |(size, _)| size);
    let of = |product: &'a Product<'a>| {
        let n = product.weight.rows();
        let size = match product.rows {
            // Rows are gathered for every part.
            RowMap::Pairs(pairs) if TILE_ROWS <= pairs.len() => {
                n.div_ceil(n_threads).next_multiple_of(TILE_ROWS)
            }
            _ => size,
        };
        (0..n).step_by(size).map(move |start| (product, start..n.min(start + size)))
    };
    products.iter().flat_map(of).collect()
}

/// One thread's walk over one matrix.
struct Pass<'a> {
    kernels: &'a Kernels,
    inputs: &'a Inputs<'a>,
    /// The inputs quantised, if they are.
    rows: &'a [QuantRow<'a>],
    blocks: &'a [&'a [u8]],
    product: &'a Product<'a>,
    output: &'a Output<'a>,
}

impl Pass<'_> {
    fn columns(&self, columns: Range<usize>, scratch: &mut Scratch) {
        let format = self.product.weight.format();
        let tiles = |n: usize| {
            let end = columns.end;
            columns.clone().step_by(n).map(move |start| start..(start + n).min(end))
        };
        match self.kernels.meeting(self.product.weight, self.product.rows.len()) {
            Meeting::Wide(wide) => {
                let gathered = self.gathered_wide(wide);
                let acts = gathered
                    .as_ref()
                    .or(self.inputs.act.coded().wide.get())
                    .expect("widened before the pass");
                tiles(WIDE_ROWS).for_each(|tile| self.wide_tile(wide, acts, tile, scratch));
                return;
            }
            Meeting::Blocks(kernels, dot) => {
                self.with_blocks(kernels, |xs| {
                    tiles(TILE_ROWS).for_each(|tile| self.block_tile(dot, xs, tile, scratch));
                });
                return;
            }
            Meeting::Codes | Meeting::Floats => {}
        }
        let weight = match self.product.weight {
            Matrix::Stored(tensor) => tensor,
            Matrix::Tiled(tiled) => {
                let CodeKernels::Tiles { tiled: kernel, floats, .. } = self.kernels.codes else {
                    unreachable!("a matrix is put in tile order for a table that reads it")
                };
                if let Some(dot) = floats(format) {
                    let xs = (0..self.product.rows.len()).map(|i| self.inputs.row(self.product.rows.at(i).0));
                    let xs: Vec<&[f32]> = xs.collect();
                    tiles(FLOAT_ROWS).for_each(|tile| self.float_tiles(dot, tiled, &xs, tile, scratch));
                    return;
                }
                let dot = kernel(format).expect("the kernel of a format with a tile order");
                self.with_rows(|xs| {
                    tiles(TILE_ROWS).for_each(|tile| self.tile(dot, tiled, xs, tile, scratch))
                });
                return;
            }
        };
        if let Some(dot) = self.kernels.dot_floats(format) {
            for rows in self.near_rows() {
                tiles(TILE).for_each(|tile| self.float_tile(dot, weight, tile, rows.clone()));
            }
            return;
        }
        let Some((kind, unpack)) = (self.kernels.unpack)(format) else {
            tiles(TILE).for_each(|tile| self.dequantised_tile(tile, &mut scratch.floats));
            return;
        };
        let unpack = Unpacking { weight, kind, unpack };
        self.with_rows(|xs| match self.kernels.codes {
            CodeKernels::Rows(dot) => {
                tiles(TILE).for_each(|tile| self.code_tile(&unpack, dot, xs.rows, tile, &mut scratch.panel));
            }
            CodeKernels::Tiles { unpacked, .. } => {
                tiles(TILE_ROWS).for_each(|tile| self.unpacked_tile(&unpack, unpacked, xs, tile, scratch));
            }
        });
    }

    /// Calls `work` with the quantised rows, packed as well if the kernels want so many packed.
    fn with_rows(&self, work: impl FnOnce(&ActRows<'_>)) {
        match self.product.rows {
            RowMap::All(_) => work(&ActRows { rows: self.rows, packed: self.inputs.packed.as_ref() }),
            RowMap::Pairs(pairs) => {
                let rows: Vec<QuantRow<'_>> = pairs.iter().map(|pair| self.rows[pair.0 as usize]).collect();
                let packs = self.kernels.codes.packs(rows.len());
                let packed = packs.then(|| {
                    packed::packed_room(rows.len(), self.rows[0].cols(), self.inputs.memory())
                        .filled(&rows, packed::pack)
                });
                work(&ActRows { rows: &rows, packed: packed.as_ref() });
            }
        }
    }

    /// As [`Self::with_rows`], with a scale per super-block.
    fn with_blocks(&self, kernels: &BlockKernels, work: impl FnOnce(&BlockRows<'_>)) {
        match self.product.rows {
            RowMap::All(_) => {
                work(&BlockRows { rows: self.blocks, packed: self.inputs.packed_blocks.as_ref() })
            }
            RowMap::Pairs(pairs) => {
                let rows: Vec<&[u8]> = pairs.iter().map(|pair| self.blocks[pair.0 as usize]).collect();
                let packed = (kernels.packs_from <= rows.len()).then(|| {
                    blocks::packed_room(rows.len(), self.blocks[0].len(), self.inputs.memory())
                        .filled(&rows, blocks::pack)
                });
                work(&BlockRows { rows: &rows, packed: packed.as_ref() });
            }
        }
    }

    /// The rows in bf16, where they are not all rows of the inputs in order.
    fn gathered_wide(&self, wide: &WideKernels) -> Option<WideActs> {
        let RowMap::Pairs(pairs) = self.product.rows else { return None };
        let mut acts = WideActs::new(pairs.len(), self.inputs.cols(), self.inputs.memory());
        let (n, stride) = acts.block_bytes();
        for (pairs, block) in pairs.chunks(wide::BLOCK_ROWS).zip(acts.bytes_mut().chunks_exact_mut(stride)) {
            let rows: Vec<&[f32]> = pairs.iter().map(|pair| self.inputs.row(pair.0 as usize)).collect();
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            unsafe { (wide.pack)(&rows, &mut block[..n]) };
        }
        Some(acts)
    }

    fn wide_tile(&self, wide: &WideKernels, acts: &WideActs, tile: Range<usize>, scratch: &mut Scratch) {
        let Scratch { panel, floats, tile: memory, products, tiles: [tiles, _] } = scratch;
        let products = room(products, tile.len().div_ceil(2 * N_ROWS) * acts.n_blocks() * wide::BLOCK_FLOATS);
        let n_rows = self.product.rows.len();
        // Results that need nothing more, and are whole.
        let is_direct = matches!(self.product.rows, RowMap::All(_))
            && self.product.bias.is_none()
            && tile.len().is_multiple_of(2 * N_ROWS);
        let mut out = match is_direct {
            true => {
                let cols = self.output.cols;
                let range = tile.start..n_rows.saturating_sub(1) * cols + tile.end;
                let rows = (self.output.values.at(range), cols);
                // SAFETY: the result has these rows, which one product only writes, and each thread has columns of its own.
                unsafe { WideOut::with_rows(products, rows, n_rows, self.output.adds) }
            }
            false => WideOut::sums(products),
        };
        let mut run = |dot: DotWide, rows: WideRows<'_>| {
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            unsafe { dot(&[rows], acts, memory, &mut out) };
        };
        let format = self.product.weight.format();
        match self.product.weight {
            Matrix::Tiled(tiled) => {
                let dot = (wide.tiled)(format).expect("the kernel of a format with a tile order");
                run(dot, WideRows::Tiled(tiled.tiles(tile.clone(), tiles)));
            }
            Matrix::Stored(weight) => {
                if let Some(dot) = (wide.floats)(format) {
                    let row_bytes = weight.data().len() / weight.rows();
                    let data = &weight.data()[tile.start * row_bytes..tile.end * row_bytes];
                    run(dot, WideRows::Floats { data, row_bytes });
                } else if let Some((kind, unpack)) = (self.kernels.unpack)(format) {
                    Unpacking { weight, kind, unpack }.rows(tile.clone(), WIDE_ROWS, panel);
                    let rows = UnpackedTile { panel, n_rows: tile.len() };
                    let kernel = wide.unpacked.expect("codes only meet a table with kernels for them");
                    run(kernel(kind), WideRows::Unpacked(&rows));
                } else {
                    self.dequantise(tile.clone(), floats);
                    let dot = (wide.floats)(Format::Plain(DType::F32)).expect("floats are known");
                    let row_bytes = self.inputs.cols() * 4;
                    let data = &as_bytes(floats)[..tile.len() * row_bytes];
                    run(dot, WideRows::Floats { data, row_bytes });
                }
            }
        }
        let first = out.n_whole * wide::BLOCK_ROWS;
        self.write_tiles(first..n_rows, acts.n_blocks(), &tile, products);
    }

    /// Writes tiles of sums, see [`wide::sums_at`], adding the bias.
    fn write_tiles(&self, rows: Range<usize>, n_blocks: usize, columns: &Range<usize>, sums: &[f32]) {
        let bias = self.product.bias.map(|bias| &bias[columns.clone()]);
        // SAFETY: a result row is written by one product only, and `split` gives its columns to one thread each.
        let target = |i: usize| unsafe { self.target(i, columns) };
        for row in rows.clone() {
            if row + 1 < rows.end {
                prefetch_for_writing(target(row + 1));
            }
            for (tile, to) in target(row).chunks_mut(N_ROWS).enumerate() {
                let sums = &sums[wide::sums_at(n_blocks, row, tile)..][..to.len()];
                match bias {
                    Some(bias) => {
                        let sums = sums.iter().zip(&bias[tile * N_ROWS..]);
                        to.iter_mut().zip(sums).for_each(|(to, (&sum, &b))| *to = sum + b);
                    }
                    None if self.output.adds => {
                        to.iter_mut().zip(sums).for_each(|(to, &sum)| *to += sum);
                    }
                    None => to.copy_from_slice(sums),
                }
            }
        }
    }

    /// Columns `columns` of the result's row that belongs to row `i` of the product.
    ///
    /// # Safety
    /// Nothing else writes there while the result lives.
    #[expect(clippy::mut_from_ref, reason = "threads have columns of their own")]
    unsafe fn target(&self, i: usize, columns: &Range<usize>) -> &mut [f32] {
        let first = self.product.rows.at(i).1 * self.output.cols;
        // SAFETY: by the caller's promise.
        unsafe { self.output.values.slice(first + columns.start..first + columns.end) }
    }

    /// The rows of a tile as floats, at the beginning of `floats`.
    fn dequantise(&self, tile: Range<usize>, floats: &mut Vec<f32>) {
        let cols = self.inputs.cols();
        floats.resize(floats.len().max(tile.len() * cols), 0.0);
        for (row, column) in floats.chunks_exact_mut(cols.max(1)).zip(tile) {
            self.product.weight.dequantise_row(column, row);
        }
    }

    /// The rows of the product in runs that stay in a core's second cache while a part's columns go by.
    fn near_rows(&self) -> impl Iterator<Item = Range<usize>> {
        const NEAR_BYTES: usize = 256 << 10;
        let n_rows = self.product.rows.len();
        let n = (NEAR_BYTES / (4 * self.inputs.cols()).max(1)).max(1).next_multiple_of(TILE);
        (0..n_rows).step_by(n).map(move |start| start..n_rows.min(start + n))
    }

    fn float_tile(&self, dot: DotFloats, weight: &HostTensor, tile: Range<usize>, xs: Range<usize>) {
        let data = weight.data();
        let row_bytes = data.len() / weight.rows();
        let mut rows: [&[u8]; TILE] = [&[]; TILE];
        for (row, column) in rows.iter_mut().zip(tile.clone()) {
            *row = &data[column * row_bytes..(column + 1) * row_bytes];
        }
        self.float_products(dot, tile.clone(), &rows[..tile.len()], xs);
    }

    fn dequantised_tile(&self, tile: Range<usize>, floats: &mut Vec<f32>) {
        let cols = self.inputs.cols();
        self.dequantise(tile.clone(), floats);
        let mut rows: [&[u8]; TILE] = [&[]; TILE];
        for (row, values) in rows.iter_mut().zip(floats.chunks_exact(cols.max(1))) {
            *row = as_bytes(values);
        }
        let xs = 0..self.product.rows.len();
        self.float_products(self.kernels.dot_f32, tile.clone(), &rows[..tile.len()], xs);
    }

    fn float_products(&self, dot: DotFloats, tile: Range<usize>, weights: &[&[u8]], xs: Range<usize>) {
        for start in xs.clone().step_by(TILE) {
            let n = TILE.min(xs.end - start);
            let mut xs: [&[f32]; TILE] = [&[]; TILE];
            for (i, x) in xs[..n].iter_mut().enumerate() {
                *x = self.inputs.row(self.product.rows.at(start + i).0);
            }
            let mut out = [0f32; TILE * TILE];
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            unsafe { dot(weights, &xs[..n], &mut out) };
            self.write(start, n, &tile, &out, TILE);
        }
    }

    fn code_tile(
        &self,
        unpack: &Unpacking<'_>,
        dot: DotCodes,
        xs: &[QuantRow<'_>],
        tile: Range<usize>,
        panel: &mut Panel,
    ) {
        unpack.rows(tile.clone(), TILE, panel);
        let rows: [CodeRow<'_>; TILE] = std::array::from_fn(|i| panel.row(i));
        for (i, xs) in xs.chunks(TILE).enumerate() {
            let mut out = [0f32; TILE * TILE];
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            unsafe { dot(unpack.kind, &rows[..tile.len()], xs, &mut out) };
            self.write(i * TILE, xs.len(), &tile, &out, TILE);
        }
    }

    fn tile(
        &self,
        dot: DotTiles,
        weight: &TiledMatrix,
        xs: &ActRows<'_>,
        tile: Range<usize>,
        scratch: &mut Scratch,
    ) {
        scratch.products.resize(xs.rows.len() * TILE_ROWS, 0.0);
        let tiles = weight.tiles(tile.clone(), &mut scratch.tiles[0]);
        // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
        unsafe { dot(&tiles, xs, &mut scratch.tile, &mut scratch.products) };
        self.write(0, xs.rows.len(), &tile, &scratch.products, TILE_ROWS);
    }

    fn block_tile(&self, dot: DotBlocks, xs: &BlockRows<'_>, tile: Range<usize>, scratch: &mut Scratch) {
        let Matrix::Tiled(weight) = self.product.weight else { unreachable!("super-blocks in tile order") };
        scratch.products.resize(xs.rows.len() * TILE_ROWS, 0.0);
        let tiles = weight.tiles(tile.clone(), &mut scratch.tiles[0]);
        // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
        unsafe { dot(&tiles, xs, &mut scratch.tile, &mut scratch.products) };
        self.write(0, xs.rows.len(), &tile, &scratch.products, TILE_ROWS);
    }

    fn float_tiles(
        &self,
        dot: DotFloatTiles,
        weight: &TiledMatrix,
        xs: &[&[f32]],
        tile: Range<usize>,
        scratch: &mut Scratch,
    ) {
        scratch.products.resize(xs.len() * FLOAT_ROWS, 0.0);
        let tiles = weight.tiles(tile.clone(), &mut scratch.tiles[0]);
        // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
        unsafe { dot(&tiles, xs, &mut scratch.tile, &mut scratch.products) };
        self.write(0, xs.len(), &tile, &scratch.products, FLOAT_ROWS);
    }

    fn unpacked_tile(
        &self,
        unpack: &Unpacking<'_>,
        dot: DotUnpacked,
        xs: &ActRows<'_>,
        tile: Range<usize>,
        scratch: &mut Scratch,
    ) {
        unpack.rows(tile.clone(), TILE_ROWS, &mut scratch.panel);
        scratch.products.resize(xs.rows.len() * TILE_ROWS, 0.0);
        let weights = UnpackedTile { panel: &scratch.panel, n_rows: tile.len() };
        // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
        unsafe { dot(unpack.kind, &weights, xs, &mut scratch.tile, &mut scratch.products) };
        self.write(0, xs.rows.len(), &tile, &scratch.products, TILE_ROWS);
    }

    /// Writes a tile of products `[n, stride]`, adding the bias.
    fn write(&self, start: usize, n: usize, tile: &Range<usize>, out: &[f32], stride: usize) {
        // SAFETY: a result row is written by one product only, and `split` gives its columns to one thread each.
        let target = |i: usize| unsafe { self.target(start + i, tile) };
        let rows = (0..n).zip(out.chunks(stride));
        match self.product.bias {
            Some(bias) => rows.for_each(|(i, sums)| {
                let sums = sums.iter().zip(&bias[tile.clone()]);
                target(i).iter_mut().zip(sums).for_each(|(t, (&sum, &b))| *t = sum + b);
            }),
            // A known length needs no call.
            None if tile.len() == TILE_ROWS => rows.for_each(|(i, sums)| {
                let (to, from) = (target(i).first_chunk_mut::<TILE_ROWS>(), sums.first_chunk());
                *to.expect("a whole tile") = *from.expect("a whole tile");
            }),
            None => rows.for_each(|(i, sums)| {
                if i + 1 < n {
                    prefetch_for_writing(target(i + 1));
                }
                target(i).copy_from_slice(&sums[..tile.len()]);
            }),
        }
    }
}

/// A weight and how its rows become codes.
struct Unpacking<'a> {
    weight: &'a HostTensor,
    kind: CodeKind,
    unpack: Unpack,
}

impl Unpacking<'_> {
    /// Unpacks the rows of a tile into the first rows of the panel, which has room for `n_rows`.
    fn rows(&self, tile: Range<usize>, n_rows: usize, panel: &mut Panel) {
        panel.reshape(n_rows, self.weight.cols(), self.kind);
        for (i, column) in tile.enumerate() {
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            unsafe { (self.unpack)(stored_row(self.weight, column), panel.row_mut(i)) };
        }
    }
}

/// A row of a matrix as it is stored.
pub(crate) fn stored_row(weight: &HostTensor, row: usize) -> StoredRow<'_> {
    fn part(bytes: &[u8], rows: usize, row: usize) -> &[u8] {
        let n = bytes.len() / rows;
        &bytes[row * n..(row + 1) * n]
    }
    let rows = weight.rows();
    let group_size = match weight.format() {
        Format::Plain(dtype) => dtype.block_len(),
        Format::MlxAffine { group_size, .. } => group_size as usize,
        Format::MlxFloat(mode) => mode.group_size(),
        // Never unpacked to codes, so nothing asks.
        Format::Scaled { .. } | Format::Codebook { .. } => 1,
    };
    StoredRow {
        data: part(weight.data(), rows, row),
        scales: part(weight.scales(), rows, row),
        biases: part(weight.biases(), rows, row),
        group_size,
    }
}
