//! The tokens still in play for one position.
//!
//! Order matters for reproducibility: candidates are in id order or, after a truncation, in rank order (larger logit
//! first, then lower id), and sums run in that order. Exponentials and logarithms are the same on every platform.

use std::cmp::Ordering;

use mlxr_tensor::math::exp_below;

/// One token that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub id: u32,
    pub logit: f32,
    /// Set by [`Candidates::softmax`].
    pub p: f32,
}

/// Candidates of one position; the buffer is reused from token to token.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    items: Vec<Candidate>,
    order: Order,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Order {
    /// `items[id].id == id`.
    #[default]
    Full,
    /// By id, some missing.
    ById,
    ByRank,
}

/// Candidates whose exponentials are computed at a time.
const CHUNK: usize = 256;

/// Whether `a` certainly ranks behind `b`: one comparison, which is enough for nearly all of a vocabulary.
fn is_far_behind(a: &Candidate, b: &Candidate) -> bool {
    a.logit < b.logit
}

/// Larger logit first, then lower id.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

impl Candidates {
    /// Starts over with all tokens of a row of logits.
    pub fn reset(&mut self, logits: &[f32]) {
        self.items.clear();
        self.items.extend(logits.iter().enumerate().map(|(id, &logit)| Candidate {
            id: id as u32,
            logit,
            p: 0.0,
        }));
        self.order = Order::Full;
    }

    /// Starts over with the largest logits of a row, by rank: what [`Self::reset`] and [`Self::keep_largest`] give,
    /// without a candidate for each of the others.
    pub fn reset_to_ranked(&mut self, ranked: impl IntoIterator<Item = (u32, f32)>) {
        self.items.clear();
        self.items.extend(ranked.into_iter().map(|(id, logit)| Candidate { id, logit, p: 0.0 }));
        self.order = Order::ByRank;
    }

    pub fn items(&self) -> &[Candidate] {
        &self.items
    }

