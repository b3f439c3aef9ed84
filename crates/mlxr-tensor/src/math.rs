//! Exponentials in f32 without branches, so that loops over them vectorise. With [`Separate`] operations they are the
//! same bits on every platform.

use std::f32::consts::LOG2_E;

/// How an instruction set multiplies and adds.
pub trait Madd {
    /// `a * b + c`.
    fn madd(a: f32, b: f32, c: f32) -> f32;
}

/// One rounding: sets with an FMA instruction.
pub struct Fused;

/// Two roundings: baseline sets, where a fused one would be a library call.
pub struct Separate;

impl Madd for Fused {
    #[inline(always)]
    fn madd(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Madd for Separate {
    #[inline(always)]
    fn madd(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// Adding this leaves a float's rounded integer part in the low mantissa bits: `1.5 * 2^23`.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has few bits, so that its multiples are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below this the result is 0.
const EXP_MIN: f32 = -87.33;
/// Above this the result stays at its value here, still finite.
const EXP_MAX: f32 = 88.37;

/// `e^x` to about 2 units in the last place; 0 below -87.33, about 2.4e38 above 88.37, NaN for NaN.
#[inline(always)]
pub fn exp<M: Madd>(x: f32) -> f32 {
    let clamped = x.clamp(EXP_MIN, EXP_MAX);
    let shifted = M::madd(clamped, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = M::madd(n, -LN2_LOW, M::madd(n, -LN2_HIGH, clamped));
    // Minimax coefficients of the Cephes library for e^r on |r| <= ln 2 / 2.
    let p = M::madd(r, 1.987_569_1e-4, 1.398_2e-3);
    let p = M::madd(p, r, 8.333_452e-3);
    let p = M::madd(p, r, 4.166_579_6e-2);
    let p = M::madd(p, r, 1.666_666_5e-1);
    let p = M::madd(p, r, 0.5);
    let e = M::madd(p * r, r, r) + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < EXP_MIN { 0.0 } else { e * power }
}

/// Writes `e^(x - max)` for each value and returns their sum, the same bits on every platform.
///
/// # Panics
/// Unless both slices are as long.
pub fn exp_below(x: &[f32], max: f32, out: &mut [f32]) -> f64 {
    const LANES: usize = 8;
    assert_eq!(x.len(), out.len(), "a place for each value");
    for (value, &x) in out.iter_mut().zip(x) {
        *value = exp::<Separate>(x - max);
    }
    let mut sums = [0f64; LANES];
    let (chunks, rest) = out.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f64::from(chunk[lane]);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_and_their_sum_are_those_of_f64() {
        let max = 3.25f32;
        let x: Vec<f32> = (0..1003u32).map(|i| max - ((i * 7919) % 1009) as f32 * 0.11).collect();
        let mut out = vec![0f32; x.len()];
        for n in [0, 1, 7, 8, 9, 1003] {
            let sum = exp_below(&x[..n], max, &mut out[..n]);
            let expected: Vec<f64> = x[..n].iter().map(|&x| f64::from(x - max).exp()).collect();
            for (got, expected) in out.iter().zip(&expected) {
                assert!(
                    (f64::from(*got) - expected).abs() <= 5e-7 * expected + 1e-37,
                    "{got:e} {expected:e}"
                );
            }
            let total: f64 = expected.iter().sum();
            assert!((sum - total).abs() <= 5e-7 * total, "{n}: {sum} {total}");
        }
        assert_eq!(exp_below(&[f32::NEG_INFINITY], max, &mut out[..1]), 0.0);
    }
}
