//! How much a step may take on when the time between two tokens has a target.
//!
//! Additive increase, multiplicative decrease: after every window of steps the 95th percentile of the time between
//! tokens is compared with the target. Below it, prompts may take a few more rows of a step and one more sequence may
//! run; above it, prompts get a quarter less or, when steps without prompts are too slow already, a sequence fewer runs
//! from now on. Sequences that run are never stopped for it.

use std::time::Duration;

/// Steps that are judged together.
const WINDOW: usize = 20;

/// Prompt rows that a step may always have, so that prompts get on.
const MIN_PROMPT_ROWS: usize = 16;

/// What a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Rows of prompts beside sequences that decode.
    pub max_prompt_rows: usize,
    /// Sequences up to which new ones may start.
    pub max_seqs: usize,
}

/// How steps are kept short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PaceStats {
    pub target: Duration,
    /// What 95 of 100 times between two tokens were at most, of the last steps that were judged; `None` before.
    pub p95: Option<Duration>,
    /// Rows of prompts beside sequences that decode.
    pub max_prompt_rows: usize,
    /// Sequences up to which new ones may start.
    pub max_seqs: usize,
}

/// One step that sequences waited for between two of their tokens.
#[derive(Clone, Copy, Debug)]
struct Sample {
    time: Duration,
    n_prompt_rows: usize,
    n_seqs: usize,
}

/// Finds the pace that holds a target.
#[derive(Debug)]
pub struct Pacer {
    target: Duration,
    limits: Pace,
    pace: Pace,
    window: Vec<Sample>,
    last_p95: Option<Duration>,
}

impl Pacer {
    /// A pacer that starts low and never goes beyond `limits`.
    pub fn new(target: Duration, limits: Pace) -> Self {
        let pace = Pace {
            max_prompt_rows: MIN_PROMPT_ROWS.min(limits.max_prompt_rows),
            max_seqs: 1.min(limits.max_seqs),
        };
        Self { target, limits, pace, window: Vec::with_capacity(WINDOW), last_p95: None }
    }

    pub fn pace(&self) -> Pace {
        self.pace
    }

    pub fn stats(&self) -> PaceStats {
        let Pace { max_prompt_rows, max_seqs } = self.pace;
        PaceStats { target: self.target, p95: self.last_p95, max_prompt_rows, max_seqs }
    }

    /// Takes in a step after which `n_seqs` sequences had their next token, `time` after the one before, beside
    /// `n_prompt_rows` rows of others' prompts.
    pub fn observe(&mut self, time: Duration, n_prompt_rows: usize, n_seqs: usize) {
        self.window.push(Sample { time, n_prompt_rows, n_seqs });
        if self.window.len() == WINDOW {
            self.adjust();
            self.window.clear();
        }
    }

    fn adjust(&mut self) {
        let Pace { max_prompt_rows, max_seqs } = &mut self.pace;
        let now = p95(self.window.iter());
        self.last_p95 = Some(now);
        if now <= self.target {
            // Only what was used has been tried, so nothing grows beyond a step ahead of it.
            let most = |of: fn(&Sample) -> usize| self.window.iter().map(of).max().unwrap_or(0);
            if most(|sample| sample.n_prompt_rows) >= *max_prompt_rows {
                *max_prompt_rows = (*max_prompt_rows * 9 / 8 + 1).min(self.limits.max_prompt_rows);
            }
            if most(|sample| sample.n_seqs) >= *max_seqs {
                *max_seqs = (*max_seqs + 1).min(self.limits.max_seqs);
            }
            return;
        }
        let without_prompts = self.window.iter().filter(|sample| sample.n_prompt_rows == 0);
        let are_too_many = without_prompts.clone().next().is_some() && p95(without_prompts) > self.target;
        if are_too_many || *max_prompt_rows == MIN_PROMPT_ROWS.min(self.limits.max_prompt_rows) {
            let n_seqs = self.window.iter().map(|sample| sample.n_seqs).max().unwrap_or(0);
            *max_seqs = (*max_seqs).min(n_seqs).saturating_sub(1).max(1);
        } else {
            let floor = MIN_PROMPT_ROWS.min(self.limits.max_prompt_rows);
            *max_prompt_rows = (*max_prompt_rows * 3 / 4).max(floor);
        }
    }
}

