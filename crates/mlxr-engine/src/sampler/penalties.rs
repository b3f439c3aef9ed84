//! Penalties for tokens that were there before, and fixed biases.

use std::collections::BTreeMap;

use super::candidates::Candidates;

/// Repetition, frequency and presence penalties over the last tokens of prompt and output together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// How many of the last tokens count; `None` is all of them, 0 turns penalties off.
    pub last_n: Option<usize>,
    /// Divides a positive logit, multiplies a negative one (Keskar et al. 2019); 1 is off.
    pub repeat: f32,
    /// Subtracted once per occurrence.
    pub frequency: f32,
    /// Subtracted once if the token occurs.
    pub presence: f32,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { last_n: Some(64), repeat: 1.0, frequency: 0.0, presence: 0.0 }
    }
}

impl Penalties {
    pub(super) fn is_off(&self) -> bool {
        self.repeat == 1.0 && self.frequency == 0.0 && self.presence == 0.0
    }

    /// How many tokens may lose by them, if none gains and their number is bounded.
    pub(super) fn n_lowered(&self) -> Option<usize> {
        if self.is_off() {
            return Some(0);
        }
        let lowers = self.repeat >= 1.0 && self.frequency >= 0.0 && self.presence >= 0.0;
        self.last_n.filter(|_| lowers)
    }

    /// How often each of the last tokens occurs; none where penalties are off.
    pub(super) fn counts(&self, history: &[u32]) -> BTreeMap<u32, u32> {
        let mut counts = BTreeMap::<u32, u32>::new();
        let counted = if self.is_off() { &[] } else { last(history, self.last_n) };
        for &id in counted {
            *counts.entry(id).or_default() += 1;
        }
        counts
    }

    pub fn apply(&self, candidates: &mut Candidates, history: &[u32]) {
        for (id, count) in self.counts(history) {
            candidates.update(id, |logit| {
                let scaled = if logit <= 0.0 { logit * self.repeat } else { logit / self.repeat };
                scaled - (count as f32 * self.frequency + self.presence)
            });
        }
        candidates.restore_order();
    }
}

/// The last `n` tokens, all for `None`.
pub(super) fn last<T>(history: &[T], n: Option<usize>) -> &[T] {
    &history[history.len().saturating_sub(n.unwrap_or(usize::MAX))..]
}

/// Adds to the logits of chosen tokens; negative infinity forbids a token.
pub fn logit_bias(candidates: &mut Candidates, bias: &[(u32, f32)]) {
    for &(id, value) in bias {
        candidates.update(id, |logit| logit + value);
    }
    if !bias.is_empty() {
        candidates.restore_order();
    }
}
