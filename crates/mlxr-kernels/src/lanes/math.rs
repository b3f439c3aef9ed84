//! Transcendental functions in f32 without branches, so that loops over them vectorise.

pub(crate) use mlxr_tensor::math::{Fused, Madd, Separate, exp};

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<M: Madd>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<M>(-x))
}

/// Hyperbolic tangent: a polynomial near 0, where the exponential form cancels.
#[inline(always)]
pub(crate) fn tanh<M: Madd>(x: f32) -> f32 {
    let magnitude = x.abs();
    let far = 1.0 - 2.0 / (exp::<M>(2.0 * magnitude) + 1.0);
    // Coefficients of the Cephes library for |x| < 0.625.
    let z = x * x;
    let p = M::madd(z, -5.704_988_7e-3, 2.063_909e-2);
    let p = M::madd(p, z, -5.373_971_5e-2);
    let p = M::madd(p, z, 1.333_144_2e-1);
    let p = M::madd(p, z, -3.333_328e-1);
    let near = M::madd(p * z, x, x);
    if magnitude < 0.625 { near } else { far.copysign(x) }
}

/// `x * Phi(x)`: the complementary error function by the Chebyshev fit of Numerical Recipes (relative error 1.2e-7).
#[inline(always)]
pub(crate) fn gelu<M: Madd>(x: f32) -> f32 {
    let z = x * -std::f32::consts::FRAC_1_SQRT_2;
    let magnitude = z.abs();
    let t = 1.0 / M::madd(0.5, magnitude, 1.0);
    let p = M::madd(t, 0.170_872_77, -0.822_152_2);
    let p = M::madd(p, t, 1.488_515_9);
    let p = M::madd(p, t, -1.135_204);
    let p = M::madd(p, t, 0.278_868_08);
    let p = M::madd(p, t, -0.186_288_06);
    let p = M::madd(p, t, 0.096_784_18);
    let p = M::madd(p, t, 0.374_091_96);
    let p = M::madd(p, t, 1.000_023_7);
    let p = M::madd(p, t, -1.265_512_2);
    let tail = t * exp::<M>(M::madd(-magnitude, magnitude, p));
    let erfc = if z < 0.0 { 2.0 - tail } else { tail };
    0.5 * x * erfc
}

/// GELU by its usual tanh approximation.
#[inline(always)]
pub(crate) fn gelu_tanh<M: Madd>(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let inner = SQRT_2_OVER_PI * M::madd(0.044_715 * x * x, x, x);
    // 0.5 (1 + tanh(y)) = sigmoid(2y)
    x * sigmoid::<M>(2.0 * inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Largest of `|f(x) - reference(x)| / max(|reference(x)|, floor)` over a fine grid.
    fn worst(from: f64, to: f64, floor: f64, f: impl Fn(f32) -> f32, reference: impl Fn(f64) -> f64) -> f64 {
        (0..=200_000)
            .map(|i| {
                let x = (from + (to - from) * f64::from(i) / 200_000.0) as f32;
                let expected = reference(f64::from(x));
                (f64::from(f(x)) - expected).abs() / expected.abs().max(floor)
            })
            .fold(0.0, f64::max)
    }

    #[test]
    fn exp_and_tanh_are_within_a_few_units_in_the_last_place() {
        assert!(worst(-87.0, 88.0, 0.0, exp::<Separate>, f64::exp) < 5e-7);
        assert!(worst(-87.0, 88.0, 0.0, exp::<Fused>, f64::exp) < 3e-7);
        assert!(worst(-12.0, 12.0, 1e-30, tanh::<Fused>, f64::tanh) < 3e-7);
        assert_eq!(exp::<Fused>(f32::NEG_INFINITY), 0.0);
        assert!(exp::<Fused>(f32::NAN).is_nan());
        assert_eq!(tanh::<Fused>(-100.0), -1.0);
    }

    #[test]
    fn activations_are_close_to_their_definitions() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        assert!(worst(-30.0, 30.0, 1e-6, |x| x * sigmoid::<Fused>(x), silu) < 1e-6);
        let tanh_form = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        };
        assert!(worst(-8.0, 8.0, 1e-3, gelu_tanh::<Fused>, tanh_form) < 2e-6);
        // erf by its Maclaurin series, good in f64 for |x| < 4.
        let erf = |x: f64| {
            let (mut term, mut sum) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * 2.0 / std::f64::consts::PI.sqrt()
        };
        let gelu_form = |x: f64| 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2));
        assert!(worst(-4.0, 4.0, 1e-2, gelu::<Fused>, gelu_form) < 2e-6);
    }
}
