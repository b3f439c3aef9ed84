//! Nearest points of the IQ codebooks.
//!
//! Rounding every element to its nearest level gives a pattern. If the pattern is a point of the codebook it is the
//! best one; otherwise the candidates are the points at the two smallest distances from the pattern, found once per
//! pattern, and the nearest of them to the actual values is taken.

use std::sync::LazyLock;

use super::fit::Levels;
use super::grids::{self, Grid};

/// A codebook with the candidates of every pattern.
pub struct Codebook<const D: usize> {
    points: &'static [[i8; D]],
    levels: Vec<i8>,
    /// Candidates of all patterns, those of pattern `p` in `starts[p]..starts[p + 1]`.
    candidates: Vec<u16>,
    starts: Vec<u32>,
}

pub static IQ1: LazyLock<Codebook<8>> = LazyLock::new(|| Codebook::new(&grids::IQ1));
pub static IQ2_XXS: LazyLock<Codebook<8>> = LazyLock::new(|| Codebook::new(&grids::IQ2_XXS));
pub static IQ2_XS: LazyLock<Codebook<8>> = LazyLock::new(|| Codebook::new(&grids::IQ2_XS));
pub static IQ2_S: LazyLock<Codebook<8>> = LazyLock::new(|| Codebook::new(&grids::IQ2_S));
pub static IQ3_XXS: LazyLock<Codebook<4>> = LazyLock::new(|| Codebook::new(&grids::IQ3_XXS));
pub static IQ3_S: LazyLock<Codebook<4>> = LazyLock::new(|| Codebook::new(&grids::IQ3_S));

impl<const D: usize> Codebook<D> {
    fn new<const N: usize>(points: &'static Grid<D, N>) -> Self {
        let mut levels: Vec<i8> = points.iter().flatten().copied().collect();
        levels.sort_unstable();
        levels.dedup();
        let n_patterns = levels.len().pow(D as u32);
        let mut book = Self { points, levels, candidates: Vec::new(), starts: vec![0] };
        let mut distances = vec![0; N];
        for pattern in 0..n_patterns {
            book.add_candidates(pattern, &mut distances);
            book.starts.push(book.candidates.len() as u32);
        }
        book
    }

    fn add_candidates(&mut self, pattern: usize, distances: &mut [i32]) {
        let values = self.pattern_values(pattern);
        let (mut first, mut second) = (i32::MAX, i32::MAX);
        for (distance, point) in distances.iter_mut().zip(self.points) {
            let square = |(a, b): (&i8, &i8)| (i32::from(*a) - i32::from(*b)).pow(2);
            *distance = point.iter().zip(&values).map(square).sum();
            if *distance < first {
                (first, second) = (*distance, first);
            } else if *distance > first && *distance < second {
                second = *distance;
            }
        }
        let limit = if first == 0 { 0 } else { second };
        let near = distances.iter().enumerate().filter(|(_, distance)| **distance <= limit);
        self.candidates.extend(near.map(|(i, _)| i as u16));
    }

    fn pattern_values(&self, mut pattern: usize) -> [i8; D] {
        std::array::from_fn(|_| {
            let level = self.levels[pattern % self.levels.len()];
            pattern /= self.levels.len();
            level
        })
    }

    /// The index of the point nearest to `x * inverse - shift`, errors weighed by `w`.
    pub fn nearest(&self, x: &[f32; D], w: &[f32; D], inverse: f32, shift: f32) -> usize {
        let scaled = x.map(|v| v * inverse - shift);
        let mut pattern = 0;
        for v in scaled.iter().rev() {
            let above = |pair: &&[i8]| 2.0 * v > f32::from(pair[0]) + f32::from(pair[1]);
            pattern = pattern * self.levels.len() + self.levels.windows(2).filter(above).count();
        }
        let candidates = &self.candidates[self.starts[pattern] as usize..self.starts[pattern + 1] as usize];
        let mut best = (usize::from(candidates[0]), f32::INFINITY);
        if candidates.len() == 1 {
            return best.0;
        }
        for &i in candidates {
            let point = &self.points[usize::from(i)];
            let mut error = 0.0;
            for ((v, w), level) in scaled.iter().zip(w).zip(point) {
                let e = v - f32::from(*level);
                error += w * e * e;
            }
            if error < best.1 {
                best = (usize::from(i), error);
            }
        }
        best.0
    }

    /// The levels of a point.
    pub fn point(&self, index: usize) -> &'static [i8; D] {
        &self.points[index]
    }
}

impl<const D: usize> Levels for Codebook<D> {
    fn project(&self, x: &[f32], w: &[f32], inverse: f32, levels: &mut [f32]) {
        let groups = x.as_chunks::<D>().0.iter().zip(w.as_chunks::<D>().0);
        for ((x, w), levels) in groups.zip(levels.as_chunks_mut::<D>().0) {
            *levels = self.points[self.nearest(x, w, inverse, 0.0)].map(f32::from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_their_own_nearest() {
        for index in [0, 17, 255] {
            let x = IQ2_XXS.point(index).map(|l| f32::from(l) * 0.5);
            assert_eq!(IQ2_XXS.nearest(&x, &[1.0; 8], 2.0, 0.0), index);
            let x = IQ3_XXS.point(index).map(f32::from);
            assert_eq!(IQ3_XXS.nearest(&x, &[1.0; 4], 1.0, 0.0), index);
        }
    }

    #[test]
    fn an_impossible_pattern_goes_to_a_near_point() {
        // The element of weight decides between the points around a pattern that is not in the codebook.
        let mut w = [0.01; 8];
        w[3] = 1.0;
        let mut x = [8.0; 8];
        (x[3], x[5]) = (43.0, 25.0);
        assert_eq!(IQ2_XXS.point(IQ2_XXS.nearest(&x, &w, 1.0, 0.0))[3], 43);
    }
}
