//! Quantised weights that safetensors files store as several tensors: MLX's `X.weight`, `X.scales`, `X.biases`, and
//! the `X_blocks`, `X_scales` of gpt-oss; each set becomes one tensor.

use std::collections::HashMap;
use std::path::Path;

use mlxr_tensor::{DType, Format, HostTensor, MlxFloat};
use serde_json::{Map, Value};

use crate::CheckpointError;
use crate::gguf::RawTensor;

/// How one module is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scheme {
    group_size: usize,
    bits: usize,
    mode: Mode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Affine,
    Float(MlxFloat),
}

impl Mode {
    fn from_name(name: &str) -> Option<Mode> {
        match name {
            "affine" => Some(Mode::Affine),
            "mxfp4" => Some(Mode::Float(MlxFloat::Mxfp4)),
            "nvfp4" => Some(Mode::Float(MlxFloat::Nvfp4)),
            "mxfp8" => Some(Mode::Float(MlxFloat::Mxfp8)),
            _ => None,
        }
    }
}

const AFFINE_BITS: [usize; 6] = [2, 3, 4, 5, 6, 8];
const AFFINE_GROUPS: [usize; 4] = [16, 32, 64, 128];

/// The `quantization` part of config.json: defaults, and exceptions by module path.
struct Schemes<'a> {
    settings: &'a Map<String, Value>,
}

impl Schemes<'_> {
    fn for_module(&self, module: &str, path: &Path) -> Result<Scheme, CheckpointError> {
        let exception = self.settings.get(module).and_then(Value::as_object);
        let own = |key: &str| exception.and_then(|e| e.get(key));
        let int = |key: &str| own(key).or_else(|| self.settings.get(key)).and_then(Value::as_u64);
        let mode_name = match (own("mode"), exception) {
            (Some(mode), _) => mode.as_str().unwrap_or_default(),
            // An exception that changes the width without naming a mode is affine, as MLX's default is.
            (None, Some(_)) => "affine",
            (None, None) => self.settings.get("mode").and_then(Value::as_str).unwrap_or("affine"),
        };
        let unsupported = || {
            let what = format!("quantization {mode_name:?}, {:?} bits of {module}", int("bits"));
            let hint =
                "supported are affine with 2, 3, 4, 5, 6, 8 bits in groups of 16 to 128, mxfp4, nvfp4, mxfp8";
            CheckpointError::unsupported(path, what, hint)
        };
        let mode = Mode::from_name(mode_name).ok_or_else(unsupported)?;
        let scheme = match mode {
            Mode::Affine => {
                let (Some(bits), Some(group_size)) = (int("bits"), int("group_size")) else {
                    return Err(unsupported());
                };
                Scheme { group_size: group_size as usize, bits: bits as usize, mode }
            }
            Mode::Float(float) => Scheme { group_size: float.group_size(), bits: float.bits(), mode },
        };
        let known = mode != Mode::Affine
            || (AFFINE_BITS.contains(&scheme.bits) && AFFINE_GROUPS.contains(&scheme.group_size));
        if known { Ok(scheme) } else { Err(unsupported()) }
    }
}

/// Whether the config describes MLX quantisation.
pub(crate) fn settings(config: &Map<String, Value>) -> Option<&Map<String, Value>> {
    config.get("quantization").and_then(Value::as_object)
}

