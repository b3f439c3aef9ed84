//! How long each kernel takes: a pass of its own for every dispatch, with a timestamp before and behind it.
//!
//! Passes keep dispatches from overlapping, so what is measured is each kernel alone, and the sum is more than the same
//! dispatches take together.
//!
//! Bound: the clock is read back after [`CAPACITY`] dispatches, and there is one total per kernel.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use mlxr_tensor::{KernelTime, TensorError};
use wgpu::{BufferUsages, Features};

use crate::device::{BACKEND, Gpu};

/// Dispatches between two looks at the clock's readings.
const CAPACITY: u32 = 1024;
/// Bytes of a reading.
const READING: u64 = 8;

/// See the module.
pub(crate) struct Profile {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
    /// What is recorded and not submitted.
    encoder: Option<wgpu::CommandEncoder>,
    /// The kernels of the recorded dispatches, in order.
    recorded: Vec<&'static str>,
    totals: BTreeMap<&'static str, (u64, Duration)>,
}

impl Profile {
    /// # Errors
    /// [`TensorError::NoProfile`] when the adapter has no clock.
    pub(crate) fn new(gpu: &Gpu) -> Result<Profile, TensorError> {
        if !gpu.device.features().contains(Features::TIMESTAMP_QUERY) {
            let reason = format!("{} has no clock for them", gpu.info.name);
            return Err(TensorError::NoProfile { backend: BACKEND, reason });
        }
        let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("profile"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * CAPACITY,
        });
        let buffer = |usage| {
            gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("profile"),
                size: 2 * u64::from(CAPACITY) * READING,
                usage,
                mapped_at_creation: false,
            })
        };
        Ok(Profile {
            queries,
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            staging: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            encoder: None,
            recorded: Vec::new(),
            totals: BTreeMap::new(),
        })
    }

    /// Records one dispatch of a kernel.
    pub(crate) fn record(
        &mut self,
        gpu: &Gpu,
        kernel: &'static str,
        dispatch: impl FnOnce(&mut wgpu::ComputePass<'_>),
    ) {
        let begin = || gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let first = 2 * self.recorded.len() as u32;
        let encoder = self.encoder.get_or_insert_with(begin);
        let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        });
        let descriptor = wgpu::ComputePassDescriptor { label: Some(kernel), timestamp_writes };
        dispatch(&mut encoder.begin_compute_pass(&descriptor));
        self.recorded.push(kernel);
    }

    /// Whether nothing more can be recorded before [`Self::finish`].
    pub(crate) fn is_full(&self) -> bool {
        self.recorded.len() == CAPACITY as usize
    }

    /// Runs what is recorded, waits, and adds up the times.
    ///
    /// # Errors
    /// [`TensorError::DeviceLost`].
    pub(crate) fn finish(&mut self, gpu: &Gpu) -> Result<(), TensorError> {
        let Some(mut encoder) = self.encoder.take() else { return Ok(()) };
        let recorded = std::mem::take(&mut self.recorded);
        let n_queries = 2 * recorded.len() as u32;
        let n_bytes = u64::from(n_queries) * READING;
        encoder.resolve_query_set(&self.queries, 0..n_queries, &self.resolved, 0);
        encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, n_bytes);
        gpu.submit(encoder.finish());
        let (send, mapped) = mpsc::channel();
        self.staging.map_async(wgpu::MapMode::Read, ..n_bytes, move |result| {
            // The receiver waits below.
            let _ = send.send(result);
        });
        gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| gpu.lost(e))?;
        gpu.check()?;
        mapped.recv().map_err(|e| gpu.lost(e))?.map_err(|e| gpu.lost(e))?;
        let view = self.staging.get_mapped_range(..n_bytes).map_err(|e| gpu.lost(e))?;
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&view);
        drop(view);
        self.staging.unmap();
        let nanoseconds = f64::from(gpu.queue.get_timestamp_period());
        for (kernel, reading) in recorded.into_iter().zip(ticks.chunks_exact(2)) {
            let (n_calls, time) = self.totals.entry(kernel).or_default();
            let n_ticks = reading[1].saturating_sub(reading[0]);
            *n_calls += 1;
            *time += Duration::from_secs_f64(n_ticks as f64 * nanoseconds * 1e-9);
        }
        Ok(())
    }

    /// The totals so far, the longest first.
    pub(crate) fn times(&self) -> Vec<KernelTime> {
        let mut times: Vec<KernelTime> = self
            .totals
            .iter()
            .map(|(kernel, &(n_calls, time))| KernelTime {
                kernel: kernel.trim_end_matches(".wgsl"),
                n_calls,
                time,
            })
            .collect();
        times.sort_by(|a, b| b.time.cmp(&a.time).then(a.kernel.cmp(b.kernel)));
        times
    }
}
