//! How queries meet the keys and values of sixteen positions at a time, written once for vectors of sixteen floats.
//!
//! Keys are stored with the sixteen positions of a column side by side, so a lane is a key and no sum crosses lanes. A
//! dot product is added up column after column and an accumulator position after position, each by one chain of fused
//! multiply-adds, so results are the same bits for any number of queries, and on every instruction set.

use mlxr_tensor::DType;

use crate::aligned::{CACHE_LINE, as_bytes, prefetch};
use crate::kernels::{UNIT_TOKENS, Units};

/// Bytes of floats that many queries meet: they are to stay in the first-level cache.
const FLOAT_BYTES: usize = 16 << 10;

/// Sixteen floats of an instruction set. Only code that is compiled for it may use them.
pub(crate) trait Vector: Copy {
    /// Whether there are registers for 16 sums, not for 4 (and for what is added to them).
    const HAS_MANY: bool;
    /// Columns of keys between which something is fetched.
    const FETCH_COLS: usize = 4;

    fn splat(value: f32) -> Self;
    fn times(self, other: Self) -> Self;
    /// `self * other + sum`, rounded once.
    fn madd(self, other: Self, sum: Self) -> Self;
    /// # Safety
    /// Sixteen floats are there.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// There is room for sixteen floats.
    unsafe fn store(self, to: *mut f32);
    /// # Safety
    /// An f16 is there.
    unsafe fn splat_f16(from: *const u8) -> Self;
    /// # Safety
    /// Sixteen of them are there.
    unsafe fn of_f16(from: *const u8) -> Self;
    /// # Safety
    /// Sixteen of them are there.
    unsafe fn of_bf16(from: *const u8) -> Self;
    /// None of them a NaN.
    ///
    /// # Safety
    /// Sixteen of them are there.
    unsafe fn of_e4m3(from: *const u8) -> Self;
    /// # Safety
    /// Sixteen signed bytes are there.
    unsafe fn of_i8(from: *const u8) -> Self;
    /// The lower or upper halves of bytes, less eight.
    ///
    /// # Safety
    /// Sixteen bytes are there.
    unsafe fn of_nibbles(from: *const u8, upper: bool) -> Self;
}

/// How keys and values are stored.
trait Element<V: Vector> {
    /// Whether [`BLOCK_COLS`] columns have a scale.
    const HAS_BLOCKS: bool = false;
    /// What sixteen columns of keys have in common.
    ///
    /// # Safety
    /// The unit has the sixteen columns from `col` on, a multiple of sixteen.
    #[inline(always)]
    unsafe fn scales(_unit: *const u8, _col: usize) -> V {
        V::splat(1.0)
    }
    /// A column of a unit's keys.
    ///
    /// # Safety
    /// The unit has it, and `scales` are those of its sixteen.
    unsafe fn key(unit: *const u8, scales: V, col: usize) -> V;
    /// Sixteen columns of a value.
    ///
    /// # Safety
    /// The row has them; `col` is a multiple of sixteen.
    unsafe fn value(row: *const u8, col: usize) -> V;
}

struct F32;
struct F16;
struct Bf16;
struct E4m3;
struct Q8_0;
struct Q4_0;

macro_rules! plain_element {
    ($name:ident, $bytes:literal, $of:ident) => {
        impl<V: Vector> Element<V> for $name {
            #[inline(always)]
            unsafe fn key(unit: *const u8, _: V, col: usize) -> V {
                // SAFETY: by the caller's promise.
                unsafe { V::$of(unit.add(col * UNIT_TOKENS * $bytes).cast()) }
            }
            #[inline(always)]
            unsafe fn value(row: *const u8, col: usize) -> V {
                // SAFETY: by the caller's promise.
                unsafe { V::$of(row.add(col * $bytes).cast()) }
            }
        }
    };
}
plain_element!(F32, 4, load);
plain_element!(F16, 2, of_f16);
plain_element!(Bf16, 2, of_bf16);
plain_element!(E4m3, 1, of_e4m3);

/// Columns of a block of codes, and bytes of its scale, an f16.
const BLOCK_COLS: usize = 32;
const SCALE_BYTES: usize = 2;

