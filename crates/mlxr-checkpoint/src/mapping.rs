//! Read-only memory maps of model files, handed out as shared bytes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use bytes::Bytes;
use memmap2::{Advice, Mmap};

use crate::CheckpointError;

/// How the pages of a mapped file get into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefetch {
    /// On first touch.
    Lazy,
    /// The kernel is told that all of it will be needed, and reads ahead in the background.
    #[default]
    WillNeed,
    /// Every page is touched by several threads before `open` returns.
    PageIn,
}

/// How a checkpoint is brought into memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    pub prefetch: Prefetch,
    /// Pin the pages in RAM; fails when the process may not lock that much.
    pub mlock: bool,
}

/// A whole file as bytes that stay valid as long as any slice of them lives.
#[derive(Clone, Debug)]
pub(crate) struct MappedFile {
    pub path: PathBuf,
    pub bytes: Bytes,
}

impl MappedFile {
    pub fn open(path: &Path, options: LoadOptions) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io(path, "open the file"))?;
        let meta = file.metadata().map_err(CheckpointError::io(path, "read the file size"))?;
        if !meta.is_file() {
            return Err(CheckpointError::unsupported(
                path,
                "something that is not a regular file",
                "name a file",
            ));
        }
        if meta.len() == 0 {
            return Ok(Self { path: path.to_owned(), bytes: Bytes::new() });
        }
        let map = map(&file).map_err(CheckpointError::io(path, "map the file into memory"))?;
        if options.mlock {
            map.lock().map_err(CheckpointError::io(path, "lock the file in memory (see ulimit -l)"))?;
        }
        if options.prefetch != Prefetch::Lazy {
            // Advice only: a kernel that does not take it still reads the pages on first touch.
            if let Err(error) = map.advise(Advice::WillNeed) {
                tracing::debug!(path = %path.display(), %error, "madvise(WILLNEED) refused");
            }
        }
        let bytes = Bytes::from_owner(map);
        if options.prefetch == Prefetch::PageIn {
            page_in(&bytes);
        }
        Ok(Self { path: path.to_owned(), bytes })
    }
}

#[expect(unsafe_code, reason = "the one memory map of the crate")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private and read-only and only ever seen as `&[u8]`; model files are replaced by rename
    // (see `atomic`), never written in place, so the bytes under it do not change.
    unsafe { Mmap::map(file) }
}

/// Reads one byte of every page from a few threads, so that a cold file is read with a deep queue.
fn page_in(bytes: &Bytes) {
    const PAGE_BYTES: usize = 4096;
    const N_THREADS: usize = 4;
    let part = bytes.len().div_ceil(N_THREADS).max(PAGE_BYTES);
    thread::scope(|scope| {
        for chunk in bytes.chunks(part) {
            scope.spawn(move || {
                let sum = chunk.iter().step_by(PAGE_BYTES).fold(0u8, |sum, &byte| sum.wrapping_add(byte));
                std::hint::black_box(sum);
            });
        }
    });
}
