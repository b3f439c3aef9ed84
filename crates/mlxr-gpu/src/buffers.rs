//! The pool that activations and other scratch live in.
//!
//! A buffer that comes back may be given out again at once: what still uses it was recorded before what comes next.
//! But then the next dispatch waits for that one, and dispatches that could run side by side no longer do; so up to
//! [`max_spare_bytes`] a buffer rests until what uses it has been submitted, unless it is for a dispatch that waits in any
//! case. Writes from the host overtake what is recorded and not submitted, so they always need a buffer nothing recorded
//! uses.
//!
//! The same ops in the same order find the same buffers, so that bind groups are found again.
//!
//! Bound: the pool holds what was in use at one time and what rests, rounded up to powers of two.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlxr_tensor::TensorError;

use crate::bindings::BindGroups;
use crate::device::{BACKEND, Gpu};

/// Bytes of buffers that may rest: a small part of the device's memory. The largest piece of a step of 16 sequences of an
/// 8B model takes 130 MB.
fn max_spare_bytes(gpu: &Gpu) -> u64 {
    let total = gpu.info.memory.map_or(0, |memory| memory.total_bytes);
    (total / 256).clamp(64 << 20, 256 << 20)
}

/// A pooled buffer; dropping it gives it back.
pub(crate) struct Pooled {
    buffer: Option<wgpu::Buffer>,
    size: u64,
    /// Tells buffers apart in caches of bind groups.
    pub(crate) id: u64,
    pool: Arc<Buffers>,
}

impl Pooled {
    pub(crate) fn buffer(&self) -> &wgpu::Buffer {
        self.buffer.as_ref().expect("there until dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            let mut shelves = self.pool.lock();
            shelves.used_bytes += self.size;
            shelves.used.entry(self.size).or_default().push((buffer, self.id));
        }
    }
}

#[derive(Default)]
struct Shelves {
    /// By size: given back since the last submission.
    used: HashMap<u64, Vec<(wgpu::Buffer, u64)>>,
    used_bytes: u64,
    /// By size: nothing recorded uses them.
    clean: HashMap<u64, Vec<(wgpu::Buffer, u64)>>,
    next_id: u64,
}

impl Shelves {
    fn pop_used(&mut self, size: u64) -> Option<(wgpu::Buffer, u64)> {
        let found = self.used.get_mut(&size).and_then(Vec::pop)?;
        self.used_bytes -= size;
        Some(found)
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Buffers {
    shelves: Mutex<Shelves>,
    /// How buffers are bound.
    pub(crate) groups: BindGroups,
    /// Of all buffers, weights and arenas included.
    allocated_bytes: AtomicU64,
    /// Stands for every buffer where they are only counted.
    counted: Option<wgpu::Buffer>,
}

impl Buffers {
    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.shelves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Buffers that take no memory: `buffer` stands for all of them.
    pub(crate) fn counting(buffer: &wgpu::Buffer) -> Self {
        Self { counted: Some(buffer.clone()), ..Self::default() }
    }

    /// Whether buffers are only counted, and nothing is to be written to them.
    pub(crate) fn are_counted(&self) -> bool {
        self.counted.is_some()
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// A buffer of `n_bytes`, and what it takes.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub(crate) fn allocate(
        &self,
        gpu: &Gpu,
        what: &str,
        n_bytes: u64,
    ) -> Result<(wgpu::Buffer, u64), TensorError> {
        let size = gpu.buffer_size(what, n_bytes)?;
        let buffer = match &self.counted {
            Some(buffer) => buffer.clone(),
            None => gpu.buffer(what, n_bytes)?,
        };
        self.allocated_bytes.fetch_add(size, Ordering::Relaxed);
        Ok((buffer, size))
    }

    /// A buffer that took so much is gone.
    pub(crate) fn freed(&self, size: u64) {
        self.allocated_bytes.fetch_sub(size, Ordering::Relaxed);
    }

    /// A number no buffer of this device has yet.
    pub(crate) fn new_id(&self) -> u64 {
        let mut shelves = self.lock();
        shelves.next_id += 1;
        shelves.next_id
    }

    /// At least `n_bytes` for the device to write.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub(crate) fn take(self: &Arc<Self>, gpu: &Gpu, n_bytes: usize) -> Result<Pooled, TensorError> {
        let size = size_of_scratch(gpu, n_bytes)?;
        let mut shelves = self.lock();
        let mut found = shelves.clean.get_mut(&size).and_then(Vec::pop);
        if found.is_none() && shelves.used_bytes + size > max_spare_bytes(gpu) {
            found = shelves.pop_used(size);
        }
        drop(shelves);
        self.wrap(gpu, size, found)
    }

    /// As [`Buffers::take`], for a dispatch that waits for the one before in any case.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub(crate) fn take_behind(self: &Arc<Self>, gpu: &Gpu, n_bytes: usize) -> Result<Pooled, TensorError> {
        let size = size_of_scratch(gpu, n_bytes)?;
        let mut shelves = self.lock();
        let found = shelves.pop_used(size).or_else(|| shelves.clean.get_mut(&size).and_then(Vec::pop));
        drop(shelves);
        self.wrap(gpu, size, found)
    }

