//! Scale searches shared by the encoders: weighted least squares over a set of candidate scales.
//!
//! For given levels the best scale has a closed form, and for a given scale the best levels are the nearest ones.
//! A search starts from several scales around the one that spans the data, solves for the scale, and alternates
//! until the error stops falling. Everything is deterministic.

use super::legacy::{min_max, recip};

/// Alternations after the candidate search; more gains nothing measurable.
const REFINEMENTS: usize = 4;

/// Weights of the squared errors of `x`, sub-block by sub-block of `run` elements.
///
/// With importance: that of the column times a measure of the value. Without: root mean square of the sub-block plus
/// the magnitude of the value; the square of the value, which favours large ones more, gave a higher perplexity.
pub fn value_weights<const N: usize>(x: &[f32; N], importance: Option<&[f32; N]>, run: usize) -> [f32; N] {
    let mut w = [0.0; N];
    for (j, (w, x)) in w.chunks_mut(run).zip(x.chunks(run)).enumerate() {
        let mean_square = x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32;
        let rms = mean_square.sqrt();
        for (i, (w, v)) in w.iter_mut().zip(x).enumerate() {
            *w = match importance {
                Some(importance) => importance[j * run + i] * (mean_square + v * v).sqrt(),
                None => rms + v.abs(),
            };
        }
    }
    normalised(w)
}

/// Importance as weights.
pub fn weights<const N: usize>(importance: &[f32; N]) -> [f32; N] {
    normalised(*importance)
}

/// Scaled to a largest weight of 1, so that sums of squares neither overflow nor vanish; ones when all are zero.
fn normalised<const N: usize>(w: [f32; N]) -> [f32; N] {
    let max = w.iter().fold(0f32, |m, &v| m.max(v));
    let inverse = recip(max);
    if inverse == 0.0 || !max.is_finite() { [1.0; N] } else { w.map(|v| v * inverse) }
}

/// Nearest integer, ties to even, of a value below 2^22 in magnitude: one addition instead of a library call.
#[inline(always)]
pub fn round(v: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23
    (v + SHIFT) - SHIFT
}

/// The values a type can hold before its scale.
pub trait Levels {
    /// The levels nearest to `x * inverse`; `w` weighs the elements where levels are chosen together.
    fn project(&self, x: &[f32], w: &[f32], inverse: f32, levels: &mut [f32]);
}

/// Levels chosen element by element.
#[derive(Clone, Copy)]
pub struct PerElement<F>(pub F);

impl<F: Fn(f32) -> f32> Levels for PerElement<F> {
    #[inline]
    fn project(&self, x: &[f32], _w: &[f32], inverse: f32, levels: &mut [f32]) {
        for (level, x) in levels.iter_mut().zip(x) {
            *level = (self.0)(x * inverse);
        }
    }
}

/// `base + step * code` for codes `0..n`.
pub fn arithmetic_levels(base: f32, step: f32, n: u16) -> PerElement<impl Fn(f32) -> f32 + Copy> {
    let (inverse, last) = (1.0 / step, f32::from(n - 1));
    PerElement(move |v: f32| base + step * round(((v - base) * inverse).clamp(0.0, last)))
}

/// The integers `low..=high`.
pub fn integer_levels(low: i16, high: i16) -> PerElement<impl Fn(f32) -> f32 + Copy> {
    let (low, high) = (f32::from(low), f32::from(high));
    PerElement(move |v: f32| round(v.clamp(low, high)))
}

/// Most elements that share a scale.
pub const MAX_RUN: usize = 32;

/// The scale `d` with the smallest weighted error of `x ~ d * level`, searched from the reciprocal scales
/// `candidates`; zero when `x` is zero or no candidate is usable.
pub fn scale(x: &[f32], w: &[f32], candidates: impl IntoIterator<Item = f32>, levels: &impl Levels) -> f32 {
    let mut buffer = [0.0; MAX_RUN];
    let buffer = &mut buffer[..x.len()];
    let mut solve = |inverse: f32| {
        levels.project(x, w, inverse, buffer);
        let (mut lx, mut ll) = (0.0, 0.0);
        for ((&x, &w), &l) in x.iter().zip(w).zip(buffer.iter()) {
            lx += w * l * x;
            ll += w * l * l;
        }
        // Error = sum of w * x^2 less this gain.
        if ll > 0.0 { (lx * lx / ll, lx / ll) } else { (0.0, 0.0) }
    };
    let mut best = (0.0, 0.0);
    for inverse in candidates {
        let found = solve(inverse);
        if found.0 > best.0 {
            best = found;
        }
    }
    for _ in 0..REFINEMENTS {
        let found = solve(recip(best.1));
        if found.0 <= best.0 {
            break;
        }
        best = found;
    }
    best.1
}

