//! bitsandbytes: 4-bit codes of a table with a maximum per block, the maxima maybe quantised themselves; and LLM.int8().
//!
//! Values are products in f32; the library rounds them to the type it computes in.

use bytes::Bytes;
use mlxr_tensor::{Codebook, DType, Format, HostTensor};
use serde_json::{Map, Value};

use super::Module;
use crate::CheckpointError;

/// Joins a quantised `weight`; a plain one is left alone.
pub(super) fn join(module: &mut Module<'_>) -> Result<(), CheckpointError> {
    let weight = module.need("weight")?;
    let tensor = if let Some(scales) = module.take("SCB") {
        join_int8(module, &weight, &scales)?
    } else if let Some(absmax) = module.take("weight.absmax") {
        join_blocks(module, &weight, &absmax)?
    } else {
        weight
    };
    module.put(tensor);
    Ok(())
}

/// `SCB`: the largest magnitude of every row, for code 127.
fn join_int8(
    module: &mut Module<'_>,
    weight: &HostTensor,
    scales: &HostTensor,
) -> Result<HostTensor, CheckpointError> {
    let [rows, cols] = module.matrix(weight, DType::I8)?;
    // 0: rows as they are; the others are tiles for old GPU kernels.
    if module.take("weight_format").is_some_and(|format| format.data().iter().any(|&b| b != 0)) {
        return Err(module.unsupported("weight_format other than row", "save the model again in row format"));
    }
    let values = module.floats(scales)?;
    if values.len() != rows {
        return Err(module.fault(scales, format!("{rows} scales")));
    }
    let scales: Vec<u8> = values.iter().flat_map(|v| (v / 127.0).to_le_bytes()).collect();
    let format = Format::Scaled { element: DType::I8, group_size: None };
    let data = weight.data().clone();
    HostTensor::with_scales(weight.name(), &[rows, cols], format, data, scales.into(), Bytes::new())
        .map_err(CheckpointError::tensor(&module.path))
}

/// What `weight.quant_state.bitsandbytes__*` says.
struct State {
    table: Codebook,
    json: Map<String, Value>,
    block_size: usize,
}

impl State {
    fn take(module: &mut Module<'_>) -> Result<State, CheckpointError> {
        for (name, table) in [("nf4", Codebook::Nf4), ("fp4", Codebook::Fp4)] {
            let Some(state) = module.take(&format!("weight.quant_state.bitsandbytes__{name}")) else {
                continue;
            };
            let json: Option<Map<String, Value>> = serde_json::from_slice(state.data()).ok();
            let block_size = json.as_ref().and_then(|j| j.get("blocksize")?.as_u64()?.try_into().ok());
            return match (json, block_size) {
                (Some(json), Some(block_size)) => Ok(State { table, json, block_size }),
                _ => Err(module.fault(&state, "a JSON object with a blocksize")),
            };
        }
        let hint = "weights of bitsandbytes are saved with a quant_state, of type nf4 or fp4";
        let what = format!("tensor {:?}", format!("{}.weight.quant_state.bitsandbytes__nf4", module.name));
        Err(CheckpointError::missing(&module.path, what, hint))
    }

    fn shape(&self) -> Option<[usize; 2]> {
        match self.json.get("shape")?.as_array()?.as_slice() {
            [rows, cols] => Some([rows.as_u64()?.try_into().ok()?, cols.as_u64()?.try_into().ok()?]),
            _ => None,
        }
    }
}

fn join_blocks(
    module: &mut Module<'_>,
    weight: &HostTensor,
    absmax: &HostTensor,
) -> Result<HostTensor, CheckpointError> {
    let state = State::take(module)?;
    let table = module.need("weight.quant_map")?;
    if module.floats(&table)? != state.table.values() {
        return Err(module.fault(&table, format!("the values of {:?}", state.table)));
    }
    let shape = state
        .shape()
        .filter(|&[rows, cols]| rows > 0 && rows.checked_mul(cols) == Some(2 * weight.n_bytes()));
    let Some([rows, cols]) = shape else {
        return Err(module.fault(weight, format!("two codes a byte of shape {:?}", state.json.get("shape"))));
    };
    let group_size = u16::try_from(state.block_size).ok().filter(|&n| n > 0 && cols.is_multiple_of(n.into()));
    let Some(group_size) = group_size else {
        let what = format!("blocksize {} with rows of {cols}", state.block_size);
        return Err(module.unsupported(what, "rows must be whole blocks"));
    };
    let scales = scales(module, &state, absmax)?;
    if scales.len() != rows * cols / state.block_size {
        return Err(module.fault(absmax, format!("one for each {} of [{rows}, {cols}]", state.block_size)));
    }
    let scales: Vec<u8> = scales.iter().flat_map(|v| v.to_le_bytes()).collect();
    let format = Format::Codebook { table: state.table, group_size };
    let data = weight.data().clone();
    HostTensor::with_scales(weight.name(), &[rows, cols], format, data, scales.into(), Bytes::new())
        .map_err(CheckpointError::tensor(&module.path))
}

/// The maxima, which may be codes of a table with maxima of their own and an offset.
fn scales(module: &mut Module<'_>, state: &State, absmax: &HostTensor) -> Result<Vec<f32>, CheckpointError> {
    let Some(outer) = module.take("weight.nested_absmax") else { return module.floats(absmax) };
    let table = module.need("weight.nested_quant_map")?;
    let (outer_values, values) = (module.floats(&outer)?, module.floats(&table)?);
    if values.len() != 256 || absmax.format() != Format::Plain(DType::U8) {
        return Err(module.fault(absmax, "codes of a table of 256 values"));
    }
    let block_size =
        state.json.get("nested_blocksize").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let offset = state.json.get("nested_offset").and_then(Value::as_f64);
    let codes = absmax.data();
    match (block_size, offset) {
        (Some(block_size @ 1..), Some(offset)) if codes.len().div_ceil(block_size) == outer_values.len() => {
            let value = |(i, &code): (usize, &u8)| {
                values[usize::from(code)] * outer_values[i / block_size] + offset as f32
            };
            Ok(codes.iter().enumerate().map(value).collect())
        }
        _ => Err(module.fault(&outer, "one for each nested_blocksize of absmax, and a nested_offset")),
    }
}
