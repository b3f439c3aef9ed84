//! Flattening and sharpening.

use super::candidates::Candidates;
use super::params::MIN_TEMPERATURE;
use super::truncate::entropy;

/// Divides logits by `temperature`; 0 leaves the most likely token alone.
pub fn temperature(candidates: &mut Candidates, temperature: f32) {
    if temperature < MIN_TEMPERATURE {
        candidates.keep_largest(1);
    } else if temperature != 1.0 {
        candidates.divide_logits(temperature);
    }
}

/// Temperature between `base - range` and `base + range`, by the entropy of the candidates relative to its maximum
/// raised to `exponent`: certain positions are sampled cold, uncertain ones hot.
pub fn dynamic_temperature(candidates: &mut Candidates, base: f32, range: f32, exponent: f32) {
    if candidates.len() <= 1 {
        return;
    }
    let (low, high) = ((base - range).max(0.0), base + range);
    candidates.softmax();
    let max_entropy = libm::logf(candidates.len() as f32);
    let normalised = (entropy(candidates) / max_entropy).clamp(0.0, 1.0);
    temperature(candidates, low + (high - low) * libm::powf(normalised, exponent));
}
