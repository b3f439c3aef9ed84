//! Zeroed memory on cache-line boundaries.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use memmap2::MmapMut;

const ALIGNMENT: usize = 64;

/// A huge page; maps from this size on are asked for in such.
const HUGE_BYTES: usize = 2 << 20;

/// Maps that [`AlignedBytes::kept`] cuts pieces from. What is left of one when the next piece does not fit is never
/// touched; what is resident of it goes with its last piece.
const CHUNK_BYTES: usize = 16 << 20;

/// Bytes aligned to 64, zero at first.
pub(crate) struct AlignedBytes {
    ptr: NonNull<u8>,
    n_bytes: usize,
    /// Where the memory is, if not on the heap.
    map: Option<Arc<MmapMut>>,
}

// SAFETY: the memory is owned and plain; access follows the borrow of `self`.
unsafe impl Send for AlignedBytes {}
// SAFETY: as above, shared references only read.
unsafe impl Sync for AlignedBytes {}

impl AlignedBytes {
    /// `None` when the allocator has no such amount.
    pub(crate) fn zeroed(n_bytes: usize) -> Option<Self> {
        let layout = Layout::from_size_align(n_bytes.max(ALIGNMENT), ALIGNMENT).ok()?;
        // SAFETY: the layout's size is at least `ALIGNMENT`, so not zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { ptr, n_bytes, map: None })
    }

    /// Memory to keep: its pages cost nothing until they are written, and are huge ones where the system gives them.
    pub(crate) fn mapped(n_bytes: usize) -> Option<Self> {
        let (map, ptr) = map_zeroed(n_bytes)?;
        Some(Self { ptr, n_bytes, map: Some(map) })
    }

    /// Memory as [`Self::mapped`] gives it, side by side with what this thread asked for before: matrices of one model
    /// so fill huge pages whatever their sizes.
    pub(crate) fn kept(n_bytes: usize) -> Option<Self> {
        thread_local! { static CHUNK: RefCell<Chunk> = RefCell::default(); }
        CHUNK.with_borrow_mut(|chunk| match chunk.piece(n_bytes) {
            Some(piece) => Some(piece),
            None => {
                let n_left = n_bytes.checked_next_multiple_of(HUGE_BYTES)?.max(CHUNK_BYTES);
                let (map, next) = map_zeroed(n_left)?;
                *chunk = Chunk { map: Arc::downgrade(&map), next, n_left };
                chunk.piece(n_bytes)
            }
        })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `n_bytes` initialised bytes were allocated or mapped at `ptr`, for `self` alone, and live as long.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.n_bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.n_bytes) }
    }

    /// The whole memory as f32 (a last partial element is left out).
    pub(crate) fn floats(&self) -> &[f32] {
        // SAFETY: aligned to 64, `n_bytes / 4` floats fit, every bit pattern is a float.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.n_bytes / 4) }
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `floats`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast(), self.n_bytes / 4) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        if self.map.is_some() {
            return;
        }
        let layout = Layout::from_size_align(self.n_bytes.max(ALIGNMENT), ALIGNMENT)
            .expect("the layout was valid when the memory was allocated");
        // SAFETY: allocated in `zeroed` with this layout and freed only here.
        unsafe { dealloc(self.ptr.as_ptr(), layout) }
    }
}

/// A map that pieces are cut from, as long as one of them lives.
struct Chunk {
    map: Weak<MmapMut>,
    /// What belongs to no piece yet: the end of the map, from a multiple of [`ALIGNMENT`] on.
    next: NonNull<u8>,
    n_left: usize,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { map: Weak::new(), next: NonNull::dangling(), n_left: 0 }
    }
}

impl Chunk {
    fn piece(&mut self, n_bytes: usize) -> Option<AlignedBytes> {
        let map = self.map.upgrade()?;
        let n_taken = n_bytes.checked_next_multiple_of(ALIGNMENT).filter(|&n| n <= self.n_left)?;
        let ptr = self.next;
        // SAFETY: `n_left` bytes of the map, which lives, follow `next`, and so many are not more.
        self.next = unsafe { ptr.add(n_taken) };
        self.n_left -= n_taken;
        Some(AlignedBytes { ptr, n_bytes, map: Some(map) })
    }
}

