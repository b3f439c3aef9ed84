//! Element-wise loops and short reductions, written once and compiled for each instruction set.
//!
//! The bodies are plain loops the compiler vectorises; [`lane_table!`] compiles them under an instruction set's target
//! features. `Madd` says whether that set has a fused multiply-add. Reductions keep [`LANES`] partial results, so
//! their order does not depend on the vector width.

pub(crate) mod math;
pub(crate) mod quantise;

use mlxr_tensor::{Activation, Gate};

use crate::linear::codes::QuantRowMut;

pub(crate) use math::{Fused, Separate};

/// Partial results of a reduction.
const LANES: usize = 16;

/// Scores, their scale and cap; see [`bodies::soften`].
type Soften = unsafe fn(&mut [f32], f32, Option<f32>) -> (f32, f32);

/// The loops of one instruction set; the functions may only be called where its features are present.
#[derive(Clone, Copy)]
pub(crate) struct Lanes {
    pub(crate) quantise: unsafe fn(&[f32], QuantRowMut<'_>),
    pub(crate) max: unsafe fn(&[f32]) -> f32,
    pub(crate) exp_sum: unsafe fn(&mut [f32], f32) -> f32,
    pub(crate) soften: Soften,
    pub(crate) exp: unsafe fn(f32) -> f32,
    pub(crate) sum: unsafe fn(&[f32]) -> f32,
    pub(crate) sum_squares: unsafe fn(&[f32]) -> f32,
    pub(crate) subtract: unsafe fn(&mut [f32], &[f32], f32),
    pub(crate) norm: unsafe fn(&mut [f32], &[f32], &[f32], f32),
    pub(crate) norm_in_place: unsafe fn(&mut [f32], &[f32], f32),
    pub(crate) gated: unsafe fn(&mut [f32], &[f32], &[f32], Gate),
    pub(crate) activate: unsafe fn(&mut [f32], Activation),
    pub(crate) softcap: unsafe fn(&mut [f32], f32),
    pub(crate) add_scaled: unsafe fn(&mut [f32], &[f32], f32),
    pub(crate) scale: unsafe fn(&mut [f32], f32),
    pub(crate) weighted_sum: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(crate) rotate_half: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub(crate) rotate_pairs: unsafe fn(&mut [f32], &[f32], &[f32]),
}

/// Compiles every loop under `$feature` and names the result `LANES: Lanes`.
macro_rules! lane_table {
    ($madd:ty $(, $feature:literal)?) => {
        /// The element-wise loops compiled for this instruction set.
        pub(crate) const LANES: $crate::lanes::Lanes = {
            use $crate::lanes::bodies;
            use $crate::linear::codes::QuantRowMut;
            use mlxr_tensor::{Activation, Gate};
            $(#[target_feature(enable = $feature)])?
            fn quantise(x: &[f32], out: QuantRowMut<'_>) { $crate::lanes::quantise::quantise(x, out) }
            $(#[target_feature(enable = $feature)])?
            fn max(x: &[f32]) -> f32 { bodies::max(x) }
            $(#[target_feature(enable = $feature)])?
            fn exp_sum(x: &mut [f32], max: f32) -> f32 { bodies::exp_sum::<$madd>(x, max) }
            $(#[target_feature(enable = $feature)])?
            fn soften(x: &mut [f32], scale: f32, softcap: Option<f32>) -> (f32, f32) {
                bodies::soften::<$madd>(x, scale, softcap)
            }
            $(#[target_feature(enable = $feature)])?
            fn exp(x: f32) -> f32 { bodies::exp::<$madd>(x) }
            $(#[target_feature(enable = $feature)])?
            fn sum(x: &[f32]) -> f32 { bodies::sum(x) }
            $(#[target_feature(enable = $feature)])?
            fn sum_squares(x: &[f32]) -> f32 { bodies::sum_squares::<$madd>(x) }
            $(#[target_feature(enable = $feature)])?
            fn subtract(out: &mut [f32], x: &[f32], by: f32) { bodies::subtract(out, x, by) }
            $(#[target_feature(enable = $feature)])?
            fn norm(out: &mut [f32], x: &[f32], weight: &[f32], factor: f32) {
                bodies::norm(out, x, weight, factor);
            }
            $(#[target_feature(enable = $feature)])?
            fn norm_in_place(x: &mut [f32], weight: &[f32], factor: f32) {
                bodies::norm_in_place(x, weight, factor);
            }
            $(#[target_feature(enable = $feature)])?
            fn gated(out: &mut [f32], gate: &[f32], up: &[f32], kind: Gate) {
                bodies::gated::<$madd>(out, gate, up, kind);
            }
            $(#[target_feature(enable = $feature)])?
            fn activate(x: &mut [f32], kind: Activation) { bodies::activate::<$madd>(x, kind) }
            $(#[target_feature(enable = $feature)])?
            fn softcap(x: &mut [f32], cap: f32) { bodies::softcap::<$madd>(x, cap) }
            $(#[target_feature(enable = $feature)])?
            fn add_scaled(x: &mut [f32], y: &[f32], factor: f32) {
                bodies::add_scaled::<$madd>(x, y, factor);
            }
            $(#[target_feature(enable = $feature)])?
            fn scale(x: &mut [f32], factor: f32) { bodies::scale(x, factor) }
            $(#[target_feature(enable = $feature)])?
            fn weighted_sum(acc: &mut [f32], weights: &[f32], rows: &[f32]) {
                bodies::weighted_sum::<$madd>(acc, weights, rows);
            }
            $(#[target_feature(enable = $feature)])?
            fn rotate_half(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                bodies::rotate_half::<$madd>(x, cos, sin);
            }
            $(#[target_feature(enable = $feature)])?
            fn rotate_pairs(x: &mut [f32], cos: &[f32], sin: &[f32]) {
                bodies::rotate_pairs::<$madd>(x, cos, sin);
            }
            $crate::lanes::Lanes {
                quantise,
                max,
                exp_sum,
                soften,
                exp,
                sum,
                sum_squares,
                subtract,
                norm,
                norm_in_place,
                gated,
                activate,
                softcap,
                add_scaled,
                scale,
                weighted_sum,
                rotate_half,
                rotate_pairs,
            }
        };
    };
}
pub(crate) use lane_table;

/// The loops themselves.
pub(crate) mod bodies {
    use super::math::{self, Madd};
    use super::{Activation, Gate, LANES};

    /// Adds the lanes pairwise, halving.
    #[inline(always)]
    fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }

    /// The largest value, minus infinity for none.
    #[inline(always)]
    pub(crate) fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (chunks, tail) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (m, &v) in lanes.iter_mut().zip(chunk) {
                *m = if *m < v { v } else { *m };
            }
        }
        for (m, &v) in lanes.iter_mut().zip(tail) {
            *m = if *m < v { v } else { *m };
        }
        // By halves: a chain of sixteen comparisons would wait for each.
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] = if lanes[i] < lanes[i + width] { lanes[i + width] } else { lanes[i] };
            }
        }
        lanes[0]
    }

    /// Replaces `x` by `exp(x - max)` and returns the sum.
    #[inline(always)]
    pub(crate) fn exp_sum<M: Madd>(x: &mut [f32], max: f32) -> f32 {
        let mut lanes = [0f32; LANES];
        let (chunks, tail) = x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (sum, v) in lanes.iter_mut().zip(chunk) {
                *v = math::exp::<M>(*v - max);
                *sum += *v;
            }
        }
        for (sum, v) in lanes.iter_mut().zip(tail) {
            *v = math::exp::<M>(*v - max);
            *sum += *v;
        }
        sum_lanes(lanes)
    }

    /// Turns scores, to be multiplied by `scale` and capped, into `exp(score - largest)`; returns the largest and the sum.
    #[inline(always)]
    pub(crate) fn soften<M: Madd>(x: &mut [f32], scale_by: f32, cap: Option<f32>) -> (f32, f32) {
        scale(x, scale_by);
        if let Some(cap) = cap {
            softcap::<M>(x, cap);
        }
        let largest = max(x);
        (largest, exp_sum::<M>(x, largest))
    }

    #[inline(always)]
    pub(crate) fn exp<M: Madd>(x: f32) -> f32 {
        math::exp::<M>(x)
    }

    #[inline(always)]
    pub(crate) fn sum(x: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (chunks, tail) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &v) in lanes.iter_mut().zip(chunk) {
                *sum += v;
            }
        }
        for (sum, &v) in lanes.iter_mut().zip(tail) {
            *sum += v;
        }
        sum_lanes(lanes)
    }

    /// `out = x - by`.
    #[inline(always)]
    pub(crate) fn subtract(out: &mut [f32], x: &[f32], by: f32) {
        for (o, &v) in out.iter_mut().zip(x) {
            *o = v - by;
        }
    }

    #[inline(always)]
    pub(crate) fn sum_squares<M: Madd>(x: &[f32]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (chunks, tail) = x.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &v) in lanes.iter_mut().zip(chunk) {
                *sum = M::madd(v, v, *sum);
            }
        }
        for (sum, &v) in lanes.iter_mut().zip(tail) {
            *sum = M::madd(v, v, *sum);
        }
        sum_lanes(lanes)
    }

    #[inline(always)]
    pub(crate) fn norm(out: &mut [f32], x: &[f32], weight: &[f32], factor: f32) {
        for ((o, &v), &w) in out.iter_mut().zip(x).zip(weight) {
            *o = v * factor * w;
        }
    }

    #[inline(always)]
    pub(crate) fn norm_in_place(x: &mut [f32], weight: &[f32], factor: f32) {
        for (v, &w) in x.iter_mut().zip(weight) {
            *v = *v * factor * w;
        }
    }

    #[inline(always)]
    pub(crate) fn gated<M: Madd>(out: &mut [f32], gate: &[f32], up: &[f32], kind: Gate) {
        let pairs = out.iter_mut().zip(gate).zip(up);
        match kind {
            Gate::Silu => pairs.for_each(|((o, &g), &u)| *o = g * math::sigmoid::<M>(g) * u),
            Gate::Gelu => pairs.for_each(|((o, &g), &u)| *o = math::gelu::<M>(g) * u),
            Gate::GeluTanh => pairs.for_each(|((o, &g), &u)| *o = math::gelu_tanh::<M>(g) * u),
            Gate::ClampedSwiglu { alpha, limit } => pairs.for_each(|((o, &g), &u)| {
                let g = if limit < g { limit } else { g };
                let u = if limit < u { limit } else { u };
                let u = if u < -limit { -limit } else { u };
                *o = g * math::sigmoid::<M>(alpha * g) * (u + 1.0);
            }),
        }
    }

    #[inline(always)]
    pub(crate) fn activate<M: Madd>(x: &mut [f32], kind: Activation) {
        let values = x.iter_mut();
        match kind {
            Activation::Gelu => values.for_each(|v| *v = math::gelu::<M>(*v)),
            Activation::GeluTanh => values.for_each(|v| *v = math::gelu_tanh::<M>(*v)),
            Activation::QuickGelu => values.for_each(|v| *v *= math::sigmoid::<M>(1.702 * *v)),
            Activation::Silu => values.for_each(|v| *v *= math::sigmoid::<M>(*v)),
            // Written so that a NaN stays.
            Activation::Relu => values.for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v }),
            Activation::Tanh => values.for_each(|v| *v = math::tanh::<M>(*v)),
        }
    }

    #[inline(always)]
    pub(crate) fn softcap<M: Madd>(x: &mut [f32], cap: f32) {
        for v in x {
            *v = cap * math::tanh::<M>(*v / cap);
        }
    }

    #[inline(always)]
    pub(crate) fn add_scaled<M: Madd>(x: &mut [f32], y: &[f32], factor: f32) {
        for (a, &b) in x.iter_mut().zip(y) {
            *a = M::madd(factor, b, *a);
        }
    }

    #[inline(always)]
    pub(crate) fn scale(x: &mut [f32], factor: f32) {
        x.iter_mut().for_each(|v| *v *= factor);
    }

    /// `acc += sum of weights[j] * rows[j]`, `j` ascending for each element.
    #[inline(always)]
    pub(crate) fn weighted_sum<M: Madd>(acc: &mut [f32], weights: &[f32], rows: &[f32]) {
        let row_len = acc.len();
        let (chunks, tail) = acc.as_chunks_mut::<{ LANES * 2 }>();
        for (c, chunk) in chunks.iter_mut().enumerate() {
            let mut sums = *chunk;
            for (j, &weight) in weights.iter().enumerate() {
                let start = j * row_len + c * LANES * 2;
                for (sum, &v) in sums.iter_mut().zip(&rows[start..start + LANES * 2]) {
                    *sum = M::madd(weight, v, *sum);
                }
            }
            *chunk = sums;
        }
        let start = row_len - tail.len();
        for (j, &weight) in weights.iter().enumerate() {
            for (sum, &v) in tail.iter_mut().zip(&rows[j * row_len + start..(j + 1) * row_len]) {
                *sum = M::madd(weight, v, *sum);
            }
        }
    }

    /// Rotates the pairs `(i, i + n)` of `x`, `2n` long, by the given angles.
    #[inline(always)]
    pub(crate) fn rotate_half<M: Madd>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (first, second) = x.split_at_mut(cos.len());
        for (((a, b), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
            (*a, *b) = (*a * c - *b * s, M::madd(*b, c, *a * s));
        }
    }

    /// Rotates the pairs `(2i, 2i + 1)` of `x` by the given angles.
    #[inline(always)]
    pub(crate) fn rotate_pairs<M: Madd>(x: &mut [f32], cos: &[f32], sin: &[f32]) {
        for ((pair, &c), &s) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let [a, b] = *pair;
            *pair = [a * c - b * s, M::madd(b, c, a * s)];
        }
    }
}
