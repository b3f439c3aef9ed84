//! Pooled activation buffers: dropping an activation gives its memory to the next one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mlxr_tensor::Act;

use crate::aligned::AlignedBytes;
use crate::linear::blocks::BlockActs;
use crate::linear::codes::{ActLayout, QuantActs};
use crate::linear::wide::WideActs;
use crate::linear::{Coded, Inputs};

/// Idle buffers kept at most; a forward has fewer activations alive at once.
const MAX_IDLE: usize = 48;

/// A buffer that nothing needed for one such period and some of the one before is given back to the system: what the
/// largest prompt took does not stay resident while tokens are decoded, and taking it again costs a small part of the time.
const PERIOD: Duration = Duration::from_millis(500);

/// Buffers that come back between two looks at the clock.
const CLOCK_EVERY: u32 = 64;

/// Idle buffers of one backend.
#[derive(Default)]
pub(crate) struct ActPool {
    idle: Mutex<Idle>,
    /// Of idle buffers and those in use.
    allocated_bytes: AtomicU64,
    /// Whether buffers stay however many are idle for however long: what is counted then depends on no clock, and steps of
    /// other sizes find room beside the largest.
    keeps_all: bool,
}

#[derive(Default)]
struct Idle {
    buffers: Vec<IdleBuffer>,
    n_given_back: u32,
    period: u32,
    began: Option<Instant>,
}

struct IdleBuffer {
    memory: AlignedBytes,
    /// The period in which it was used last.
    period: u32,
}

impl Idle {
    /// Begins another period if this one is over, and returns what was idle for too long.
    fn look_at_clock(&mut self, now: Instant) -> Vec<IdleBuffer> {
        let began = *self.began.get_or_insert(now);
        if now.saturating_duration_since(began) < PERIOD {
            return Vec::new();
        }
        self.began = Some(now);
        self.period = self.period.wrapping_add(1);
        let period = self.period;
        self.buffers.extract_if(.., |buffer| 1 < period.wrapping_sub(buffer.period)).collect()
    }
}

/// What stands behind an [`Act`] of this backend.
pub(crate) struct CpuAct {
    /// Made from the rows in bf16 where there are only these, once something asks for values.
    memory: OnceLock<AlignedBytes>,
    len: usize,
    cols: usize,
    coded: Coded,
    pool: Arc<ActPool>,
}

impl ActPool {
    /// A pool that gives nothing back to the system.
    pub(crate) fn keeping_all() -> Self {
        Self { keeps_all: true, ..Self::default() }
    }

    /// An activation with whatever values the buffer held: the op writes all of them.
    pub(crate) fn act(self: &Arc<Self>, rows: usize, cols: usize) -> Act {
        let len = rows.checked_mul(cols).expect("an activation fits the address space");
        let memory = self.take(len * 4).into();
        Act::new(rows, cols, CpuAct { memory, len, cols, coded: Coded::default(), pool: Arc::clone(self) })
    }

    /// An activation in bf16.
    pub(crate) fn wide_act(self: &Arc<Self>, rows: usize, cols: usize, acts: WideActs) -> Act {
        let coded = Coded { wide: acts.into(), ..Coded::default() };
        let (memory, len, pool) = (OnceLock::new(), rows * cols, Arc::clone(self));
        Act::new(rows, cols, CpuAct { memory, len, cols, coded, pool })
    }

    /// Room for quantised rows, each of which has to be filled.
    pub(crate) fn codes(&self, rows: usize, cols: usize) -> QuantActs {
        let layout = ActLayout::new(cols);
        QuantActs::new(layout, self.take(rows * layout.row_bytes()))
    }

    /// The smallest idle buffer that fits and is not far too large, or a new one.
    pub(crate) fn take(&self, n_bytes: usize) -> AlignedBytes {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let size = |buffer: &IdleBuffer| buffer.memory.bytes().len();
        let fits = |size: usize| n_bytes <= size && size <= n_bytes.saturating_mul(4).max(4096);
        let sizes = idle.buffers.iter().map(size).enumerate();
        match sizes.filter(|&(_, size)| fits(size)).min_by_key(|&(_, size)| size) {
            Some((i, _)) => idle.buffers.swap_remove(i).memory,
            None => {
                drop(idle);
                let n_bytes = n_bytes.max(64).next_multiple_of(64);
                self.allocated_bytes.fetch_add(n_bytes as u64, Ordering::Relaxed);
                AlignedBytes::mapped(n_bytes)
                    .unwrap_or_else(|| panic!("out of memory: {n_bytes} bytes for an activation"))
            }
        }
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.allocated_bytes.load(Ordering::Relaxed)
    }

    /// Gives all idle buffers back to the system.
    pub(crate) fn clear(&self) {
        let buffers = std::mem::take(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner).buffers);
        self.forget(buffers);
    }

    fn give_back(&self, memory: AlignedBytes) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = Vec::new();
        if !self.keeps_all && idle.buffers.len() == MAX_IDLE {
            dropped.push(idle.buffers.swap_remove(0));
        }
        let period = idle.period;
        idle.buffers.push(IdleBuffer { memory, period });
        idle.n_given_back = idle.n_given_back.wrapping_add(1);
        if !self.keeps_all && idle.n_given_back.is_multiple_of(CLOCK_EVERY) {
            dropped.extend(idle.look_at_clock(Instant::now()));
        }
        drop(idle);
        self.forget(dropped);
    }

    fn forget(&self, buffers: Vec<IdleBuffer>) {
        let n_bytes = buffers.iter().map(|buffer| buffer.memory.bytes().len() as u64).sum();
        self.allocated_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
    }
}

