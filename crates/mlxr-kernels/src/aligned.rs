//! Zeroed memory on cache-line boundaries.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;

use memmap2::MmapMut;

const ALIGNMENT: usize = 64;

/// Maps from this size on are asked for in huge pages.
#[cfg(target_os = "linux")]
const HUGE_FROM: usize = 2 << 20;

/// Bytes aligned to 64, zero at first.
pub(crate) struct AlignedBytes {
    ptr: NonNull<u8>,
    n_bytes: usize,
    /// Where the memory is, if not on the heap.
    map: Option<MmapMut>,
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
        let mut map = map_zeroed(n_bytes).ok()?;
        Some(Self { ptr: NonNull::new(map.as_mut_ptr())?, n_bytes, map: Some(map) })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `n_bytes` initialised bytes were allocated or mapped at `ptr` and live as long as `self`.
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

/// Memory of the system's own: zeros that cost nothing until they are written.
pub(crate) fn map_zeroed(n_bytes: usize) -> io::Result<MmapMut> {
    // A map of nothing is an error on some systems.
    let map = MmapMut::map_anon(n_bytes.max(1))?;
    #[cfg(target_os = "linux")]
    if HUGE_FROM <= n_bytes {
        // Advice only: small pages serve as well, somewhat slower.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

/// Has bytes fetched into the cache for a use soon to come, where the target has a way to ask for it.
#[inline]
pub(crate) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    for line in bytes.chunks(64) {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint; any address may be given, and this one is in bounds.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}

/// The bytes behind a slice of floats.
pub(crate) fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: same memory, four bytes a float, any byte is valid.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len() * 4) }
}

#[cfg(target_arch = "x86_64")]
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
