//! The file keys are kept in: JSON, its owner's alone, replaced as a whole.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Hash, Issued, Key, NewKey, new_id, new_secret};
use crate::files::{create_private_folder, write_file};
use crate::ids::unix_s;

/// Larger files are not read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// More keys than this are not kept: every request is compared with all of them.
const MAX_KEYS: usize = 1000;
const MAX_NAME_CHARS: usize = 64;
const VERSION: u32 = 1;

/// Why keys cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot {verb} the key file {}: {source}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("there is no key file {}\nhint: `mlxr keys create NAME` makes one", path.display())]
    Missing { path: PathBuf },
    #[error("the key file {} is {found} bytes, at most {MAX_FILE_BYTES} are read", path.display())]
    TooLarge { path: PathBuf, found: u64 },
    #[error("the key file {} can be used by others\nhint: chmod 600 {}", path.display(), path.display())]
    Exposed { path: PathBuf },
    #[error("the key file {} is damaged: {reason}", path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("the key file {} is of version {found}; this program knows version {VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error(
        "{name:?} is no name of a key\nhint: up to {MAX_NAME_CHARS} letters, digits, dots, dashes, underscores"
    )]
    Name { name: String },
    #[error("there is a key {name:?} already\nhint: `mlxr keys rotate {name}` gives it a new secret")]
    Taken { name: String },
    #[error("there is no key {name:?}; the keys are {known}")]
    NoKey { name: String, known: String },
    #[error("a key needs a scope")]
    NoScope,
    #[error("there are {MAX_KEYS} keys already\nhint: revoke some")]
    TooMany,
    #[error("the system gives no random numbers: {reason}")]
    Random { reason: String },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    keys: Vec<Key>,
}

/// A key file, by its path.
#[derive(Clone, Debug)]
pub struct KeyFile {
    path: PathBuf,
}

/// Tells a file from the one that was there before. Files are replaced, so most changes change the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    n_bytes: u64,
    inode: u64,
}

