//! What is to run: one compute pass, submitted in pieces while the next is recorded.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use mlxr_tensor::{KernelTime, TensorError};

use crate::bindings::Bound;
use crate::buffers::Buffers;
use crate::device::{Gpu, IMMEDIATE_BYTES};
use crate::pipelines::Pipeline;
use crate::profile::Profile;

/// Dispatches after which a piece is submitted, so that the device starts while the rest is recorded: the first one, and
/// the largest to which they grow.
const FIRST_PIECE: usize = 16;
const MAX_PIECE: usize = 256;

/// Buffers kept for reads: one that is waited for and one of the step after it.
const MAX_STAGING: usize = 2;

/// Where the outcome of a mapping comes in.
type Mapped = Receiver<Result<(), wgpu::BufferAsyncError>>;

/// Workgroups of a dispatch; more than the device takes along x continue along y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) z: u32,
}

impl Grid {
    /// `n` workgroups, numbered by `workgroup_index` in `grid.wgsl`.
    pub(crate) fn flat(n: usize) -> Grid {
        Grid::tiles(n, 1)
    }

    /// `n` workgroups for each of `n_tiles`.
    pub(crate) fn tiles(n: usize, n_tiles: usize) -> Grid {
        /// Every device takes as many along each axis.
        const MAX: usize = 65_535;
        let y = n.div_ceil(MAX).max(1);
        Grid { x: n.div_ceil(y) as u32, y: y as u32, z: n_tiles as u32 }
    }
}

/// One dispatch.
pub(crate) struct Dispatch<'a> {
    pub(crate) pipeline: &'a Arc<Pipeline>,
    pub(crate) bound: &'a [Bound<'a>],
    pub(crate) immediates: &'a [u8],
    pub(crate) grid: Grid,
}

/// A dispatch as it is encoded.
struct Encoded {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    immediates: [u8; IMMEDIATE_BYTES as usize],
    grid: Grid,
}

impl Encoded {
    /// Waits for the kernel where it is still being compiled.
    fn encode(&self, gpu: &Gpu, pass: &mut wgpu::ComputePass<'_>) {
        match self.pipeline.compiled() {
            Ok(pipeline) => {
                pass.set_pipeline(pipeline);
                pass.set_bind_group(0, &self.group, &[]);
                pass.set_immediates(0, &self.immediates);
                pass.dispatch_workgroups(self.grid.x, self.grid.y, self.grid.z);
            }
            Err(error) => gpu.fail(gpu.lost(error)),
        }
    }
}

/// The pass being recorded.
#[derive(Default)]
pub(crate) struct Recorder {
    open: Option<(wgpu::CommandEncoder, wgpu::ComputePass<'static>)>,
    /// Comes behind what is in `open`: the first of these has a kernel that was being compiled.
    waiting: Vec<Encoded>,
    n_dispatches: usize,
    /// Takes the dispatches in place of `open`.
    profile: Option<Profile>,
    /// Submitted since the last read.
    n_pieces: u32,
    /// What reads go through and no read uses now, at most [`MAX_STAGING`].
    staging: Vec<wgpu::Buffer>,
    /// Held once more by each read that was started and not finished.
    reads: Arc<()>,
}

/// A read that the device has been told of.
pub(crate) struct ReadBack {
    staging: wgpu::Buffer,
    /// What comes after it need not be waited for.
    submission: wgpu::SubmissionIndex,
    n_bytes: usize,
    mapped: Mapped,
    /// Until it is finished or given up.
    _read: Arc<()>,
}

impl Recorder {
    /// Records one dispatch.
    pub(crate) fn dispatch(&mut self, gpu: &Gpu, buffers: &Buffers, dispatch: &Dispatch<'_>) {
        let Dispatch { pipeline, bound, immediates, grid } = *dispatch;
        if grid.x == 0 || grid.z == 0 {
            return;
        }
        debug_assert!(
            immediates.len() <= IMMEDIATE_BYTES as usize,
            "immediates of {} bytes",
            immediates.len()
        );
        let mut padded = [0u8; IMMEDIATE_BYTES as usize];
        padded[..immediates.len()].copy_from_slice(immediates);
        let group = buffers.groups.get(gpu, pipeline, bound);
        let encoded = Encoded { pipeline: pipeline.clone(), group, immediates: padded, grid };
        if let Some(profile) = &mut self.profile {
            profile.record(gpu, pipeline.kernel, |pass| encoded.encode(gpu, pass));
            if profile.is_full() {
                self.submit(gpu, buffers);
            }
            return;
        }
        self.n_dispatches += 1;
        if !self.waiting.is_empty() || !pipeline.is_compiled() {
            // Nothing is submitted before the step's end, so that all its kernels are compiled side by side.
            self.waiting.push(encoded);
            return;
        }
        let (_, pass) = self.open.get_or_insert_with(|| begin(gpu));
        encoded.encode(gpu, pass);
        // A device that has a step to compute needs no small pieces to start on, and one whose weights are on their way can
        // start on none.
        let is_busy = Arc::strong_count(&self.reads) > 1 || gpu.uploads.are_under_way();
        let n_doubled = if is_busy { 8 } else { self.n_pieces.min(8) };
        if self.n_dispatches >= (FIRST_PIECE << n_doubled).min(MAX_PIECE) {
            self.submit(gpu, buffers);
        }
    }

    /// Encodes what was waiting for its kernels.
    fn encode_waiting(&mut self, gpu: &Gpu) {
        if self.waiting.is_empty() {
            return;
        }
        let (_, pass) = self.open.get_or_insert_with(|| begin(gpu));
        for encoded in self.waiting.drain(..) {
            encoded.encode(gpu, pass);
        }
    }

