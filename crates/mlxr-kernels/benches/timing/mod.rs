//! How the benchmarks here time.

use std::time::Instant;

/// Seconds of the fastest of the runs that fit `limit_s`.
pub fn best(limit_s: f64, mut run: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < limit_s {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}
