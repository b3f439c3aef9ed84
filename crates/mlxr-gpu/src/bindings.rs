//! Bind groups, kept from step to step.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::device::Gpu;
use crate::pipelines::Pipeline;

/// Bind groups kept; a model's step uses a few hundred, the same in every step.
const MAX_BIND_GROUPS: usize = 8192;

/// A buffer as a kernel sees it.
#[derive(Clone, Copy)]
pub(crate) struct Bound<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    /// The buffer's number, see [`Buffers::new_id`](crate::buffers::Buffers::new_id).
    pub(crate) id: u64,
    /// Where in the buffer what the kernel sees begins.
    pub(crate) start: u64,
}

/// By pipeline and numbers of buffers. A bind group keeps its buffers alive, so it goes when one of them does.
#[derive(Default)]
pub(crate) struct BindGroups(Mutex<HashMap<(usize, Vec<u64>), wgpu::BindGroup>>);

impl BindGroups {
    /// The bind group of these buffers for `pipeline`.
    pub(crate) fn get(&self, gpu: &Gpu, pipeline: &Pipeline, bound: &[Bound<'_>]) -> wgpu::BindGroup {
        let key = (pipeline.id, bound.iter().map(|b| b.id).collect::<Vec<_>>());
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(&key) {
            return group.clone();
        }
        let entries: Vec<_> = (0..)
            .zip(bound)
            .map(|(binding, b)| {
                let bound = wgpu::BufferBinding { buffer: b.buffer, offset: b.start, size: None };
                wgpu::BindGroupEntry { binding, resource: wgpu::BindingResource::Buffer(bound) }
            })
            .collect();
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.layout,
            entries: &entries,
        });
        if groups.len() == MAX_BIND_GROUPS {
            groups.clear();
        }
        groups.insert(key, group.clone());
        group
    }

    /// Forgets the groups with this buffer.
    pub(crate) fn forget(&self, id: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(_, ids), _| !ids.contains(&id));
    }
}
