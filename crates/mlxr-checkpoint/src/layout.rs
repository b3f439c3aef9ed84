//! Cutting fused tensors apart and putting parts together: the only places where weights are copied.

use std::ops::Range;

use bytes::Bytes;
use mlxr_tensor::{Format, HostTensor, RopePairing};

/// Parts with the given numbers of rows (of elements, for a vector), sharing the bytes.
pub(crate) fn split_rows(tensor: &HostTensor, shares: &[usize]) -> Option<Vec<HostTensor>> {
    let is_vector = tensor.shape().len() == 1;
    let n_rows = if is_vector { tensor.cols() } else { tensor.rows() };
    let total = shares.iter().try_fold(0usize, |n, &share| n.checked_add(share))?;
    if total != n_rows || tensor.shape().len() > 2 {
        return None;
    }
    let matrix = if is_vector { tensor.clone().reshaped(&[n_rows, 1]).ok()? } else { tensor.clone() };
    let mut start = 0;
    let mut parts = Vec::new();
    for &share in shares {
        let part = matrix.row_slice(start..start + share);
        parts.push(if is_vector { part.reshaped(&[share]).ok()? } else { part });
        start += share;
    }
    Some(parts)
}

/// `n` parts of equal height, of a stack from each item; sharing the bytes of a matrix, copying from a stack.
pub(crate) fn split_equally(tensor: &HostTensor, n: usize) -> Option<Vec<HostTensor>> {
    if tensor.shape().len() <= 2 {
        let n_rows = if tensor.shape().len() == 1 { tensor.cols() } else { tensor.rows() };
        return n_rows.is_multiple_of(n).then(|| split_rows(tensor, &vec![n_rows / n; n]))?;
    }
    let &[n_items, height, cols] = tensor.shape() else { return None };
    let share = height.is_multiple_of(n).then_some(height / n)?;
    let part = |k: usize| {
        let rows = (0..n_items).map(|item| {
            let start = item * height + k * share;
            start..start + share
        });
        gather(tensor, &[n_items, share, cols], rows)
    };
    (0..n).map(part).collect()
}

/// `n` parts that own every `n`th row (of a stack: of each item).
pub(crate) fn take_in_turn(tensor: &HostTensor, n: usize) -> Option<Vec<HostTensor>> {
    let mut shape = tensor.shape().to_vec();
    let height_at = shape.len().checked_sub(2)?;
    // Whole items have a multiple of `n` rows, so taking rows in turn never mixes items.
    shape[height_at] = shape[height_at].is_multiple_of(n).then_some(shape[height_at] / n)?;
    let part = |k: usize| gather(tensor, &shape, (k..tensor.rows()).step_by(n).map(|row| row..row + 1));
    (0..n).map(part).collect()
}

/// `n` parts that own every `n`th element of each row.
pub(crate) fn take_columns_in_turn(tensor: &HostTensor, n: usize) -> Option<Vec<HostTensor>> {
    let shape = tensor.shape().to_vec();
    let (&cols, lead) = shape.split_last()?;
    let column_shape = [lead, &[cols, 1]].concat();
    let part_shape = [lead, &[cols / n]].concat();
    let parts = take_in_turn(&tensor.clone().reshaped(&column_shape).ok()?, n)?;
    parts.into_iter().map(|part| part.reshaped(&part_shape).ok()).collect()
}

/// `n` parts of a stack stored `[items, in, out]`, each `[items, out / n, in]` from every `n`th output.
pub(crate) fn transpose_in_turn(tensor: &HostTensor, n: usize) -> Option<Vec<HostTensor>> {
    let (&[n_items, n_in, n_out], Format::Plain(dtype)) = (tensor.shape(), tensor.format()) else {
        return None;
    };
    if dtype.is_quantised() || !n_out.is_multiple_of(n) {
        return None;
    }
    let size = dtype.block_bytes();
    let data = tensor.data();
    let part = |k: usize| {
        let mut out = Vec::with_capacity(data.len() / n);
        for item in 0..n_items {
            for o in (k..n_out).step_by(n) {
                for i in 0..n_in {
                    let at = ((item * n_in + i) * n_out + o) * size;
                    out.extend_from_slice(&data[at..at + size]);
                }
            }
        }
        HostTensor::new(tensor.name(), &[n_items, n_out / n, n_in], dtype, out.into()).ok()
    };
    (0..n).map(part).collect()
}

