//! Matrices on their way to the device's own memory: repacked and written by threads of their own, while the host opens
//! the rest of the model, records the first step and compiles its kernels.
//!
//! Bound: an entry for each megabyte of a model's weights.
//!
//! Invariant: commands are submitted after all that is on its way has been written, see [`Uploads::wait`].

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mlxr_tensor::HostTensor;

use crate::device::Failure;
use crate::layout::Layout;
use crate::repack::{Planes, piece_rows};

/// Writes to a device's buffers.
pub(crate) struct Writer {
    queue: wgpu::Queue,
    written_bytes: AtomicUsize,
}

impl Writer {
    pub(crate) fn new(queue: wgpu::Queue) -> Writer {
        Writer { queue, written_bytes: AtomicUsize::new(0) }
    }

    /// Writes before what is submitted from now on; `at` is a multiple of four, and so is the end of `bytes` or it is that
    /// of the buffer.
    pub(crate) fn write(&self, buffer: &wgpu::Buffer, at: u64, bytes: &[u8]) {
        /// Staging memory in flight at a time.
        const IN_FLIGHT: usize = 64 << 20;
        let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
        self.queue.write_buffer(buffer, at, words);
        if !rest.is_empty() {
            // Writes are whole words; buffers end on one.
            let mut word = [0; 4];
            word[..rest.len()].copy_from_slice(rest);
            self.queue.write_buffer(buffer, at + words.len() as u64, &word);
        }
        let before = self.written_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        if before / IN_FLIGHT != before.wrapping_add(bytes.len()) / IN_FLIGHT {
            self.queue.submit([]);
        }
    }
}

/// A matrix, and where it goes.
pub(crate) struct Matrix {
    pub(crate) tensor: HostTensor,
    pub(crate) layout: Layout,
    /// The buffers of its planes, with the bytes a row takes in each.
    pub(crate) planes: [(wgpu::Buffer, usize); 3],
    /// Its first row's number in them.
    pub(crate) first_row: usize,
}

impl Matrix {
    fn write(&self, writer: &Writer, rows: Range<usize>, scratch: &mut Planes) {
        let first_row = self.first_row + rows.start;
        scratch.fill(&self.tensor.row_slice(rows), &self.layout);
        for ((buffer, row_bytes), bytes) in self.planes.iter().zip(scratch.each()) {
            writer.write(buffer, (row_bytes * first_row) as u64, bytes);
        }
    }
}

/// Some rows of a matrix.
struct Piece {
    matrix: Arc<Matrix>,
    rows: Range<usize>,
}

#[derive(Default)]
struct State {
    pieces: VecDeque<Piece>,
    n_workers: usize,
}

struct Shared {
    writer: Arc<Writer>,
    failure: Arc<Failure>,
    state: Mutex<State>,
    /// Pieces that wait or are being written; changes with `state` locked.
    n_left: AtomicUsize,
    none_left: Condvar,
}

/// Counts a piece as done, whatever becomes of it.
struct Done<'a>(&'a Shared);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failure.note("a weight could not be repacked".to_owned());
        }
        self.0.finish(1);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, n: usize) {
        let _state = self.lock();
        if self.n_left.fetch_sub(n, Ordering::AcqRel) == n {
            self.none_left.notify_all();
        }
    }

    /// Writes pieces until none waits; then that many workers go.
    fn work(&self, n_going: usize) {
        let mut scratch = Planes::default();
        while let Some(Piece { matrix, rows }) = self.next(n_going) {
            let _done = Done(self);
            matrix.write(&self.writer, rows, &mut scratch);
        }
    }

    /// The next piece; where there is none, that many workers go.
    fn next(&self, n_going: usize) -> Option<Piece> {
        let mut state = self.lock();
        let piece = state.pieces.pop_front();
        if piece.is_none() {
            state.n_workers -= n_going;
        }
        piece
    }
}

/// See the module.
pub(crate) struct Uploads(Arc<Shared>);

impl Uploads {
    pub(crate) fn new(writer: Arc<Writer>, failure: Arc<Failure>) -> Uploads {
        let (state, n_left, none_left) = Default::default();
        Uploads(Arc::new(Shared { writer, failure, state, n_left, none_left }))
    }

    /// Begins to write a matrix.
    pub(crate) fn add(&self, matrix: Matrix) {
        let (n_rows, n_piece) = (matrix.tensor.rows(), piece_rows(&matrix.tensor));
        let n_pieces = n_rows.div_ceil(n_piece);
        let matrix = Arc::new(matrix);
        let pieces = (0..n_rows)
            .step_by(n_piece)
            .map(|start| Piece { matrix: matrix.clone(), rows: start..(start + n_piece).min(n_rows) });
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let n_new = {
            let mut state = self.0.lock();
            state.pieces.extend(pieces);
            self.0.n_left.fetch_add(n_pieces, Ordering::AcqRel);
            let n_new = n_threads.saturating_sub(state.n_workers).min(n_pieces);
            state.n_workers += n_new;
            n_new
        };
        for _ in 0..n_new {
            let shared = self.0.clone();
            let thread = std::thread::Builder::new().name("mlxr-upload".to_owned());
            if thread.spawn(move || shared.work(1)).is_err() {
                // Who waits for the pieces writes them.
                self.0.lock().n_workers -= 1;
            }
        }
    }

    /// Whether something is on its way.
    pub(crate) fn are_under_way(&self) -> bool {
        self.0.n_left.load(Ordering::Acquire) > 0
    }

    /// Returns once all that was added has been written, in which this thread helps.
    pub(crate) fn wait(&self) {
        if !self.are_under_way() {
            return;
        }
        self.0.work(0);
        let mut state = self.0.lock();
        while self.are_under_way() {
            state = self.0.none_left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Uploads {
    /// What waits is given up; what is being written ends before the device goes.
    fn drop(&mut self) {
        let n_given_up = std::mem::take(&mut self.0.lock().pieces).len();
        if n_given_up > 0 {
            self.0.finish(n_given_up);
        }
        self.wait();
    }
}
