//! Tensors from one storage type to another, rows spread over a few threads.

use std::ops::Range;
use std::thread;

use mlxr_tensor::codec::{dequantise_rows, quantise};
use mlxr_tensor::{DType, Format, HostTensor, MlxFloat, TensorError};

/// Fewer elements than this are not worth a thread.
const MIN_THREAD_ELEMENTS: usize = 1 << 16;

/// All values of `tensor` as `dtype`; bytes that are that already are copied.
///
/// `importance` holds one weight per column, or one per column for each item of a stack.
pub(crate) fn encode(
    tensor: &HostTensor,
    dtype: DType,
    importance: Option<&[f32]>,
    n_threads: usize,
) -> Result<Vec<u8>, TensorError> {
    if tensor.format() == Format::Plain(dtype) {
        return Ok(tensor.data().to_vec());
    }
    if tensor.format() == Format::MlxFloat(MlxFloat::Mxfp4) && dtype == DType::MXFP4 {
        return Ok(pack_mxfp4(tensor));
    }
    let (items, rows_per_item) = match (tensor.shape(), importance) {
        // Importance may differ from item to item.
        (&[n, rows, _], Some(_)) => (n, rows),
        _ => (1, tensor.rows()),
    };
    let cols = tensor.cols();
    let mut out = Vec::new();
    for item in 0..items {
        let importance =
            importance.map(|all| if all.len() == cols { all } else { &all[item * cols..][..cols] });
        let rows = item * rows_per_item..(item + 1) * rows_per_item;
        out.extend(encode_rows(tensor, rows, dtype, importance, n_threads)?);
    }
    Ok(out)
}

fn encode_rows(
    tensor: &HostTensor,
    rows: Range<usize>,
    dtype: DType,
    importance: Option<&[f32]>,
    n_threads: usize,
) -> Result<Vec<u8>, TensorError> {
    let cols = tensor.cols();
    let code = |rows: Range<usize>| {
        let mut values = vec![0.0; rows.len() * cols];
        dequantise_rows(tensor, rows, &mut values)?;
        quantise(dtype, &values, cols, importance).map_err(|error| named(tensor.name(), error))
    };
    let min_rows = MIN_THREAD_ELEMENTS.div_ceil(cols.max(1));
    let share = rows.len().div_ceil(n_threads.max(1)).max(min_rows);
    if share >= rows.len() {
        return code(rows);
    }
    let starts: Vec<usize> = rows.clone().step_by(share).collect();
    let coded = thread::scope(|scope| {
        let workers: Vec<_> = starts
            .iter()
            .map(|&start| {
                let part = start..(start + share).min(rows.end);
                scope.spawn(move || code(part))
            })
            .collect();
        let join =
            |w: thread::ScopedJoinHandle<'_, _>| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
        workers.into_iter().map(join).collect::<Result<Vec<Vec<u8>>, TensorError>>()
    })?;
    Ok(coded.concat())
}

/// Says which tensor could not be coded.
fn named(name: &str, error: TensorError) -> TensorError {
    match error {
        TensorError::Quantise { dtype, reason } => {
            TensorError::Quantise { dtype, reason: format!("tensor {name:?}: {reason}") }
        }
        other => other,
    }
}

/// MLX's mxfp4 as GGML blocks: the scale first, elements `j` and `j + 16` of a group sharing a byte.
fn pack_mxfp4(tensor: &HostTensor) -> Vec<u8> {
    let mut out = Vec::with_capacity(tensor.data().len() / 16 * 17);
    for (group, &scale) in tensor.data().as_chunks::<16>().0.iter().zip(tensor.scales().iter()) {
        let code = |i: usize| group[i / 2] >> (i % 2 * 4) & 15;
        out.push(scale);
        out.extend((0..16).map(|j| code(j) | code(j + 16) << 4));
    }
    out
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn ramp(shape: &[usize]) -> HostTensor {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        HostTensor::from_f32("t", shape, &values).unwrap()
    }

    #[test]
    fn threads_do_not_change_the_bytes() {
        let tensor = ramp(&[600, 256]);
        let one = encode(&tensor, DType::Q4_0, None, 1).unwrap();
        assert_eq!(one, encode(&tensor, DType::Q4_0, None, 7).unwrap());
    }

    #[test]
    fn items_of_a_stack_have_their_own_importance() {
        let tensor = ramp(&[2, 2, 256]);
        let importance: Vec<f32> = (0..512).map(|i| if i < 256 { 1.0 } else { (i % 7) as f32 }).collect();
        let both = encode(&tensor, DType::Q4_K, Some(&importance), 2).unwrap();
        for item in 0..2 {
            let own = &importance[item * 256..(item + 1) * 256];
            let alone = encode(&tensor.stack_item(item), DType::Q4_K, Some(own), 1).unwrap();
            assert_eq!(both[item * alone.len()..][..alone.len()], alone);
        }
    }

    #[test]
    fn mxfp4_moves_to_ggml_without_loss() {
        let data: Vec<u8> = (0..32).map(|i| (i * 37 % 256) as u8).collect();
        let format = Format::MlxFloat(MlxFloat::Mxfp4);
        let mlx =
            HostTensor::with_scales("t", &[1, 64], format, data.into(), vec![120, 130].into(), Bytes::new());
        let mlx = mlx.unwrap();
        let packed = encode(&mlx, DType::MXFP4, None, 1).unwrap();
        let ggml = HostTensor::new("t", &[1, 64], DType::MXFP4, packed.into()).unwrap();
        assert_eq!(ggml.to_f32().unwrap(), mlx.to_f32().unwrap());
    }
}
