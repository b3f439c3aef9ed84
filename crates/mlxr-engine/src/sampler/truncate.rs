//! Samplers that drop unlikely tokens. Each leaves at least one.

use std::ops::Range;

use super::candidates::Candidates;

/// Keeps the `k` largest logits (Fan et al. 2018); 0 keeps all.
pub fn top_k(candidates: &mut Candidates, k: usize) {
    // Also where that is all of them: what is kept is in rank order, whoever found it.
    if 0 < k {
        candidates.keep_largest(k);
    }
}

/// Keeps the smallest set of most likely tokens with probability `p` or more (Holtzman et al. 2020); 1 keeps all.
pub fn top_p(candidates: &mut Candidates, p: f32) {
    if p < 1.0 {
        candidates.softmax();
        candidates.keep_mass(p);
    }
}

/// [`top_p`] where the candidates are the largest of a row, by rank, and the sum of its exponentials lies in `exp_sum`.
/// Returns whether they decide it: what is kept must be the same for every such sum.
pub fn top_p_of(candidates: &mut Candidates, p: f32, exp_sum: Range<f64>) -> bool {
    let Some(max) = candidates.best().map(|c| c.logit) else { return false };
    let (low, high) = (f64::from(p) * exp_sum.start, f64::from(p) * exp_sum.end);
    let mut sum = 0.0;
    for (i, candidate) in candidates.items().iter().enumerate() {
        sum += f64::from(libm::expf(candidate.logit - max));
        if sum >= low {
            let is_decided = sum >= high;
            if is_decided {
                candidates.keep_largest(i + 1);
            }
            return is_decided;
        }
    }
    false
}

/// [`min_p`] where the candidates are the largest of a row, by rank. Returns whether they decide it: they must be the
/// whole row, or reach below what is kept.
pub fn min_p_of(candidates: &mut Candidates, p: f32, is_whole: bool) -> bool {
    let Some(last) = candidates.items().last().copied() else { return false };
    min_p(candidates, p);
    let is_decided = is_whole || candidates.items().last().is_some_and(|kept| kept.id != last.id);
    candidates.sort_by_id();
    is_decided
}

/// Keeps tokens at least `min_p` times as likely as the most likely one (Nguyen et al. 2024); 0 keeps all.
pub fn min_p(candidates: &mut Candidates, min_p: f32) {
    if min_p <= 0.0 {
        return;
    }
    let Some(best) = candidates.best().map(|c| c.logit) else { return };
    // p / p_max = exp(logit - best), so no sum is needed.
    let floor = best + libm::logf(min_p);
    candidates.retain(|c| c.logit >= floor);
}

/// Keeps the tokens whose surprise is nearest to the entropy, up to probability `p` (Meister et al. 2022); 1 keeps
/// all.
pub fn typical(candidates: &mut Candidates, p: f32) {
    if p >= 1.0 {
        return;
    }
    candidates.softmax();
    let entropy = entropy(candidates);
    let Some(best) = candidates.best().copied() else { return };
    // Surprise is the distance to the best logit plus the best one's own surprise: no logarithm per comparison.
    let level = best.logit - libm::logf(best.p) - entropy;
    candidates.keep_mass_by(p, |c| (level - c.logit).abs());
}

/// Keeps logits within `n` standard deviations of the largest (Tang et al. 2024); 0 keeps all. Tokens at negative
/// infinity are out of the statistic.
pub fn top_n_sigma(candidates: &mut Candidates, n: f32) {
    if n <= 0.0 {
        return;
    }
    let finite = || candidates.items().iter().map(|c| f64::from(c.logit)).filter(|l| l.is_finite());
    let count = finite().count() as f64;
    let Some(best) = candidates.best().map(|c| c.logit) else { return };
    let mean = finite().sum::<f64>() / count;
    let variance = finite().map(|l| (l - mean) * (l - mean)).sum::<f64>() / count;
    let floor = best - n * variance.sqrt() as f32;
    candidates.retain(|c| c.logit >= floor);
}

/// Excludes top choices: with probability `probability` (the number `u` below it), of the tokens with `threshold` or
/// more all but the least likely go (p-e-w, "Exclude Top Choices", 2024).
pub fn xtc(candidates: &mut Candidates, probability: f32, threshold: f32, u: f64) {
    if u >= f64::from(probability) {
        return;
    }
    candidates.softmax();
    let top = candidates.items().iter().filter(|c| c.p >= threshold);
    let least = top.min_by(|a, b| a.logit.total_cmp(&b.logit).then(b.id.cmp(&a.id))).map(|c| c.id);
    if let Some(least) = least {
        candidates.retain(|c| c.p < threshold || c.id == least);
    }
}

/// Entropy of the candidates' `p`, in nats.
pub(super) fn entropy(candidates: &Candidates) -> f32 {
    let terms = candidates.items().iter().filter(|c| c.p > 0.0);
    terms.map(|c| -f64::from(c.p) * f64::from(libm::logf(c.p))).sum::<f64>() as f32
}