impl<V: Vector> Element<V> for Q8_0 {
    const HAS_BLOCKS: bool = true;
    #[inline(always)]
    unsafe fn scales(unit: *const u8, col: usize) -> V {
        // SAFETY: the block of the caller's columns has sixteen scales.
        unsafe { V::of_f16(unit.add(col / BLOCK_COLS * (SCALE_BYTES + BLOCK_COLS) * UNIT_TOKENS)) }
    }
    #[inline(always)]
    unsafe fn key(unit: *const u8, scales: V, col: usize) -> V {
        let at = (col / BLOCK_COLS + 1) * SCALE_BYTES + col;
        // SAFETY: by the caller's promise.
        unsafe { V::of_i8(unit.add(at * UNIT_TOKENS)).times(scales) }
    }
    #[inline(always)]
    unsafe fn value(row: *const u8, col: usize) -> V {
        let block = row.wrapping_add(col / BLOCK_COLS * (SCALE_BYTES + BLOCK_COLS));
        // SAFETY: by the caller's promise.
        unsafe { V::of_i8(block.add(SCALE_BYTES + col % BLOCK_COLS)).times(V::splat_f16(block)) }
    }
}

/// A byte has the codes of columns `i` and `i + 16` of its block.
impl<V: Vector> Element<V> for Q4_0 {
    const HAS_BLOCKS: bool = true;
    #[inline(always)]
    unsafe fn scales(unit: *const u8, col: usize) -> V {
        // SAFETY: the block of the caller's columns has sixteen scales.
        unsafe { V::of_f16(unit.add(col / BLOCK_COLS * (SCALE_BYTES + BLOCK_COLS / 2) * UNIT_TOKENS)) }
    }
    #[inline(always)]
    unsafe fn key(unit: *const u8, scales: V, col: usize) -> V {
        let block = col / BLOCK_COLS * (SCALE_BYTES + BLOCK_COLS / 2);
        let at = block + SCALE_BYTES + col % (BLOCK_COLS / 2);
        // SAFETY: by the caller's promise.
        unsafe { V::of_nibbles(unit.add(at * UNIT_TOKENS), is_upper(col)).times(scales) }
    }
    #[inline(always)]
    unsafe fn value(row: *const u8, col: usize) -> V {
        let block = row.wrapping_add(col / BLOCK_COLS * (SCALE_BYTES + BLOCK_COLS / 2));
        // SAFETY: by the caller's promise.
        unsafe { V::of_nibbles(block.add(SCALE_BYTES), is_upper(col)).times(V::splat_f16(block)) }
    }
}

fn is_upper(col: usize) -> bool {
    col % BLOCK_COLS >= BLOCK_COLS / 2
}

/// Calls a kernel for the type of stored elements.
macro_rules! for_element {
    ($dtype:expr, $kernel:ident($($arg:expr),*)) => {
        match $dtype {
            DType::F32 => $kernel::<V, F32>($($arg),*),
            DType::F16 => $kernel::<V, F16>($($arg),*),
            DType::BF16 => $kernel::<V, Bf16>($($arg),*),
            DType::F8E4M3 => $kernel::<V, E4m3>($($arg),*),
            DType::Q8_0 => $kernel::<V, Q8_0>($($arg),*),
            DType::Q4_0 => $kernel::<V, Q4_0>($($arg),*),
            other => unreachable!("no cache holds {other}"),
        }
    };
}

/// Queries up to which what is stored is used as it is.
const fn few<V: Vector>() -> usize {
    if V::HAS_MANY { 8 } else { 4 }
}

