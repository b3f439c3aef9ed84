//! Files under the digest of their content: `blobs/sha256-<hex>`.
//!
//! Invariant: a file under a digest's name has that content, for it gets the name only once it is written, checked and
//! on the disk.

use std::fmt;
use std::fs::{DirEntry, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::files;

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no digest; expected sha256: and 64 hexadecimal digits")]
pub struct DigestError {
    pub text: String,
}

impl FromStr for Digest {
    type Err = DigestError;

    /// `sha256:` or, as in file names, `sha256-`, then the digits.
    fn from_str(text: &str) -> Result<Digest, DigestError> {
        let failed = || DigestError { text: text.chars().take(100).collect() };
        let hex = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha256-")).ok_or_else(failed)?;
        if hex.len() != 64 || !hex.is_ascii() {
            return Err(failed());
        }
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| failed())?;
            if !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(failed());
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| failed())?;
        }
        Ok(Digest(bytes))
    }
}

/// Why a blob was not stored.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the content has the digest {found}, not {expected}")]
    WrongDigest { expected: Digest, found: Digest },
    #[error("the blob is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: u64 },
    #[error("no room on the disk for the blob: {n_bytes} bytes were written before {} was full", folder.display())]
    DiskFull { n_bytes: u64, folder: PathBuf },
    #[error("cannot write to {}: {source}", folder.display())]
    Write { folder: PathBuf, source: io::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the content was not sent to its end")]
    Unfinished,
}

/// The folder of blobs.
#[derive(Clone, Debug)]
pub struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    pub fn new(folder: PathBuf) -> Blobs {
        Blobs { folder }
    }

    pub fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("sha256-{}", digest.hex()))
    }

    pub fn has(&self, digest: Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Begins a blob of at most `max_bytes`.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn writer(&self, max_bytes: u64) -> Result<BlobWriter, BlobError> {
        let failed = |source| BlobError::Write { folder: self.folder.clone(), source };
        files::create_private_folder(&self.folder).map_err(failed)?;
        let file =
            tempfile::Builder::new().prefix(files::TEMPORARY).tempfile_in(&self.folder).map_err(failed)?;
        Ok(BlobWriter { blobs: self.clone(), file, hash: Sha256::new(), n_bytes: 0, max_bytes })
    }

    /// A place in the folder for a file that becomes a blob with [`Blobs::adopt`].
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn workshop(&self) -> Result<tempfile::TempDir, BlobError> {
        let failed = |source| BlobError::Write { folder: self.folder.clone(), source };
        files::create_private_folder(&self.folder).map_err(failed)?;
        tempfile::Builder::new().prefix(files::TEMPORARY).tempdir_in(&self.folder).map_err(failed)
    }

    /// Makes a file of a [`workshop`](Blobs::workshop) a blob.
    ///
    /// # Errors
    /// It cannot be read or moved.
    pub fn adopt(&self, file: &Path) -> Result<Digest, BlobError> {
        let digest = digest_of_file(file)?;
        let failed = |source| BlobError::Write { folder: self.folder.clone(), source };
        let to = self.path(digest);
        if !to.is_file() {
            File::open(file).and_then(|file| file.sync_all()).map_err(failed)?;
            std::fs::rename(file, &to).and_then(|()| files::sync_folder(&to)).map_err(failed)?;
        }
        Ok(digest)
    }

    /// Copies a file in.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn import(&self, file: &Path) -> Result<Digest, BlobError> {
        let failed = |source| BlobError::Read { path: file.to_owned(), source };
        let mut source = File::open(file).map_err(failed)?;
        let mut writer = self.writer(u64::MAX)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match source.read(&mut buffer).map_err(failed)? {
                0 => return writer.finish(None),
                n => writer.write(&buffer[..n])?,
            }
        }
    }

    /// Removes a blob; one that is not there is removed already.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn remove(&self, digest: Digest) -> io::Result<()> {
        match std::fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what `is_needed` says no to and nobody has touched for a day: blobs without a model, and what crashed
    /// writers left. Returns how many.
    pub fn sweep(&self, is_needed: impl Fn(Digest) -> bool) -> usize {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return 0 };
        let is_garbage = |entry: &DirEntry| {
            let digest = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
            digest.is_some_and(|digest| !is_needed(digest))
        };
        let n_blobs = entries.flatten().filter(is_garbage).filter(files::remove_stale).count();
        n_blobs + files::sweep_leftovers(&self.folder)
    }
}

