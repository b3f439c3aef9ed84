//! Notices a model that says the same thing over and over.

/// When repetition counts as a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopLimits {
    /// Longest passage that is compared, in tokens; work per token grows with it.
    pub max_period: usize,
    /// A passage must come so many times in a row,
    pub min_repeats: usize,
    /// and all of it be at least so many tokens.
    pub min_tokens: usize,
}

impl Default for LoopLimits {
    fn default() -> Self {
        Self { max_period: 256, min_repeats: 6, min_tokens: 192 }
    }
}

/// Follows one sequence's output.
#[derive(Clone, Debug)]
pub struct LoopGuard {
    limits: LoopLimits,
    /// The last `max_period` tokens, as a ring.
    recent: Vec<u32>,
    n_seen: usize,
    /// For each period, how many tokens in a row equalled the one a period before.
    runs: Vec<usize>,
}

impl LoopGuard {
    pub fn new(limits: LoopLimits) -> Self {
        Self { limits, recent: vec![0; limits.max_period], n_seen: 0, runs: vec![0; limits.max_period] }
    }

    /// Takes in a token. Whether the output has become a loop.
    pub fn push(&mut self, id: u32) -> bool {
        let n = self.recent.len();
        let mut is_loop = false;
        for period in 1..=n.min(self.n_seen) {
            let run = &mut self.runs[period - 1];
            let before = self.recent[(self.n_seen - period) % n];
            *run = if before == id { *run + 1 } else { 0 };
            // The first time round matches nothing before it.
            let n_tokens = *run + period;
            is_loop |= n_tokens >= self.limits.min_tokens.max(period * self.limits.min_repeats);
        }
        if n > 0 {
            self.recent[self.n_seen % n] = id;
        }
        self.n_seen += 1;
        is_loop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LoopLimits = LoopLimits { max_period: 5, min_repeats: 3, min_tokens: 8 };

    /// After how many tokens a loop is seen.
    fn seen_after(tokens: impl IntoIterator<Item = u32>) -> Option<usize> {
        let mut guard = LoopGuard::new(LIMITS);
        tokens.into_iter().position(|id| guard.push(id)).map(|i| i + 1)
    }

    #[test]
    fn a_passage_repeated_often_enough_is_a_loop() {
        assert_eq!(seen_after([9, 1, 2, 3, 1, 2, 3, 1, 2, 3]), Some(10));
        assert_eq!(seen_after([7; 20]), Some(8));
        assert_eq!(seen_after([1, 2, 1, 2, 1, 2]), None);
    }

    #[test]
    fn an_interruption_starts_the_count_anew() {
        assert_eq!(seen_after([7, 7, 7, 7, 7, 7, 7, 1, 7, 7, 7, 7, 7, 7, 7]), None);
    }

    #[test]
    fn passages_longer_than_the_limit_are_not_seen() {
        assert_eq!(seen_after((0..60).map(|i| i % 6)), None);
    }
}