/// [`crate::kernels::AttendKernels::scores`].
///
/// # Safety
/// The CPU has the vectors; so it is for all that follow.
#[inline(always)]
pub(crate) unsafe fn scores<V: Vector>(
    keys: &Units<'_>,
    queries: &[&[f32]],
    scratch: &mut Vec<f32>,
    out: &mut [f32],
) {
    keys.check_scores(queries, out);
    let stride = keys.units.len() * UNIT_TOKENS;
    if queries.len() <= few::<V>() {
        // SAFETY: checked above.
        return unsafe { for_element!(keys.dtype, meet(keys, queries, (out, stride))) };
    }
    let unit_floats = keys.dim * UNIT_TOKENS;
    let n_together = (FLOAT_BYTES / 4 / unit_floats).clamp(2, MOST_FLOAT_UNITS);
    scratch.resize(n_together * unit_floats, 0.0);
    for (i, units) in keys.units.chunks(n_together).enumerate() {
        for (u, (unit, floats)) in units.iter().zip(scratch.chunks_exact_mut(unit_floats)).enumerate() {
            keys.ahead.get(i * n_together + u).inspect(|ahead| prefetch(ahead));
            // SAFETY: checked above, and there is room.
            unsafe { for_element!(keys.dtype, key_floats_of(unit, keys.dim, floats)) };
        }
        let mut turned: [&[u8]; MOST_FLOAT_UNITS] = [&[]; MOST_FLOAT_UNITS];
        for (to, from) in turned.iter_mut().zip(as_bytes(scratch).chunks_exact(unit_floats * 4)) {
            *to = from;
        }
        let units = Units { dtype: DType::F32, units: &turned[..units.len()], dim: keys.dim, ahead: &[] };
        // SAFETY: as above.
        unsafe { meet::<V, F32>(&units, queries, (&mut out[i * n_together * UNIT_TOKENS..], stride)) };
    }
}

/// Units at most that become floats together.
const MOST_FLOAT_UNITS: usize = 4;

/// The scores of all queries, those of one being `stride` from those of the next.
///
/// # Safety
/// Queries are as wide as keys, and there is room for a score of each unit's keys and each query.
#[inline(always)]
unsafe fn meet<V: Vector, E: Element<V>>(
    keys: &Units<'_>,
    mut queries: &[&[f32]],
    (mut out, stride): (&mut [f32], usize),
) {
    let mut ahead = keys.ahead;
    while !queries.is_empty() {
        let to = (&mut *out, stride);
        let units = Units { ahead, ..*keys };
        // SAFETY: by the caller's promise.
        let n = unsafe {
            match (queries.len(), V::HAS_MANY) {
                (8.., true) => meet_units::<V, E, 8, 2>(&units, queries, to),
                (4.., true) => meet_units::<V, E, 4, 4>(&units, queries, to),
                (4.., false) => meet_units::<V, E, 4, 1>(&units, queries, to),
                (2.., true) => meet_units::<V, E, 2, 4>(&units, queries, to),
                (2.., false) => meet_units::<V, E, 2, 2>(&units, queries, to),
                _ => meet_units::<V, E, 1, 4>(&units, queries, to),
            }
        };
        // Asked for once.
        ahead = &[];
        queries = &queries[n..];
        // Of the last query what is left may end before its stride does.
        let n_floats = (n * stride).min(out.len());
        out = &mut out[n_floats..];
    }
}

/// As [`meet`], the first `X` queries, `N` units at a time; returns `X`.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn meet_units<V: Vector, E: Element<V>, const X: usize, const N: usize>(
    keys: &Units<'_>,
    queries: &[&[f32]],
    (out, stride): (&mut [f32], usize),
) -> usize {
    let mut rows = [std::ptr::null(); X];
    for (row, query) in rows.iter_mut().zip(&queries[..X]) {
        *row = query.as_ptr();
    }
    let out = out.as_mut_ptr();
    let n_units = keys.units.len();
    for at in (0..n_units).step_by(N) {
        // SAFETY: there is a unit, and by the caller's promise.
        unsafe { meet_some::<V, E, X, N>(keys, at, rows, (out, stride)) };
    }
    X
}

