//! Products in bf16 by `vdpbf16ps`, twice as many at once as of floats.
//!
//! Only for plain floats: integer products of codes are faster still.

use core::arch::x86_64::*;

use mlxr_tensor::{DType, Format};

use super::wide::{self, PANEL_TILE, Unit, wide_floats, wide_kernels};
use crate::kernels::{DotWide, WideKernels};
use crate::linear::tile::TileScratch;
use crate::linear::tiled::{LINE_BYTES, N_ROWS};
use crate::linear::wide::{BLOCK_ROWS, TILE_BYTES, WIDE_ROWS, WideActs, WideRows};

/// Activation rows from which on rounding to bf16 pays.
const WIDE_FROM: usize = 32;

/// Activation rows that share a load of weights.
const ROWS: usize = 8;

pub(super) const KERNELS: WideKernels =
    WideKernels { from_rows: WIDE_FROM, tiled: float_tiles, floats, unpacked: None, pack: wide::pack };

wide_floats!(VectorUnit);

/// AVX-512 BF16.
struct VectorUnit;

impl Unit for VectorUnit {
    #[inline]
    unsafe fn begin() {}

    #[inline]
    unsafe fn end() {}

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    unsafe fn two_by_two(acts: &[u8], panel: &[u8], n_steps: usize, add: bool, out: *mut f32) {
        for first in (0..BLOCK_ROWS).step_by(ROWS) {
            // SAFETY: rows of a tile are a line apart and tiles follow each other, and so do their rows of sums.
            unsafe {
                let (acts, out) = (acts.as_ptr().add(first * LINE_BYTES), out.add(first * WIDE_ROWS));
                some_rows(acts, panel.as_ptr(), n_steps, add, out);
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
unsafe fn some_rows(acts: *const u8, panel: *const u8, n_steps: usize, add: bool, out: *mut f32) {
    let mut acc = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: tiles and sums are in bounds by the caller's promise; no access needs alignment.
    unsafe {
        if add {
            for (row, acc) in acc.iter_mut().enumerate() {
                let sums = out.add(row * WIDE_ROWS);
                *acc = [_mm512_loadu_ps(sums), _mm512_loadu_ps(sums.add(N_ROWS))];
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
            let sums = out.add(row * WIDE_ROWS);
            _mm512_storeu_ps(sums, acc[0]);
            _mm512_storeu_ps(sums.add(N_ROWS), acc[1]);
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