/// Reciprocal scales that put the element of largest magnitude near level `end`, in tenths of `step`.
pub fn candidates(x: &[f32], end: f32, step: f32) -> impl Iterator<Item = f32> + use<> {
    let inverse = recip(extreme(x));
    (-9i8..=9).map(move |n| (end + 0.1 * step * f32::from(n)) * inverse)
}

/// The element of largest magnitude, the first of equals.
pub fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m: f32, &v| if m.abs() < v.abs() { v } else { m })
}

/// What values the offset of [`affine`] may take.
#[derive(Clone, Copy, PartialEq)]
pub enum Minimum {
    Any,
    /// Stored as a magnitude to subtract.
    AtMostZero,
}

/// Scale and minimum `(d, m)` with the smallest weighted error of `x ~ d * q + m` over codes `0..=n`.
pub fn affine(x: &[f32], w: &[f32], n: u8, minimum: Minimum) -> (f32, f32) {
    let (mut low, high) = min_max(x);
    if minimum == Minimum::AtMostZero {
        low = low.min(0.0);
    }
    let n = f32::from(n);
    let span = high - low;
    if recip(span) == 0.0 {
        return (0.0, low);
    }
    let start = (span / n, low);
    let mut search = AffineSearch { x, w, n, minimum, found: start, error: affine_error(x, w, n, start) };
    for step in -10i8..=10 {
        search.improve((n + 0.1 * f32::from(step)) / span, low);
    }
    for _ in 0..REFINEMENTS {
        let (d, m) = search.found;
        if !search.improve(recip(d), m) {
            break;
        }
    }
    search.found
}

struct AffineSearch<'a> {
    x: &'a [f32],
    w: &'a [f32],
    n: f32,
    minimum: Minimum,
    found: (f32, f32),
    error: f32,
}

impl AffineSearch<'_> {
    /// Solves for scale and minimum with the codes of `(x - low) * inverse`; keeps the solution when it lowers the
    /// error.
    fn improve(&mut self, inverse: f32, low: f32) -> bool {
        let (mut sw, mut sx, mut sl, mut sll, mut sxl) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for (&x, &w) in self.x.iter().zip(self.w) {
            let l = round(((x - low) * inverse).clamp(0.0, self.n));
            sw += w;
            sx += w * x;
            sl += w * l;
            sll += w * l * l;
            sxl += w * x * l;
        }
        let det = sw * sll - sl * sl;
        if det <= 0.0 {
            return false;
        }
        let mut found = ((sw * sxl - sx * sl) / det, (sll * sx - sl * sxl) / det);
        if self.minimum == Minimum::AtMostZero && found.1 > 0.0 {
            found = (sxl / sll, 0.0);
        }
        let error = affine_error(self.x, self.w, self.n, found);
        let better = found.0 > 0.0 && error < self.error;
        if better {
            (self.found, self.error) = (found, error);
        }
        better
    }
}

/// Weighted error of `x ~ d * q + m` with the nearest codes.
pub fn affine_error(x: &[f32], w: &[f32], n: f32, (d, m): (f32, f32)) -> f32 {
    let inverse = recip(d);
    let mut error = 0.0;
    for (&x, &w) in x.iter().zip(w) {
        let l = round(((x - m) * inverse).clamp(0.0, n));
        let e = d * l + m - x;
        error += w * e * e;
    }
    error
}

/// The nearest codes `0..=n` of `x ~ d * q + m`.
pub fn affine_codes(x: &[f32], n: u8, (d, m): (f32, f32), codes: &mut [u8]) {
    let inverse = recip(d);
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = round(((x - m) * inverse).clamp(0.0, f32::from(n))) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_a_lattice_are_found_exactly() {
        let x: [f32; 16] = std::array::from_fn(|i| 0.25 * (i as f32 - 8.0));
        let d = scale(&x, &[1.0; 16], candidates(&x, -8.0, 1.0), &integer_levels(-8, 7));
        assert!((d.abs() - 0.25).abs() < 1e-6, "{d}");
        let shifted = x.map(|v| v - 0.1);
        let (d, m) = affine(&shifted, &[1.0; 16], 15, Minimum::AtMostZero);
        assert!((d - 0.25).abs() < 1e-5 && (m + 2.1).abs() < 1e-5, "{d} {m}");
    }

    #[test]
    fn weights_survive_extreme_importance() {
        let x = [1e30f32; 4];
        assert_eq!(value_weights(&x, Some(&[0.0; 4]), 4), [1.0; 4]);
        assert_eq!(value_weights(&x, None, 4), [1.0; 4]);
    }
}
