//! Encoders of the codebook types.
//!
//! IQ2 and IQ3 hold magnitudes in the codebook and signs apart; where only 7 of 8 signs are stored, the cheapest
//! element to get wrong is flipped if the number of minus signs is odd. IQ1 holds signed levels and a shift that all
//! elements of a group share.

use super::codebook::{self, Codebook};
use super::fit::{self, Levels};
use super::iquant::IQ1_DELTA;
use super::legacy::{put_f16, recip};
use super::planes::pack;
use super::scaled::{Problem, Scaled, Series};

/// Which sign patterns can be stored.
#[derive(Clone, Copy, PartialEq)]
enum Signs {
    /// All eight bits.
    Free,
    /// An even number of minus signs.
    Even,
}

/// Magnitudes and signs of a super-block.
struct Magnitudes {
    /// Values with their stored sign taken off: only a flipped element is negative.
    x: [f32; 256],
    signs: [u8; 32],
}

impl Magnitudes {
    fn new(x: &[f32; 256], w: &[f32; 256], stored: Signs) -> Self {
        let mut signs = [0; 32];
        for (n, signs) in signs.iter_mut().enumerate() {
            let (x, w) = (&x[8 * n..][..8], &w[8 * n..][..8]);
            *signs = (0..8).fold(0, |bits, i| bits | u8::from(x[i] < 0.0) << i);
            if stored == Signs::Even && signs.count_ones() % 2 == 1 {
                let cost = |i: &usize| w[*i] * x[*i] * x[*i];
                let cheapest = (0..8).min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
                *signs ^= 1 << cheapest;
            }
        }
        let unsigned = |i: usize| if signs[i / 8] >> (i % 8) & 1 == 1 { -x[i] } else { x[i] };
        Self { x: std::array::from_fn(unsigned), signs }
    }
}

/// Reciprocal scales that put the largest of `x` between `low` and `high`.
fn spread(x: &[f32], low: f32, high: f32) -> impl Iterator<Item = f32> + use<> {
    const STEPS: u8 = 20;
    let inverse = recip(fit::extreme(x).abs());
    (0..=STEPS).map(move |n| (low + (high - low) * f32::from(n) / f32::from(STEPS)) * inverse)
}

/// The codebook indices of every group of `D`.
fn indices<const SUBS: usize, const D: usize>(
    fit: &Scaled<SUBS, Codebook<D>>,
    book: &Codebook<D>,
) -> impl Fn(usize) -> usize {
    let groups: Vec<usize> = (0..SUBS)
        .flat_map(|j| {
            let (x, w) = fit.sub_block(j);
            let inverse = recip(fit.scale(j));
            let groups = x.as_chunks::<D>().0.iter().zip(w.as_chunks::<D>().0);
            groups.map(move |(x, w)| book.nearest(x, w, inverse, 0.0)).collect::<Vec<_>>()
        })
        .collect();
    move |n| groups[n]
}

/// Multipliers of the IQ2 types.
const IQ2_SERIES: Series = Series { base: 0.125, step: 0.25, n: 16 };
/// Where the largest magnitude of an IQ2 sub-block may land; the top level is 43.
const IQ2_SPREAD: (f32, f32) = (30.0, 60.0);

pub fn encode_iq2_xxs(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 66]) {
    let w = fit::value_weights(x, importance, 32);
    let Magnitudes { x, signs } = Magnitudes::new(x, &w, Signs::Even);
    let book = &*codebook::IQ2_XXS;
    let problem = Problem { x: &x, w: &w, levels: book, series: IQ2_SERIES };
    let fit = Scaled::<8, _>::new(problem, |x| spread(x, IQ2_SPREAD.0, IQ2_SPREAD.1));
    let index = indices(&fit, book);
    put_f16(out, 0, fit.d);
    for (j, part) in out[2..].as_chunks_mut::<8>().0.iter_mut().enumerate() {
        for (n, byte) in part[..4].iter_mut().enumerate() {
            *byte = index(4 * j + n) as u8;
        }
        part[4..].copy_from_slice(&signs_and_scale(&signs[4 * j..], fit.codes[j]).to_le_bytes());
    }
}