/// The inverse of [`transpose_in_turn`].
pub(crate) fn join_transposed(parts: &[HostTensor]) -> Option<HostTensor> {
    let first = parts.first()?;
    let (&[n_items, n_out, n_in], Format::Plain(dtype)) = (first.shape(), first.format()) else {
        return None;
    };
    let alike = parts.iter().all(|p| p.shape() == first.shape() && p.format() == first.format());
    if dtype.is_quantised() || !alike {
        return None;
    }
    let size = dtype.block_bytes();
    let mut out = Vec::with_capacity(first.data().len() * parts.len());
    for item in 0..n_items {
        for i in 0..n_in {
            for o in 0..n_out {
                let at = ((item * n_out + o) * n_in + i) * size;
                parts.iter().for_each(|part| out.extend_from_slice(&part.data()[at..at + size]));
            }
        }
    }
    HostTensor::new(first.name(), &[n_items, n_in, n_out * parts.len()], dtype, out.into()).ok()
}

/// The inverse of [`take_columns_in_turn`].
pub(crate) fn join_columns(parts: &[HostTensor]) -> Option<HostTensor> {
    let first = parts.first()?;
    let (&[n_rows, n_cols], Format::Plain(dtype)) = (first.shape(), first.format()) else { return None };
    let alike = parts.iter().all(|p| p.shape() == first.shape() && p.format() == first.format());
    if dtype.is_quantised() || !alike {
        return None;
    }
    let size = dtype.block_bytes();
    let elements =
        (0..n_rows * n_cols).flat_map(|i| parts.iter().map(move |p| &p.data()[i * size..(i + 1) * size]));
    let out: Vec<u8> = elements.flatten().copied().collect();
    HostTensor::new(first.name(), &[n_rows, n_cols * parts.len()], dtype, out.into()).ok()
}

/// The rows of every head in the order in which RoPE's pairs lie as `wanted` says, from the other order.
pub(crate) fn reorder_heads(tensor: &HostTensor, n_heads: usize, wanted: RopePairing) -> Option<HostTensor> {
    let is_vector = tensor.shape().len() == 1;
    let n_rows = if is_vector { tensor.cols() } else { tensor.rows() };
    let head_dim = n_rows.checked_div(n_heads)?;
    if head_dim * n_heads != n_rows || !head_dim.is_multiple_of(2) || tensor.shape().len() > 2 {
        return None;
    }
    let half = head_dim / 2;
    let source = |row: usize| {
        let (head, j) = (row / head_dim, row % head_dim);
        let from = match wanted {
            RopePairing::Interleaved => j % 2 * half + j / 2,
            RopePairing::Half => j % half * 2 + j / half,
        };
        head * head_dim + from
    };
    let matrix = if is_vector { tensor.clone().reshaped(&[n_rows, 1]).ok()? } else { tensor.clone() };
    let rows = (0..n_rows).map(|row| source(row)..source(row) + 1);
    let done = gather(&matrix, matrix.shape(), rows)?;
    if is_vector { done.reshaped(&[n_rows]).ok() } else { Some(done) }
}