/// The 95th percentile of the times between tokens, each sequence's counted.
fn p95<'a>(samples: impl Iterator<Item = &'a Sample>) -> Duration {
    let mut samples: Vec<&Sample> = samples.collect();
    samples.sort_by_key(|sample| sample.time);
    let n_total: usize = samples.iter().map(|sample| sample.n_seqs).sum();
    let mut n_left = (n_total * 95).div_ceil(100);
    for sample in &samples {
        n_left = n_left.saturating_sub(sample.n_seqs);
        if n_left == 0 {
            return sample.time;
        }
    }
    samples.last().map_or(Duration::ZERO, |sample| sample.time)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LIMITS: Pace = Pace { max_prompt_rows: 512, max_seqs: 32 };

    /// Runs windows in which everything the pace allows is used.
    fn settle(pacer: &mut Pacer, n_windows: usize, time: impl Fn(Pace) -> Duration) {
        for _ in 0..n_windows * WINDOW {
            let pace = pacer.pace();
            pacer.observe(time(pace), pace.max_prompt_rows, pace.max_seqs);
        }
    }

    #[test]
    fn the_percentile_counts_sequences() {
        let sample = |ms, n_seqs| Sample { time: ms * MS, n_prompt_rows: 0, n_seqs };
        let of = |samples: &[Sample]| p95(samples.iter());
        assert_eq!(of(&[sample(1, 18), sample(9, 1), sample(5, 1)]), 5 * MS);
        assert_eq!(of(&[sample(1, 95), sample(9, 5)]), MS);
        assert_eq!(of(&[sample(1, 94), sample(9, 6)]), 9 * MS);
        assert_eq!(of(&[]), Duration::ZERO);
    }

    #[test]
    fn a_pace_without_trouble_reaches_its_limits() {
        let mut pacer = Pacer::new(10 * MS, LIMITS);
        assert_eq!(pacer.pace(), Pace { max_prompt_rows: 16, max_seqs: 1 });
        assert_eq!(pacer.stats().p95, None);
        settle(&mut pacer, 40, |_| MS);
        assert_eq!(pacer.pace(), LIMITS);
        assert_eq!((pacer.stats().p95, pacer.stats().target), (Some(MS), 10 * MS));
    }

    #[test]
    fn what_was_not_used_does_not_grow() {
        let mut pacer = Pacer::new(10 * MS, LIMITS);
        for _ in 0..10 * WINDOW {
            pacer.observe(MS, 0, 1);
        }
        assert_eq!(pacer.pace(), Pace { max_prompt_rows: 16, max_seqs: 2 });
    }

    #[test]
    fn prompts_give_way_first() {
        let mut pacer = Pacer::new(10 * MS, LIMITS);
        settle(&mut pacer, 40, |_| MS);
        // 40 rows a millisecond: 400 are as many as there may be.
        settle(&mut pacer, 20, |pace| MS * pace.max_prompt_rows as u32 / 40);
        let Pace { max_prompt_rows, max_seqs } = pacer.pace();
        assert!((300..=460).contains(&max_prompt_rows), "{max_prompt_rows}");
        assert_eq!(max_seqs, 32);
    }

    #[test]
    fn sequences_give_way_when_prompts_are_not_to_blame() {
        let mut pacer = Pacer::new(10 * MS, LIMITS);
        settle(&mut pacer, 40, |_| MS);
        for _ in 0..60 * WINDOW {
            let n_seqs = pacer.pace().max_seqs;
            pacer.observe(MS * n_seqs as u32, 0, n_seqs);
        }
        assert!((9..=11).contains(&pacer.pace().max_seqs), "{:?}", pacer.pace());
        assert_eq!(pacer.pace().max_prompt_rows, 512);
    }
}
