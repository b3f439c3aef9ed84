//! Products in bf16 by `vdpbf16ps`, twice as many at once as of floats.
//!
//! Only for plain floats: integer products of codes are faster still.

use core::arch::x86_64::*;

use mlxr_tensor::{DType, Format};

use super::wide::{self, PANEL_TILE, Unit, wide_floats, wide_kernels};
use super::{attend_bf16, peak};
use crate::kernels::{DotWide, WideKernels};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{BLOCK_ROWS, Sums, TILE_BYTES, WideActs, WideOut, WideRows};

/// Activation rows from which on rounding to bf16 pays.
const WIDE_FROM: usize = 32;

/// Activation rows that share a load of weights.
const ROWS: usize = 8;

pub(super) const KERNELS: WideKernels = WideKernels {
    from_rows: WIDE_FROM,
    tiled: float_tiles,
    floats,
    unpacked: None,
    pack: wide::pack,
    pack_row: wide::pack_row,
    pack_sums: wide::pack_sums,
    attend: attend_bf16::kernels::<VectorUnit>(),
    peak: peak::bf16,
};

/// Whether `vdpbf16ps` multiplies faster than two multiply-adds of floats: AMD's processors do nearly twice as much by it,
/// Intel's half as much.
pub(super) fn is_fast() -> bool {
    let vendor = __cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() != b"GenuineIntel"
}

wide_floats!(VectorUnit);

/// AVX-512 BF16.
struct VectorUnit;

impl Unit for VectorUnit {
    /// Two tiles stay in the first-level cache.
    fn panel_cols(_: usize) -> usize {
        512
    }

    #[inline]
    unsafe fn begin() {}

    #[inline]
    unsafe fn end() {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn two_by_two(acts: &[u8], panel: &[u8], n_steps: usize, from: Option<Sums>, to: Sums) {
        for first in (0..BLOCK_ROWS).step_by(ROWS) {
            let from_here = |sums: Sums| {
                let rows = first / N_ROWS * sums.low + first % N_ROWS * sums.stride;
                Sums { at: sums.at.wrapping_add(rows), ..sums }
            };
            // SAFETY: rows of a tile are a line apart and tiles follow each other, and so do their rows of sums.
            unsafe {
                let acts = acts.as_ptr().add(first * LINE_BYTES);
                some_rows(acts, panel.as_ptr(), n_steps, from.map(from_here), from_here(to));
            }
        }
    }
}

/// As [`Unit::two_by_two`], for [`ROWS`] rows of activations.
///
/// # Safety
/// As there.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn some_rows(acts: *const u8, panel: *const u8, n_steps: usize, from: Option<Sums>, to: Sums) {
    let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: tiles and sums are in bounds by the caller's promise; no access needs alignment.
    unsafe {
        if let Some(from) = from {
            for (row, acc) in acc.iter_mut().enumerate() {
                let sums = from.at.add(row * from.stride);
                *acc = [_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(from.right))];
            }
        }
        for step in 0..n_steps {
            let (acts, panel) = (acts.add(step * 2 * TILE_BYTES), panel.add(step * TILE_BYTES));
            for line in 0..TILE_BYTES / LINE_BYTES {
                let weights = panel.add(line * LINE_BYTES);
                let weights = [pairs(weights), pairs(weights.add(PANEL_TILE))];
                for (row, acc) in acc.iter_mut().enumerate() {
                    let x = acts.add(row * LINE_BYTES + line * 4).cast::<i32>().read_unaligned();
                    let x = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x));
                    for (acc, weights) in acc.iter_mut().zip(weights) {
                        *acc = _mm512_dpbf16_ps(*acc, weights, x);
                    }
                }
            }
        }
        for (row, acc) in acc.iter().enumerate() {
            let sums = to.at.add(row * to.stride);
            _mm512_storeu_ps(sums, acc[0]);
            _mm512_storeu_ps(sums.add(to.right), acc[1]);
        }
    }
}

/// A line of sixteen pairs.
///
/// # Safety
/// It is there.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pairs(line: *const u8) -> __m512bh {
    // SAFETY: in bounds by the caller's promise, the load needs no alignment; plain bits on both sides.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(line.cast())) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mlxr_tensor::conformance::data::{self, Noise};

    use super::*;
    use crate::acts::ActPool;
    use crate::avx512::super_blocks::{Q4K, Q5K, Q6K};
    use crate::avx512::{self, wide::SuperBlocks};
    use crate::kernels::Kernels;
    use crate::linear::tiled::TileRoom;
    use crate::linear::wide::{BLOCK_FLOATS, sums_at};
    use crate::pool::ThreadPool;
    use crate::room::Room;
    use crate::weight::Matrix;

    /// Another unit has kernels for these; this one multiplies what is the same for both.
    #[test]
    fn super_blocks_are_unpacked_to_their_values() {
        if !avx512::is_available() || avx512::wide_if_any().is_none() {
            return;
        }
        let (n_w, cols) = (21, 768);
        let mut noise = Noise::new(5);
        let kernels = Kernels { wide: None, ..avx512::TABLE };
        let (x, memory) = (noise.values(cols), Arc::<ActPool>::default());
        let mut acts = WideActs::new(1, cols, &memory);
        let n_bytes = acts.block_bytes().0;
        // SAFETY: AVX-512 BF16 is available, here and below.
        unsafe { wide::pack(&[&x], &mut acts.bytes_mut()[..n_bytes]) };
        let round = |v: f32| half::bf16::from_f32(v).to_f64();
        for dtype in [DType::Q4_K, DType::Q5_K, DType::Q6_K] {
            let tensor = data::tensor(Format::Plain(dtype), &[n_w, cols], &mut noise);
            let Ok(Matrix::Tiled(matrix)) =
                Matrix::new(&tensor, &kernels, &ThreadPool::new(1), &Room::default())
            else {
                panic!("a tile order")
            };
            let mut room = TileRoom::empty();
            let (weights, scratch) =
                ([WideRows::Tiled(matrix.tiles(0..n_w, &mut room))], &mut TileScratch::empty());
            let mut out = vec![0f32; n_w.div_ceil(2 * N_ROWS) * BLOCK_FLOATS];
            // SAFETY: as above.
            unsafe {
                match dtype {
                    DType::Q4_K => wide::dot::<SuperBlocks<Q4K>, VectorUnit>(
                        &weights,
                        &acts,
                        scratch,
                        &mut WideOut::sums(&mut out),
                    ),
                    DType::Q5_K => wide::dot::<SuperBlocks<Q5K>, VectorUnit>(
                        &weights,
                        &acts,
                        scratch,
                        &mut WideOut::sums(&mut out),
                    ),
                    _ => wide::dot::<SuperBlocks<Q6K>, VectorUnit>(
                        &weights,
                        &acts,
                        scratch,
                        &mut WideOut::sums(&mut out),
                    ),
                }
            }
            let values = tensor.to_f32().expect("numbers");
            for (w, values) in values.chunks_exact(cols).enumerate() {
                let got = out[sums_at(1, 0, w / N_ROWS) + w % N_ROWS];
                let terms = values.iter().zip(&x).map(|(&w, &x)| round(w) * round(x));
                let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                // A value that lies between two bf16 may be rounded either way.
                assert!((f64::from(got) - sum).abs() <= 1e-4 * size, "{} row {w}: {got} {sum}", dtype.name());
            }
        }
    }
}
