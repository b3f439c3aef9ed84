//! compressed-tensors: 8-bit weights beside their scales, or `weight_packed`, whose 4- and 8-bit codes already lie as
//! [`mlxr_tensor::Format::MlxAffine`] has them.

use mlxr_tensor::DType;
use serde_json::Value;

use super::affine::{Affine, code_at, words};
use super::{Method, Module, Settings, gptq, scaled};
use crate::CheckpointError;

/// What the settings say that shapes do not.
pub(super) fn method(settings: Settings<'_>) -> Result<Method, CheckpointError> {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    let top = |key: &str| settings.settings.get(key).filter(|v| is_set(v));
    if top("transform_config").is_some() {
        return Err(settings.unsupported("transform_config", "activations would have to be transformed too"));
    }
    let sparsity = top("sparsity_config").and_then(|s| s.get("format")).and_then(Value::as_str);
    if sparsity.is_some_and(|format| format != "dense") {
        return Err(settings.unsupported("sparsity_config.format", "only dense weights are supported"));
    }
    const KNOWN: [&str; 6] =
        ["dense", "float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "mixed-precision"];
    if settings.str("format").is_some_and(|format| !KNOWN.contains(&format)) {
        return Err(settings.unsupported("format", "take a version in FP8, INT8, or packed INT4 or INT8"));
    }
    let groups = settings.settings.get("config_groups").and_then(Value::as_object);
    Ok(Method::CompressedTensors(groups.and_then(scaled::common_block)))
}

/// `weight_packed` `[rows, words]` with `weight_scale` `[rows, groups]` and maybe `weight_zero_point`, packed along the rows.
pub(super) fn join(module: &mut Module<'_>) -> Result<(), CheckpointError> {
    let packed = module.need("weight_packed")?;
    let (scale, shape) = (module.need("weight_scale")?, module.need("weight_shape")?);
    let [rows, n_words] = module.matrix(&packed, DType::I32)?;
    let stated: Option<[u64; 2]> = match shape.to_f32() {
        Ok(sides) if matches!(*sides, [_, _]) && sides.iter().all(|n| *n >= 1.0) => {
            Some([sides[0] as u64, sides[1] as u64])
        }
        _ => None,
    };
    let Some([_, cols]) = stated.filter(|&[stated_rows, _]| stated_rows == rows as u64) else {
        return Err(module.fault(&shape, format!("{rows} rows and a number of columns")));
    };
    let whole = |bits: &usize| cols.checked_mul(*bits as u64) == Some(n_words as u64 * 32);
    let Some(bits) = [4, 8, 2].into_iter().find(whole) else {
        return Err(module.fault(&packed, format!("{cols} columns as whole words of 4- or 8-bit codes")));
    };
    let cols = n_words * 32 / bits;
    let n_groups = match *scale.shape() {
        [n_rows, n] if n > 0 && n_rows == rows && cols.is_multiple_of(n) => n,
        _ => return Err(module.fault(&scale, format!("a scale for each group of {rows} rows of {cols}"))),
    };
    let group_size = cols / n_groups;
    if let Some(g_idx) = module.take("weight_g_idx") {
        gptq::check_order(module, &g_idx, cols, group_size)?;
    }
    let affine = Affine {
        bits,
        rows,
        cols,
        group_size,
        codes: packed.data().clone(),
        scales: module.floats(&scale)?,
        zeros: zeros(module, bits, rows, n_groups)?,
        scale_type: scale.format().plain().unwrap_or(DType::F32),
    };
    let tensor = affine.into_tensor(module)?;
    module.put(tensor);
    Ok(())
}

/// `[rows, groups]`; the middle code where weights are symmetric.
fn zeros(
    module: &mut Module<'_>,
    bits: usize,
    rows: usize,
    n_groups: usize,
) -> Result<Vec<f32>, CheckpointError> {
    let Some(packed) = module.take("weight_zero_point") else {
        return Ok(vec![(1u32 << (bits - 1)) as f32; rows * n_groups]);
    };
    let n_words = (rows * bits).div_ceil(32);
    if module.matrix(&packed, DType::I32)? != [n_words, n_groups] {
        return Err(module.fault(&packed, format!("[{n_words}, {n_groups}] words")));
    }
    let word = words(&packed);
    let zero = |row: usize, group: usize| code_at(&word, group, n_groups, bits, row) as f32;
    Ok((0..rows)
        .flat_map(|row| (0..n_groups).map(move |group| (row, group)))
        .map(|(r, g)| zero(r, g))
        .collect())
}