/// A buffer that its pool gets back.
pub(crate) struct Pooled {
    memory: Option<AlignedBytes>,
    n_bytes: usize,
    pool: Arc<ActPool>,
}

impl Pooled {
    /// Memory with whatever it held.
    pub(crate) fn new(n_bytes: usize, pool: &Arc<ActPool>) -> Self {
        Self { memory: Some(pool.take(n_bytes)), n_bytes, pool: Arc::clone(pool) }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory.as_ref().expect("present until dropped").bytes()[..self.n_bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut().expect("present until dropped").bytes_mut()[..self.n_bytes]
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

impl CpuAct {
    pub(crate) fn values(&self) -> &[f32] {
        let memory = self.memory.get_or_init(|| {
            let mut memory = self.pool.take(self.len * 4);
            let rows = self.coded.wide.get().expect("values or rows in bf16");
            rows.unpack(self.cols, &mut memory.floats_mut()[..self.len]);
            memory
        });
        &memory.floats()[..self.len]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        self.values();
        self.forget_codes();
        &mut self.memory.get_mut().expect("just asked for").floats_mut()[..self.len]
    }

    pub(crate) fn n_rows(&self) -> usize {
        self.len / self.cols.max(1)
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values()[row * self.cols..(row + 1) * self.cols]
    }

    pub(crate) fn coded(&self) -> &Coded {
        &self.coded
    }

    pub(crate) fn pool(&self) -> &Arc<ActPool> {
        &self.pool
    }

    fn forget_codes(&mut self) {
        let Coded { groups, blocks, wide } = &mut self.coded;
        drop(wide.take());
        let groups = groups.take().map(QuantActs::into_memory);
        let blocks = blocks.take().map(BlockActs::into_memory);
        groups.into_iter().chain(blocks).for_each(|memory| self.pool.give_back(memory));
    }
}

impl Drop for CpuAct {
    fn drop(&mut self) {
        self.forget_codes();
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

/// The values of an activation of this backend.
pub(crate) fn values(act: &Act) -> &[f32] {
    act.handle::<CpuAct>().values()
}

/// The values of an activation of this backend, to write.
pub(crate) fn values_mut(act: &mut Act) -> &mut [f32] {
    act.handle_mut::<CpuAct>().values_mut()
}

/// Adds the quantised form of what an activation holds.
pub(crate) fn set_coded(act: &mut Act, coded: Coded) {
    let act = act.handle_mut::<CpuAct>();
    act.forget_codes();
    act.coded = coded;
}

/// An activation as the input of products.
pub(crate) fn inputs(act: &Act) -> Inputs<'_> {
    Inputs::new(act.handle::<CpuAct>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_were_idle_for_a_whole_period_are_given_back() {
        let pool = Arc::<ActPool>::default();
        let (large, small) = (pool.take(8 << 20), pool.take(4096));
        let start = Instant::now();
        let later = |n_halves: u32| start + PERIOD / 2 * n_halves;
        let look = |at: Instant| {
            let dropped = pool.idle.lock().expect("no panic").look_at_clock(at);
            pool.forget(dropped);
            pool.allocated_bytes()
        };
        let all = (8 << 20) + 4096;
        assert_eq!(look(later(0)), all);
        pool.give_back(large);
        pool.give_back(small);
        // The period in which both were used last ends, then one in which the small one is used again.
        assert_eq!(look(later(1)), all);
        assert_eq!(look(later(2)), all);
        pool.give_back(pool.take(4096));
        assert_eq!(look(later(3)), all);
        assert_eq!(look(later(4)), 4096);
        assert_eq!(pool.take(4096).bytes().len(), 4096);
        assert_eq!(pool.allocated_bytes(), 4096);
    }

    #[test]
    fn a_pool_gives_back_what_is_beyond_its_bound_unless_it_keeps_all() {
        for (pool, n_kept) in [(ActPool::default(), MAX_IDLE), (ActPool::keeping_all(), 2 * MAX_IDLE)] {
            let used: Vec<_> = (0..2 * MAX_IDLE).map(|_| pool.take(64)).collect();
            assert_eq!(pool.allocated_bytes(), 2 * MAX_IDLE as u64 * 64);
            used.into_iter().for_each(|memory| pool.give_back(memory));
            assert_eq!(pool.allocated_bytes(), n_kept as u64 * 64);
        }
    }

    #[test]
    fn what_is_in_use_stays_when_all_else_is_given_back() {
        let pool = Arc::<ActPool>::default();
        let (used, idle) = (pool.act(3, 1000), pool.act(512, 1000));
        drop(idle);
        pool.clear();
        assert_eq!(pool.allocated_bytes(), 12_032);
        drop(used);
        assert_eq!(pool.allocated_bytes(), 12_032);
        pool.clear();
        assert_eq!(pool.allocated_bytes(), 0);
    }
}
