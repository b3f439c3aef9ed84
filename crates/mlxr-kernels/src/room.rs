//! Memory for copies of weights: without them the file's own bytes serve, which the system can drop and read again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::aligned::AlignedBytes;

/// Tensors up to this size are copied without asking.
const SMALL_BYTES: usize = 1 << 20;

/// The part of all memory that copies leave to everything else.
const KEPT_PART: u64 = 8;

/// Memory of the machine, or of the group of processes that has a limit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    /// What can be had, files in the cache included.
    pub(crate) available: u64,
}

impl Memory {
    /// `None` where the system does not say.
    fn of_system() -> Option<Memory> {
        let machine = Self::of_machine(&fs::read_to_string("/proc/meminfo").ok()?)?;
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = group_folder(&groups).and_then(|folder| Self::of_group(&folder));
        Some(group.filter(|group| group.available < machine.available).unwrap_or(machine))
    }

    /// From the text of `/proc/meminfo`.
    fn of_machine(meminfo: &str) -> Option<Memory> {
        let kib = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Memory { total: kib("MemTotal")? << 10, available: kib("MemAvailable")? << 10 })
    }

    /// From the files of a control group of either version; `None` without a limit.
    fn of_group(folder: &Path) -> Option<Memory> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let total = read("memory.max").or_else(|| read("memory.limit_in_bytes"))?.trim().parse().ok()?;
        let stat = read("memory.stat")?;
        let number = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok();
        let anonymous: u64 = number("anon ").or_else(|| number("total_rss "))?;
        Some(Memory { total, available: total.saturating_sub(anonymous) })
    }

    fn takes(&self, n_bytes: u64) -> bool {
        n_bytes.saturating_add(self.total / KEPT_PART) <= self.available
    }
}

/// The control group that limits this process's memory, from the text of `/proc/self/cgroup`: the first version names
/// what a group controls, and of the second there is one.
fn group_folder(groups: &str) -> Option<PathBuf> {
    let lines = || groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let first = lines().find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
    let (mount, path) = match first {
        Some((_, path)) => ("/sys/fs/cgroup/memory", path),
        None => ("/sys/fs/cgroup", lines().find(|(controllers, _)| controllers.is_empty())?.1),
    };
    Some(Path::new(mount).join(path.trim_start_matches('/')))
}

/// Decides about copies, and says once that one was not made.
#[derive(Debug)]
pub(crate) struct Room {
    memory: fn() -> Option<Memory>,
    allocate: fn(usize) -> Option<AlignedBytes>,
    told: AtomicBool,
}

impl Default for Room {
    fn default() -> Self {
        Self::of(Memory::of_system)
    }
}

impl Room {
    /// Room in what `memory` tells each time.
    pub(crate) fn of(memory: fn() -> Option<Memory>) -> Self {
        Self { memory, allocate: AlignedBytes::kept, told: AtomicBool::new(false) }
    }

    /// As the default, saying nothing.
    pub(crate) fn silent() -> Self {
        Self { told: AtomicBool::new(true), ..Self::default() }
    }

    /// One that has nothing to give.
    #[cfg(test)]
    pub(crate) fn exhausted() -> Self {
        Self { allocate: |_| None, ..Self::of(|| None) }
    }

    /// Memory for a copy of so many bytes, zero at first, if there is enough.
    pub(crate) fn copy(&self, n_bytes: usize) -> Option<AlignedBytes> {
        let memory = if SMALL_BYTES < n_bytes { (self.memory)() } else { None };
        if memory.is_none_or(|memory| memory.takes(n_bytes as u64))
            && let Some(copy) = (self.allocate)(n_bytes)
        {
            return Some(copy);
        }
        if !self.told.swap(true, Ordering::Relaxed) {
            let mb = |bytes: fn(Memory) -> u64| memory.map(|memory| bytes(memory) >> 20);
            tracing::warn!(
                needed_mb = n_bytes >> 20,
                available_mb = mb(|memory| memory.available),
                total_mb = mb(|memory| memory.total),
                "too little memory to put weights in the order of this processor's kernels: those that follow are \
                 read from the file and put in order for each product, which gives the same tokens more slowly"
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read() {
        let text = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:   8192 kB\n";
        assert_eq!(Memory::of_machine(text), Some(Memory { total: 16 << 20, available: 8 << 20 }));
        assert_eq!(Memory::of_machine("MemTotal: 3 kB\n"), None);
        assert_eq!(Memory::of_machine("MemTotal: 3 kB\nMemAvailable: many\n"), None);
    }

    #[test]
    fn a_group_has_its_limit_less_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Memory::of_group(folder.path()), None);
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
        write("memory.stat", "anon 300\nfile 500\n");
        write("memory.max", "max\n");
        assert_eq!(Memory::of_group(folder.path()), None);
        write("memory.max", "1000\n");
        assert_eq!(Memory::of_group(folder.path()), Some(Memory { total: 1000, available: 700 }));
    }

    #[test]
    fn groups_of_the_first_version_are_read_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("a file");
        write("memory.limit_in_bytes", "1000\n");
        write("memory.stat", "cache 10\nrss 100\ntotal_cache 10\ntotal_rss 400\n");
        assert_eq!(Memory::of_group(folder.path()), Some(Memory { total: 1000, available: 600 }));
        let both = "12:cpu,memory:/a/b\n1:name=systemd:/c\n0::/d\n";
        assert_eq!(group_folder(both), Some("/sys/fs/cgroup/memory/a/b".into()));
        assert_eq!(group_folder("0::/d\n"), Some("/sys/fs/cgroup/d".into()));
        assert_eq!(group_folder("1:name=systemd:/c\n"), None);
    }

    #[test]
    fn an_eighth_is_kept() {
        let memory = Memory { total: 800, available: 400 };
        assert!(memory.takes(300));
        assert!(!memory.takes(301));
        assert!(!Memory { total: 800, available: 50 }.takes(1));
        assert!(!memory.takes(u64::MAX));
    }
}