/// # Safety
/// As [`meet`]; there is a unit `first`. Of the `N` from there on those that are not there have no result.
#[inline(always)]
unsafe fn meet_some<V: Vector, E: Element<V>, const X: usize, const N: usize>(
    keys: &Units<'_>,
    first: usize,
    queries: [*const f32; X],
    (out, stride): (*mut f32, usize),
) {
    let mut units = [std::ptr::null(); N];
    let mut ahead: [&[u8]; N] = [&[]; N];
    let n_left = keys.units.len() - first;
    for n in 0..N {
        units[n] = keys.units[first + n.min(n_left - 1)].as_ptr();
        if let Some(&bytes) = keys.ahead.get(first + n) {
            ahead[n] = bytes;
        }
    }
    let n_parts = keys.dim / V::FETCH_COLS;
    let mut sums = [[V::splat(0.0); X]; N];
    for first_col in (0..keys.dim).step_by(UNIT_TOKENS) {
        let mut scales = [V::splat(1.0); N];
        for n in 0..N {
            // SAFETY: columns that the unit has.
            scales[n] = unsafe { E::scales(units[n], first_col) };
        }
        for part in (first_col..first_col + UNIT_TOKENS).step_by(V::FETCH_COLS) {
            for ahead in ahead {
                prefetch_part(ahead, part / V::FETCH_COLS, n_parts);
            }
            for col in part..part + V::FETCH_COLS {
                for n in 0..N {
                    // SAFETY: a column that units and queries have.
                    unsafe {
                        let key = E::key(units[n], scales[n], col);
                        for x in 0..X {
                            sums[n][x] = V::splat(*queries[x].add(col)).madd(key, sums[n][x]);
                        }
                    }
                }
            }
        }
    }
    for (n, sums) in sums.iter().enumerate().take(n_left) {
        for (x, sum) in sums.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { sum.store(out.add(x * stride + (first + n) * UNIT_TOKENS)) };
        }
    }
}

/// Has one of `n_parts` of some bytes fetched.
#[inline(always)]
fn prefetch_part(bytes: &[u8], part: usize, n_parts: usize) {
    if bytes.is_empty() {
        return;
    }
    let n = (bytes.len() / CACHE_LINE).div_ceil(n_parts) * CACHE_LINE;
    let start = (part * n).min(bytes.len());
    prefetch(&bytes[start..(start + n).min(bytes.len())]);
}

/// Keys as `[dim, 16]` floats.
///
/// # Safety
/// The unit and `out` have `dim` columns, a multiple of sixteen.
#[inline(always)]
unsafe fn key_floats_of<V: Vector, E: Element<V>>(unit: &[u8], dim: usize, out: &mut [f32]) {
    for part in (0..dim).step_by(UNIT_TOKENS) {
        // SAFETY: by the caller's promise.
        unsafe {
            let scales = E::scales(unit.as_ptr(), part);
            for col in part..part + UNIT_TOKENS {
                let key = E::key(unit.as_ptr(), scales, col);
                key.store(out.as_mut_ptr().add(col * UNIT_TOKENS));
            }
        }
    }
}

/// Values as `[positions, dim]` floats.
///
/// # Safety
/// The unit and `out` have so many positions and columns, these a multiple of sixteen.
#[inline(always)]
unsafe fn value_floats_of<V: Vector, E: Element<V>>(unit: &[u8], (n, dim): (usize, usize), out: &mut [f32]) {
    let row_bytes = unit.len() / n;
    for row in 0..n {
        for col in (0..dim).step_by(UNIT_TOKENS) {
            // SAFETY: by the caller's promise.
            unsafe {
                let value = E::value(unit.as_ptr().add(row * row_bytes), col);
                value.store(out.as_mut_ptr().add(row * dim + col));
            }
        }
    }
}

/// [`crate::kernels::AttendKernels::key_floats`].
///
/// # Safety
/// As [`scores`].
#[inline(always)]
pub(crate) unsafe fn key_floats<V: Vector>(keys: &Units<'_>, out: &mut [f32]) {
    keys.check_keys();
    assert_eq!(out.len(), keys.units.len() * keys.dim * UNIT_TOKENS, "room for the keys");
    for (unit, out) in keys.units.iter().zip(out.chunks_exact_mut(keys.dim * UNIT_TOKENS)) {
        // SAFETY: checked above.
        unsafe { for_element!(keys.dtype, key_floats_of(unit, keys.dim, out)) }
    }
}