/// Four times 7 signs, and a scale code in the top 4 bits.
fn signs_and_scale(signs: &[u8], code: u16) -> u32 {
    let signs = (0..4).fold(0, |word, n| word | u32::from(signs[n] & 0x7f) << (7 * n));
    signs | u32::from(code) << 28
}

pub fn encode_iq2_xs(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 74]) {
    let w = fit::value_weights(x, importance, 16);
    let Magnitudes { x, signs } = Magnitudes::new(x, &w, Signs::Even);
    let book = &*codebook::IQ2_XS;
    let problem = Problem { x: &x, w: &w, levels: book, series: IQ2_SERIES };
    let fit = Scaled::<16, _>::new(problem, |x| spread(x, IQ2_SPREAD.0, IQ2_SPREAD.1));
    let index = indices(&fit, book);
    put_f16(out, 0, fit.d);
    for (n, word) in out[2..66].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        *word = (index(n) as u16 | u16::from(signs[n] & 0x7f) << 9).to_le_bytes();
    }
    pack::<4, 1>(&fit.codes.map(|code| code as u8), &mut out[66..]);
}

pub fn encode_iq2_s(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 82]) {
    let w = fit::value_weights(x, importance, 16);
    let Magnitudes { x, signs } = Magnitudes::new(x, &w, Signs::Free);
    let book = &*codebook::IQ2_S;
    let problem = Problem { x: &x, w: &w, levels: book, series: IQ2_SERIES };
    let fit = Scaled::<16, _>::new(problem, |x| spread(x, IQ2_SPREAD.0, IQ2_SPREAD.1));
    let index = indices(&fit, book);
    put_f16(out, 0, fit.d);
    let index: [usize; 32] = std::array::from_fn(index);
    out[2..34].copy_from_slice(&index.map(|i| i as u8));
    out[34..66].copy_from_slice(&signs);
    pack::<2, 1>(&index.map(|i| (i >> 8) as u8), &mut out[66..74]);
    pack::<4, 1>(&fit.codes.map(|code| code as u8), &mut out[74..]);
}

pub fn encode_iq3_xxs(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 98]) {
    let w = fit::value_weights(x, importance, 32);
    let Magnitudes { x, signs } = Magnitudes::new(x, &w, Signs::Even);
    let book = &*codebook::IQ3_XXS;
    let series = Series { base: 0.25, step: 0.5, n: 16 };
    let problem = Problem { x: &x, w: &w, levels: book, series };
    let fit = Scaled::<8, _>::new(problem, |x| spread(x, 48.0, 74.0));
    let index = indices(&fit, book);
    put_f16(out, 0, fit.d);
    for n in 0..64 {
        out[2 + n] = index(n) as u8;
    }
    for (j, word) in out[66..].as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *word = signs_and_scale(&signs[4 * j..], fit.codes[j]).to_le_bytes();
    }
}

pub fn encode_iq3_s(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 110]) {
    let w = fit::value_weights(x, importance, 32);
    let Magnitudes { x, signs } = Magnitudes::new(x, &w, Signs::Free);
    let book = &*codebook::IQ3_S;
    let series = Series { base: 1.0, step: 2.0, n: 16 };
    let problem = Problem { x: &x, w: &w, levels: book, series };
    let fit = Scaled::<8, _>::new(problem, |x| spread(x, 12.0, 18.0));
    let index: [usize; 64] = std::array::from_fn(indices(&fit, book));
    put_f16(out, 0, fit.d);
    out[2..66].copy_from_slice(&index.map(|i| i as u8));
    pack::<1, 1>(&index.map(|i| (i >> 8) as u8), &mut out[66..74]);
    out[74..106].copy_from_slice(&signs);
    pack::<4, 1>(&fit.codes.map(|code| code as u8), &mut out[106..]);
}

/// Multipliers of the IQ1 types.
const IQ1_SERIES: Series = Series { base: 1.0, step: 2.0, n: 8 };
/// Where the largest magnitude of an IQ1 sub-block may land; the top level is 1.
const IQ1_SPREAD: (f32, f32) = (1.0, 3.0);

