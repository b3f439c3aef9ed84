//! What the arithmetic units do at most, for putting products in relation to what the machine can do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::kernels::{Kernels, Operands};
use crate::pool::ThreadPool;

/// A loop of nothing but the instruction that products of some operands are made of, all its operands in registers.
/// Returns how many multiplications and additions that were.
pub(crate) type PeakLoop = unsafe fn() -> u64;

/// Runs nothing but multiplications of `operands` with `n_threads` for about `seconds` and returns the best pass in
/// GFLOP/s (1e9; those of integers count likewise), or `None` when the instruction set has no instruction for them.
pub fn measure_gflops(kernels: &Kernels, operands: Operands, n_threads: usize, seconds: f64) -> Option<f64> {
    let run = kernels.peak_loop(operands)?;
    let pool = ThreadPool::new(n_threads);
    let n_ops = AtomicU64::new(0);
    let deadline = Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 60.0));
    let mut best = 0f64;
    while best == 0.0 || Instant::now() < deadline {
        n_ops.store(0, Ordering::Relaxed);
        let start = Instant::now();
        pool.run(|_, _| {
            // SAFETY: a table is only handed out where the CPU has its features (`Kernels::available`).
            let n = unsafe { run() };
            n_ops.fetch_add(n, Ordering::Relaxed);
        });
        let gflop = n_ops.load(Ordering::Relaxed) as f64 / 1e9;
        best = best.max(gflop / start.elapsed().as_secs_f64());
    }
    Some(best)
}

/// How often a loop runs, and how many sums it has: so many that none waits for the one before.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const N_STEPS: u64 = 1 << 17;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) const N_SUMS: usize = 12;

/// Names a [`PeakLoop`] of `$n_ops` multiplications and additions a step: `$zero` begins a sum, `$operand` is what is
/// multiplied.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! peak_loop {
    ($name:ident, $features:literal, $n_ops:expr, ($zero:expr, $operand:expr), |$sum:ident, $x:ident| $step:expr) => {
        #[target_feature(enable = $features)]
        pub(crate) fn $name() -> u64 {
            use $crate::peak::{N_STEPS, N_SUMS};
            let $x = std::hint::black_box($operand);
            let mut sums = [$zero; N_SUMS];
            for _ in 0..N_STEPS {
                for sum in &mut sums {
                    let $sum = *sum;
                    *sum = $step;
                }
            }
            std::hint::black_box(sums);
            N_STEPS * N_SUMS as u64 * $n_ops
        }
    };
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use peak_loop;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_with_vectors_has_peaks() {
        for kernels in Kernels::available() {
            let is_scalar = kernels.isa() == crate::Isa::Scalar;
            for (operands, is_there) in [
                (Operands::Codes, !is_scalar),
                (Operands::Floats, !is_scalar),
                (Operands::Bf16, kernels.wide.is_some()),
            ] {
                let peak = measure_gflops(&kernels, operands, 1, 0.005);
                assert_eq!(peak.is_some(), is_there, "{kernels:?}: {operands:?}");
                assert!(
                    peak.is_none_or(|gflops| 0.0 < gflops && gflops.is_finite()),
                    "{kernels:?}: {peak:?}"
                );
            }
        }
    }

    /// Not a matter of time: more of them fit a vector.
    #[test]
    fn a_loop_multiplies_more_codes_than_floats() {
        for kernels in Kernels::available() {
            // SAFETY: the table came from `Kernels::available`.
            let n_ops = |operands| kernels.peak_loop(operands).map(|run| unsafe { run() });
            let (codes, floats) = (n_ops(Operands::Codes), n_ops(Operands::Floats));
            assert!(floats < codes || codes.is_none(), "{kernels:?}: {floats:?} and {codes:?}");
        }
    }
}
