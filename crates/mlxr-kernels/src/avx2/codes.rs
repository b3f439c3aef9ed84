//! Products of rows unpacked to codes with quantised activations, and of rows in tile order with many of these.
//!
//! Codes are put side by side, eight rows to a vector, and meet activations as those in tile order do (see
//! [`super::tile`]): a weight row is a lane, and what one group of columns gives is added to the sum of those before it. So a
//! product is computed the same way whatever the numbers of rows are.

use core::arch::x86_64::*;
use core::ops::Range;

use super::dots::{Dots, word};
use super::rows::{EightRows, LANES};
use super::tile::{Codes, Layout, MAX_BLOCK, store};
use crate::aligned::{AlignedBytes, as_bytes};
use crate::kernels::TILE_ROWS;
use crate::linear::codes::{CodeKind, CodeRow, QuantRow};
use crate::linear::tile::{ActRows, TileScratch, UnpackedTile};
use crate::linear::tiled::Tiles;
use crate::tiles::each_line;

/// Columns that are side by side at a time: those of all rows of a call stay in the first-level cache.
const PANEL_COLS: usize = 512;

/// Bytes of a vector.
const VECTOR: usize = 32;

/// Bytes of the codes, and of the scales or offsets, of eight rows.
const CODE_BYTES: usize = PANEL_COLS * LANES;
const SCALE_BYTES: usize = PANEL_COLS / 16 * VECTOR;
const PART_BYTES: usize = CODE_BYTES + 2 * SCALE_BYTES;

/// Products of rows unpacked to the common form with `xs`: `out[x * TILE_ROWS + w]`.
///
/// # Safety
/// The CPU has what `D` needs.
#[inline(always)]
pub(super) unsafe fn dot_unpacked<D: Dots>(
    kind: CodeKind,
    weights: &UnpackedTile<'_>,
    xs: &ActRows<'_>,
    scratch: &mut TileScratch,
    out: &mut [f32],
) {
    let panel = &mut scratch.panel;
    // SAFETY: passes the caller's promise on.
    unsafe {
        match (kind.signed, kind.group, kind.offsets) {
            (false, 32, _) => dot_kind::<D, Unpacked<false, 32, true>>(weights, xs.rows, panel, out),
            (false, _, _) => dot_kind::<D, Unpacked<false, 16, true>>(weights, xs.rows, panel, out),
            (true, 32, false) => dot_kind::<D, Unpacked<true, 32, false>>(weights, xs.rows, panel, out),
            (true, 32, true) => dot_kind::<D, Unpacked<true, 32, true>>(weights, xs.rows, panel, out),
            (true, _, _) => dot_kind::<D, Unpacked<true, 16, true>>(weights, xs.rows, panel, out),
        }
    }
}

/// What the codes of a panel are.
trait Kind {
    /// Whether they may be negative; otherwise they are 31 at most.
    const SIGNED: bool;
    /// Columns of a group: 16 or 32.
    const GROUP: usize;
    /// Whether offsets are other than zero.
    const OFFSETS: bool;
    /// What unsigned codes are less than, as a power of two; nothing where that is 0.
    const ZERO: Option<u32>;
}

/// The common form.
struct Unpacked<const SIGNED: bool, const GROUP: usize, const OFFSETS: bool>;

impl<const SIGNED: bool, const GROUP: usize, const OFFSETS: bool> Kind for Unpacked<SIGNED, GROUP, OFFSETS> {
    const SIGNED: bool = SIGNED;
    const GROUP: usize = GROUP;
    const OFFSETS: bool = OFFSETS;
    const ZERO: Option<u32> = None;
}

impl<L: Layout> Kind for L {
    const SIGNED: bool = matches!(L::CODES, Codes::Bytes);
    const GROUP: usize = L::GROUP;
    const OFFSETS: bool = L::OFFSETS;
    const ZERO: Option<u32> = L::ZERO;
}