    /// Hands what is recorded to the device.
    pub(crate) fn submit(&mut self, gpu: &Gpu, buffers: &Buffers) {
        self.encode_waiting(gpu);
        if let Some((encoder, pass)) = self.open.take() {
            drop(pass);
            gpu.submit(encoder.finish());
        }
        if let Some(Err(error)) = self.profile.as_mut().map(|profile| profile.finish(gpu)) {
            gpu.fail(error);
        }
        self.n_dispatches = 0;
        self.n_pieces += 1;
        buffers.submitted();
    }

    /// Measures what is recorded from now on.
    pub(crate) fn start_profile(&mut self, gpu: &Gpu, buffers: &Buffers) -> Result<(), TensorError> {
        self.submit(gpu, buffers);
        self.profile = Some(Profile::new(gpu)?);
        Ok(())
    }

    /// Measures no longer.
    pub(crate) fn stop_profile(&mut self, gpu: &Gpu, buffers: &Buffers) {
        self.submit(gpu, buffers);
        self.profile = None;
    }

    /// What was measured.
    pub(crate) fn kernel_times(&self) -> Vec<KernelTime> {
        self.profile.as_ref().map_or_else(Vec::new, Profile::times)
    }

    /// Submits, waits, and copies `n_bytes` of `buffer` out.
    ///
    /// # Errors
    /// [`TensorError::DeviceLost`].
    pub(crate) fn read(
        &mut self,
        gpu: &Gpu,
        buffers: &Buffers,
        buffer: &wgpu::Buffer,
        n_bytes: usize,
    ) -> Result<Vec<u8>, TensorError> {
        let read = self.start_read(gpu, buffers, &[(buffer, n_bytes)]);
        let bytes = read.wait(gpu)?;
        self.keep_staging(read);
        Ok(bytes)
    }

    /// Submits, together with copies of the first bytes of buffers, one after the other; all but the last are whole words.
    pub(crate) fn start_read(
        &mut self,
        gpu: &Gpu,
        buffers: &Buffers,
        parts: &[(&wgpu::Buffer, usize)],
    ) -> ReadBack {
        if self.profile.is_some() {
            self.submit(gpu, buffers);
        }
        self.encode_waiting(gpu);
        let (mut encoder, pass) = self.open.take().unwrap_or_else(|| begin(gpu));
        drop(pass);
        let n_bytes = parts.iter().map(|(_, n)| n).sum::<usize>();
        let size = (n_bytes as u64).next_multiple_of(4);
        let found = self.staging.iter().position(|staging| staging.size() >= size);
        let staging = match found {
            Some(i) => self.staging.swap_remove(i),
            None => gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("read back"),
                size: size.next_power_of_two().max(256),
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            }),
        };
        let mut at = 0;
        for &(buffer, n) in parts.iter().filter(|(_, n)| *n > 0) {
            let n = (n as u64).next_multiple_of(4);
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, at, n);
            at += n;
        }
        let submission = gpu.submit(encoder.finish());
        self.n_dispatches = 0;
        self.n_pieces = 0;
        buffers.submitted();
        let (send, mapped) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // Nobody waits for a read that was given up.
            let _ = send.send(result);
        });
        ReadBack { staging, submission, n_bytes, mapped, _read: self.reads.clone() }
    }

    /// Keeps the memory of a read that is done for later ones.
    pub(crate) fn keep_staging(&mut self, read: ReadBack) {
        read.staging.unmap();
        self.staging.push(read.staging);
        self.staging.sort_unstable_by_key(wgpu::Buffer::size);
        if self.staging.len() > MAX_STAGING {
            self.staging.remove(0);
        }
    }
}

impl ReadBack {
    /// Waits, and copies the bytes out.
    ///
    /// # Errors
    /// [`TensorError::DeviceLost`].
    pub(crate) fn wait(&self, gpu: &Gpu) -> Result<Vec<u8>, TensorError> {
        self.wait_until_mapped(gpu)?;
        let view = self.staging.get_mapped_range(..).map_err(|e| gpu.lost(e))?;
        Ok(view[..self.n_bytes].to_vec())
    }

    fn wait_until_mapped(&self, gpu: &Gpu) -> Result<(), TensorError> {
        /// A thread that sleeps takes some tenths of a millisecond to wake; a step is shorter than this.
        const SPIN: Duration = Duration::from_millis(20);
        let start = Instant::now();
        // A software driver computes on the cores that would spin.
        while !gpu.info.is_software && start.elapsed() < SPIN {
            gpu.device.poll(wgpu::PollType::Poll).map_err(|e| gpu.lost(e))?;
            match self.mapped.try_recv() {
                Ok(result) => return result.map_err(|e| gpu.lost(e)).and_then(|()| gpu.check()),
                Err(_) => std::hint::spin_loop(),
            }
        }
        let submission_index = Some(self.submission.clone());
        let until_done = wgpu::PollType::Wait { submission_index, timeout: None };
        let done = gpu.device.poll(until_done).map_err(|e| gpu.lost(e));
        let mapped = done.and_then(|_| self.mapped.recv().map_err(|e| gpu.lost(e))?.map_err(|e| gpu.lost(e)));
        if mapped.is_err() {
            // Why a device is lost is told where nothing is left to wait for.
            gpu.device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| gpu.lost(e))?;
        }
        gpu.check().and(mapped)
    }
}

fn begin(gpu: &Gpu) -> (wgpu::CommandEncoder, wgpu::ComputePass<'static>) {
    let mut encoder =
        gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("step") });
    let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
    (encoder, pass)
}
