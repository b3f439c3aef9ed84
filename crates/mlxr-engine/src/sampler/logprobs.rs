//! Log-probabilities as the model gave them: the log-softmax of the raw logits, before any bias, penalty, truncation
//! or temperature.

use mlxr_tensor::math::exp_below;
use mlxr_tensor::{argmax, largest};

use super::SampleError;

/// Logits whose exponentials are computed at a time.
const CHUNK: usize = 256;

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    pub id: u32,
    pub logprob: f32,
}

/// The log-probability of a token and of the likeliest ones in its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    pub token: TokenLogprob,
    /// Most likely first.
    pub top: Vec<TokenLogprob>,
}

/// Log-probabilities of `id` and of the `n_top` largest logits.
///
/// # Errors
/// When the logits are no distribution, or `id` is not among them.
pub fn logprobs(logits: &[f32], id: u32, n_top: usize) -> Result<Logprobs, SampleError> {
    check_logits(logits)?;
    let n_vocab = logits.len();
    let own = *logits.get(id as usize).ok_or(SampleError::NoSuchToken { id, n_vocab })?;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut exps = [0f32; CHUNK];
    let sums = logits.chunks(CHUNK).map(|logits| exp_below(logits, max, &mut exps[..logits.len()]));
    let sum: f64 = sums.sum();
    let log_sum = libm::log(sum);
    let of = |id: u32, logit: f32| TokenLogprob { id, logprob: (f64::from(logit - max) - log_sum) as f32 };
    let top = largest(logits, n_top).into_iter().map(|(id, logit)| of(id, logit)).collect();
    Ok(Logprobs { token: of(id, own), top })
}

/// A row of logits is usable when none is NaN or positive infinity and one is finite. Returns the largest one's id, the
/// lowest among equals.
pub(super) fn check_logits(logits: &[f32]) -> Result<u32, SampleError> {
    if let Some(best) = argmax(logits) {
        return Ok(best);
    }
    let bad = logits.iter().enumerate().find(|(_, logit)| logit.is_nan() || **logit == f32::INFINITY);
    Err(bad.map_or(SampleError::NoCandidate, |(id, &logit)| SampleError::BadLogit { id: id as u32, logit }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_row_is_checked_whatever_its_length(
            mut logits in proptest::collection::vec(-4i8..4, 1..70)
                .prop_map(|row| row.into_iter().map(f32::from).collect::<Vec<_>>()),
            bad in proptest::option::of((any::<usize>(), prop_oneof![Just(f32::NAN), Just(f32::INFINITY)])),
        ) {
            if let Some((at, value)) = bad {
                let at = at % logits.len();
                logits[at] = value;
                let found = check_logits(&logits);
                let is_found = matches!(found, Err(SampleError::BadLogit { id, .. }) if id as usize == at);
                prop_assert!(is_found, "{:?}", found);
            } else {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let first = logits.iter().position(|&logit| logit == max).unwrap();
                prop_assert_eq!(check_logits(&logits), Ok(first as u32));
            }
        }
    }

    #[test]
    fn a_row_without_a_finite_logit_has_no_candidate() {
        assert_eq!(check_logits(&[f32::NEG_INFINITY; 20]), Err(SampleError::NoCandidate));
    }

    #[test]
    fn logprobs_are_those_of_the_softmax_and_ranked() {
        let logits = [1.0f32, 3.0, -2.0, 3.0, f32::NEG_INFINITY];
        let found = logprobs(&logits, 2, 3).unwrap();
        let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = |id: usize| (f64::from(logits[id]).exp() / sum).ln();
        assert!((f64::from(found.token.logprob) - expected(2)).abs() < 1e-6);
        assert_eq!(found.top.iter().map(|t| t.id).collect::<Vec<_>>(), [1, 3, 0]);
        for token in &found.top {
            assert!((f64::from(token.logprob) - expected(token.id as usize)).abs() < 1e-6);
        }
        assert_eq!(logprobs(&logits, 4, 0).unwrap().token.logprob, f32::NEG_INFINITY);
        assert_eq!(check_logits(&logits), Ok(1));
        assert_eq!(logprobs(&logits, 9, 0), Err(SampleError::NoSuchToken { id: 9, n_vocab: 5 }));
    }
}