/// Room for the codes of all rows of a call.
fn panel_memory(panel: &mut AlignedBytes) -> &mut AlignedBytes {
    if panel.bytes().len() < TILE_ROWS / LANES * PART_BYTES {
        *panel = AlignedBytes::zeroed(TILE_ROWS / LANES * PART_BYTES).expect("memory for a panel");
    }
    panel
}

/// Products of rows in tile order with `xs`: `out[x * TILE_ROWS + w]`.
///
/// # Safety
/// The CPU has what `D` needs; there are up to [`TILE_ROWS`] weight rows, and the activations, all of one shape, have their
/// columns.
#[inline(always)]
pub(super) unsafe fn dot_tiled<L: Layout, D: Dots>(
    tiles: &Tiles<'_>,
    xs: &[QuantRow<'_>],
    panel: &mut AlignedBytes,
    out: &mut [f32],
) {
    let panel = panel_memory(panel);
    let cols = tiles.n_blocks * L::GROUPS * L::GROUP;
    for start in (0..cols).step_by(PANEL_COLS) {
        let end = (start + PANEL_COLS).min(cols);
        let parts = EightRows::of(tiles).flatten();
        for (rows, part) in parts.zip(panel.bytes_mut().chunks_exact_mut(PART_BYTES)) {
            // SAFETY: the rows have these columns; callers have what `D` needs.
            unsafe { fill::<L>(rows, start / L::GROUP..end / L::GROUP, part) };
        }
        let n_parts = EightRows::of(tiles).flatten().count();
        // SAFETY: so many parts were filled with these columns; passes the caller's promise on.
        unsafe { meet_all::<D, L>(panel.bytes(), n_parts, start..end, xs, out) };
    }
}

/// Fills a part with groups of eight rows.
///
/// # Safety
/// The CPU has AVX2 and F16C, and the rows have the groups.
#[inline(always)]
unsafe fn fill<L: Layout>(rows: EightRows, groups: Range<usize>, part: &mut [u8]) {
    assert!(groups.len() * L::GROUP <= PANEL_COLS && part.len() == PART_BYTES, "a part's groups");
    let part = part.as_mut_ptr();
    let at = |at: usize| part.wrapping_add(at).cast::<__m256i>();
    for (i, group) in groups.enumerate() {
        // SAFETY: the part has room for so many groups; stores need no alignment; passes the caller's promise on.
        unsafe {
            let first = i * L::GROUP / 4;
            each_line!(4, |LINE| {
                let [low, high] = L::codes(rows, group, LINE);
                _mm256_storeu_si256(at((first + LINE) * VECTOR), low);
                if L::GROUP == 32 {
                    _mm256_storeu_si256(at((first + 4 + LINE) * VECTOR), high);
                }
            });
            let (scale, offset) = L::factors(rows, group);
            _mm256_storeu_si256(at(CODE_BYTES + i * VECTOR), _mm256_castps_si256(scale));
            if L::OFFSETS {
                _mm256_storeu_si256(at(CODE_BYTES + SCALE_BYTES + i * VECTOR), _mm256_castps_si256(offset));
            }
        }
    }
}

/// The first parts of a panel meet all activation rows, see [`meet`].
///
/// # Safety
/// The CPU has what `D` needs; the parts were filled with these columns, which all rows have.
#[inline(always)]
unsafe fn meet_all<D: Dots, K: Kind>(
    panel: &[u8],
    n_parts: usize,
    cols: Range<usize>,
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    for (xs, out) in xs.chunks(MAX_BLOCK).zip(out.chunks_mut(MAX_BLOCK * TILE_ROWS)) {
        for (i, part) in panel.chunks_exact(PART_BYTES).take(n_parts).enumerate() {
            let (out, cols) = (&mut out[i * LANES..], cols.clone());
            // SAFETY: by the caller's promise.
            unsafe {
                match xs.len() {
                    1 => meet::<D, K, 1>(part, cols, xs, out),
                    2 => meet::<D, K, 2>(part, cols, xs, out),
                    _ => meet::<D, K, MAX_BLOCK>(part, cols, xs, out),
                }
            }
        }
    }
}

/// # Safety
/// The CPU has what `D` needs.
#[inline(always)]
unsafe fn dot_kind<D: Dots, K: Kind>(
    weights: &UnpackedTile<'_>,
    xs: &[QuantRow<'_>],
    panel: &mut AlignedBytes,
    out: &mut [f32],
) {
    let Some(first) = xs.first() else { return };
    let cols = first.cols();
    assert!(xs.iter().all(|x| x.layout() == first.layout()), "rows of one shape");
    assert!(weights.n_rows <= TILE_ROWS, "{} rows of one call", weights.n_rows);
    let panel = panel_memory(panel);
    for start in (0..cols).step_by(PANEL_COLS) {
        let end = (start + PANEL_COLS).min(cols);
        for (row, part) in
            (0..weights.n_rows).step_by(LANES).zip(panel.bytes_mut().chunks_exact_mut(PART_BYTES))
        {
            // The last row stands in for those that are not there.
            let rows = std::array::from_fn(|i| weights.panel.row((row + i).min(weights.n_rows - 1)));
            // SAFETY: callers have AVX2.
            unsafe { side_by_side::<K>(&rows, start..end, part) };
        }
        // SAFETY: so many parts were filled with these columns, which all rows have; passes the caller's promise on.
        unsafe {
            meet_all::<D, K>(panel.bytes(), weights.n_rows.div_ceil(LANES), start..end, xs, out);
        }
    }
}

/// Puts columns `cols` of eight rows side by side: a vector has four codes of each, or one scale or offset.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn side_by_side<K: Kind>(rows: &[CodeRow<'_>; LANES], cols: Range<usize>, part: &mut [u8]) {
    let (codes, scales) = part.split_at_mut(CODE_BYTES);
    let (scales, offsets) = scales.split_at_mut(SCALE_BYTES);
    // SAFETY: callers have AVX2.
    unsafe {
        let of_codes = rows.map(|row| as_unsigned(&row.codes[cols.clone()]));
        transpose(of_codes, codes);
        let groups = cols.start / K::GROUP..cols.end / K::GROUP;
        transpose(rows.map(|row| as_bytes(&row.scales[groups.clone()])), scales);
        if K::OFFSETS {
            transpose(rows.map(|row| as_bytes(&row.offsets[groups.clone()])), offsets);
        }
    }
}

/// Words of eight rows, word after word: sixteen bytes of each row at a time.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn transpose(rows: [&[u8]; LANES], out: &mut [u8]) {
    let n = rows[0].len();
    assert!(
        n.is_multiple_of(16) && rows.iter().all(|row| row.len() == n) && n * LANES <= out.len(),
        "whole vectors"
    );
    for at in (0..n).step_by(16) {
        // SAFETY: sixteen bytes of each row are in bounds, and so are the four vectors they make; no alignment is needed.
        unsafe {
            let pair = |i: usize| {
                let half = |row: &[u8]| _mm_loadu_si128(row.as_ptr().add(at).cast());
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(half(rows[i])), half(rows[i + 4]))
            };
            let (a, b, c, d) = (pair(0), pair(1), pair(2), pair(3));
            let (low_ab, high_ab) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (low_cd, high_cd) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            let words = [
                _mm256_unpacklo_epi64(low_ab, low_cd),
                _mm256_unpackhi_epi64(low_ab, low_cd),
                _mm256_unpacklo_epi64(high_ab, high_cd),
                _mm256_unpackhi_epi64(high_ab, high_cd),
            ];
            for (i, words) in words.into_iter().enumerate() {
                _mm256_storeu_si256(out.as_mut_ptr().add(at * LANES + i * VECTOR).cast(), words);
            }
        }
    }
}