/// The digest of a file's content.
///
/// # Errors
/// It cannot be read.
pub fn digest_of_file(path: &Path) -> Result<Digest, BlobError> {
    let failed = |source| BlobError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(Digest(hash.finalize().into())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// A blob on its way in. Dropped before its end it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    blobs: Blobs,
    file: NamedTempFile,
    hash: Sha256,
    n_bytes: u64,
    max_bytes: u64,
}

impl BlobWriter {
    /// # Errors
    /// The blob gets too large, or the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        if self.max_bytes - self.n_bytes < bytes.len() as u64 {
            return Err(BlobError::TooLarge { max_bytes: self.max_bytes });
        }
        self.file.write_all(bytes).map_err(|error| self.failed(error))?;
        self.hash.update(bytes);
        self.n_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Stores what was written, if it has the digest that was promised.
    ///
    /// # Errors
    /// It has another, or the disk is full.
    pub fn finish(self, expected: Option<Digest>) -> Result<Digest, BlobError> {
        let found = Digest(self.hash.clone().finalize().into());
        if let Some(expected) = expected.filter(|expected| *expected != found) {
            return Err(BlobError::WrongDigest { expected, found });
        }
        let (n_bytes, folder) = (self.n_bytes, self.blobs.folder.clone());
        let path = self.blobs.path(found);
        files::persist(self.file, &path).map_err(|error| write_error(error, n_bytes, folder))?;
        Ok(found)
    }

    fn failed(&self, error: io::Error) -> BlobError {
        write_error(error, self.n_bytes, self.blobs.folder.clone())
    }
}

fn write_error(source: io::Error, n_bytes: u64, folder: PathBuf) -> BlobError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::DiskFull { n_bytes, folder },
        _ => BlobError::Write { folder, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::new(dir.path().join("blobs"));
        (dir, blobs)
    }

    fn n_files(blobs: &Blobs) -> usize {
        std::fs::read_dir(&blobs.folder).unwrap().count()
    }

    #[test]
    fn digests_are_read_and_written() {
        let digest = Digest::of(b"abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), format!("sha256:{hex}"));
        for text in [format!("sha256:{hex}"), format!("sha256-{}", hex.to_uppercase())] {
            assert_eq!(text.parse(), Ok(digest));
        }
        for bad in
            ["", hex, "sha256:", "md5:x", &format!("sha256:{}", &hex[1..]), &format!("sha256:+{}", &hex[1..])]
        {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_blob_is_there_whole_or_not_at_all() {
        let (_dir, blobs) = blobs();
        let digest = Digest::of(b"hello");
        let mut writer = blobs.writer(5).unwrap();
        writer.write(b"hel").unwrap();
        assert!(!blobs.has(digest));
        writer.write(b"lo").unwrap();
        assert!(matches!(writer.write(b"!"), Err(BlobError::TooLarge { max_bytes: 5 })));
        assert_eq!(writer.finish(Some(digest)).unwrap(), digest);
        assert_eq!(std::fs::read(blobs.path(digest)).unwrap(), b"hello");

        let mut writer = blobs.writer(5).unwrap();
        writer.write(b"other").unwrap();
        assert!(matches!(writer.finish(Some(digest)), Err(BlobError::WrongDigest { .. })));
        drop(blobs.writer(5).unwrap());
        assert_eq!(n_files(&blobs), 1, "what was not finished is gone");
        blobs.remove(digest).unwrap();
        blobs.remove(digest).unwrap();
        assert!(!blobs.has(digest));
    }

    #[test]
    fn files_are_copied_in_or_adopted() {
        let (dir, blobs) = blobs();
        let file = dir.path().join("f");
        std::fs::write(&file, b"abc").unwrap();
        assert_eq!(blobs.import(&file).unwrap(), Digest::of(b"abc"));
        let workshop = blobs.workshop().unwrap();
        let made = workshop.path().join("x");
        std::fs::write(&made, b"def").unwrap();
        assert_eq!(blobs.adopt(&made).unwrap(), Digest::of(b"def"));
        drop(workshop);
        assert_eq!(n_files(&blobs), 2);
    }

    #[test]
    fn only_old_garbage_is_swept() {
        let (_dir, blobs) = blobs();
        let mut all = Vec::new();
        for content in [b"a", b"b", b"c"] {
            let mut writer = blobs.writer(9).unwrap();
            writer.write(content).unwrap();
            all.push(writer.finish(None).unwrap());
        }
        let age = |digest| {
            let file = File::options().write(true).open(blobs.path(digest)).unwrap();
            file.set_modified(std::time::SystemTime::now() - 2 * files::STALE).unwrap();
        };
        age(all[0]);
        age(all[1]);
        assert_eq!(blobs.sweep(|digest| digest == all[0]), 1);
        assert_eq!(all.iter().map(|digest| blobs.has(*digest)).collect::<Vec<_>>(), [true, false, true]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_called_that() {
        let error =
            write_error(File::create("/dev/full").unwrap().write_all(b"x").unwrap_err(), 7, "/d".into());
        assert_eq!(
            error.to_string(),
            "no room on the disk for the blob: 7 bytes were written before /d was full"
        );
    }
}
