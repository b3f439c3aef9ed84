//! The largest value of a row.

/// Values looked at together, so that compilers use vectors: vocabularies are long.
const LANES: usize = 16;

/// The column of a row's largest value, the lowest such column. `None` for a row that is no distribution: one of its
/// values is NaN or positive infinity, or none is finite.
pub fn argmax(row: &[f32]) -> Option<u32> {
    let (mut max, mut n_bad) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut padded = [f32::NEG_INFINITY; LANES];
    padded[..rest.len()].copy_from_slice(rest);
    for chunk in chunks.iter().chain([&padded]) {
        for lane in 0..LANES {
            let value = chunk[lane];
            max[lane] = if max[lane] < value { value } else { max[lane] };
            // Not below infinity: infinity itself, or NaN, which is below nothing. No early end, for the vectors.
            n_bad[lane] |= u32::from(value < f32::INFINITY) ^ 1;
        }
    }
    let max = max.into_iter().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY || n_bad.iter().any(|&n| n > 0) {
        return None;
    }
    row.iter().position(|&value| value == max).map(|column| column as u32)
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
}