/// Adds the products of columns `cols` of eight rows with up to `X` activation rows to `out[x * TILE_ROWS + lane]`, which
/// have those of the columns before.
///
/// # Safety
/// The CPU has what `D` needs; the part has these columns, and so have the activations.
#[inline(always)]
unsafe fn meet<D: Dots, K: Kind, const X: usize>(
    part: &[u8],
    cols: Range<usize>,
    xs: &[QuantRow<'_>],
    out: &mut [f32],
) {
    // The last row stands in for those that are not there.
    let acts: [*const u8; X] = std::array::from_fn(|i| xs[i.min(xs.len() - 1)].bytes().as_ptr());
    let layout = xs[0].layout();
    let (scales_at, sums_at) = (layout.scales_at(), layout.sums_at(K::GROUP));
    let negated_at = layout.negated_at(K::GROUP);
    let vector = |at: usize| part.as_ptr().wrapping_add(at).cast::<__m256i>();
    // SAFETY: by the caller's promise; a product of an unsigned code is at most 31 times 127, so that eight of them fit
    // sixteen bits.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); X];
        if cols.start > 0 {
            for (acc, out) in acc.iter_mut().zip(out.chunks(TILE_ROWS)).take(xs.len()) {
                *acc = load(out);
            }
        }
        for (i, group) in (cols.start / K::GROUP..cols.end / K::GROUP).enumerate() {
            let acts_here = acts.map(|x| x.wrapping_add(K::GROUP * group));
            let mut sums = [_mm256_setzero_si256(); X];
            // A closure that is not in line is compiled for less than this is.
            let zero = if K::SIGNED { D::SIGNED_ZERO } else { K::ZERO.map(|n| n as i32) };
            for (sum, &x) in sums.iter_mut().zip(&acts) {
                if let Some(n) = zero {
                    *sum = _mm256_sll_epi32(word(x, negated_at + 4 * group), _mm_cvtsi32_si128(n));
                }
            }
            let mut steps = [_mm256_setzero_si256(); X];
            each_line!(K::GROUP / 4, |LINE| {
                let codes = _mm256_loadu_si256(vector((i * K::GROUP / 4 + LINE) * VECTOR));
                for x in 0..X {
                    if K::SIGNED {
                        sums[x] = D::step_signed::<{ 4 * LINE }>(sums[x], codes, acts_here[x]);
                    } else if D::IS_WIDE {
                        sums[x] = D::step::<{ 4 * LINE }>(sums[x], codes, acts_here[x]);
                    } else {
                        steps[x] = D::step::<{ 4 * LINE }>(steps[x], codes, acts_here[x]);
                    }
                }
                if !K::SIGNED && !D::IS_WIDE && LINE % 4 == 3 {
                    for (sum, steps) in sums.iter_mut().zip(&mut steps) {
                        let steps = std::mem::replace(steps, _mm256_setzero_si256());
                        *sum = D::fold(*sum, steps, D::factor(_mm256_set1_epi32(1)));
                    }
                }
            });
            let scale = _mm256_castsi256_ps(_mm256_loadu_si256(vector(CODE_BYTES + i * VECTOR)));
            let offset = vector(CODE_BYTES + SCALE_BYTES + i * VECTOR);
            for x in 0..X {
                let x_scale = _mm256_castsi256_ps(word(acts[x], scales_at + 4 * (group * K::GROUP / 32)));
                acc[x] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sums[x]), _mm256_mul_ps(scale, x_scale), acc[x]);
                if K::OFFSETS {
                    let offset = _mm256_castsi256_ps(_mm256_loadu_si256(offset));
                    let x_sum = _mm256_castsi256_ps(word(acts[x], sums_at + 4 * group));
                    acc[x] = _mm256_fmadd_ps(offset, x_sum, acc[x]);
                }
            }
        }
        for (acc, out) in acc.iter().zip(out.chunks_mut(TILE_ROWS)).take(xs.len()) {
            store(out, *acc);
        }
    }
}

/// # Safety
/// The CPU has AVX.
#[inline(always)]
unsafe fn load(values: &[f32]) -> __m256 {
    let values = &values[..LANES];
    // SAFETY: eight floats are in bounds; the load needs no alignment.
    unsafe { _mm256_loadu_ps(values.as_ptr()) }
}

fn as_unsigned(codes: &[i8]) -> &[u8] {
    // SAFETY: `i8` and `u8` have the same layout and all bit patterns are valid.
    unsafe { std::slice::from_raw_parts(codes.as_ptr().cast(), codes.len()) }
}
