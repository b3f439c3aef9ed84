//! Steps that begin before the one before has ended.
//!
//! A step needs the tokens of the one before only where it looks them up. A device that guesses them can go on at once; the
//! host chooses by the real rule from what it reads later, and gives up what was computed from a guess that was wrong. So
//! guesses decide how long a text takes and never what it is: they may round as the device likes.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::{Act, Ranked, TensorError};

/// A device that computes while the host goes on.
pub trait Ahead {
    /// Hands everything recorded to the device, with the search for what is `wanted` of each row of logits and a guess at
    /// each row's token, and does not wait.
    ///
    /// # Errors
    /// [`TensorError`] when the device has failed or has no memory left.
    fn start_rows(&self, x: &Act, wanted: RowsWanted, guesses: &[Guess]) -> Result<StartedRows, TensorError>;

    /// Waits for what was started: what was wanted, and what was guessed of each row.
    ///
    /// # Errors
    /// [`TensorError::DeviceLost`] when an op since the last read failed.
    fn finish_rows(&self, started: StartedRows) -> Result<(Rows, Vec<GuessedToken>), TensorError>;
}

/// What the host wants to know of rows of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsWanted {
    /// As [`Backend::argmax`](crate::Backend::argmax).
    Best,
    /// As [`Backend::largest`](crate::Backend::largest).
    Largest(usize),
    /// As [`Backend::ranked`](crate::Backend::ranked).
    Ranked(usize),
    /// As [`Backend::read`](crate::Backend::read).
    All,
}

/// What was wanted, row after row.
#[derive(Clone, Debug, PartialEq)]
pub enum Rows {
    Best(Vec<Option<u32>>),
    Largest(Vec<Vec<(u32, f32)>>),
    Ranked(Vec<Ranked>),
    All(Vec<f32>),
}

/// The most changes of a [`Guess`] that draws from a whole row; they all leave tokens out.
pub const MAX_LEFT_OUT: usize = 8;

/// How far the place of a draw in a whole row may be from the exact one, relative to the sum of all.
pub const DRAW_TOLERANCE: f32 = 2e-5;

/// How the host will choose from a row, as far as a device follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    /// Whether the token is drawn from all values, which only a temperature changes, and not from the largest.
    pub is_whole: bool,
    /// In order; the first `None` ends them.
    pub stages: [Option<GuessStage>; 4],
    /// Whether what is left is drawn from in the order of ids and not by rank.
    pub is_by_id: bool,
    /// Where in the cumulated probabilities the token is, from 0 to 1.
    pub u: f32,
    /// What happens to logits before.
    pub changes: Vec<LogitChange>,
}

/// A logit gets `bias`, is divided by `repeat` or, where it is not positive, multiplied by it, and loses `minus`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitChange {
    pub id: u32,
    pub bias: f32,
    pub repeat: f32,
    pub minus: f32,
}

impl LogitChange {
    /// Leaves a token out.
    pub fn leave_out(id: u32) -> LogitChange {
        LogitChange { id, bias: f32::NEG_INFINITY, repeat: 1.0, minus: 0.0 }
    }

    fn apply(&self, logit: f32) -> f32 {
        let biased = logit + self.bias;
        let scaled = if biased <= 0.0 { biased * self.repeat } else { biased / self.repeat };
        scaled - self.minus
    }
}

/// What a device has guessed of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuessedToken {
    /// Nothing of a row that is no distribution.
    pub id: Option<u32>,
    /// Whether it was drawn from the whole row and is the exact rule's choice as well: it is further than
    /// [`DRAW_TOLERANCE`] from its neighbours.
    pub is_sure: bool,
}

/// A link of the chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GuessStage {
    TopK(u32),
    TopP(f32),
    MinP(f32),
    Temperature(f32),
}

impl Guess {
    /// The largest logit.
    pub const BEST: Guess = Guess {
        is_whole: false,
        stages: [Some(GuessStage::TopK(1)), None, None, None],
        is_by_id: false,
        u: 0.0,
        changes: Vec::new(),
    };

