//! Super-blocks of `d * scale * level`: sub-block scales are codes of an arithmetic series, `d` is an f16.
//!
//! First every sub-block gets its best scale, then the super-block scale is searched so that their quantised forms
//! fit, then both are polished against the values themselves: neighbouring scale codes are tried, and the super-block
//! scale is solved again.

use super::fit::{self, Levels, MAX_RUN};
use super::legacy::recip;

/// Rounds of polishing; the second still helps the 2- and 3-bit types.
pub const POLISHES: usize = 2;

/// The multipliers of a sub-block scale: `base + step * code` for codes `0..n`.
#[derive(Clone, Copy)]
pub struct Series {
    pub base: f32,
    pub step: f32,
    pub n: u16,
}

impl Series {
    /// `-half..half`, stored with an offset.
    pub fn signed(half: u8) -> Self {
        Self { base: -f32::from(half), step: 1.0, n: 2 * u16::from(half) }
    }

    fn at(self, code: u16) -> f32 {
        self.base + self.step * f32::from(code)
    }

    fn code(self, multiplier: f32) -> u16 {
        fit::round(((multiplier - self.base) / self.step).clamp(0.0, f32::from(self.n - 1))) as u16
    }

    /// The multiplier of largest magnitude.
    fn end(self) -> f32 {
        if self.base < 0.0 { self.base } else { self.at(self.n - 1) }
    }
}

/// The values of a super-block, their weights, and the types' levels.
pub struct Problem<'a, L> {
    pub x: &'a [f32; 256],
    pub w: &'a [f32; 256],
    pub levels: &'a L,
    pub series: Series,
}

/// A solved super-block of `SUBS` sub-blocks.
pub struct Scaled<'a, const SUBS: usize, L> {
    problem: Problem<'a, L>,
    pub d: f32,
    /// Scale codes.
    pub codes: [u16; SUBS],
}

impl<'a, const SUBS: usize, L: Levels> Scaled<'a, SUBS, L> {
    const LEN: usize = 256 / SUBS;

    /// `candidates` gives the reciprocal scales to start a sub-block from.
    pub fn new<C: Iterator<Item = f32>>(problem: Problem<'a, L>, candidates: impl Fn(&[f32]) -> C) -> Self {
        let mut fit = Self { problem, d: 0.0, codes: [0; SUBS] };
        let (mut scales, mut sums) = ([0.0; SUBS], [0.0; SUBS]);
        for j in 0..SUBS {
            let (x, w) = fit.sub_block(j);
            scales[j] = fit::scale(x, w, candidates(x), fit.problem.levels);
            sums[j] = w.iter().sum();
        }
        let Series { base, step, n } = fit.problem.series;
        let start = fit::candidates(&scales, fit.problem.series.end(), step);
        fit.d = f16_rounded(fit::scale(&scales, &sums, start, &fit::arithmetic_levels(base, step, n)));
        let inverse = recip(fit.d);
        fit.codes = scales.map(|scale| fit.problem.series.code(scale * inverse));
        for _ in 0..POLISHES {
            fit.polish_sub_blocks();
            fit.polish_super_block();
        }
        fit.polish_sub_blocks();
        fit
    }

    /// Values and weights.
    pub fn sub_block(&self, j: usize) -> (&[f32], &[f32]) {
        (&self.problem.x[j * Self::LEN..][..Self::LEN], &self.problem.w[j * Self::LEN..][..Self::LEN])
    }

    /// The scale of sub-block `j`.
    pub fn scale(&self, j: usize) -> f32 {
        self.d * self.problem.series.at(self.codes[j])
    }

    fn error(&self, j: usize, scale: f32) -> f32 {
        let (x, w) = self.sub_block(j);
        let mut levels = [0.0; MAX_RUN];
        let levels = &mut levels[..Self::LEN];
        self.problem.levels.project(x, w, recip(scale), levels);
        let mut error = 0.0;
        for ((&x, &w), &level) in x.iter().zip(w).zip(levels.iter()) {
            let e = scale * level - x;
            error += w * e * e;
        }
        error
    }

    fn total_error(&self) -> f32 {
        (0..SUBS).map(|j| self.error(j, self.scale(j))).sum()
    }

    fn polish_sub_blocks(&mut self) {
        for j in 0..SUBS {
            let code = self.codes[j];
            let mut best = (f32::INFINITY, code);
            for code in code.saturating_sub(1)..=(code + 1).min(self.problem.series.n - 1) {
                let error = self.error(j, self.d * self.problem.series.at(code));
                if error < best.0 {
                    best = (error, code);
                }
            }
            self.codes[j] = best.1;
        }
    }

    /// Solves for `d` with levels and scales as they are; kept when the error falls.
    fn polish_super_block(&mut self) {
        let (mut ax, mut aa) = (0.0, 0.0);
        let mut levels = [0.0; MAX_RUN];
        for j in 0..SUBS {
            let (x, w) = self.sub_block(j);
            let multiplier = self.problem.series.at(self.codes[j]);
            let levels = &mut levels[..Self::LEN];
            self.problem.levels.project(x, w, recip(self.scale(j)), levels);
            for ((&x, &w), &level) in x.iter().zip(w).zip(levels.iter()) {
                let a = multiplier * level;
                ax += w * a * x;
                aa += w * a * a;
            }
        }
        let (d, before) = (self.d, self.total_error());
        self.d = f16_rounded(ax / aa);
        // NaN (no level at all) and infinity are no improvement.
        let improved = self.total_error() < before;
        if !improved {
            self.d = d;
        }
    }

    /// The levels of every element.
    pub fn levels(&self) -> [f32; 256] {
        let mut levels = [0.0; 256];
        for (j, levels) in levels.chunks_exact_mut(Self::LEN).enumerate() {
            let (x, w) = self.sub_block(j);
            self.problem.levels.project(x, w, recip(self.scale(j)), levels);
        }
        levels
    }
}

/// An f32 that an f16 holds exactly.
pub fn f16_rounded(v: f32) -> f32 {
    half::f16::from_f32(v).to_f32()
}