/// Memory of the system's own: zeros that cost nothing until they are written, from the start of a huge page to the end
/// of one, if they are as large.
fn map_zeroed(n_bytes: usize) -> Option<(Arc<MmapMut>, NonNull<u8>)> {
    if n_bytes < HUGE_BYTES {
        // A map of nothing is an error on some systems.
        let mut map = MmapMut::map_anon(n_bytes.max(1)).ok()?;
        let start = NonNull::new(map.as_mut_ptr())?;
        return Some((Arc::new(map), start));
    }
    let map_bytes = n_bytes.checked_next_multiple_of(HUGE_BYTES)?.checked_add(HUGE_BYTES)?;
    let mut map = MmapMut::map_anon(map_bytes).ok()?;
    // Advice only: small pages serve as well, somewhat slower.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    let n_before = map.as_ptr().align_offset(HUGE_BYTES);
    let start = NonNull::new(map[n_before..].as_mut_ptr())?;
    Some((Arc::new(map), start))
}

/// Bytes of a line of the cache.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const CACHE_LINE: usize =
    if cfg!(all(target_arch = "aarch64", target_vendor = "apple")) { 128 } else { 64 };

/// Has bytes fetched into the cache for a use soon to come.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(CACHE_LINE) {
        prefetch_line(line.as_ptr());
    }
}

/// Has the line of the cache fetched that `at` lies in; any address will do.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(crate) fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; any address may be given.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
}

/// Has the places of values to be overwritten fetched, where the target has a way to ask for it: so a row of results is
/// this core's own before its stores wait for it.
#[inline]
pub(crate) fn prefetch_for_writing(values: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(16) {
        // SAFETY: a hint, on a processor that does not know it an instruction that does nothing.
        unsafe {
            core::arch::asm!("prefetchw [{}]", in(reg) line.as_ptr(), options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(target_arch = "aarch64")]
    for line in values.chunks(CACHE_LINE / 4) {
        // SAFETY: a hint.
        unsafe {
            core::arch::asm!("prfm pstl1keep, [{}]", in(reg) line.as_ptr(), options(nostack, preserves_flags, readonly));
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = values;
}

/// The bytes behind a slice of floats.
pub(crate) fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: same memory, four bytes a float, any byte is valid.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len() * 4) }
}

pub(crate) fn as_bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as in `as_bytes`, any four bytes are a float, and the borrow stays exclusive.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len() * 4) }
}

/// Bytes on a four-byte boundary, a multiple of four of them, as floats.
pub(crate) fn as_floats(bytes: &[u8]) -> &[f32] {
    // SAFETY: every bit pattern is a float; `align_to` keeps to the boundaries.
    let (before, floats, after) = unsafe { bytes.align_to() };
    assert!(before.is_empty() && after.is_empty(), "whole floats");
    floats
}

pub(crate) fn as_floats_mut(bytes: &mut [u8]) -> &mut [f32] {
    // SAFETY: as in `as_floats`, and any float is valid bytes.
    let (before, floats, after) = unsafe { bytes.align_to_mut() };
    assert!(before.is_empty() && after.is_empty(), "whole floats");
    floats
}

/// Bytes on a four-byte boundary, a multiple of four of them, as 32-bit integers.
pub(crate) fn as_words_mut(bytes: &mut [u8]) -> &mut [i32] {
    // SAFETY: every bit pattern is an integer and the other way around; `align_to_mut` keeps to the boundaries.
    let (before, words, after) = unsafe { bytes.align_to_mut() };
    assert!(before.is_empty() && after.is_empty(), "whole words");
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(bytes: &AlignedBytes) -> usize {
        bytes.bytes().as_ptr() as usize
    }

    #[test]
    fn kept_memory_lies_side_by_side_until_a_chunk_is_full() {
        let mut first = AlignedBytes::kept(100).expect("memory");
        let mut second = AlignedBytes::kept(64).expect("memory");
        assert!(start(&first).is_multiple_of(HUGE_BYTES));
        assert_eq!(start(&second), start(&first) + 128);
        first.bytes_mut().fill(1);
        second.bytes_mut().fill(2);
        let large = AlignedBytes::kept(CHUNK_BYTES + 1).expect("memory");
        assert!(start(&large).is_multiple_of(HUGE_BYTES) && large.bytes().iter().all(|&byte| byte == 0));
        let behind = AlignedBytes::kept(10).expect("memory");
        assert_eq!(start(&behind), start(&large) + CHUNK_BYTES + ALIGNMENT);
        assert!(first.bytes().iter().all(|&byte| byte == 1) && second.bytes().iter().all(|&byte| byte == 2));
        assert!(AlignedBytes::kept(usize::MAX).is_none());
    }

    #[test]
    fn a_chunk_is_given_back_with_its_last_piece() {
        let piece = AlignedBytes::kept(100).expect("memory");
        let map = Arc::downgrade(piece.map.as_ref().expect("a map"));
        drop(piece);
        assert!(map.upgrade().is_none());
        assert!(AlignedBytes::kept(100).expect("memory").bytes().iter().all(|&byte| byte == 0));
    }
}