/// IQ1 levels, with one shift for every `RUN` elements.
struct Ternary<const RUN: usize>;

/// The points of the groups of a run, and whether their shift is negative.
struct Shifted {
    indices: [usize; 4],
    minus: bool,
}

impl<const RUN: usize> Ternary<RUN> {
    fn choose(&self, x: &[f32], w: &[f32], inverse: f32) -> Shifted {
        let [plus, minus] = [IQ1_DELTA, -IQ1_DELTA].map(|shift| {
            let (mut indices, mut error) = ([0; 4], 0.0);
            for (n, (x, w)) in x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0).enumerate() {
                indices[n] = codebook::IQ1.nearest(x, w, inverse, shift);
                for ((x, w), &level) in x.iter().zip(w).zip(codebook::IQ1.point(indices[n])) {
                    error += w * (x * inverse - shift - f32::from(level)).powi(2);
                }
            }
            (error, indices)
        });
        let negative = minus.0 < plus.0;
        Shifted { indices: if negative { minus.1 } else { plus.1 }, minus: negative }
    }
}

impl<const RUN: usize> Levels for Ternary<RUN> {
    fn project(&self, x: &[f32], w: &[f32], inverse: f32, levels: &mut [f32]) {
        for ((x, w), levels) in x.chunks(RUN).zip(w.chunks(RUN)).zip(levels.chunks_mut(RUN)) {
            let Shifted { indices, minus } = self.choose(x, w, inverse);
            let shift = if minus { -IQ1_DELTA } else { IQ1_DELTA };
            for (levels, index) in levels.as_chunks_mut::<8>().0.iter_mut().zip(indices) {
                *levels = codebook::IQ1.point(index).map(|level| f32::from(level) + shift);
            }
        }
    }
}

pub fn encode_iq1_s(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 50]) {
    let w = fit::value_weights(x, importance, 32);
    let levels = Ternary::<32>;
    let problem = Problem { x, w: &w, levels: &levels, series: IQ1_SERIES };
    let fit = Scaled::<8, _>::new(problem, |x| spread(x, IQ1_SPREAD.0, IQ1_SPREAD.1));
    put_f16(out, 0, fit.d);
    for j in 0..8 {
        let (x, w) = fit.sub_block(j);
        let Shifted { indices, minus } = levels.choose(x, w, recip(fit.scale(j)));
        let mut qh = fit.codes[j] << 12 | u16::from(minus) << 15;
        for (n, index) in indices.into_iter().enumerate() {
            out[2 + 4 * j + n] = index as u8;
            qh |= (index as u16 >> 8) << (3 * n);
        }
        out[34 + 2 * j..][..2].copy_from_slice(&qh.to_le_bytes());
    }
}

pub fn encode_iq1_m(x: &[f32; 256], importance: Option<&[f32; 256]>, out: &mut [u8; 56]) {
    let w = fit::value_weights(x, importance, 16);
    let levels = Ternary::<8>;
    let problem = Problem { x, w: &w, levels: &levels, series: IQ1_SERIES };
    let fit = Scaled::<16, _>::new(problem, |x| spread(x, IQ1_SPREAD.0, IQ1_SPREAD.1));
    let mut high = [0; 32];
    for (n, high) in high.iter_mut().enumerate() {
        let (x, w) = fit.sub_block(n / 2);
        let at = n % 2 * 8;
        let chosen = levels.choose(&x[at..at + 8], &w[at..at + 8], recip(fit.scale(n / 2)));
        out[n] = chosen.indices[0] as u8;
        *high = (chosen.indices[0] >> 8) as u8 | u8::from(chosen.minus) << 3;
    }
    pack::<4, 1>(&high, &mut out[32..48]);
    let d = half::f16::from_f32(fit.d).to_bits();
    for (i, word) in out[48..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let scales = (0..4).fold(0, |bits, n| bits | fit.codes[4 * i + n] << (3 * n));
        *word = (scales | (d >> (4 * i) & 15) << 12).to_le_bytes();
    }
}
