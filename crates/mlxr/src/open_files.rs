//! How many files, sockets among them, a process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files that are open beside connections: models, logs, listeners.
const OTHER_FILES: u64 = 64;

/// Files that so many connections need open.
pub fn needed(max_connections: usize) -> u64 {
    max_connections as u64 + OTHER_FILES
}

/// How far a process may raise its own limit; `None` where there is none.
pub fn hard_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Raises this process's limit to `needed` files, or as far as it may. Returns the limit where that is too low.
pub fn raise_limit(needed: u64) -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let soft = current.filter(|&soft| soft < needed)?;
    let wanted = maximum.map_or(needed, |hard| hard.min(needed)).max(soft);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    let limit = if raised.is_ok() { wanted } else { soft };
    (limit < needed).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let before = getrlimit(Resource::Nofile);
        let Some(soft) = before.current else { return };
        assert_eq!(raise_limit(soft), None, "what is there is enough");
        if before.maximum.is_none_or(|hard| soft < hard) {
            assert_eq!(raise_limit(soft + 1), None);
            assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: Some(soft + 1), ..before });
        }
        if let Some(hard) = before.maximum.filter(|&hard| hard < u64::MAX) {
            assert_eq!(raise_limit(hard + 1), Some(hard), "it goes no further");
        }
    }
}
