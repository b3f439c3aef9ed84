//! Kernels for super-blocks against plain loops, and against each other.

use std::sync::Arc;

use mlxr_tensor::conformance::data::{self, Noise};
use mlxr_tensor::{DType, Format};
use proptest::prelude::*;

use crate::acts::ActPool;
use crate::kernels::{BlockKernels, Kernels, TILE_ROWS};
use crate::linear::blocks::{
    BLOCK_BYTES, BLOCK_COLS, BlockActs, BlockRows, SCALE_AT, SUMS16_AT, SUMS32_AT, pack, packed_room,
    place_of_sum,
};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::TileRoom;
use crate::pool::ThreadPool;
use crate::room::Room;
use crate::weight::Matrix;

const FORMATS: [DType; 3] = [DType::Q4_K, DType::Q5_K, DType::Q6_K];

/// One block as the module says it is.
fn plain_block(x: &[f32]) -> Vec<u8> {
    let largest = x.iter().fold(0f32, |most, v| if most < v.abs() { v.abs() } else { most });
    let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
    let codes: Vec<i8> = x.iter().map(|v| (v * inverse).round_ties_even() as i8).collect();
    let mut block: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
    block.resize(BLOCK_BYTES, 0);
    for (at, n) in [(SUMS32_AT, 32), (SUMS16_AT, 16)] {
        for (i, group) in codes.chunks(n).enumerate() {
            let sum = group.iter().map(|&code| i16::from(code)).sum::<i16>();
            block[at + 2 * place_of_sum(i)..][..2].copy_from_slice(&sum.to_le_bytes());
        }
    }
    block[SCALE_AT..SCALE_AT + 4].copy_from_slice(&(largest / 127.0).to_le_bytes());
    block
}

fn quantised(kernels: &BlockKernels, x: &[f32], cols: usize) -> BlockActs {
    let mut acts = BlockActs::new(x.len() / cols, cols, &ActPool::default());
    let row_bytes = acts.row_bytes();
    for (x, row) in x.chunks_exact(cols).zip(acts.rows_mut(x.len() / cols).chunks_exact_mut(row_bytes)) {
        // SAFETY: the table came from `Kernels::available`.
        unsafe { (kernels.quantise)(x, row) };
    }
    acts
}

/// What the codes of a block stand for.
fn values(block: &[u8]) -> impl Iterator<Item = f64> {
    let scale = f32::from_le_bytes(block[SCALE_AT..SCALE_AT + 4].try_into().expect("four bytes"));
    block[..BLOCK_COLS].iter().map(move |&code| f64::from(scale) * f64::from(code as i8))
}

proptest! {
    #[test]
    fn blocks_are_the_plain_ones(
        n_blocks in 1usize..4, seed: u64, zero: bool,
        odd in prop::option::of((0usize..1024, prop::num::f32::ANY)),
    ) {
        let mut x = Noise::new(seed).values(n_blocks * BLOCK_COLS);
        if zero {
            x[..BLOCK_COLS].fill(0.0);
        }
        if let Some((at, value)) = odd {
            let n = x.len();
            x[at % n] = value;
        }
        let expected: Vec<u8> = x.chunks(BLOCK_COLS).flat_map(plain_block).collect();
        for kernels in Kernels::available() {
            let Some(blocks) = kernels.blocks() else { continue };
            let got = quantised(blocks, &x, x.len());
            prop_assert_eq!(got.row(0), &expected[..], "{:?}", kernels);
        }
    }

    #[test]
    fn products_of_super_blocks_are_those_of_their_values(
        n_blocks in 1usize..5, n_w in 1..=TILE_ROWS, n_x in 1usize..40, seed: u64,
    ) {
        let mut noise = Noise::new(seed);
        let (cols, pool) = (n_blocks * BLOCK_COLS, ThreadPool::new(1));
        let x = noise.values(n_x * cols);
        for format in FORMATS.map(Format::Plain) {
            let tensor = data::unaligned(&data::tensor(format, &[n_w, cols], &mut noise));
            let weights = tensor.to_f32().expect("numbers");
            let mut before: Option<Vec<f32>> = None;
            for kernels in Kernels::available() {
                let Some(blocks) = kernels.blocks() else { continue };
                let dot = (blocks.tiled)(format).expect("a kernel");
                let Ok(Matrix::Tiled(matrix)) = Matrix::new(&tensor, &kernels, &pool, &Room::default()) else {
                    panic!("{} has kernels and no tile order", format.name())
                };
                let acts = quantised(blocks, &x, cols);
                let rows: Vec<&[u8]> = (0..n_x).map(|row| acts.row(row)).collect();
                let products = |rows: &[&[u8]]| {
                    let packs = rows.len() > 1 && blocks.packs_from < usize::MAX;
                    let memory = Arc::<ActPool>::default();
                    let room = |rows: &[&[u8]]| packed_room(rows.len(), rows[0].len(), &memory);
                    let packed = packs.then(|| room(rows).filled(rows, pack));
                    let xs = BlockRows { rows, packed: packed.as_ref() };
                    let mut out = vec![f32::NAN; rows.len() * TILE_ROWS];
                    // SAFETY: the table came from `Kernels::available`.
                    unsafe { dot(&matrix.tiles(0..n_w, &mut TileRoom::empty()), &xs, &mut TileScratch::empty(), &mut out) };
                    out.chunks_exact(TILE_ROWS).flat_map(|row| row[..n_w].to_vec()).collect::<Vec<_>>()
                };
                let got = products(&rows);
                for (i, got) in got.chunks_exact(n_w).enumerate() {
                    let x: Vec<f64> = rows[i].chunks_exact(BLOCK_BYTES).flat_map(values).collect();
                    for (got, weights) in got.iter().zip(weights.chunks_exact(cols)) {
                        let terms = x.iter().zip(weights).map(|(x, &w)| x * f64::from(w));
                        let (sum, size) = terms.fold((0.0, 0.0), |(s, n), term| (s + term, n + term.abs()));
                        // Sums of codes and of minima are larger than what is left of them.
                        let limit = 1e-5 * size + 1e-30;
                        prop_assert!((f64::from(*got) - sum).abs() <= limit, "{}: {got} {sum}", format.name());
                    }
                    prop_assert_eq!(got, &products(&rows[i..=i])[..], "{} alone and together", format.name());
                }
                let before = before.get_or_insert_with(|| got.clone());
                prop_assert_eq!(&*before, &got, "{} {:?}", format.name(), kernels);
            }
        }
    }
}
