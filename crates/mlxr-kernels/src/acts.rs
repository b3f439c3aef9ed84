//! Pooled activation buffers: dropping an activation gives its memory to the next one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mlxr_tensor::Act;

use crate::aligned::AlignedBytes;
use crate::linear::blocks::BlockActs;
use crate::linear::codes::{ActLayout, QuantActs};
use crate::linear::{Coded, Inputs};

/// Idle buffers kept at most; a forward has fewer activations alive at once.
const MAX_IDLE: usize = 48;

/// Idle buffers of one backend.
#[derive(Default)]
pub(crate) struct ActPool {
    idle: Mutex<Vec<AlignedBytes>>,
    /// Of idle buffers and those in use.
    allocated_bytes: AtomicU64,
}

/// What stands behind an [`Act`] of this backend.
pub(crate) struct CpuAct {
    memory: Option<AlignedBytes>,
    len: usize,
    coded: Coded,
    pool: Arc<ActPool>,
}

impl ActPool {
    /// An activation with whatever values the buffer held: the op writes all of them.
    pub(crate) fn act(self: &Arc<Self>, rows: usize, cols: usize) -> Act {
        let len = rows.checked_mul(cols).expect("an activation fits the address space");
        let memory = Some(self.take(len * 4));
        Act::new(rows, cols, CpuAct { memory, len, coded: Coded::default(), pool: Arc::clone(self) })
    }

    /// Room for quantised rows, each of which has to be filled.
    pub(crate) fn codes(&self, rows: usize, cols: usize) -> QuantActs {
        let layout = ActLayout::new(cols);
        QuantActs::new(layout, self.take(rows * layout.row_bytes()))
    }

    /// The smallest idle buffer that fits and is not far too large, or a new one.
    pub(crate) fn take(&self, n_bytes: usize) -> AlignedBytes {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |buffer: &AlignedBytes| {
            let size = buffer.bytes().len();
            n_bytes <= size && size <= n_bytes.saturating_mul(4).max(4096)
        };
        let best = (0..idle.len()).filter(|&i| fits(&idle[i])).min_by_key(|&i| idle[i].bytes().len());
        match best {
            Some(i) => idle.swap_remove(i),
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

    fn give_back(&self, memory: AlignedBytes) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == MAX_IDLE {
            let dropped = idle.swap_remove(0);
            self.allocated_bytes.fetch_sub(dropped.bytes().len() as u64, Ordering::Relaxed);
        }
        idle.push(memory);
    }
}

/// A buffer that its pool gets back.
pub(crate) struct Pooled<'a> {
    memory: Option<AlignedBytes>,
    n_bytes: usize,
    pool: &'a ActPool,
}

impl<'a> Pooled<'a> {
    /// Memory with whatever it held.
    pub(crate) fn new(n_bytes: usize, pool: &'a ActPool) -> Self {
        Self { memory: Some(pool.take(n_bytes)), n_bytes, pool }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory.as_ref().expect("present until dropped").bytes()[..self.n_bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut().expect("present until dropped").bytes_mut()[..self.n_bytes]
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.pool.give_back(memory);
        }
    }
}

impl CpuAct {
    pub(crate) fn values(&self) -> &[f32] {
        &self.memory.as_ref().expect("present until dropped").floats()[..self.len]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        self.forget_codes();
        &mut self.memory.as_mut().expect("present until dropped").floats_mut()[..self.len]
    }

    fn forget_codes(&mut self) {
        let Coded { groups, blocks } = &mut self.coded;
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
    let CpuAct { coded, pool, .. } = act.handle::<CpuAct>();
    Inputs::new(values(act), act.cols(), coded, pool)
}
