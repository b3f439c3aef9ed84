//! Memory read bandwidth, for putting tokens per second in relation to what the machine can do.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::aligned::AlignedBytes;
use crate::disjoint::split;
use crate::pool::ThreadPool;

/// Larger than any last-level cache a desktop has.
const BUFFER_BYTES: usize = 512 << 20;

/// Reads a large buffer with `n_threads` for about `seconds` and returns the best pass in GB/s (1e9 bytes), or `None`
/// when there is no memory for the buffer.
pub fn measure_read_gbps(n_threads: usize, seconds: f64) -> Option<f64> {
    let pool = ThreadPool::new(n_threads);
    let mut buffer = AlignedBytes::mapped(BUFFER_BYTES)?;
    // Written once, so that every page is there.
    buffer.floats_mut().fill(1.0);
    let values = buffer.floats();
    let deadline = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 60.0));
    let mut best = 0f64;
    loop {
        let start = Instant::now();
        let checksum = AtomicUsize::new(0);
        pool.run(|part, n_parts| {
            let share = &values[split(values.len(), part, n_parts, 64)];
            checksum.fetch_add(read_all(share) as usize, Ordering::Relaxed);
        });
        black_box(checksum.into_inner());
        best = best.max(BUFFER_BYTES as f64 / start.elapsed().as_secs_f64() / 1e9);
        if deadline <= Instant::now() {
            return Some(best);
        }
    }
}

/// Folds every value, in enough independent lanes that loads, not additions, are the limit.
fn read_all(values: &[f32]) -> u32 {
    let mut lanes = [0u32; 64];
    for chunk in values.as_chunks::<64>().0 {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane ^= v.to_bits();
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}
