//! Encoders of the types whose sub-block scales are quantised against a super-block scale: K-quants, IQ4_XS, and the
//! related IQ4_NL.
//!
//! First every sub-block gets its best scale (and minimum), then the super-block scale is searched so that their
//! quantised forms fit, then both are polished against the values themselves: neighbouring sub-block scales are
//! tried, and the super-block scale is solved again.

use super::fit::{self, Minimum, PerElement};
use super::iquant::IQ4_LEVELS;
use super::legacy::{put_f16, recip};
use super::planes::pack;
use super::scaled::{POLISHES, Problem, Scaled, Series, f16_rounded};

/// `d * scale * q - dmin * min` over sub-blocks of `256 / SUBS`, with codes `0..=n` and scales `0..=n_scale`.
struct AffineFit<'a, const SUBS: usize> {
    x: &'a [f32; 256],
    w: [f32; 256],
    n: u8,
    n_scale: u8,
    d: f32,
    dmin: f32,
    scales: [u8; SUBS],
    mins: [u8; SUBS],
}

impl<'a, const SUBS: usize> AffineFit<'a, SUBS> {
    const LEN: usize = 256 / SUBS;

    fn new(x: &'a [f32; 256], importance: Option<&[f32; 256]>, n: u8, n_scale: u8) -> Self {
        let w = fit::value_weights(x, importance, Self::LEN);
        let (mut scales, mut mins, mut sums) = ([0.0; SUBS], [0.0; SUBS], [0.0; SUBS]);
        for j in 0..SUBS {
            let (x, w) = (&x[j * Self::LEN..][..Self::LEN], &w[j * Self::LEN..][..Self::LEN]);
            let (d, m) = fit::affine(x, w, n, Minimum::AtMostZero);
            (scales[j], mins[j], sums[j]) = (d, -m, w.iter().sum());
        }
        let (d, scales) = quantised_unsigned(&scales, &sums, n_scale);
        let (dmin, mins) = quantised_unsigned(&mins, &sums, n_scale);
        let mut fit = Self { x, w, n, n_scale, d, dmin, scales, mins };
        for _ in 0..POLISHES {
            fit.polish_sub_blocks();
            fit.polish_super_block();
        }
        fit.polish_sub_blocks();
        fit
    }

    fn sub_block(&self, j: usize) -> (&[f32], &[f32]) {
        (&self.x[j * Self::LEN..][..Self::LEN], &self.w[j * Self::LEN..][..Self::LEN])
    }

    fn sub_scale(&self, j: usize) -> (f32, f32) {
        (self.d * f32::from(self.scales[j]), -self.dmin * f32::from(self.mins[j]))
    }

    fn error(&self) -> f32 {
        let error = |j| {
            let (x, w) = self.sub_block(j);
            fit::affine_error(x, w, f32::from(self.n), self.sub_scale(j))
        };
        (0..SUBS).map(error).sum()
    }

    /// The best of the neighbouring quantised scales and mins of every sub-block.
    fn polish_sub_blocks(&mut self) {
        for j in 0..SUBS {
            let (scale, min) = (self.scales[j], self.mins[j]);
            let (x, w) = self.sub_block(j);
            let mut best = (f32::INFINITY, scale, min);
            for scale in scale.saturating_sub(1)..=(scale + 1).min(self.n_scale) {
                for min in min.saturating_sub(1)..=(min + 1).min(self.n_scale) {
                    let sub_scale = (self.d * f32::from(scale), -self.dmin * f32::from(min));
                    let error = fit::affine_error(x, w, f32::from(self.n), sub_scale);
                    if error < best.0 {
                        best = (error, scale, min);
                    }
                }
            }
            (self.scales[j], self.mins[j]) = (best.1, best.2);
        }
    }

