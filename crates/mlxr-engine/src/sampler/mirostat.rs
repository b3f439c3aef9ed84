//! Mirostat (Basu et al. 2021, "Mirostat: a neural text decoding algorithm that directly controls perplexity").
//!
//! Both versions keep the surprise of chosen tokens, in bits, near a target by feeding the error back into a bound.
//! As in the implementations people tune their settings on, surprise is measured on the truncated distribution.

use super::candidates::{Candidate, Candidates};

/// How tokens are truncated and what is learned from each.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub enum Mirostat {
    #[default]
    Off,
    /// A top-k whose k follows from the estimated Zipf exponent of the 100 most likely tokens.
    V1 { tau: f32, eta: f32 },
    /// Tokens more surprising than the bound are dropped.
    V2 { tau: f32, eta: f32 },
}

/// Tokens the exponent is estimated from.
const N_ESTIMATE: usize = 100;

impl Mirostat {
    /// The bound before the first token.
    pub fn initial_mu(self) -> f32 {
        match self {
            Mirostat::Off => 0.0,
            Mirostat::V1 { tau, .. } | Mirostat::V2 { tau, .. } => 2.0 * tau,
        }
    }

    /// Chooses a token by `u` in `[0, 1)` and moves `mu`. `None` when there is no candidate.
    pub fn sample(
        self,
        candidates: &mut Candidates,
        mu: &mut f32,
        n_vocab: usize,
        u: f64,
    ) -> Option<Candidate> {
        candidates.softmax();
        let (tau, eta) = match self {
            Mirostat::Off => return candidates.pick(u).copied(),
            Mirostat::V1 { tau, eta } => {
                candidates.sort();
                let k = k_for_surprise(candidates.items(), *mu, n_vocab);
                candidates.keep_largest(k);
                (tau, eta)
            }
            Mirostat::V2 { tau, eta } => {
                let best = candidates.best()?.id;
                candidates.retain(|c| surprise_bits(c.p) <= *mu || c.id == best);
                candidates.sort();
                (tau, eta)
            }
        };
        candidates.softmax();
        let chosen = *candidates.pick(u)?;
        *mu -= eta * (surprise_bits(chosen.p) - tau);
        Some(chosen)
    }
}

fn surprise_bits(p: f32) -> f32 {
    -libm::log2f(p)
}

/// The paper's equation 30: the k for which a Zipf distribution over the vocabulary has expected surprise `mu`.
/// `items` are sorted.
fn k_for_surprise(items: &[Candidate], mu: f32, n_vocab: usize) -> usize {
    let (mut sum_tb, mut sum_tt) = (0.0f32, 0.0f32);
    for (i, pair) in items.windows(2).take(N_ESTIMATE - 1).enumerate() {
        if pair[1].p <= 0.0 {
            break;
        }
        let t = libm::logf((i + 2) as f32 / (i + 1) as f32);
        let b = libm::logf(pair[0].p / pair[1].p);
        sum_tb += t * b;
        sum_tt += t * t;
    }
    let s_hat = sum_tb / sum_tt;
    let epsilon = s_hat - 1.0;
    let k = libm::powf(epsilon * libm::exp2f(mu) / (1.0 - libm::powf(n_vocab as f32, -epsilon)), 1.0 / s_hat);
    // A flat or single-token distribution has no exponent; then everything stays.
    if k.is_finite() { (k.round().max(1.0) as usize).min(items.len()) } else { items.len() }
}