    pub fn len(&self) -> usize {
        self.items.len()
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Changes the logit of one token, if it is still in play.
    pub fn update(&mut self, id: u32, change: impl FnOnce(f32) -> f32) {
        let found = match self.order {
            Order::Full => self.items.get_mut(id as usize),
            Order::ById => self.items.binary_search_by_key(&id, |c| c.id).ok().map(|i| &mut self.items[i]),
            Order::ByRank => self.items.iter_mut().find(|c| c.id == id),
        };
        if let Some(candidate) = found {
            candidate.logit = change(candidate.logit);
        }
    }

    /// To be called after [`Self::update`]s: candidates in rank order are ranked again.
    pub fn restore_order(&mut self) {
        if self.order == Order::ByRank {
            self.items.sort_unstable_by(by_rank);
        }
    }

    /// Divides all logits by a positive temperature.
    pub fn divide_logits(&mut self, temperature: f32) {
        for candidate in &mut self.items {
            candidate.logit /= temperature;
        }
    }

    /// The largest logit's candidate, the lowest id among equals.
    pub fn best(&self) -> Option<&Candidate> {
        match self.order {
            Order::ByRank => self.items.first(),
            // Ids ascend, so the first of equals has the lowest.
            _ => self.items.iter().reduce(|best, c| if c.logit > best.logit { c } else { best }),
        }
    }

    /// Sets every `p` to the softmax of the logits.
    pub fn softmax(&mut self) {
        let Some(max) = self.best().map(|c| c.logit) else { return };
        let (mut logits, mut exps) = ([0f32; CHUNK], [0f32; CHUNK]);
        let mut sum = 0.0f64;
        for items in self.items.chunks_mut(CHUNK) {
            let (logits, exps) = (&mut logits[..items.len()], &mut exps[..items.len()]);
            logits.iter_mut().zip(&*items).for_each(|(logit, candidate)| *logit = candidate.logit);
            sum += exp_below(logits, max, exps);
            items.iter_mut().zip(&*exps).for_each(|(candidate, &exp)| candidate.p = exp);
        }
        let inverse = (1.0 / sum) as f32;
        for candidate in &mut self.items {
            candidate.p *= inverse;
        }
    }

    /// Keeps those that satisfy `keep`, in their order.
    pub fn retain(&mut self, keep: impl FnMut(&Candidate) -> bool) {
        let before = self.items.len();
        self.items.retain(keep);
        if self.order == Order::Full && self.items.len() < before {
            self.order = Order::ById;
        }
    }

    /// Keeps the `n` largest logits, by rank.
    pub fn keep_largest(&mut self, n: usize) {
        if self.order != Order::ByRank {
            select_prefix(&mut self.items, n, by_rank, is_far_behind);
            self.order = Order::ByRank;
        }
        self.items.truncate(n);
    }

    /// Puts all candidates in the order of their ids.
    pub fn sort_by_id(&mut self) {
        self.items.sort_unstable_by_key(|c| c.id);
        self.order = Order::ById;
    }

    /// Puts all candidates in rank order.
    pub fn sort(&mut self) {
        self.keep_largest(self.items.len());
    }

    /// Keeps the smallest set of most likely candidates whose `p` sum to at least `mass`.
    pub fn keep_mass(&mut self, mass: f32) {
        let is_sorted = self.order == Order::ByRank;
        let n = prefix_with_mass(&mut self.items, mass, is_sorted, by_rank, is_far_behind);
        self.items.truncate(n);
        self.order = Order::ByRank;
    }

    /// Keeps the smallest set of candidates, taken by ascending `cost`, whose `p` sum to at least `mass`; rank
    /// breaks ties.
    pub fn keep_mass_by(&mut self, mass: f32, cost: impl Fn(&Candidate) -> f32) {
        let order = |a: &Candidate, b: &Candidate| cost(a).total_cmp(&cost(b)).then_with(|| by_rank(a, b));
        let n = prefix_with_mass(&mut self.items, mass, false, order, |_, _| false);
        self.items.truncate(n);
        self.items.sort_unstable_by(by_rank);
        self.order = Order::ByRank;
    }

    /// The candidate at `u` in `[0, 1)` of the cumulated `p`, in candidate order.
    pub fn pick(&self, u: f64) -> Option<&Candidate> {
        let total: f64 = self.items.iter().map(|c| f64::from(c.p)).sum();
        let mut left = u * total;
        for candidate in &self.items {
            left -= f64::from(candidate.p);
            if left < 0.0 {
                return Some(candidate);
            }
        }
        self.items.iter().rev().find(|c| c.p > 0.0)
    }
}

/// Sorts the first `n` of `items` by `order` to the front without sorting the rest.
///
/// Candidates that cannot be among them are passed over by one comparison, a quick one where `is_behind` knows; the others
/// gather behind the front and are selected from in batches.
fn select_prefix(
    items: &mut [Candidate],
    n: usize,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    is_behind: impl Fn(&Candidate, &Candidate) -> bool,
) {
    let n = n.min(items.len());
    if n == 0 {
        return;
    }
    let room = n.saturating_mul(4).min(items.len());
    let mut n_gathered = room;
    for i in room..items.len() {
        if n_gathered == room {
            items[..room].select_nth_unstable_by(n - 1, &order);
            n_gathered = n;
        }
        if !is_behind(&items[i], &items[n - 1]) && order(&items[i], &items[n - 1]).is_lt() {
            items.swap(i, n_gathered);
            n_gathered += 1;
        }
    }
    if n < n_gathered {
        items[..n_gathered].select_nth_unstable_by(n - 1, &order);
    }
    items[..n].sort_unstable_by(&order);
}

/// How many candidates, sorted to the front by `order`, it takes to reach `mass`. Looks at ever longer prefixes:
/// in a large vocabulary a few dozen usually do.
fn prefix_with_mass(
    items: &mut [Candidate],
    mass: f32,
    is_sorted: bool,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
    is_behind: impl Fn(&Candidate, &Candidate) -> bool,
) -> usize {
    let mut n = 64.min(items.len());
    loop {
        if !is_sorted {
            select_prefix(items, n, &order, &is_behind);
        }
        let mut sum = 0.0f64;
        for (i, candidate) in items[..n].iter().enumerate() {
            sum += f64::from(candidate.p);
            if sum >= f64::from(mass) {
                return i + 1;
            }
        }
        if n == items.len() {
            return n;
        }
        n = (n * 8).min(items.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(candidates: &Candidates) -> Vec<u32> {
        candidates.items().iter().map(|c| c.id).collect()
    }

    #[test]
    fn equal_logits_go_to_the_lower_id() {
        let mut candidates = Candidates::default();
        candidates.reset(&[1.0, 3.0, 2.0, 3.0, 3.0]);
        assert_eq!(candidates.best().unwrap().id, 1);
        candidates.keep_largest(2);
        assert_eq!(ids(&candidates), [1, 3]);
    }

    #[test]
    fn a_prefix_found_by_selection_is_the_prefix_of_the_full_sort() {
        let logits: Vec<f32> = (0..5000u32).map(|i| ((i * 7919) % 1009) as f32 * 0.003).collect();
        for mass in [0.01f32, 0.2, 0.6, 0.99, 1.0] {
            let (mut lazy, mut sorted) = (Candidates::default(), Candidates::default());
            lazy.reset(&logits);
            lazy.softmax();
            sorted.reset(&logits);
            sorted.softmax();
            sorted.sort();
            lazy.keep_mass(mass);
            sorted.keep_mass(mass);
            assert_eq!(ids(&lazy), ids(&sorted));
        }
    }

    #[test]
    fn the_largest_without_the_others_are_the_same() {
        let logits: Vec<f32> = (0..5000u32).map(|i| ((i * 7919) % 97) as f32 * 0.25 - 3.0).collect();
        for n in [1, 3, 40, 100, 4999, 5000, 6000] {
            let (mut direct, mut selected) = (Candidates::default(), Candidates::default());
            direct.reset_to_ranked(mlxr_tensor::largest(&logits, n));
            selected.reset(&logits);
            selected.keep_largest(n);
            assert_eq!(direct.items(), selected.items(), "{n}");
        }
    }

    #[test]
    fn updates_find_the_token_in_every_order() {
        let mut candidates = Candidates::default();
        candidates.reset(&[0.5, 2.0, 1.0]);
        candidates.update(2, |l| l + 0.5);
        candidates.update(9, |_| f32::NAN);
        candidates.retain(|c| c.id != 0);
        candidates.update(2, |l| l + 0.25);
        candidates.update(0, |_| f32::NAN);
        candidates.sort();
        candidates.update(2, |l| l + 10.0);
        candidates.restore_order();
        assert_eq!(candidates.items()[0], Candidate { id: 2, logit: 11.75, p: 0.0 });
        assert_eq!(ids(&candidates), [2, 1]);
    }

    #[test]
    fn picking_walks_the_cumulated_probabilities() {
        let mut candidates = Candidates::default();
        candidates.reset(&[0.0, f32::NEG_INFINITY, 0.0]);
        candidates.softmax();
        let at = |u| candidates.pick(u).unwrap().id;
        assert_eq!((at(0.0), at(0.49), at(0.5), at(0.999_999)), (0, 0, 2, 2));
    }
}
