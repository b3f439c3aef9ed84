//! One output slice, written in parts by several threads.

use std::marker::PhantomData;
use std::ops::Range;

use crate::pool::ThreadPool;

/// A mutable slice whose parts are handed to threads.
pub(crate) struct Disjoint<'a, T> {
    ptr: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `slice`, whose callers promise ranges that do not overlap.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}
// SAFETY: it is a mutable borrow.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { ptr: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The part `range`.
    ///
    /// # Safety
    /// While the result lives no other part that overlaps `range` may exist.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps parts disjoint")]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }

    /// Where a part `range` begins. Writing there is subject to what [`Self::slice`] asks for.
    pub(crate) fn at(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        self.ptr.wrapping_add(range.start)
    }

    /// Row `row` of rows of `row_len`.
    ///
    /// # Safety
    /// As [`Self::slice`]: while the result lives the row must not be asked for again.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps rows disjoint")]
    pub(crate) unsafe fn row(&self, row: usize, row_len: usize) -> &mut [T] {
        // SAFETY: rows do not overlap; the rest is the caller's promise.
        unsafe { self.slice(row * row_len..(row + 1) * row_len) }
    }
}

/// Elements below which a row-wise op is not worth waking other threads for.
const MIN_PARALLEL: usize = 16 * 1024;

/// Calls `work` on every row of `out`, in parallel when there is enough of it.
pub(crate) fn for_each_row<T: Send>(
    pool: &ThreadPool,
    out: &mut [T],
    row_len: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if row_len == 0 || out.is_empty() {
        return;
    }
    let n_rows = out.len() / row_len;
    if n_rows == 1 || out.len() < MIN_PARALLEL {
        for (i, row) in out.chunks_exact_mut(row_len).enumerate() {
            work(i, row);
        }
        return;
    }
    let out = Disjoint::new(out);
    pool.share(n_rows, row_grain(n_rows, pool), |rows| {
        for i in rows {
            // SAFETY: each row is handed out once.
            let row = unsafe { out.row(i, row_len) };
            work(i, row);
        }
    });
}

/// Rows to take at a time: few enough that threads end together.
pub(crate) fn row_grain(n_rows: usize, pool: &ThreadPool) -> usize {
    const CLAIMS: usize = 8;
    (n_rows / (CLAIMS * pool.n_threads())).max(1)
}

/// The share of `part` when `n` items are cut into `n_parts` runs at multiples of `grain`.
pub(crate) fn split(n: usize, part: usize, n_parts: usize, grain: usize) -> Range<usize> {
    let n_grains = n.div_ceil(grain);
    let cut = |i: usize| (n_grains * i / n_parts * grain).min(n);
    cut(part)..cut(part + 1)
}