/// [`crate::kernels::AttendKernels::value_floats`].
///
/// # Safety
/// As [`scores`].
#[inline(always)]
pub(crate) unsafe fn value_floats<V: Vector>(values: &Units<'_>, out: &mut [f32]) {
    values.check();
    assert_eq!(out.len(), values.units.len() * values.dim * UNIT_TOKENS, "room for the values");
    for (unit, out) in values.units.iter().zip(out.chunks_exact_mut(values.dim * UNIT_TOKENS)) {
        let size = (unit.len() / values.row_bytes(), values.dim);
        // SAFETY: checked above.
        unsafe { for_element!(values.dtype, value_floats_of(unit, size, out)) }
    }
}

/// [`crate::kernels::AttendKernels::add_values`].
///
/// # Safety
/// As [`scores`].
#[inline(always)]
pub(crate) unsafe fn add_values<V: Vector>(
    values: &Units<'_>,
    weights: &[f32],
    scratch: &mut Vec<f32>,
    acc: &mut [f32],
) {
    let stride = values.units.len() * UNIT_TOKENS;
    assert_eq!(weights.len() * values.dim, acc.len() * stride, "a weight for each query and value");
    assert!(weights.len().is_multiple_of(stride), "weights of whole queries");
    values.check();
    if acc.len() <= few::<V>() * values.dim {
        // SAFETY: checked above.
        return unsafe { for_element!(values.dtype, add(values, (weights, stride), acc)) };
    }
    let (unit_floats, row_bytes) = (values.dim * UNIT_TOKENS, values.row_bytes());
    let n_together = (FLOAT_BYTES / 4 / unit_floats).clamp(1, MOST_FLOAT_UNITS);
    scratch.resize(n_together * unit_floats, 0.0);
    for (i, units) in values.units.chunks(n_together).enumerate() {
        for (u, (unit, floats)) in units.iter().zip(scratch.chunks_exact_mut(unit_floats)).enumerate() {
            values.ahead.get(i * n_together + u).inspect(|ahead| prefetch(ahead));
            let size = (unit.len() / row_bytes, values.dim);
            // SAFETY: checked above, and there is room.
            unsafe { for_element!(values.dtype, value_floats_of(unit, size, floats)) };
        }
        let mut whole: [&[u8]; MOST_FLOAT_UNITS] = [&[]; MOST_FLOAT_UNITS];
        for ((to, from), unit) in whole.iter_mut().zip(scratch.chunks_exact(unit_floats)).zip(units) {
            *to = as_bytes(&from[..unit.len() / row_bytes * values.dim]);
        }
        let units = Units { dtype: DType::F32, units: &whole[..units.len()], dim: values.dim, ahead: &[] };
        // SAFETY: as above.
        unsafe { add::<V, F32>(&units, (&weights[i * n_together * UNIT_TOKENS..], stride), acc) };
    }
}

/// `acc += weights * values`; the weights of a query are `stride` apart from those of the next.
///
/// # Safety
/// There is a weight for each query and value.
#[inline(always)]
unsafe fn add<V: Vector, E: Element<V>>(
    values: &Units<'_>,
    (mut weights, stride): (&[f32], usize),
    mut acc: &mut [f32],
) {
    let mut ahead = values.ahead;
    while !acc.is_empty() {
        let n_queries = acc.len() / values.dim;
        let units = Units { ahead, ..*values };
        let by = (weights.as_ptr(), stride);
        // SAFETY: by the caller's promise.
        let n = unsafe {
            match (n_queries, V::HAS_MANY) {
                (8.., true) => add_queries::<V, E, 8, 2>(&units, by, acc),
                (4.., true) => add_queries::<V, E, 4, 2>(&units, by, acc),
                (4.., false) => add_queries::<V, E, 4, 1>(&units, by, acc),
                (2.., _) => add_queries::<V, E, 2, 2>(&units, by, acc),
                _ => add_queries::<V, E, 1, 2>(&units, by, acc),
            }
        };
        ahead = &[];
        weights = &weights[(n * stride).min(weights.len())..];
        acc = &mut acc[n * values.dim..];
    }
}

