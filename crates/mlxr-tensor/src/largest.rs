//! The largest values of a row, and how much of the whole they are.
//!
//! Rank is the order of floats that [`f32::total_cmp`] has, larger first; equal ones by their column, lower first.

/// Values looked at together, so that compilers use vectors: vocabularies are long.
const LANES: usize = 16;

/// An integer that orders as the float does.
fn key(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// The column of a row's first value by rank. `None` for a row that is no distribution: one of its values is NaN or
/// positive infinity, or none is finite.
pub fn argmax(row: &[f32]) -> Option<u32> {
    let (mut max, mut min) = ([i32::MIN; LANES], [i32::MAX; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut padded = [f32::NEG_INFINITY; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    for chunk in chunks.iter().chain([&padded]) {
        for lane in 0..LANES {
            let key = key(chunk[lane]);
            max[lane] = max[lane].max(key);
            min[lane] = min[lane].min(key);
        }
    }
    let (max, min) = (max.into_iter().max()?, min.into_iter().min()?);
    // Beyond the infinities lie the NaNs, at either end.
    if max >= key(f32::INFINITY) || max <= key(f32::NEG_INFINITY) || min < key(f32::NEG_INFINITY) {
        return None;
    }
    row.iter().position(|&value| key(value) == max).map(|column| column as u32)
}

/// The first `n` values of a row by rank, and their columns.
pub fn largest(row: &[f32], n: usize) -> Vec<(u32, f32)> {
    let by_rank = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let n = n.min(row.len());
    if n == 0 {
        return Vec::new();
    }
    let room = n.saturating_mul(4).max(64);
    let mut found = Vec::with_capacity(room.min(row.len()));
    let maxima: Vec<i32> =
        row.chunks(LANES).map(|chunk| chunk.iter().copied().map(key).fold(i32::MIN, i32::max)).collect();
    // Whatever comes later must be larger than this to be among the `n` largest: equals rank behind. To begin with, there
    // are `n` chunks whose largest is larger.
    let mut floor = (n < maxima.len())
        .then(|| *maxima.clone().select_nth_unstable_by(n - 1, |a, b| b.cmp(a)).1)
        .and_then(|nth| nth.checked_sub(1));
    let is_below = |key: i32, floor: Option<i32>| floor.is_some_and(|floor| key <= floor);
    for (i, (chunk, &max)) in row.chunks(LANES).zip(&maxima).enumerate() {
        if is_below(max, floor) {
            continue;
        }
        for (column, &value) in (i * LANES..).zip(chunk) {
            if is_below(key(value), floor) {
                continue;
            }
            found.push((column as u32, value));
            if found.len() == room {
                found.select_nth_unstable_by(n - 1, by_rank);
                found.truncate(n);
                floor = Some(key(found[n - 1].1));
            }
        }
    }
    found.sort_unstable_by(by_rank);
    found.truncate(n);
    found
}

/// How far a sum of exponentials may be from the exact one, relative to it.
pub const EXP_SUM_TOLERANCE: f32 = 1e-5;

/// What a device gives of a row from which a token is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranked {
    /// As [`largest`]; nothing of a row in which [`argmax`] finds nothing.
    pub largest: Vec<(u32, f32)>,
    /// The sum of `exp(value - largest value)` over the whole row, to [`EXP_SUM_TOLERANCE`].
    pub exp_sum: f32,
}

impl Ranked {
    /// The `n` largest values of a row.
    pub fn of(row: &[f32], n: usize) -> Ranked {
        let largest = argmax(row).map_or_else(Vec::new, |_| largest(row, n));
        let max = largest.first().map_or(0.0, |&(_, value)| f64::from(value));
        let sum: f64 = row.iter().map(|&value| (f64::from(value) - max).exp()).sum();
        Ranked { largest, exp_sum: sum as f32 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_of_the_largest_is_found_whatever_the_length(
            mut row in proptest::collection::vec(-4i8..4, 1..70)
                .prop_map(|row| row.into_iter().map(f32::from).collect::<Vec<_>>()),
            bad in proptest::option::of((any::<usize>(), prop_oneof![Just(f32::NAN), Just(f32::INFINITY)])),
        ) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = row.iter().position(|&value| value == max).unwrap();
            prop_assert_eq!(argmax(&row), Some(first as u32));
            if let Some((at, value)) = bad {
                let at = at % row.len();
                row[at] = value;
                prop_assert_eq!(argmax(&row), None);
            }
        }
    }

    #[test]
    fn a_row_without_a_finite_value_has_none() {
        assert_eq!(argmax(&[f32::NEG_INFINITY; 20]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn the_largest_come_by_rank() {
        let row: Vec<f32> = (0..5000u32).map(|i| ((i * 7919) % 97) as f32 * 0.25 - 3.0).collect();
        let mut sorted: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        for n in [1, 3, 40, 100, 4999, 5000, 6000] {
            assert_eq!(largest(&row, n), sorted[..n.min(5000)], "{n}");
        }
        assert_eq!(argmax(&row), Some(sorted[0].0));
        assert_eq!(argmax(&[-0.0, 0.0]), Some(1));
        assert_eq!(largest(&[-0.0, f32::NEG_INFINITY, 0.0], 3)[0].0, 2);
    }
}
