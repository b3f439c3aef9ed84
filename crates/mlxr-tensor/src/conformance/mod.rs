//! What every backend must do, as checks any backend's tests can run.
//!
//! Each check compares an op with a plain reference ([`reference`], in f64) over a table of shapes, and checks bit for
//! bit that a row's result is the same alone, in a batch and in chunks. The backend's own tests call [`run`]:
//! a failed check panics with the check's name, the case and the numbers. [`examine`] reports instead.

mod ahead;
mod attention;
pub mod data;
mod experts;
mod products;
pub mod reference;
mod rows;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::{Act, Backend};

/// Relative error of ops computed in f32 throughout.
pub const F32_TOLERANCE: f64 = 2e-6;
/// Of numbers that a backend may keep in f16.
pub const F16_TOLERANCE: f64 = 5e-4;

/// Relative error of values whose mean, thirty times their spread, was taken off in f32.
pub const CENTRED_TOLERANCE: f64 = 6e-5;

/// Relative error of products whose activations are rounded to 8 bits on the way, up to 256 columns with one scale.
pub const INT8_TOLERANCE: f64 = 1.5e-2;

/// Relative error of approximated functions (exponential, tanh, error function).
pub const FUNCTION_TOLERANCE: f64 = 4e-6;

/// Relative error of attention over a cache of quantised blocks, whose rounding may differ in ties.
pub const BLOCK_CACHE_TOLERANCE: f64 = 2e-3;

/// A named check.
pub struct Check {
    pub name: &'static str,
    pub run: fn(&dyn Backend),
}

/// All checks.
pub const CHECKS: &[Check] = &[
    Check { name: "acts are read back", run: rows::acts },
    Check { name: "linear in every format", run: products::formats },
    Check { name: "linear of ragged shapes", run: products::ragged },
    Check { name: "linear_each equals linear", run: products::several },
    Check { name: "gated linear layers", run: products::gated },
    Check { name: "linear layers added and normed", run: products::added_and_normed },
    Check { name: "embed", run: products::embed },
    Check { name: "weights at odd addresses", run: products::unaligned },
    Check { name: "rms norms", run: rows::norms },
    Check { name: "layer norms", run: rows::layer_norms },
    Check { name: "ungated activations", run: rows::activations },
    Check { name: "add, scale, softcap", run: rows::arithmetic },
    Check { name: "gated activations", run: rows::gates },
    Check { name: "gather_rows and argmax", run: rows::selection },
    Check { name: "scatter_rows", run: rows::placement },
    Check { name: "patches of an image", run: rows::patches },
    Check { name: "guessed tokens", run: ahead::tokens },
    Check { name: "rope", run: rows::rope },
    Check { name: "rope and store", run: attention::rotated_and_stored },
    Check { name: "rotate and attend", run: attention::rotated_and_attended },
    Check { name: "attention over head sizes", run: attention::head_sizes },
    Check { name: "attention variants", run: attention::variants },
    Check { name: "attention over long contexts", run: attention::long },
    Check { name: "attention both ways", run: attention::both_ways },
    Check { name: "attention over a spoiled cache", run: attention::spoiled },
    Check { name: "copied blocks", run: attention::copies },
    Check { name: "routing", run: experts::routing },
    Check { name: "expert_linear and combine", run: experts::linear },
    Check { name: "experts of many rows, of one and of none", run: experts::uneven },
];

/// Runs all checks.
///
/// # Panics
/// When a check fails.
pub fn run(backend: &dyn Backend) {
    for check in CHECKS {
        run_check(backend, check);
    }
}

/// Runs one check.
///
/// # Panics
/// When it fails; the message starts with the check's name.
pub fn run_check(backend: &dyn Backend, check: &Check) {
    if let Some(failure) = examine(backend, check).failure {
        panic!("{} on {backend:?}: {failure}", check.name);
    }
}

/// How a check went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// The comparison that came nearest to its tolerance, or was furthest beyond it. `None`: all were bit for bit.
    pub worst: Option<Deviation>,
    pub time: Duration,
}

/// A relative error, and what it may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    pub error: f64,
    pub tolerance: f64,
}

thread_local! {
    /// Of the check that runs.
    static WORST: Cell<Option<Deviation>> = const { Cell::new(None) };
}

/// Runs one check and tells how it went. The message of a failed one also goes to the panic hook.
pub fn examine(backend: &dyn Backend, check: &Check) -> Outcome {
    WORST.set(None);
    let start = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| (check.run)(backend)));
    let failure = result.err().map(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
    });
    Outcome { failure, worst: WORST.get(), time: start.elapsed() }
}

/// The values of an activation.
fn read(backend: &dyn Backend, act: &Act) -> Vec<f32> {
    backend.read(act).expect("the device works")
}

/// Distance over size, in the Euclidean norm.
pub fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len(), "length of the result");
    let mut distance = 0f64;
    let mut size = 0f64;
    for (&g, &e) in got.iter().zip(expected) {
        distance += (f64::from(g) - e).powi(2);
        size += e * e;
    }
    if distance == 0.0 { 0.0 } else { (distance / size).sqrt() }
}

/// Panics unless `got` is close to `expected`, on the whole and in every element.
fn assert_close(got: &[f32], expected: &[f64], tolerance: f64, case: &dyn std::fmt::Display) {
    let error = relative_error(got, expected);
    let is_nearer = |worst: Deviation| error / tolerance > worst.error / worst.tolerance || error.is_nan();
    if WORST.get().is_none_or(is_nearer) {
        WORST.set(Some(Deviation { error, tolerance }));
    }
    // Written so that a NaN fails.
    assert!(error <= tolerance, "{case}: relative error {error:.2e} is above {tolerance:.0e}");
    let typical = (expected.iter().map(|e| e * e).sum::<f64>() / expected.len().max(1) as f64).sqrt();
    for (i, (&g, &e)) in got.iter().zip(expected).enumerate() {
        let limit = 20.0 * tolerance * typical.max(e.abs());
        assert!((f64::from(g) - e).abs() <= limit, "{case}: element {i} is {g}, expected {e}");
    }
}

/// Panics unless `got` and `expected` are the same bits.
fn assert_same_bits(got: &[f32], expected: &[f32], case: &dyn std::fmt::Display) {
    assert_eq!(got.len(), expected.len(), "{case}: length");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        assert!(g.to_bits() == e.to_bits(), "{case}: element {i} is {g:e}, but {e:e} in other company");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparison_nearest_to_its_tolerance_is_the_worst() {
        WORST.set(None);
        assert_close(&[1.0, 1.0], &[1.0, 1.0], 1e-6, &"equal");
        assert_close(&[1.0, 2.0], &[1.0, 2.002], 1e-2, &"a tenth of a coarse tolerance");
        assert_close(&[1.0, 2.0], &[1.0, 2.000_001], 1e-6, &"half of a fine one");
        assert_close(&[1.0, 2.0], &[1.0, 2.001], 1e-2, &"less");
        let worst = WORST.get().expect("something was compared");
        assert_eq!(worst.tolerance, 1e-6);
        assert!((4e-7..5e-7).contains(&worst.error), "{worst:?}");
    }
}