    /// At least `n_bytes` that hold `bytes` once what is recorded from now on runs.
    ///
    /// # Errors
    /// [`TensorError::OutOfMemory`].
    pub(crate) fn take_with(self: &Arc<Self>, gpu: &Gpu, bytes: &[u8]) -> Result<Pooled, TensorError> {
        let size = size_of_scratch(gpu, bytes.len())?;
        let found = self.lock().clean.get_mut(&size).and_then(Vec::pop);
        let pooled = self.wrap(gpu, size, found)?;
        if !bytes.is_empty() && !self.are_counted() {
            gpu.queue.write_buffer(pooled.buffer(), 0, bytes);
        }
        Ok(pooled)
    }

    fn wrap(
        self: &Arc<Self>,
        gpu: &Gpu,
        size: u64,
        found: Option<(wgpu::Buffer, u64)>,
    ) -> Result<Pooled, TensorError> {
        let (buffer, id) = match found {
            Some(found) => found,
            None => (self.allocate(gpu, "activations", size)?.0, self.new_id()),
        };
        Ok(Pooled { buffer: Some(buffer), size, id, pool: self.clone() })
    }

    /// Takes the place of a buffer that could not be had, on a device that has failed.
    pub(crate) fn stand_in(self: &Arc<Self>, buffer: &wgpu::Buffer) -> Pooled {
        Pooled { buffer: Some(buffer.clone()), size: buffer.size(), id: self.new_id(), pool: self.clone() }
    }

    /// Everything recorded has been submitted.
    pub(crate) fn submitted(&self) {
        let mut shelves = self.lock();
        let Shelves { used, used_bytes, clean, .. } = &mut *shelves;
        *used_bytes = 0;
        for (size, buffers) in used.iter_mut() {
            let clean = clean.entry(*size).or_default();
            clean.append(buffers);
            clean.sort_unstable_by_key(|(_, id)| *id);
        }
    }
}

/// Bytes of a buffer for `n_bytes` of scratch.
///
/// # Errors
/// [`TensorError::OutOfMemory`] where kernels cannot see so many at a time.
fn size_of_scratch(gpu: &Gpu, n_bytes: usize) -> Result<u64, TensorError> {
    let limit = gpu.limits.max_storage_buffer_binding_size.min(gpu.limits.max_buffer_size);
    size_class(n_bytes as u64, limit).ok_or_else(|| TensorError::OutOfMemory {
        backend: BACKEND,
        what: format!("activations of a step (the device binds {limit} bytes at a time)"),
        needed_bytes: n_bytes as u64,
    })
}

/// Sizes come in powers of two, so that batches of many sizes share buffers, or where that is more than a kernel sees, in
/// whole steps of some megabytes.
fn size_class(n_bytes: u64, limit: u64) -> Option<u64> {
    const STEP: u64 = 16 << 20;
    let size = n_bytes.checked_next_power_of_two().unwrap_or(u64::MAX).max(256);
    if size <= limit {
        return Some(size);
    }
    let most = limit / 16 * 16;
    (n_bytes <= most).then(|| n_bytes.next_multiple_of(STEP).min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_never_larger_than_what_a_kernel_sees() {
        // As on a card of NVIDIA's, and as on many small ones.
        for limit in [(4 << 30) - 1, 128 << 20] {
            for n_bytes in [0, 1, 300, 65 << 20, limit / 2 + 1, limit - 100] {
                let size = size_class(n_bytes, limit);
                assert!(size.is_some_and(|size| (n_bytes..=limit).contains(&size)), "{n_bytes}: {size:?}");
                assert!(size.is_some_and(|size| size.is_multiple_of(16)), "{n_bytes}: {size:?}");
            }
            assert_eq!(size_class(limit + 1, limit), None);
            assert_eq!(size_class(u64::MAX, limit), None);
        }
        assert_eq!(size_class(300, 128 << 20), Some(512));
    }
}
