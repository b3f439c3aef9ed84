//! Bearer tokens: what a client shows when it does not come over loopback.
//!
//! Only hashes are kept in memory, and they are compared without a branch on their contents.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// Larger files hold no tokens.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Shorter tokens can be guessed.
const MIN_TOKEN_BYTES: usize = 16;

/// The tokens a server accepts.
#[derive(Clone, Default)]
pub struct Tokens(Vec<[u8; 32]>);

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    #[error("cannot read the token file {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the token file {} is {found} bytes, at most {MAX_FILE_BYTES} are read", path.display())]
    TooLarge { path: PathBuf, found: u64 },
    #[error("the token file {} can be read by others\nhint: chmod 600 {}", path.display(), path.display())]
    Readable { path: PathBuf },
    #[error("the token file {}, line {line}: a token has {MIN_TOKEN_BYTES} bytes or more", path.display())]
    Short { path: PathBuf, line: usize },
    #[error("the token file {} has no token", path.display())]
    Empty { path: PathBuf },
}

impl Tokens {
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a str>) -> Tokens {
        Tokens(tokens.into_iter().map(hash).collect())
    }

    /// Reads one token per line; empty lines and those that begin with `#` are skipped. The file must be its owner's
    /// alone.
    ///
    /// # Errors
    /// [`TokenFileError`].
    pub fn from_file(path: &Path) -> Result<Tokens, TokenFileError> {
        let io = |source| TokenFileError::Io { path: path.to_owned(), source };
        let metadata = fs::metadata(path).map_err(io)?;
        if metadata.len() > MAX_FILE_BYTES {
            return Err(TokenFileError::TooLarge { path: path.to_owned(), found: metadata.len() });
        }
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::mode(&metadata) & 0o077 != 0 {
            return Err(TokenFileError::Readable { path: path.to_owned() });
        }
        let text = fs::read_to_string(path).map_err(io)?;
        let mut tokens = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let token = line.trim();
            if token.is_empty() || token.starts_with('#') {
                continue;
            }
            if token.len() < MIN_TOKEN_BYTES {
                return Err(TokenFileError::Short { path: path.to_owned(), line: i + 1 });
            }
            tokens.push(hash(token));
        }
        if tokens.is_empty() {
            return Err(TokenFileError::Empty { path: path.to_owned() });
        }
        Ok(Tokens(tokens))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `token` is one of them.
    pub fn accept(&self, token: &str) -> bool {
        let shown = hash(token);
        let found = self.0.iter().fold(Choice::from(0), |found, known| found | known[..].ct_eq(&shown[..]));
        found.into()
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_file_s_tokens_are_accepted_and_no_others() {
        let (_dir, path) = file("# office\n0123456789abcdef\n\n  fedcba9876543210  \n", 0o600);
        let tokens = Tokens::from_file(&path).unwrap();
        assert!(tokens.accept("0123456789abcdef") && tokens.accept("fedcba9876543210"));
        assert!(!tokens.accept("# office") && !tokens.accept("") && !tokens.accept("0123456789abcde"));
        assert!(!Tokens::default().accept(""));
    }

    #[test]
    fn a_file_that_protects_nothing_is_refused() {
        let refuse = |text: &str, mode| {
            let (_dir, path) = file(text, mode);
            Tokens::from_file(&path).unwrap_err()
        };
        assert!(matches!(refuse("0123456789abcdef", 0o644), TokenFileError::Readable { .. }));
        assert!(matches!(refuse("0123456789abcdef\nshort", 0o600), TokenFileError::Short { line: 2, .. }));
        assert!(matches!(refuse("# none\n", 0o600), TokenFileError::Empty { .. }));
        let missing = Tokens::from_file(Path::new("/nonexistent/tokens")).unwrap_err();
        assert!(matches!(missing, TokenFileError::Io { .. }));
    }
}