/// Joins what belongs together; everything else passes through in order.
pub(crate) fn join_quantised(
    raw: Vec<RawTensor>,
    config: &Map<String, Value>,
    config_path: &Path,
) -> Result<Vec<RawTensor>, CheckpointError> {
    let mut parts: HashMap<String, RawTensor> = HashMap::new();
    let mut mains = Vec::new();
    for item in raw {
        let name = item.tensor.name();
        if name.ends_with(".scales") || name.ends_with(".biases") || name.ends_with("_scales") {
            parts.insert(name.to_owned(), item);
        } else {
            mains.push(item);
        }
    }
    let mut joined = Vec::with_capacity(mains.len());
    for RawTensor { tensor, path } in mains {
        let name = tensor.name().to_owned();
        let tensor = if let Some(stem) = name.strip_suffix("_blocks")
            && let Some(scales) = parts.remove(&format!("{stem}_scales"))
        {
            join_blocks(&tensor, &scales.tensor, &path)?
        } else if let Some(module) = name.strip_suffix(".weight")
            && let Some(scales) = parts.remove(&format!("{module}.scales"))
        {
            let biases = parts.remove(&format!("{module}.biases"));
            let Some(settings) = settings(config) else {
                let hint = "config.json needs the \"quantization\" entry the weights were made with";
                return Err(CheckpointError::missing(config_path, format!("quantization of {module}"), hint));
            };
            let scheme = Schemes { settings }.for_module(module, config_path)?;
            join_groups(&tensor, scheme, &scales.tensor, biases.as_ref().map(|b| &b.tensor), &path)?
        } else {
            tensor
        };
        joined.push(RawTensor { tensor, path });
    }
    // What found no partner is left for the caller to report as unknown.
    let mut left: Vec<RawTensor> = parts.into_values().collect();
    left.sort_by(|a, b| a.tensor.name().cmp(b.tensor.name()));
    joined.extend(left);
    Ok(joined)
}

/// `weight` `[.., cols * bits / 32]` of u32 with `scales` (and `biases`) `[.., cols / group_size]`.
fn join_groups(
    weight: &HostTensor,
    scheme: Scheme,
    scales: &HostTensor,
    biases: Option<&HostTensor>,
    path: &Path,
) -> Result<HostTensor, CheckpointError> {
    let mut shape = weight.shape().to_vec();
    let n_bits = weight.cols().checked_mul(32);
    let cols = n_bits.filter(|n| n.is_multiple_of(scheme.bits)).map(|n| n / scheme.bits);
    let fault = |found: String| {
        let what = format!("tensor {:?}", weight.name());
        let Scheme { group_size, bits, .. } = scheme;
        let expected = format!("u32 words of {bits}-bit codes with one scale per {group_size} columns");
        CheckpointError::malformed(path, what, 0, found, expected)
    };
    let found =
        || format!("{} {:?} with scales {:?}", weight.format().name(), weight.shape(), scales.shape());
    let (Some(cols), Format::Plain(DType::U32), Some(last)) = (cols, weight.format(), shape.last_mut())
    else {
        return Err(fault(found()));
    };
    *last = cols;
    let mut scale_shape = shape.clone();
    if let Some(last) = scale_shape.last_mut() {
        *last = cols / scheme.group_size;
    }
    if scales.shape() != scale_shape || biases.is_some_and(|b| b.shape() != scale_shape) {
        return Err(fault(found()));
    }
    let Format::Plain(scale) = scales.format() else { return Err(fault(found())) };
    let format = match scheme.mode {
        Mode::Float(float) if scale == DType::U8 && biases.is_none() => Format::MlxFloat(float),
        Mode::Affine
            if matches!(scale, DType::F32 | DType::F16 | DType::BF16)
                && biases.is_some_and(|b| b.format() == scales.format()) =>
        {
            Format::MlxAffine { bits: scheme.bits as u8, group_size: scheme.group_size as u16, scale }
        }
        _ => return Err(fault(format!("scales of type {scale}, biases: {}", biases.is_some()))),
    };
    let biases = biases.map(|b| b.data().clone()).unwrap_or_default();
    HostTensor::with_scales(
        weight.name(),
        &shape,
        format,
        weight.data().clone(),
        scales.data().clone(),
        biases,
    )
    .map_err(CheckpointError::tensor(path))
}

