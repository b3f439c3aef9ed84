//! Pooled activation buffers: dropping an activation gives its memory to the next one.

use std::sync::{Arc, Mutex, PoisonError};

use mlxr_tensor::Act;

use crate::aligned::AlignedBytes;

/// Idle buffers kept at most; a forward has fewer activations alive at once.
const MAX_IDLE: usize = 32;

/// Idle buffers of one backend.
#[derive(Default)]
pub(crate) struct ActPool {
    idle: Mutex<Vec<AlignedBytes>>,
}

/// What stands behind an [`Act`] of this backend.
pub(crate) struct CpuAct {
    memory: Option<AlignedBytes>,
    len: usize,
    pool: Arc<ActPool>,
}

impl ActPool {
    /// An activation with whatever values the buffer held: the op writes all of them.
    pub(crate) fn act(self: &Arc<Self>, rows: usize, cols: usize) -> Act {
        let len = rows.checked_mul(cols).expect("an activation fits the address space");
        let memory = self.take(len * 4);
        Act::new(rows, cols, CpuAct { memory: Some(memory), len, pool: Arc::clone(self) })
    }

    /// The smallest idle buffer that fits and is not far too large, or a new one.
    fn take(&self, n_bytes: usize) -> AlignedBytes {
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
                AlignedBytes::mapped(n_bytes.max(64).next_multiple_of(64))
                    .unwrap_or_else(|| panic!("out of memory: {n_bytes} bytes for an activation"))
            }
        }
    }
}

impl CpuAct {
    pub(crate) fn values(&self) -> &[f32] {
        &self.memory.as_ref().expect("present until dropped").floats()[..self.len]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.memory.as_mut().expect("present until dropped").floats_mut()[..self.len]
    }
}

impl Drop for CpuAct {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() == MAX_IDLE {
            idle.swap_remove(0);
        }
        idle.push(memory);
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