impl KeyFile {
    pub fn new(path: impl Into<PathBuf>) -> KeyFile {
        KeyFile { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `None` when there is no file.
    ///
    /// # Errors
    /// There is one that cannot be looked at.
    pub(super) fn stamp(&self) -> io::Result<Option<Stamp>> {
        let metadata = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            metadata => metadata?,
        };
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Ok(Some(Stamp { modified: metadata.modified().ok(), n_bytes: metadata.len(), inode }))
    }

    /// All keys of the file.
    ///
    /// # Errors
    /// [`KeyFileError`]; a file that others could use is an error too.
    pub fn read(&self) -> Result<Vec<Key>, KeyFileError> {
        let metadata = match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyFileError::Missing { path: self.path.clone() });
            }
            metadata => metadata.map_err(|source| self.io("read", source))?,
        };
        if metadata.len() > MAX_FILE_BYTES {
            return Err(KeyFileError::TooLarge { path: self.path.clone(), found: metadata.len() });
        }
        #[cfg(unix)]
        if std::os::unix::fs::MetadataExt::mode(&metadata) & 0o077 != 0 {
            return Err(KeyFileError::Exposed { path: self.path.clone() });
        }
        let text = fs::read_to_string(&self.path).map_err(|source| self.io("read", source))?;
        self.parse(&text)
    }

    fn parse(&self, text: &str) -> Result<Vec<Key>, KeyFileError> {
        let damaged = |reason: String| KeyFileError::Damaged { path: self.path.clone(), reason };
        let contents: Contents = serde_json::from_str(text).map_err(|error| damaged(error.to_string()))?;
        if contents.version != VERSION {
            return Err(KeyFileError::Version { path: self.path.clone(), found: contents.version });
        }
        if contents.keys.len() > MAX_KEYS {
            return Err(damaged(format!("{} keys, at most {MAX_KEYS} are kept", contents.keys.len())));
        }
        let names: BTreeSet<&str> = contents.keys.iter().map(|key| key.name.as_str()).collect();
        let ids: BTreeSet<&str> = contents.keys.iter().map(|key| key.id.as_str()).collect();
        if names.len() != contents.keys.len() || ids.len() != contents.keys.len() {
            return Err(damaged("two keys have the same name or id".to_owned()));
        }
        Ok(contents.keys)
    }

    /// Adds a key; makes the file and its folder when they are not there.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn create(&self, new: NewKey) -> Result<Issued, KeyFileError> {
        check_name(&new.name)?;
        if new.scopes.is_empty() {
            return Err(KeyFileError::NoScope);
        }
        self.change(Missing::IsEmpty, |keys| {
            if keys.iter().any(|key| key.name == new.name) {
                return Err(KeyFileError::Taken { name: new.name.clone() });
            }
            if keys.len() >= MAX_KEYS {
                return Err(KeyFileError::TooMany);
            }
            let secret = new_secret()?;
            let key = Key {
                id: new_id()?,
                name: new.name.clone(),
                sha256: Hash::of(&secret),
                scopes: new.scopes.clone(),
                created_s: unix_s(),
                expires_s: new.expires_s,
                limits: new.limits,
            };
            keys.push(key.clone());
            Ok(Issued { key, secret })
        })
    }

    /// Removes the key of this name or id. The file stays, also without keys, so that a server which demanded one still
    /// does.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn revoke(&self, name: &str) -> Result<Key, KeyFileError> {
        self.change(Missing::IsError, |keys| {
            let idx = find(keys, name)?;
            Ok(keys.remove(idx))
        })
    }

    /// Gives the key of this name or id a new secret; the old one is worth nothing from here on.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn rotate(&self, name: &str) -> Result<Issued, KeyFileError> {
        self.change(Missing::IsError, |keys| {
            let idx = find(keys, name)?;
            let secret = new_secret()?;
            keys[idx].sha256 = Hash::of(&secret);
            Ok(Issued { key: keys[idx].clone(), secret })
        })
    }

    /// Reads, changes and replaces the file while nobody else does.
    fn change<T>(
        &self,
        missing: Missing,
        edit: impl FnOnce(&mut Vec<Key>) -> Result<T, KeyFileError>,
    ) -> Result<T, KeyFileError> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let (Missing::IsEmpty, Some(folder)) = (missing, folder) {
            create_private_folder(folder).map_err(|source| self.io("make the folder of", source))?;
        }
        if missing == Missing::IsError && !self.path.exists() {
            return Err(KeyFileError::Missing { path: self.path.clone() });
        }
        // The lock is a file of its own, because the key file is replaced.
        let lock = private(OpenOptions::new().create(true).truncate(false).write(true))
            .open(self.beside("lock"))
            .map_err(|source| self.io("lock", source))?;
        lock.lock().map_err(|source| self.io("lock", source))?;
        let mut keys = match self.read() {
            Err(KeyFileError::Missing { .. }) if missing == Missing::IsEmpty => Vec::new(),
            keys => keys?,
        };
        let result = edit(&mut keys)?;
        self.write(keys).map_err(|source| self.io("write", source))?;
        Ok(result)
    }

    fn write(&self, keys: Vec<Key>) -> io::Result<()> {
        let contents = Contents { version: VERSION, keys };
        let text = serde_json::to_string_pretty(&contents).map_err(io::Error::from)?;
        write_file(&self.path, (text + "\n").as_bytes())
    }

    /// A file that belongs to this one.
    pub(super) fn beside(&self, extension: &str) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(extension);
        self.path.with_file_name(name)
    }

    fn io(&self, verb: &'static str, source: io::Error) -> KeyFileError {
        KeyFileError::Io { verb, path: self.path.clone(), source }
    }
}

/// What it means when there is no file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsEmpty,
    IsError,
}

fn find(keys: &[Key], name: &str) -> Result<usize, KeyFileError> {
    let idx = keys.iter().position(|key| key.name == name || key.id == name);
    idx.ok_or_else(|| {
        let known: Vec<&str> = keys.iter().map(|key| key.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        KeyFileError::NoKey { name: name.to_owned(), known }
    })
}

fn check_name(name: &str) -> Result<(), KeyFileError> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    // A dash in front would make it an option.
    if name.is_empty() || name.len() > MAX_NAME_CHARS || name.starts_with('-') || !name.chars().all(is_fine) {
        return Err(KeyFileError::Name { name: name.to_owned() });
    }
    Ok(())
}

fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::{ClientLimits, Scope};

    fn new(name: &str) -> NewKey {
        NewKey {
            name: name.to_owned(),
            scopes: BTreeSet::from([Scope::Inference]),
            expires_s: None,
            limits: ClientLimits::default(),
        }
    }

    #[test]
    fn keys_come_and_go_and_the_secret_is_nowhere_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("made/keys.json"));
        let issued = file.create(new("laptop")).unwrap();
        assert_eq!(issued.secret.len(), SECRET_CHARS);
        let text = fs::read_to_string(file.path()).unwrap();
        assert!(!text.contains(&issued.secret[SECRET_PREFIX_CHARS..]), "{text}");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(file.path()), 0o600);
        assert_eq!(mode(file.path().parent().unwrap()), 0o700);
        assert_eq!(file.read().unwrap(), std::slice::from_ref(&issued.key));

        assert!(matches!(file.create(new("laptop")), Err(KeyFileError::Taken { .. })));
        let rotated = file.rotate(&issued.key.id).unwrap();
        assert_eq!(rotated.key.id, issued.key.id);
        assert!(rotated.secret != issued.secret && rotated.key != issued.key);
        let error = file.revoke("phone").unwrap_err().to_string();
        assert_eq!(error, "there is no key \"phone\"; the keys are laptop");
        file.revoke("laptop").unwrap();
        assert_eq!(file.read().unwrap(), []);
    }

    const SECRET_PREFIX_CHARS: usize = crate::keys::SECRET_PREFIX.len();
    const SECRET_CHARS: usize = SECRET_PREFIX_CHARS + 64;

    #[test]
    fn two_writers_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("keys.json"));
        std::thread::scope(|scope| {
            for i in 0..8 {
                let file = &file;
                scope.spawn(move || file.create(new(&format!("key{i}"))).unwrap());
            }
        });
        assert_eq!(file.read().unwrap().len(), 8);
    }

    #[test]
    fn bad_names_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("keys.json"));
        for name in ["", "-x", "a b", "a/b", "schlüssel", &"x".repeat(65)] {
            assert!(matches!(file.create(new(name)), Err(KeyFileError::Name { .. })), "{name}");
        }
        let nothing = NewKey { scopes: BTreeSet::new(), ..new("x") };
        assert!(matches!(file.create(nothing), Err(KeyFileError::NoScope)));
        assert!(matches!(file.revoke("x"), Err(KeyFileError::Missing { .. })));
        assert!(!file.path().exists());
    }

    #[test]
    fn files_that_cannot_be_trusted_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path().join("keys.json"));
        let refuse = |text: &str, mode| {
            fs::write(file.path(), text).unwrap();
            fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
            file.read().unwrap_err()
        };
        let empty = r#"{"version": 1, "keys": []}"#;
        assert!(matches!(refuse(empty, 0o640), KeyFileError::Exposed { .. }));
        assert!(matches!(refuse("{", 0o600), KeyFileError::Damaged { .. }));
        assert!(matches!(
            refuse(r#"{"version": 2, "keys": []}"#, 0o600),
            KeyFileError::Version { found: 2, .. }
        ));
        let key = |hash: &str| {
            let key = format!(
                r#"{{"id": "a", "name": "a", "sha256": "{hash}", "scopes": ["inference"], "created_s": 1}}"#
            );
            format!(r#"{{"version": 1, "keys": [{key}, {key}]}}"#)
        };
        let error = refuse(&key("00"), 0o600).to_string();
        assert!(error.contains("64 hexadecimal digits at line 1"), "{error}");
        let error = refuse(&key(&"0f".repeat(32)), 0o600).to_string();
        assert!(error.contains("the same name or id"), "{error}");
        assert!(matches!(refuse(&" ".repeat(1 << 21), 0o600), KeyFileError::TooLarge { .. }));
    }
}