    /// Solves for `d` and `dmin` with codes, scales and mins as they are; kept when the error falls.
    fn polish_super_block(&mut self) {
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0, 0.0, 0.0, 0.0, 0.0);
        let codes = self.codes();
        for (i, ((&x, &w), &code)) in self.x.iter().zip(&self.w).zip(&codes).enumerate() {
            let j = i / Self::LEN;
            let (a, b) = (f32::from(self.scales[j]) * f32::from(code), -f32::from(self.mins[j]));
            aa += w * a * a;
            ab += w * a * b;
            bb += w * b * b;
            ax += w * a * x;
            bx += w * b * x;
        }
        let det = aa * bb - ab * ab;
        let (d, dmin) = if det > 0.0 {
            ((ax * bb - bx * ab) / det, (bx * aa - ax * ab) / det)
        } else if aa > 0.0 {
            (ax / aa, self.dmin)
        } else {
            return;
        };
        let before = (self.error(), self.d, self.dmin);
        (self.d, self.dmin) = (f16_rounded(d), f16_rounded(dmin));
        // A negative `dmin` is representable but was never searched for; NaN and infinity are no improvement.
        let improved = self.dmin >= 0.0 && self.error() < before.0;
        if !improved {
            (self.d, self.dmin) = (before.1, before.2);
        }
    }

    fn codes(&self) -> [u8; 256] {
        let mut codes = [0; 256];
        for (j, codes) in codes.chunks_exact_mut(Self::LEN).enumerate() {
            fit::affine_codes(self.sub_block(j).0, self.n, self.sub_scale(j), codes);
        }
        codes
    }
}

/// Non-negative `values` as `d * q` with `q` in `0..=n` and `d` an f16.
fn quantised_unsigned<const N: usize>(values: &[f32; N], w: &[f32; N], n: u8) -> (f32, [u8; N]) {
    let levels = fit::integer_levels(0, n.into());
    let d = f16_rounded(fit::scale(values, w, fit::candidates(values, n.into(), 1.0), &levels));
    let inverse = recip(d);
    (d, values.map(|v| levels.0(v * inverse) as u8))
}

pub fn encode_q2_k(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 84]) {
    let fit = AffineFit::<16>::new(x, importance, 3, 15);
    for (byte, (scale, min)) in out.iter_mut().zip(fit.scales.iter().zip(fit.mins)) {
        *byte = scale | min << 4;
    }
    pack::<2, 32>(&fit.codes(), &mut out[16..80]);
    put_f16(out, 80, fit.d);
    put_f16(out, 82, fit.dmin);
}

pub fn encode_q4_k(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 144]) {
    let fit = AffineFit::<8>::new(x, importance, 15, 63);
    put_scales_and_mins(&fit, out);
    pack::<4, 32>(&fit.codes(), &mut out[16..]);
}

pub fn encode_q5_k(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 176]) {
    let fit = AffineFit::<8>::new(x, importance, 31, 63);
    put_scales_and_mins(&fit, out);
    let codes = fit.codes();
    pack::<1, 32>(&codes.map(|q| q >> 4), &mut out[16..48]);
    pack::<4, 32>(&codes.map(|q| q & 15), &mut out[48..]);
}

/// The first 16 bytes of Q4_K and Q5_K; the inverse of [`super::kquant::scales_and_mins`].
fn put_scales_and_mins(fit: &AffineFit<8>, out: &mut [u8]) {
    put_f16(out, 0, fit.d);
    put_f16(out, 2, fit.dmin);
    let (scales, mins) = (&fit.scales, &fit.mins);
    for j in 0..4 {
        out[4 + j] = scales[j] | scales[j + 4] >> 4 << 6;
        out[8 + j] = mins[j] | mins[j + 4] >> 4 << 6;
        out[12 + j] = scales[j + 4] & 15 | (mins[j + 4] & 15) << 4;
    }
}

pub fn encode_q3_k(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 110]) {
    let w = fit::value_weights(x, importance, 16);
    let problem = Problem { x, w: &w, levels: &fit::integer_levels(-4, 3), series: Series::signed(32) };
    let fit =
        Scaled::<16, _>::new(problem, |x| fit::candidates(x, -4.0, 1.0).chain(fit::candidates(x, 3.0, 1.0)));
    let codes = fit.levels().map(|level| (level + 4.0) as u8);
    let scales = fit.codes.map(|code| code as u8);
    pack::<1, 32>(&codes.map(|q| q >> 2), &mut out[..32]);
    pack::<2, 32>(&codes.map(|q| q & 3), &mut out[32..96]);
    pack::<4, 8>(&scales.map(|s| s & 15), &mut out[96..104]);
    pack::<2, 4>(&scales.map(|s| s >> 4), &mut out[104..108]);
    put_f16(out, 108, fit.d);
}