/// As [`add`], for the first `X` queries, `C` vectors of columns at a time; returns `X`.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn add_queries<V: Vector, E: Element<V>, const X: usize, const C: usize>(
    values: &Units<'_>,
    weights: (*const f32, usize),
    acc: &mut [f32],
) -> usize {
    let mut col = 0;
    while col + C * UNIT_TOKENS <= values.dim {
        // SAFETY: columns that values and accumulators have; the rest is the caller's promise.
        unsafe { add_columns::<V, E, X, C>(values, weights, col, acc) };
        col += C * UNIT_TOKENS;
    }
    // Blocks are of pairs of vectors.
    while !E::HAS_BLOCKS && col < values.dim {
        // SAFETY: as above.
        unsafe { add_columns::<V, E, X, 1>(values, weights, col, acc) };
        col += UNIT_TOKENS;
    }
    X
}

/// # Safety
/// As [`add`]; values and accumulators of `X` queries have `C` vectors from column `col` on.
#[inline(always)]
unsafe fn add_columns<V: Vector, E: Element<V>, const X: usize, const C: usize>(
    values: &Units<'_>,
    (weights, stride): (*const f32, usize),
    col: usize,
    acc: &mut [f32],
) {
    let (dim, row_bytes) = (values.dim, values.row_bytes());
    let acc = acc.as_mut_ptr();
    let mut sums = [[V::splat(0.0); C]; X];
    for (x, sums) in sums.iter_mut().enumerate() {
        for (c, sum) in sums.iter_mut().enumerate() {
            // SAFETY: by the caller's promise.
            *sum = unsafe { V::load(acc.add(x * dim + col + c * UNIT_TOKENS)) };
        }
    }
    for (u, unit) in values.units.iter().enumerate() {
        let ahead = if col == 0 { values.ahead.get(u).copied().unwrap_or(&[]) } else { &[] };
        let mut row = unit.as_ptr();
        for position in 0..unit.len() / row_bytes {
            prefetch_part(ahead, position, UNIT_TOKENS);
            // SAFETY: positions that the unit has; the rest is the caller's promise.
            unsafe {
                let mut vectors = [V::splat(0.0); C];
                for (c, vector) in vectors.iter_mut().enumerate() {
                    *vector = E::value(row, col + c * UNIT_TOKENS);
                }
                for (x, sums) in sums.iter_mut().enumerate() {
                    let weight = V::splat(*weights.add(x * stride + u * UNIT_TOKENS + position));
                    for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                        *sum = weight.madd(vector, *sum);
                    }
                }
                row = row.add(row_bytes);
            }
        }
    }
    for (x, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: by the caller's promise.
            unsafe { sum.store(acc.add(x * dim + col + c * UNIT_TOKENS)) };
        }
    }
}

/// Makes the table `KERNELS` for a type of vectors.
macro_rules! attend_kernels {
    ($vector:ty, $features:literal) => {
        pub(super) const KERNELS: $crate::kernels::AttendKernels = {
            use $crate::attend;
            use $crate::kernels::{AttendKernels, Units};

            #[target_feature(enable = $features)]
            fn scores(keys: &Units<'_>, queries: &[&[f32]], scratch: &mut Vec<f32>, out: &mut [f32]) {
                // SAFETY: this is compiled for the vectors.
                unsafe { attend::scores::<$vector>(keys, queries, scratch, out) }
            }
            #[target_feature(enable = $features)]
            fn add_values(values: &Units<'_>, weights: &[f32], scratch: &mut Vec<f32>, acc: &mut [f32]) {
                // SAFETY: as above.
                unsafe { attend::add_values::<$vector>(values, weights, scratch, acc) }
            }
            #[target_feature(enable = $features)]
            fn key_floats(keys: &Units<'_>, out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { attend::key_floats::<$vector>(keys, out) }
            }
            #[target_feature(enable = $features)]
            fn value_floats(values: &Units<'_>, out: &mut [f32]) {
                // SAFETY: as above.
                unsafe { attend::value_floats::<$vector>(values, out) }
            }
            AttendKernels { scores, add_values, key_floats, value_floats }
        };
    };
}
pub(crate) use attend_kernels;
