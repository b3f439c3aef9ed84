//! A log file that begins anew when it is full or old: `x.log` is written, `x.log.1` is the one before, and so on.
//!
//! Bounds: [`Rotation::max_bytes`] per file (one line may go beyond) and [`Rotation::n_files`] files. One process writes
//! a file. (The crates for this either rotate by time alone or bring a calendar, regular expressions and a compressor.)

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tracing_subscriber::fmt::MakeWriter;

/// When a file ends and how many stay.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub max_bytes: u64,
    pub max_age: Duration,
    /// The one that is written among them.
    pub n_files: usize,
}

/// See the module. Clones write the same file.
#[derive(Clone, Debug)]
pub struct RotatingFile(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    path: PathBuf,
    rotation: Rotation,
    file: File,
    n_bytes: u64,
    since: SystemTime,
    /// Whether writing or rotating failed last time; it is said once.
    is_failing: bool,
}

impl RotatingFile {
    /// Opens the file, or goes on with the one that is there.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, rotation: Rotation) -> io::Result<RotatingFile> {
        let file = open(path)?;
        let metadata = file.metadata()?;
        let now = SystemTime::now();
        // Not every file system knows when a file was made.
        let since = if metadata.len() == 0 { now } else { metadata.created().unwrap_or(now) };
        let (path, n_bytes) = (path.to_owned(), metadata.len());
        let state = State { path, rotation, file, n_bytes, since, is_failing: false };
        Ok(RotatingFile(Arc::new(Mutex::new(state))))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its owner's alone: a log says who asked for what.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl State {
    fn write_line(&mut self, line: &[u8], now: SystemTime) -> io::Result<()> {
        let is_full = self.n_bytes + line.len() as u64 > self.rotation.max_bytes;
        let is_old = now.duration_since(self.since).is_ok_and(|age| self.rotation.max_age <= age);
        if 0 < self.n_bytes && (is_full || is_old) {
            self.rotate(now)?;
        }
        self.file.write_all(line)?;
        self.n_bytes += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self, now: SystemTime) -> io::Result<()> {
        let last = self.rotation.n_files.saturating_sub(1);
        if last == 0 {
            self.file.set_len(0)?;
        } else {
            for n in (1..last).rev() {
                rename_if_there(&numbered(&self.path, n), &numbered(&self.path, n + 1))?;
            }
            rename_if_there(&self.path, &numbered(&self.path, 1))?;
            self.file = open(&self.path)?;
        }
        (self.n_bytes, self.since) = (0, now);
        Ok(())
    }

    /// A log that cannot be written must not end what it is about; it is said once where somebody may look.
    fn report(&mut self, result: io::Result<()>) {
        match result {
            Ok(()) => self.is_failing = false,
            Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                let _ = writeln!(io::stderr(), "the log {} cannot be written: {error}", self.path.display());
            }
            Err(_) => {}
        }
    }
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed,
    }
}

fn numbered(path: &Path, n: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// One line on its way to the file; the subscriber writes each with one call.
pub struct Line<'a>(&'a RotatingFile);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        let result = state.write_line(line, SystemTime::now());
        state.report(result);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for RotatingFile {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation(max_bytes: u64, n_files: usize) -> Rotation {
        Rotation { max_bytes, max_age: Duration::from_secs(60), n_files }
    }

    fn contents(dir: &Path) -> Vec<(String, String)> {
        let mut files: Vec<(String, String)> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn check(dir: &Path, expected: &[(&str, &str)]) {
        let found = contents(dir);
        let found: Vec<(&str, &str)> =
            found.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn full_files_are_numbered_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = RotatingFile::open(&dir.path().join("x.log"), rotation(8, 3)).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "longer than a file\n"] {
            log.make_writer().write_all(line.as_bytes()).unwrap();
        }
        check(dir.path(), &[("x.log", "longer than a file\n"), ("x.log.1", "five\n"), ("x.log.2", "four\n")]);
    }

    #[test]
    fn a_file_that_is_there_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.log");
        for line in ["one\n", "two\n", "three\n"] {
            let log = RotatingFile::open(&path, rotation(8, 2)).unwrap();
            log.make_writer().write_all(line.as_bytes()).unwrap();
        }
        check(dir.path(), &[("x.log", "three\n"), ("x.log.1", "one\ntwo\n")]);
    }

    #[test]
    fn old_files_end_and_a_single_one_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let log = RotatingFile::open(&dir.path().join("x.log"), rotation(100, 1)).unwrap();
        let mut state = log.lock();
        let start = state.since;
        state.write_line(b"one\n", start).unwrap();
        state.write_line(b"two\n", start + Duration::from_secs(59)).unwrap();
        check(dir.path(), &[("x.log", "one\ntwo\n")]);
        state.write_line(b"three\n", start + Duration::from_secs(60)).unwrap();
        check(dir.path(), &[("x.log", "three\n")]);
    }

    #[cfg(unix)]
    #[test]
    fn every_file_is_its_owner_s_alone() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let log = RotatingFile::open(&dir.path().join("x.log"), rotation(1, 2)).unwrap();
        for line in ["one\n", "two\n"] {
            log.make_writer().write_all(line.as_bytes()).unwrap();
        }
        for entry in fs::read_dir(dir.path()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
