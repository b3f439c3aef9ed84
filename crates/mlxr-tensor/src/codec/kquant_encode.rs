//! Encoders of the types whose sub-block scales are quantised against a super-block scale: K-quants, IQ4_XS, and the
//! related IQ4_NL.
//!
//! First every sub-block gets its best scale (and minimum), then the super-block scale is searched so that their
//! quantised forms fit, then both are polished against the values themselves: neighbouring sub-block scales are
//! tried, and the super-block scale is solved again.

use super::fit::{self, Emphasis, Minimum};
use super::iquant::IQ4_LEVELS;
use super::legacy::{put_f16, recip};
use super::planes::pack;

/// Rounds of polishing; the second still helps the 2- and 3-bit types.
const POLISHES: usize = 2;

/// An f32 that an f16 holds exactly.
fn f16_rounded(v: f32) -> f32 {
    half::f16::from_f32(v).to_f32()
}

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
        let w = fit::value_weights(x, importance, Emphasis::Magnitude, Self::LEN);
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
        // A negative `dmin` is representable but was never searched for; NaN and infinity fail the comparison.
        if !(self.dmin >= 0.0 && self.error() < before.0) {
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
    let level = fit::integer_levels(0, n.into());
    let d = f16_rounded(fit::scale(values, w, fit::unsigned_candidates(values, n), level));
    let inverse = recip(d);
    (d, values.map(|v| level(v * inverse) as u8))
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

/// `d * scale * level` over sub-blocks of `256 / SUBS`, with scales `-half..half`.
struct SignedFit<'a, const SUBS: usize, L> {
    x: &'a [f32; 256],
    w: [f32; 256],
    level: L,
    half: i16,
    d: f32,
    scales: [i8; SUBS],
}

impl<'a, const SUBS: usize, L: Fn(f32) -> f32 + Copy> SignedFit<'a, SUBS, L> {
    const LEN: usize = 256 / SUBS;

    /// `candidates` gives the reciprocal scales to start a sub-block from.
    fn new<C: Iterator<Item = f32>>(
        x: &'a [f32; 256],
        importance: Option<&[f32; 256]>,
        half: i16,
        level: L,
        candidates: impl Fn(&[f32]) -> C,
    ) -> Self {
        let w = fit::value_weights(x, importance, Emphasis::Energy, Self::LEN);
        let (mut scales, mut sums) = ([0.0; SUBS], [0.0; SUBS]);
        for j in 0..SUBS {
            let (x, w) = (&x[j * Self::LEN..][..Self::LEN], &w[j * Self::LEN..][..Self::LEN]);
            scales[j] = fit::scale(x, w, candidates(x), level);
            sums[j] = w.iter().sum();
        }
        let scale_level = fit::integer_levels(-half, half - 1);
        let start = fit::signed_candidates(&scales, half as u8);
        let d = f16_rounded(fit::scale(&scales, &sums, start, scale_level));
        let inverse = recip(d);
        let scales = scales.map(|v| scale_level(v * inverse) as i8);
        let mut fit = Self { x, w, level, half, d, scales };
        for _ in 0..POLISHES {
            fit.polish_sub_blocks();
            fit.polish_super_block();
        }
        fit.polish_sub_blocks();
        fit
    }

    fn error(&self, j: usize, scale: f32) -> f32 {
        let inverse = recip(scale);
        let mut error = 0.0;
        for (&x, &w) in self.x[j * Self::LEN..][..Self::LEN].iter().zip(&self.w[j * Self::LEN..]) {
            let e = scale * (self.level)(x * inverse) - x;
            error += w * e * e;
        }
        error
    }

    fn total_error(&self, d: f32) -> f32 {
        (0..SUBS).map(|j| self.error(j, d * f32::from(self.scales[j]))).sum()
    }