/// `blocks` `[.., rows, groups, 16]` and `scales` `[.., rows, groups]`: the same bytes MLX calls mxfp4.
fn join_blocks(blocks: &HostTensor, scales: &HostTensor, path: &Path) -> Result<HostTensor, CheckpointError> {
    let bytes_per_group = MlxFloat::Mxfp4.group_size() / 2;
    let is_u8 = |t: &HostTensor| t.format() == Format::Plain(DType::U8);
    let shape = match blocks.shape() {
        [lead @ .., groups, n] if *n == bytes_per_group && scales.shape() == [lead, &[*groups]].concat() => {
            groups.checked_mul(MlxFloat::Mxfp4.group_size()).map(|cols| [lead, &[cols]].concat())
        }
        _ => None,
    };
    let Some(shape) = shape.filter(|_| is_u8(blocks) && is_u8(scales)) else {
        let what = format!("tensor {:?}", blocks.name());
        let found = format!("{:?} with scales {:?}", blocks.shape(), scales.shape());
        let expected = "bytes [.., groups, 16] with scales [.., groups]";
        return Err(CheckpointError::malformed(path, what, 0, found, expected));
    };
    HostTensor::with_scales(
        blocks.name(),
        &shape,
        Format::MlxFloat(MlxFloat::Mxfp4),
        blocks.data().clone(),
        scales.data().clone(),
        bytes::Bytes::new(),
    )
    .map_err(CheckpointError::tensor(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(name: &str, shape: &[usize], dtype: DType) -> RawTensor {
        let n_bytes = dtype.bytes_for(shape.iter().product()).unwrap();
        let tensor = HostTensor::new(name, shape, dtype, vec![0; n_bytes].into()).unwrap();
        RawTensor { tensor, path: "t".into() }
    }

    fn join(raw: Vec<RawTensor>, quantization: Value) -> Result<Vec<RawTensor>, CheckpointError> {
        let config = serde_json::json!({ "quantization": quantization });
        join_quantised(raw, config.as_object().unwrap(), Path::new("config.json"))
    }

    fn affine(bits: usize) -> Vec<RawTensor> {
        vec![
            raw("m.weight", &[2, 64 * bits / 32], DType::U32),
            raw("m.scales", &[2, 1], DType::BF16),
            raw("m.biases", &[2, 1], DType::BF16),
        ]
    }

    #[test]
    fn affine_parts_become_one_tensor_of_the_logical_shape() {
        for bits in AFFINE_BITS {
            let joined = join(affine(bits), serde_json::json!({"group_size": 64, "bits": bits})).unwrap();
            assert_eq!(joined.len(), 1);
            assert_eq!(joined[0].tensor.shape(), [2, 64]);
        }
    }

    #[test]
    fn a_module_can_be_an_exception() {
        let quantization =
            serde_json::json!({"group_size": 32, "bits": 4, "m": {"group_size": 64, "bits": 6}});
        let joined = join(affine(6), quantization).unwrap();
        let expected = Format::MlxAffine { bits: 6, group_size: 64, scale: DType::BF16 };
        assert_eq!(joined[0].tensor.format(), expected);
    }

    #[test]
    fn a_scheme_the_shapes_contradict_is_refused() {
        assert!(join(affine(6), serde_json::json!({"group_size": 64, "bits": 4})).is_err());
        assert!(join(affine(4), serde_json::json!({"group_size": 64, "bits": 7})).is_err());
        assert!(join(affine(4), serde_json::json!({"group_size": 0, "bits": 4})).is_err());
        assert!(join(affine(4), serde_json::json!({"group_size": 64, "bits": 4, "mode": "novel"})).is_err());
    }

    #[test]
    fn gpt_oss_blocks_join_their_scales() {
        let parts = vec![raw("x_blocks", &[1, 2, 3, 16], DType::U8), raw("x_scales", &[1, 2, 3], DType::U8)];
        let joined = join(parts, Value::Null).unwrap();
        assert_eq!(joined[0].tensor.shape(), [1, 2, 96]);
        let parts = vec![raw("x_blocks", &[1, 2, 3, 16], DType::U8), raw("x_scales", &[1, 2, 2], DType::U8)];
        assert!(join(parts, Value::Null).is_err());
    }
}