    /// The token that the largest logits of a row, by rank, lead to; `exp_sum` is as in [`Ranked`], where it is known.
    /// What a device computes, but for rounding.
    pub fn token(&self, largest: &[(u32, f32)], exp_sum: Option<f32>) -> Option<u32> {
        let changed = |&(id, logit): &(u32, f32)| {
            let change = self.changes.iter().find(|change| change.id == id);
            (id, change.map_or(logit, |change| change.apply(logit)))
        };
        let mut left: Vec<(u32, f32)> = largest.iter().map(changed).collect();
        left.retain(|(_, logit)| logit.is_finite());
        left.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for (i, stage) in self.stages.iter().map_while(|stage| *stage).enumerate() {
            let best = left.first()?.1;
            let n = match stage {
                GuessStage::TopK(k) => k as usize,
                GuessStage::TopP(p) => {
                    let sums = cumulated(&left);
                    let total = exp_sum.filter(|_| i == 0).map_or(*sums.last()?, f64::from);
                    1 + sums.iter().take_while(|sum| **sum < f64::from(p) * total).count()
                }
                GuessStage::MinP(p) => left.iter().take_while(|(_, logit)| *logit >= best + p.ln()).count(),
                GuessStage::Temperature(t) => {
                    left.iter_mut().for_each(|(_, logit)| *logit /= t);
                    left.len()
                }
            };
            left.truncate(n.max(1));
        }
        if self.is_by_id {
            left.sort_unstable_by_key(|(id, _)| *id);
        }
        let sums = cumulated(&left);
        let target = f64::from(self.u) * sums.last()?;
        let at = sums.iter().position(|sum| *sum > target).unwrap_or(left.len() - 1);
        Some(left[at].0)
    }
}

/// The sums of `exp(logit - the largest)` up to each row.
fn cumulated(rows: &[(u32, f32)]) -> Vec<f64> {
    let max = rows.iter().fold(f32::NEG_INFINITY, |max, (_, logit)| max.max(*logit));
    let mut sum = 0.0;
    let up_to = |(_, logit): &(u32, f32)| {
        sum += f64::from(logit - max).exp();
        sum
    };
    rows.iter().map(up_to).collect()
}

/// Tokens that a device has chosen, one per row, and not told yet: the next batch may have them all the same.
#[derive(Clone)]
pub struct DeviceTokens(Arc<dyn Any + Send + Sync>);

impl DeviceTokens {
    /// Wraps a device's own form.
    pub fn new(handle: impl Any + Send + Sync) -> Self {
        Self(Arc::new(handle))
    }

    /// The device's own form.
    ///
    /// # Panics
    /// When the tokens belong to another device.
    pub fn handle<T: Any>(&self) -> &T {
        self.0.downcast_ref().expect("tokens belong to this device")
    }
}

impl fmt::Debug for DeviceTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceTokens")
    }
}

/// Rows of a batch whose tokens only the device knows.
#[derive(Clone, Debug)]
pub struct Fed {
    pub tokens: DeviceTokens,
    /// The row of the batch, and the row of `tokens`.
    pub rows: Vec<[u32; 2]>,
}

/// What [`Ahead::start_rows`] has started.
pub struct StartedRows {
    /// The guessed tokens.
    pub tokens: DeviceTokens,
    handle: Box<dyn Any + Send>,
}

impl StartedRows {
    /// Wraps a device's own form.
    pub fn new(tokens: DeviceTokens, handle: impl Any + Send) -> Self {
        Self { tokens, handle: Box::new(handle) }
    }

    /// The device's own form.
    ///
    /// # Panics
    /// When another device has started it.
    pub fn into_handle<T: Any>(self) -> T {
        *self.handle.downcast().expect("this device has started it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(stages: &[GuessStage], u: f32) -> Guess {
        let mut guess = Guess { u, ..Guess::BEST };
        guess.stages = std::array::from_fn(|i| stages.get(i).copied());
        guess
    }

    #[test]
    fn stages_leave_the_likely_and_a_number_picks_among_them() {
        // Probabilities 0.6, 0.2, 0.1, 0.1 of the whole, of which a tenth is not here.
        let row: Vec<(u32, f32)> =
            [(7, 0.6f32), (3, 0.2), (9, 0.1)].map(|(id, p)| (id, (p / 0.6).ln())).to_vec();
        let check = |stages: &[GuessStage], exp_sum, expected: [u32; 3]| {
            for (u, id) in [0.0, 0.74, 0.999].into_iter().zip(expected) {
                assert_eq!(guess(stages, u).token(&row, exp_sum), Some(id), "{stages:?} {u}");
            }
        };
        check(&[], None, [7, 3, 9]);
        check(&[GuessStage::TopK(2)], None, [7, 7, 3]);
        check(&[GuessStage::TopP(0.65)], None, [7, 7, 7]);
        check(&[GuessStage::TopP(0.65)], Some(1.0 / 0.6), [7, 7, 3]);
        check(&[GuessStage::MinP(0.3)], None, [7, 7, 3]);
        check(&[GuessStage::Temperature(100.0)], None, [7, 9, 9]);
        let by_id = Guess { is_by_id: true, ..guess(&[GuessStage::MinP(0.3)], 0.0) };
        assert_eq!(by_id.token(&row, None), Some(3));
        let without = Guess { changes: vec![LogitChange::leave_out(7)], ..Guess::BEST };
        assert_eq!((without.token(&row, None), without.token(&[], None)), (Some(3), None));
        let lowered = LogitChange { id: 7, bias: 1.0, repeat: 10.0, minus: 1.2 };
        assert_eq!(Guess { changes: vec![lowered], ..Guess::BEST }.token(&row, None), Some(3));
    }
}
