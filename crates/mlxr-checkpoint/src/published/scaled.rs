//! 8-bit weights with scales for the whole tensor, for each row or for blocks: FP8 of DeepSeek, Qwen, fbgemm, modelopt
//! and compressed-tensors, and its INT8.

use std::num::NonZeroU32;

use bytes::Bytes;
use mlxr_tensor::{DType, Format, HostTensor};
use serde_json::Value;

use super::{Module, Settings};
use crate::CheckpointError;

/// `weight_block_size`: rows and columns that share a scale.
pub(super) fn block_size(settings: Settings<'_>) -> Result<Option<[usize; 2]>, CheckpointError> {
    let field = "weight_block_size";
    let Some(value) = settings.settings.get(field).filter(|v| !v.is_null()) else { return Ok(None) };
    let sides: Option<Vec<u32>> =
        value.as_array().map(|v| v.iter().filter_map(|n| n.as_u64()?.try_into().ok()).collect());
    match sides.as_deref() {
        Some(&[rows, cols]) if rows > 0 && cols > 0 => Ok(Some([rows as usize, cols as usize])),
        _ => Err(settings.unsupported(field, "it is two whole numbers, such as [128, 128]")),
    }
}

/// Whether I8 weights are whole numbers.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Integers {
    Taken,
    Refused,
}

/// Joins `weight` and its scale; a weight of another type is left alone.
///
/// Where config.json gave no block size (compressed-tensors has one per group of modules) whole blocks of powers of two
/// are told by the shapes.
pub(super) fn join(
    module: &mut Module<'_>,
    block: Option<[usize; 2]>,
    integers: Integers,
) -> Result<(), CheckpointError> {
    let weight = module.need("weight")?;
    if weight.format() == Format::Plain(DType::I8) && integers == Integers::Refused {
        return Err(module.fault(&weight, "FP8; bytes may be pairs of 4-bit floats"));
    }
    let Format::Plain(element @ (DType::F8E4M3 | DType::F8E5M2 | DType::I8)) = weight.format() else {
        module.put(weight);
        return Ok(());
    };
    let scale = match module.take("weight_scale_inv") {
        Some(scale) => scale,
        None => module.need("weight_scale")?,
    };
    refuse_zero_points(module)?;
    let shape = module.matrix(&weight, element)?;
    let (group_size, scales) = spread(module, shape, &scale, block)?;
    let format = Format::Scaled { element, group_size };
    let data = weight.data().clone();
    let tensor = HostTensor::with_scales(weight.name(), &shape, format, data, scales, Bytes::new());
    module.put(tensor.map_err(CheckpointError::tensor(&module.path))?);
    Ok(())
}

/// A zero point that is zero everywhere says nothing.
pub(super) fn refuse_zero_points(module: &mut Module<'_>) -> Result<(), CheckpointError> {
    match module.take("weight_zero_point") {
        Some(zero) if zero.data().iter().any(|&b| b != 0) => {
            Err(module.unsupported("weight_zero_point", "8-bit weights must be symmetric"))
        }
        _ => Ok(()),
    }
}

/// Scales by row and group of columns, as f32.
fn spread(
    module: &Module<'_>,
    [rows, cols]: [usize; 2],
    scale: &HostTensor,
    block: Option<[usize; 2]>,
) -> Result<(Option<NonZeroU32>, Bytes), CheckpointError> {
    let values = module.floats(scale)?;
    let store = |v: &[f32]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    match *scale.shape() {
        _ if values.len() == 1 => return Ok((None, store(&values).repeat(rows).into())),
        [n] | [n, 1] if n == rows => return Ok((None, store(&values).into())),
        _ => {}
    }
    let fault = || {
        module.fault(scale, format!("one scale, {rows} scales, or one for each block of [{rows}, {cols}]"))
    };
    let &[n_down, n_across] = scale.shape() else { return Err(fault()) };
    let [down, across] = match block {
        Some(block) => block,
        None => [side(rows, n_down).ok_or_else(fault)?, side(cols, n_across).ok_or_else(fault)?],
    };
    if rows.div_ceil(down) != n_down || cols.div_ceil(across) != n_across {
        return Err(fault());
    }
    let group_size = u32::try_from(across).ok().and_then(NonZeroU32::new).ok_or_else(fault)?;
    let stored = store(&values);
    let row_bytes = n_across * 4;
    let mut spread = Vec::with_capacity(rows * row_bytes);
    for row in 0..rows {
        spread.extend_from_slice(&stored[row / down * row_bytes..][..row_bytes]);
    }
    Ok((Some(group_size), spread.into()))
}

/// The side of `n_blocks` whole blocks.
fn side(length: usize, n_blocks: usize) -> Option<usize> {
    (n_blocks > 0 && length.is_multiple_of(n_blocks)).then(|| length / n_blocks)
}

/// The block shape compressed-tensors gives its modules, where all that have one agree.
pub(super) fn common_block(groups: &serde_json::Map<String, Value>) -> Option<[usize; 2]> {
    let mut blocks = groups.values().filter_map(|group| {
        let sides = group.get("weights")?.get("block_structure")?.as_array()?;
        let sides: Vec<u32> = sides.iter().filter_map(|n| n.as_u64()?.try_into().ok()).collect();
        match *sides {
            [rows, cols] if rows > 0 && cols > 0 => Some([rows as usize, cols as usize]),
            _ => None,
        }
    });
    let first = blocks.next()?;
    blocks.all(|b| b == first).then_some(first)
}
