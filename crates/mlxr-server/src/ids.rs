//! Names of answers that nobody can guess and clocks clients understand.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// `prefix` and 128 bits in hexadecimal, different every time.
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let n = COUNTER.fetch_add(1, Ordering::Relaxed);
    // The standard library keys its hashes from the operating system's entropy.
    let state = RandomState::new();
    format!("{prefix}{:016x}{:016x}", state.hash_one(n), state.hash_one((n, prefix)))
}

/// 64 bits nobody can guess.
pub fn seed() -> u64 {
    RandomState::new().hash_one(0u8)
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn no_two_names_are_the_same() {
        let names: BTreeSet<String> = (0..1000).map(|_| super::unique("chatcmpl-")).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == "chatcmpl-".len() + 32));
    }
}
