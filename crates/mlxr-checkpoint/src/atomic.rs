//! Files that appear whole or not at all: written beside their place under a temporary name, then renamed.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::CheckpointError;

const BUFFER_BYTES: usize = 1 << 20;

/// A file under construction; dropping it before [`Self::commit`] leaves nothing behind.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
    n_written: u64,
}

impl AtomicFile {
    pub fn create(path: &Path) -> Result<Self, CheckpointError> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        let file = tempfile::Builder::new()
            .prefix(".mlxr-")
            .suffix(".part")
            .tempfile_in(dir)
            .map_err(CheckpointError::io(path, "create the file"))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER_BYTES, file), n_written: 0 })
    }

    /// Bytes written so far.
    pub fn n_written(&self) -> u64 {
        self.n_written
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.file.write_all(bytes).map_err(CheckpointError::io(&self.path, "write the file"))?;
        self.n_written += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to the next multiple of `alignment`.
    pub fn pad_to(&mut self, alignment: u64) -> Result<(), CheckpointError> {
        let n = self.n_written.next_multiple_of(alignment) - self.n_written;
        self.write(&vec![0; n as usize])
    }

    /// Puts the file in its place once every byte is on the disk.
    pub fn commit(self) -> Result<(), CheckpointError> {
        let fail = |action| CheckpointError::io(&self.path, action);
        let file = self.file.into_inner().map_err(|e| fail("write the file")(e.into_error()))?;
        make_readable(&file).map_err(fail("set the permissions of the file"))?;
        file.as_file().sync_all().map_err(fail("write the file"))?;
        file.persist(&self.path).map_err(|e| fail("rename the file")(e.error))?;
        Ok(())
    }
}

/// Temporary files are private to their owner; a model is as readable as any other file.
#[cfg(unix)]
fn make_readable(file: &NamedTempFile) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_: &NamedTempFile) -> std::io::Result<()> {
    Ok(())
}

/// Writes a small file whole.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = AtomicFile::create(path)?;
    file.write(bytes)?;
    file.commit()
}

pub(crate) fn create_dir(path: &Path) -> Result<(), CheckpointError> {
    fs::create_dir_all(path).map_err(CheckpointError::io(path, "create the folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(&[1; 10]).unwrap();
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_committed_file_replaces_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        fs::write(&path, b"old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write(b"new").unwrap();
        file.pad_to(8).unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new\0\0\0\0\0");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
