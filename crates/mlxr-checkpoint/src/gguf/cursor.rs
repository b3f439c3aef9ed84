//! A bounds-checked little-endian reader that knows where it stands.

use std::path::Path;

use bytes::Bytes;

use crate::CheckpointError;

pub(crate) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a Bytes,
    pos: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(path: &'a Path, bytes: &'a Bytes) -> Self {
        Self { path, bytes, pos: 0 }
    }

    pub fn pos(&self) -> usize {
        self.pos
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.pos
    }

    /// An error about the thing at `offset`.
    pub fn fault(
        &self,
        what: impl Into<String>,
        offset: usize,
        found: impl std::fmt::Display,
        expected: impl std::fmt::Display,
    ) -> CheckpointError {
        CheckpointError::malformed(self.path, what, offset as u64, found, expected)
    }

    /// The next `n` bytes, shared with the file.
    pub fn take(&mut self, n: usize, what: &str) -> Result<Bytes, CheckpointError> {
        if n > self.remaining() {
            let found = format!("{} bytes to the end of the file", self.remaining());
            return Err(self.fault(what, self.pos, found, format!("{n} bytes")));
        }
        let slice = self.bytes.slice(self.pos..self.pos + n);
        self.pos += n;
        Ok(slice)
    }

    /// Everything read since `start`, shared with the file.
    pub fn since(&self, start: usize) -> Bytes {
        self.bytes.slice(start..self.pos)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        match self.bytes[self.pos..].first_chunk::<N>() {
            Some(chunk) => {
                self.pos += N;
                Ok(*chunk)
            }
            None => {
                let found = format!("{} bytes to the end of the file", self.remaining());
                Err(self.fault(what, self.pos, found, format!("{N} bytes")))
            }
        }
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A count of things that take at least `min_bytes` each, so that the file itself bounds it.
    pub fn count(&mut self, min_bytes: usize, what: &str) -> Result<usize, CheckpointError> {
        let offset = self.pos;
        let n = self.u64(what)?;
        let most = self.remaining() / min_bytes;
        match usize::try_from(n) {
            Ok(n) if n <= most => Ok(n),
            _ => {
                Err(self.fault(what, offset, n, format!("at most {most}, as the file has no room for more")))
            }
        }
    }

    /// A length-prefixed byte string.
    pub fn bytes(&mut self, what: &str) -> Result<Bytes, CheckpointError> {
        let n = self.count(1, what)?;
        self.take(n, what)
    }

    /// A length-prefixed UTF-8 string.
    pub fn string(&mut self, what: &str) -> Result<String, CheckpointError> {
        let offset = self.pos;
        let bytes = self.bytes(what)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                let at = offset + 8 + error.valid_up_to();
                Err(self.fault(what, at, "bytes that are not UTF-8", "UTF-8 text"))
            }
        }
    }
}
