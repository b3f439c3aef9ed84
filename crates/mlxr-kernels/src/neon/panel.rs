//! Rows in tile order meet many activation rows: their codes are unpacked once, into a panel.

use core::arch::aarch64::*;
use core::marker::PhantomData;

use super::dots::Dots;
use super::rows::{FourRows, LANES, PARTS};
use super::tile::{Groups, Layout, MAX_BLOCK, meet};
use crate::aligned::AlignedBytes;
use crate::kernels::TILE_ROWS;
use crate::linear::codes::QuantRow;
use crate::linear::tiled::{N_ROWS, Tiles};

/// Columns that are unpacked at a time: those of all rows of a call stay in the first-level cache.
const PANEL_COLS: usize = 512;

/// Bytes of a vector.
const VECTOR: usize = 16;

/// Bytes of the codes of four rows, of their scales or offsets, and of all of these.
const CODE_BYTES: usize = PANEL_COLS * LANES;
const SCALE_BYTES: usize = PANEL_COLS / 16 * VECTOR;
const PART_BYTES: usize = CODE_BYTES + 2 * SCALE_BYTES;

/// Groups of four rows in a panel, group after group as [`meet`] takes them.
struct Unpacked<L> {
    part: *const u8,
    /// The first group that the panel has.
    first: usize,
    layout: PhantomData<L>,
}

impl<L> Clone for Unpacked<L> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<L> Copy for Unpacked<L> {}

impl<L: Layout> Groups for Unpacked<L> {
    type Layout = L;
    const ZERO: Option<i32> = None;

    #[inline(always)]
    unsafe fn codes<D: Dots, const PAIR: usize>(self, group: usize) -> [[uint8x16_t; 2]; 2] {
        let at = self.part.wrapping_add((group - self.first) * code_bytes::<L>());
        // SAFETY: in bounds by the caller's promise; byte loads need no alignment.
        let codes = |i: usize| unsafe { vld1q_u8(at.wrapping_add(i * VECTOR)) };
        let low = [codes(2 * PAIR), codes(2 * PAIR + 1)];
        [low, if L::GROUP == 32 { [codes(4 + 2 * PAIR), codes(5 + 2 * PAIR)] } else { low }]
    }

    #[inline(always)]
    unsafe fn factors(self, group: usize) -> (float32x4_t, float32x4_t) {
        let at = self.part.wrapping_add(CODE_BYTES + (group - self.first) * VECTOR);
        // SAFETY: as in `codes`.
        unsafe {
            let scale = vreinterpretq_f32_u8(vld1q_u8(at));
            let offset = if L::OFFSETS { vld1q_u8(at.wrapping_add(SCALE_BYTES)) } else { vdupq_n_u8(0) };
            (scale, vreinterpretq_f32_u8(offset))
        }
    }
}

/// Bytes of the codes of a group of four rows.
const fn code_bytes<L: Layout>() -> usize {
    L::GROUP * LANES
}

/// Products of rows in tile order with `xs`: `out[x * TILE_ROWS + w]`.
///
/// # Safety
/// The CPU has what `D` needs; there are up to [`TILE_ROWS`] weight rows, and the activations, all of one shape, have their
/// columns.
#[inline(always)]
pub(super) unsafe fn dot<L: Layout, D: Dots>(
    tiles: &Tiles<'_>,
    xs: &[QuantRow<'_>],
    panel: &mut AlignedBytes,
    out: &mut [f32],
) {
    const TILE_BYTES: usize = PARTS * PART_BYTES;
    if panel.bytes().len() < TILE_ROWS / N_ROWS * TILE_BYTES {
        *panel = AlignedBytes::zeroed(TILE_ROWS / N_ROWS * TILE_BYTES).expect("memory for a panel");
    }
    let (n_groups, per_panel) = (tiles.n_blocks * L::GROUPS, PANEL_COLS / L::GROUP);
    for first in (0..n_groups).step_by(per_panel) {
        let groups = first..(first + per_panel).min(n_groups);
        let memory = panel.bytes_mut().chunks_exact_mut(TILE_BYTES);
        for ((t, rows), memory) in FourRows::of(tiles).enumerate().zip(memory) {
            for (rows, part) in rows.into_iter().zip(memory.chunks_exact_mut(PART_BYTES)) {
                for (i, group) in groups.clone().enumerate() {
                    // SAFETY: the rows have the group; callers have what `D` needs.
                    unsafe { fill::<L, D>(rows, group, i, part) };
                }
            }
            let memory = memory.as_ptr();
            let parts: [Unpacked<L>; PARTS] = std::array::from_fn(|part| Unpacked {
                part: memory.wrapping_add(part * PART_BYTES),
                first,
                layout: PhantomData,
            });
            for (xs, out) in xs.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
                // SAFETY: the parts were filled with these groups, for `D`; passes the caller's promise on.
                unsafe { meet::<_, D, MAX_BLOCK, 2>(&parts, groups.clone(), xs, &mut out[t * N_ROWS..]) };
            }
        }
    }
}

/// Unpacks a group to place `i` of a part.
///
/// # Safety
/// The CPU has what `D` needs, and the rows have the group.
#[inline(always)]
unsafe fn fill<L: Layout, D: Dots>(rows: FourRows, group: usize, i: usize, part: &mut [u8]) {
    let (codes, factors) = part.split_at_mut(CODE_BYTES);
    let codes = codes[i * code_bytes::<L>()..][..code_bytes::<L>()].as_mut_ptr();
    let (scales, offsets) = factors.split_at_mut(SCALE_BYTES);
    let (scale_at, offset_at) = (&mut scales[i * VECTOR..][..VECTOR], &mut offsets[i * VECTOR..][..VECTOR]);
    // SAFETY: so many vectors are in bounds; passes the caller's promise on.
    unsafe {
        let put = |pair: usize, [low, high]: [[uint8x16_t; 2]; 2]| {
            for (half, two) in [low, high].into_iter().enumerate().take(L::GROUP / 16) {
                for (k, eight) in two.into_iter().enumerate() {
                    // Both instructions take codes with a sign.
                    let eight = vsubq_u8(eight, vdupq_n_u8(L::ZERO.map_or(0, |n| 1 << n)));
                    vst1q_u8(codes.add((4 * half + 2 * pair + k) * VECTOR), eight);
                }
            }
        };
        put(0, L::codes::<D, 0>(rows, group));
        put(1, L::codes::<D, 1>(rows, group));
        let (scale, offset) = L::factors(rows, group);
        vst1q_u8(scale_at.as_mut_ptr(), vreinterpretq_u8_f32(scale));
        if L::OFFSETS {
            vst1q_u8(offset_at.as_mut_ptr(), vreinterpretq_u8_f32(offset));
        }
    }
}