    fn polish_sub_blocks(&mut self) {
        for j in 0..SUBS {
            let scale = i16::from(self.scales[j]);
            let mut best = (f32::INFINITY, scale);
            for scale in (scale - 1).max(-self.half)..=(scale + 1).min(self.half - 1) {
                let error = self.error(j, self.d * f32::from(scale));
                if error < best.0 {
                    best = (error, scale);
                }
            }
            self.scales[j] = best.1 as i8;
        }
    }

    /// Solves for `d` with levels and scales as they are; kept when the error falls.
    fn polish_super_block(&mut self) {
        let (mut ax, mut aa) = (0.0, 0.0);
        let levels = self.levels();
        for (i, ((&x, &w), level)) in self.x.iter().zip(&self.w).zip(levels).enumerate() {
            let a = f32::from(self.scales[i / Self::LEN]) * level;
            ax += w * a * x;
            aa += w * a * a;
        }
        let d = f16_rounded(ax / aa);
        // NaN (no scale at all) and infinity fail the comparison.
        if self.total_error(d) < self.total_error(self.d) {
            self.d = d;
        }
    }

    fn levels(&self) -> [f32; 256] {
        std::array::from_fn(|i| {
            let scale = self.d * f32::from(self.scales[i / Self::LEN]);
            (self.level)(self.x[i] * recip(scale))
        })
    }
}

pub fn encode_q3_k(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 110]) {
    let level = fit::integer_levels(-4, 3);
    let fit = SignedFit::<16, _>::new(x, importance, 32, level, |x| fit::signed_candidates(x, 4));
    let codes = fit.levels().map(|level| (level + 4.0) as u8);
    let scales = fit.scales.map(|scale| (scale + 32).cast_unsigned());
    pack::<1, 32>(&codes.map(|q| q >> 2), &mut out[..32]);
    pack::<2, 32>(&codes.map(|q| q & 3), &mut out[32..96]);
    pack::<4, 8>(&scales.map(|s| s & 15), &mut out[96..104]);
    pack::<2, 4>(&scales.map(|s| s >> 4), &mut out[104..108]);
    put_f16(out, 108, fit.d);
}

pub fn encode_q6_k(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 210]) {
    let level = fit::integer_levels(-32, 31);
    let fit = SignedFit::<16, _>::new(x, importance, 128, level, |x| fit::signed_candidates(x, 32));
    let codes = fit.levels().map(|level| (level + 32.0) as u8);
    pack::<4, 64>(&codes.map(|q| q & 15), &mut out[..128]);
    pack::<2, 32>(&codes.map(|q| q >> 4), &mut out[128..192]);
    for (byte, scale) in out[192..208].iter_mut().zip(fit.scales) {
        *byte = scale.cast_unsigned();
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

/// The code of the nearest of [`IQ4_LEVELS`].
fn iq4_code(v: f32) -> u8 {
    let above = IQ4_LEVELS.partition_point(|&level| f32::from(level) < v).clamp(1, 15);
    let (low, high) = (f32::from(IQ4_LEVELS[above - 1]), f32::from(IQ4_LEVELS[above]));
    if v - low < high - v { above as u8 - 1 } else { above as u8 }
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
    let w = fit::value_weights(x, importance, Emphasis::Energy, 32);
    let d = f16_rounded(fit::scale(x, &w, iq4_candidates(x), iq4_level));
    let inverse = recip(d);
    put_f16(out, 0, d);
    pack::<4, 16>(&x.map(|v| iq4_code(v * inverse)), &mut out[2..]);
}

pub fn encode_iq4_xs(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 136]) {
    let fit = SignedFit::<8, _>::new(x, importance, 32, iq4_level, iq4_candidates);
    let scales = fit.scales.map(|scale| (scale + 32).cast_unsigned());
    let codes: [u8; 256] = std::array::from_fn(|i| {
        let scale = fit.d * f32::from(fit.scales[i / 32]);
        iq4_code(x[i] * recip(scale))
    });
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