pub fn encode_q6_k(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 210]) {
    let w = fit::value_weights(x, importance, 16);
    let problem = Problem { x, w: &w, levels: &fit::integer_levels(-32, 31), series: Series::signed(128) };
    let fit = Scaled::<16, _>::new(problem, |x| fit::candidates(x, -32.0, 1.0));
    let codes = fit.levels().map(|level| (level + 32.0) as u8);
    pack::<4, 64>(&codes.map(|q| q & 15), &mut out[..128]);
    pack::<2, 32>(&codes.map(|q| q >> 4), &mut out[128..192]);
    for (byte, code) in out[192..208].iter_mut().zip(fit.codes) {
        *byte = (code as u8).wrapping_sub(128);
    }
    put_f16(out, 208, fit.d);
}

/// A plain 8-bit type: no search. The element of largest magnitude gets code -127.
pub fn encode_q8_k(x: &[f32; 256], _importance: Option<&[f32; 256]>, out: &mut [u8; 292]) {
    let inverse = -127.0 * recip(fit::extreme(x));
    out[..4].copy_from_slice(&recip(inverse).to_le_bytes());
    let codes = x.map(|v| fit::round(inverse * v) as i8);
    for (byte, code) in out[4..260].iter_mut().zip(codes) {
        *byte = code.cast_unsigned();
    }
    for (sum, codes) in out[260..].as_chunks_mut::<2>().0.iter_mut().zip(codes.as_chunks::<16>().0) {
        *sum = codes.iter().map(|&q| i16::from(q)).sum::<i16>().to_le_bytes();
    }
}

/// Codes of the nearest of [`IQ4_LEVELS`] by twice the value: the borders between levels are multiples of a half.
static IQ4_CODES: [u8; 512] = {
    let mut codes = [0; 512];
    let mut i = 0;
    while i < 512 {
        let mut code = 0;
        while code < 15 && IQ4_LEVELS[code] as i32 + IQ4_LEVELS[code + 1] as i32 <= i as i32 - 256 {
            code += 1;
        }
        codes[i] = code as u8;
        i += 1;
    }
    codes
};

/// The code of the nearest of [`IQ4_LEVELS`].
fn iq4_code(v: f32) -> u8 {
    // The cast saturates and rounds towards zero, which is down here.
    let index = (2.0 * v + 256.0) as usize;
    IQ4_CODES[index.min(511)]
}

fn iq4_level(v: f32) -> f32 {
    f32::from(IQ4_LEVELS[usize::from(iq4_code(v))])
}

/// Reciprocal scales that put the element of largest magnitude near either end of the levels.
fn iq4_candidates(x: &[f32]) -> impl Iterator<Item = f32> + use<> {
    let inverse = recip(fit::extreme(x));
    (-7i8..=7).flat_map(move |step| [-127.0, 113.0].map(|end| (end + f32::from(step)) * inverse))
}

pub fn encode_iq4_nl(x: &[f32; 32], importance: Option<&[f32; 32]>, out: &mut [u8; 18]) {
    let w = fit::value_weights(x, importance, 32);
    let d = f16_rounded(fit::scale(x, &w, iq4_candidates(x), &PerElement(iq4_level)));
    let inverse = recip(d);
    put_f16(out, 0, d);
    pack::<4, 16>(&x.map(|v| iq4_code(v * inverse)), &mut out[2..]);
}

pub fn encode_iq4_xs(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 136]) {
    let w = fit::value_weights(x, importance, 32);
    let problem = Problem { x, w: &w, levels: &PerElement(iq4_level), series: Series::signed(32) };
    let fit = Scaled::<8, _>::new(problem, iq4_candidates);
    let scales = fit.codes.map(|code| code as u8);
    let codes: [u8; 256] = std::array::from_fn(|i| iq4_code(x[i] * recip(fit.scale(i / 32))));
    put_f16(out, 0, fit.d);
    pack::<2, 1>(&scales.map(|s| s >> 4), &mut out[2..4]);
    pack::<4, 1>(&scales.map(|s| s & 15), &mut out[4..8]);
    pack::<4, 16>(&codes, &mut out[8..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iq4_codes_are_the_nearest_levels() {
        for v in -150..150 {
            let v = v as f32 + 0.3;
            let distance = |code: u8| (v - f32::from(IQ4_LEVELS[usize::from(code)])).abs();
            let nearest = (0..16).map(distance).fold(f32::INFINITY, f32::min);
            assert_eq!(distance(iq4_code(v)), nearest, "{v}");
        }
    }
}
