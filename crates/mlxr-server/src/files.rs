//! Files that are there whole or not at all.

use std::fs::{DirEntry, Metadata};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What nobody has written to for so long nobody writes any more.
pub const STALE: Duration = Duration::from_secs(24 * 3600);

/// Makes a folder that only its owner can enter, and the folders above it.
pub fn create_private_folder(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Writes a file of its owner's alone, at once: a reader, or whoever comes after a crash, finds the old content or the
/// new.
pub fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Temporary files are created with mode 0600.
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(folder)?;
    file.write_all(content)?;
    persist(file, path)?;
    sweep_leftovers(folder);
    Ok(())
}

/// What names of files that are still being written begin with.
pub const TEMPORARY: &str = ".mlxr-";

/// Moves a finished file to its place. It is there once this returns; a folder that cannot be synced is no error then.
pub fn persist(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    if let Err(error) = sync_folder(path) {
        tracing::warn!(path = %path.display(), %error, "a crash of the system may undo what was written");
    }
    Ok(())
}

/// Removes from a folder what processes that ended while they wrote have left there, files and folders alike, once it is
/// a day old: what is younger may still be written. Returns how many.
pub fn sweep_leftovers(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let is_leftover =
        |entry: &DirEntry| entry.file_name().to_str().is_some_and(|name| name.starts_with(TEMPORARY));
    entries.flatten().filter(is_leftover).filter(remove_stale).count()
}

/// Removes a file or a folder that is stale. Returns whether it did.
pub fn remove_stale(entry: &DirEntry) -> bool {
    let Ok(found) = entry.metadata() else { return false };
    let removed = match found.is_dir() {
        // A file that grows leaves its folder's time as it is.
        true => {
            let inside = std::fs::read_dir(entry.path());
            let is_unused = inside.is_ok_and(|inside| {
                inside.flatten().all(|entry| entry.metadata().is_ok_and(|found| is_stale(&found)))
            });
            if !(is_unused && is_stale(&found)) {
                return false;
            }
            std::fs::remove_dir_all(entry.path())
        }
        false if is_stale(&found) => std::fs::remove_file(entry.path()),
        false => return false,
    };
    removed.is_ok()
}

fn is_stale(found: &Metadata) -> bool {
    found.modified().is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > STALE))
}

/// Makes a rename or removal last.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) && !folder.as_os_str().is_empty() => {
            std::fs::File::open(folder)?.sync_all()
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_swept_once_nobody_can_write_them_any_more() {
        use std::fs::{File, create_dir};

        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let old = SystemTime::now() - 2 * STALE;
        let age = |name: &str| File::open(at(name)).unwrap().set_modified(old).unwrap();
        for folder in [".mlxr-work", ".mlxr-busy", ".mlxr-new"] {
            create_dir(at(folder)).unwrap();
        }
        let files = [
            ".mlxr-left",
            ".mlxr-written",
            "keys.json",
            ".other",
            ".mlxr-work/a",
            ".mlxr-busy/a",
            ".mlxr-new/a",
        ];
        for file in files {
            std::fs::write(at(file), b"x").unwrap();
        }
        for name in [".mlxr-left", "keys.json", ".other", ".mlxr-work/a", ".mlxr-new/a"] {
            age(name);
        }
        // One whose file still grows, and one that has just been made.
        age(".mlxr-work");
        age(".mlxr-busy");
        write_file(&at("settings"), b"x").unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".mlxr-busy", ".mlxr-new", ".mlxr-written", ".other", "keys.json", "settings"]);
        assert_eq!(sweep_leftovers(dir.path()), 0);
        assert_eq!(sweep_leftovers(&at("missing")), 0);
    }

    #[cfg(unix)]
    #[test]
    fn files_are_their_owner_s_alone_and_replaced_at_once() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        create_private_folder(&folder).unwrap();
        let path = folder.join("x");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&folder)), (0o600, 0o700));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left over");
        assert!(write_file(&folder.join("no/x"), b"").is_err());
    }
}