/// A new tensor of the given rows of the flattened `[rows, cols]` view.
fn gather(
    tensor: &HostTensor,
    shape: &[usize],
    rows: impl Iterator<Item = Range<usize>>,
) -> Option<HostTensor> {
    let n_rows = tensor.rows().max(1);
    let sources = [tensor.data(), tensor.scales(), tensor.biases()];
    let mut copies = [Vec::new(), Vec::new(), Vec::new()];
    for range in rows {
        for (copy, source) in copies.iter_mut().zip(sources) {
            let row_bytes = source.len() / n_rows;
            copy.extend_from_slice(&source[range.start * row_bytes..range.end * row_bytes]);
        }
    }
    let [data, scales, biases] = copies.map(Bytes::from);
    HostTensor::with_scales(tensor.name(), shape, tensor.format(), data, scales, biases).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: &[usize]) -> HostTensor {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| i as f32).collect();
        HostTensor::from_f32("t", shape, &values).unwrap()
    }

    fn values(parts: Option<Vec<HostTensor>>) -> Vec<(Vec<usize>, Vec<f32>)> {
        parts.unwrap().iter().map(|p| (p.shape().to_vec(), p.to_f32().unwrap())).collect()
    }

    #[test]
    fn rows_split_by_shares_and_only_when_they_add_up() {
        let parts = values(split_rows(&counting(&[3, 2]), &[1, 2]));
        assert_eq!(parts, [(vec![1, 2], vec![0., 1.]), (vec![2, 2], vec![2., 3., 4., 5.])]);
        assert!(split_rows(&counting(&[3, 2]), &[1, 1]).is_none());
        assert!(split_rows(&counting(&[3, 2]), &[usize::MAX, 4]).is_none());
        assert_eq!(values(split_rows(&counting(&[3]), &[1, 2]))[1], (vec![2], vec![1., 2.]));
    }

    #[test]
    fn a_stack_splits_within_each_item() {
        let parts = values(split_equally(&counting(&[2, 2, 1]), 2));
        assert_eq!(parts, [(vec![2, 1, 1], vec![0., 2.]), (vec![2, 1, 1], vec![1., 3.])]);
        assert!(split_equally(&counting(&[2, 3, 1]), 2).is_none());
    }

    #[test]
    fn interleaved_rows_and_columns_come_apart() {
        let parts = values(take_in_turn(&counting(&[1, 4, 2]), 2));
        assert_eq!(parts[1], (vec![1, 2, 2], vec![2., 3., 6., 7.]));
        let parts = values(take_columns_in_turn(&counting(&[2, 4]), 2));
        assert_eq!(parts[0], (vec![2, 2], vec![0., 2., 4., 6.]));
        assert!(take_in_turn(&counting(&[3, 2]), 2).is_none());
    }

    #[test]
    fn heads_reorder_there_and_back() {
        let halves = counting(&[8, 1]);
        let pairs = reorder_heads(&halves, 2, RopePairing::Interleaved).unwrap();
        assert_eq!(pairs.to_f32().unwrap(), [0., 2., 1., 3., 4., 6., 5., 7.]);
        let back = reorder_heads(&pairs, 2, RopePairing::Half).unwrap();
        assert_eq!(back.to_f32().unwrap(), halves.to_f32().unwrap());
        assert!(reorder_heads(&halves, 3, RopePairing::Half).is_none());
        assert!(reorder_heads(&halves, 0, RopePairing::Half).is_none());
    }

    #[test]
    fn a_transposed_stack_turns_and_comes_apart() {
        // [1, in = 2, out = 4]
        let parts = values(transpose_in_turn(&counting(&[1, 2, 4]), 2));
        assert_eq!(parts[0], (vec![1, 2, 2], vec![0., 4., 2., 6.]));
        assert_eq!(parts[1], (vec![1, 2, 2], vec![1., 5., 3., 7.]));
    }

    #[test]
    fn what_was_taken_in_turn_joins_again() {
        let stack = counting(&[2, 3, 4]);
        let joined = join_transposed(&transpose_in_turn(&stack, 2).unwrap()).unwrap();
        assert_eq!((joined.shape(), joined.to_f32().unwrap()), (stack.shape(), stack.to_f32().unwrap()));
        let rows = counting(&[2, 4]);
        let joined = join_columns(&take_columns_in_turn(&rows, 2).unwrap()).unwrap();
        assert_eq!((joined.shape(), joined.to_f32().unwrap()), (rows.shape(), rows.to_f32().unwrap()));
    }
}
