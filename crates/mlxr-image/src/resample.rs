//! Resizing by Pillow's bicubic filter: the same integers in the same order, so that models see what they were trained on.
//!
//! Pillow's `Resample.c`: columns first, then lines, each result a weighted sum of the pixels under the filter, which
//! widens where an image shrinks; weights are rounded to 22 bits and results to levels.

/// Bits of a weight behind the point.
const PRECISION: u32 = 32 - 8 - 2;
/// The filter's radius, where the size stays.
const RADIUS: f64 = 2.0;
const N_CHANNELS: usize = 3;

/// Pixels of one result: the first, and the weight of each.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// An image's lines of three levels a pixel.
pub(crate) struct Levels {
    pub width: usize,
    pub height: usize,
    pub values: Vec<u8>,
}

/// Keys' cubic convolution with `a = -0.5`.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

fn windows(n_in: usize, n_out: usize) -> Vec<Window> {
    let scale = n_in as f64 / n_out as f64;
    let filter_scale = scale.max(1.0);
    let support = RADIUS * filter_scale;
    let window = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        // Truncated as C does it.
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(n_in);
        let weigh = |at: usize| bicubic((at as f64 - center + 0.5) * (1.0 / filter_scale));
        let weights: Vec<f64> = (first..end).map(weigh).collect();
        let sum: f64 = weights.iter().sum();
        let rounded = |weight: f64| {
            let weight = if sum == 0.0 { weight } else { weight / sum };
            (weight * f64::from(1 << PRECISION) + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Window { first, weights: weights.into_iter().map(rounded).collect() }
    };
    (0..n_out).map(window).collect()
}

/// The level that a sum of weighted levels stands for.
fn level(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The image in another size.
pub(crate) fn resize(image: Levels, width: usize, height: usize) -> Levels {
    let image = if image.width == width { image } else { resize_lines(&image, width) };
    if image.height == height { image } else { resize_columns(&image, height) }
}

fn resize_lines(image: &Levels, width: usize) -> Levels {
    let windows = windows(image.width, width);
    let mut values = Vec::with_capacity(image.height * width * N_CHANNELS);
    for line in image.values.chunks_exact(image.width * N_CHANNELS) {
        for window in &windows {
            let pixels = line[window.first * N_CHANNELS..].chunks_exact(N_CHANNELS);
            let mut sums = [1 << (PRECISION - 1); N_CHANNELS];
            for (pixel, weight) in pixels.zip(&window.weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &v)| *sum += i32::from(v) * weight);
            }
            values.extend(sums.map(level));
        }
    }
    Levels { width, height: image.height, values }
}

fn resize_columns(image: &Levels, height: usize) -> Levels {
    let n_line = image.width * N_CHANNELS;
    let mut values = Vec::with_capacity(height * n_line);
    let mut sums = vec![0i32; n_line];
    for window in windows(image.height, height) {
        sums.fill(1 << (PRECISION - 1));
        let lines = image.values[window.first * n_line..].chunks_exact(n_line);
        for (line, weight) in lines.zip(&window.weights) {
            sums.iter_mut().zip(line).for_each(|(sum, &v)| *sum += i32::from(v) * weight);
        }
        values.extend(sums.iter().map(|&sum| level(sum)));
    }
    Levels { width: image.width, height, values }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_level_stays_what_it_is_at_any_size() {
        for (width, height) in [(1, 1), (7, 5), (3, 64), (200, 9)] {
            let image = Levels { width: 31, height: 17, values: vec![201; 31 * 17 * 3] };
            let resized = resize(image, width, height);
            assert_eq!(resized.values, vec![201; width * height * 3], "{width} x {height}");
        }
    }

    #[test]
    fn the_size_it_has_changes_nothing() {
        let values: Vec<u8> = (0..5 * 4 * 3).map(|i| (i * 37) as u8).collect();
        let image = Levels { width: 5, height: 4, values: values.clone() };
        assert_eq!(resize(image, 5, 4).values, values);
    }
}
