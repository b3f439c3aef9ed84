//! DRY, "don't repeat yourself" (p-e-w, 2024): a token that would continue a repetition of the text's end is
//! penalised, exponentially in the repetition's length. Repetitions do not reach across sequence breakers.

use std::collections::BTreeMap;

use super::candidates::Candidates;
use super::penalties::last;

/// The most sequence breakers of a request, and the longest of them in bytes: each token is searched for all.
pub const MAX_BREAKERS: usize = 64;
pub const MAX_BREAKER_BYTES: usize = 128;

/// Settings of DRY; off at multiplier 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Dry {
    pub multiplier: f32,
    pub base: f32,
    /// Repetitions up to this length cost nothing extra: the penalty is `multiplier * base^(length - allowed)`.
    pub allowed_length: usize,
    /// How many of the last tokens are searched; `None` is all of them, 0 turns DRY off.
    pub last_n: Option<usize>,
    pub breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            last_n: None,
            breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
        }
    }
}

impl Dry {
    pub fn is_off(&self) -> bool {
        self.multiplier == 0.0 || self.last_n == Some(0)
    }

    /// Penalises continuations of repetitions. `breaks[i]` says that token `i` completes a breaker.
    pub fn apply(&self, candidates: &mut Candidates, history: &[u32], breaks: &[bool]) {
        if self.is_off() {
            return;
        }
        assert_eq!(history.len(), breaks.len(), "one flag per token");
        let longest = longest_repetitions(last(history, self.last_n), last(breaks, self.last_n));
        for (id, length) in longest {
            if length >= self.allowed_length {
                let penalty = self.multiplier * libm::powf(self.base, (length - self.allowed_length) as f32);
                // An overflowing power still has to rank: infinite penalties would leave no candidate.
                let penalty = penalty.min(f32::MAX / 2.0);
                candidates.update(id, |logit| logit - penalty);
            }
        }
        candidates.restore_order();
    }
}

/// For each token that followed an earlier occurrence of the text's end: the longest such occurrence.
fn longest_repetitions(history: &[u32], breaks: &[bool]) -> BTreeMap<u32, usize> {
    let mut longest = BTreeMap::new();
    // Only what follows the last breaker can repeat.
    let limit = breaks.iter().rev().take_while(|&&is_break| !is_break).count();
    if limit == 0 {
        return longest;
    }
    let reversed: Vec<u32> = history.iter().rev().copied().collect();
    let common = z_function(&reversed);
    for (back, &length) in common.iter().enumerate().skip(1) {
        // The match ends at `history[n - 1 - back]`; the next token is one nearer to the end.
        let next = history.len() - back;
        if length > 0 && !breaks[next] {
            let best = longest.entry(history[next]).or_insert(0);
            *best = length.min(limit).max(*best);
        }
    }
    longest
}

/// `z[i]`: how many tokens from `i` on equal those from 0 on (Gusfield's Z algorithm, linear time).
fn z_function(tokens: &[u32]) -> Vec<usize> {
    let mut z = vec![0; tokens.len()];
    let (mut left, mut right) = (0, 0);
    for i in 1..tokens.len() {
        if i < right {
            z[i] = z[i - left].min(right - i);
        }
        while i + z[i] < tokens.len() && tokens[z[i]] == tokens[i + z[i]] {
            z[i] += 1;
        }
        if i + z[i] > right {
            (left, right) = (i, i + z[i]);
        }
    }
    z
}

/// Marks the tokens in which a sequence breaker ends, also when the breaker began in an earlier token.
#[derive(Clone, Debug)]
pub struct BreakTracker {
    breakers: Vec<Vec<u8>>,
    /// The end of the text so far, as long as the longest breaker less one byte.
    tail: Vec<u8>,
    breaks: Vec<bool>,
}

impl BreakTracker {
    pub fn new(breakers: &[String]) -> Self {
        let breakers = breakers.iter().map(|s| s.clone().into_bytes()).filter(|b| !b.is_empty()).collect();
        Self { breakers, tail: Vec::new(), breaks: Vec::new() }
    }

    pub fn breaks(&self) -> &[bool] {
        &self.breaks
    }

    /// Takes in the next token's text.
    pub fn push(&mut self, bytes: &[u8]) {
        let n_tail = self.tail.len();
        self.tail.extend_from_slice(bytes);
        let ends_here = |breaker: &Vec<u8>| {
            let from = (n_tail + 1).saturating_sub(breaker.len());
            self.tail[from..].windows(breaker.len()).any(|window| window == breaker)
        };
        self.breaks.push(!bytes.is_empty() && self.breakers.iter().any(ends_here));
        let longest = self.breakers.iter().map(Vec::len).max().unwrap_or(1);
        let n_drop = self.tail.len().saturating_sub(longest - 1);
        self.tail.drain(..n_drop);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Straight from the definition, in cubic time.
    fn naive(history: &[u32], breaks: &[bool]) -> BTreeMap<u32, usize> {
        let n = history.len();
        let mut longest = BTreeMap::new();
        for end in 0..n.saturating_sub(1) {
            let mut length = 0;
            while length <= end && history[end - length] == history[n - 1 - length] && !breaks[n - 1 - length]
            {
                length += 1;
            }
            if length > 0 && !breaks[end + 1] {
                let best = longest.entry(history[end + 1]).or_insert(0);
                *best = length.max(*best);
            }
        }
        longest
    }

    proptest! {
        #[test]
        fn repetitions_equal_the_definition(
            tokens in proptest::collection::vec((0u32..4, proptest::bool::weighted(0.1)), 0..40)
        ) {
            let (history, breaks): (Vec<u32>, Vec<bool>) = tokens.into_iter().unzip();
            prop_assert_eq!(longest_repetitions(&history, &breaks), naive(&history, &breaks));
        }

        #[test]
        fn breakers_are_found_across_tokens(
            pieces in proptest::collection::vec("[ab\n]{0,3}", 0..12),
            breakers in proptest::collection::vec("[ab\n]{1,3}", 1..3),
        ) {
            let mut tracker = BreakTracker::new(&breakers);
            let mut text = String::new();
            for piece in &pieces {
                let before = text.len();
                text.push_str(piece);
                tracker.push(piece.as_bytes());
                let expected = breakers.iter().any(|breaker| {
                    text.match_indices(breaker.as_str()).map(|(at, _)| at).chain(
                        // match_indices skips overlaps; look at every start.
                        (0..text.len()).filter(|&at| text[at..].starts_with(breaker.as_str())),
                    ).any(|at| at + breaker.len() > before)
                });
                prop_assert_eq!(tracker.breaks().last(), Some(&expected));
            }
        }
    }

    #[test]
    fn the_penalty_grows_with_the_repetition() {
        let dry = Dry { multiplier: 0.8, ..Dry::default() };
        // "1 2 3 4 ... 1 2 3": 4 would make it a repetition of three.
        let history = [1, 2, 3, 4, 9, 1, 2, 3];
        let mut candidates = Candidates::default();
        candidates.reset(&[0.0; 10]);
        dry.apply(&mut candidates, &history, &[false; 8]);
        let logits: Vec<f32> = candidates.items().iter().map(|c| c.logit).collect();
        assert_eq!(logits[4], -0.8 * 1.75);
        assert!(logits.iter().enumerate().all(|(id, &logit)| id == 4 || logit == 0.0));
    }
}
