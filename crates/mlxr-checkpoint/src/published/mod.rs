//! Weights quantised by the tools of Hugging Face's world, as `quantization_config` in config.json describes them: each
//! set of tensors becomes one tensor in a format that holds its values exactly, or the folder is refused.
//!
//! Which modules are quantised is read off the tensors that are there, so lists of exceptions need no reading.
//! Settings about activations (`activation_scheme`, `input_activations`, `input_scale`) and about the cache
//! (`kv_cache_scheme`, `k_scale`) have no effect: activations and cache are never rounded to what they describe.

mod affine;
mod awq;
mod bitsandbytes;
mod gptq;
mod packed;
mod scaled;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mlxr_tensor::{DType, Format, HostTensor};
use serde_json::{Map, Value};

use crate::CheckpointError;
use crate::gguf::RawTensor;
use scaled::Integers;

/// Scales of activations and of the cache, by the end of their names.
const HARMLESS: [&str; 8] = [
    ".input_scale",
    ".input_zero_point",
    ".output_scale",
    ".activation_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".kv_scale",
];

/// What became of a folder's tensors.
#[derive(Debug, Default)]
pub(crate) struct Joined {
    pub tensors: Vec<RawTensor>,
    /// Tensors without effect.
    pub ignored: Vec<String>,
    /// Bytes of weights that had to be rearranged, which are in memory instead of mapped.
    pub n_rearranged_bytes: u64,
}

/// `quantization_config`, with its path for messages.
#[derive(Clone, Copy)]
struct Settings<'a> {
    settings: &'a Map<String, Value>,
    path: &'a Path,
}

impl Settings<'_> {
    fn str(&self, key: &str) -> Option<&str> {
        self.settings.get(key).and_then(Value::as_str)
    }

    /// The first of these keys that is there.
    fn int(&self, keys: &[&str]) -> Option<i64> {
        keys.iter().find_map(|key| self.settings.get(*key)?.as_i64())
    }

    /// A refusal that names the field and what it says.
    fn unsupported(&self, field: &str, hint: &str) -> CheckpointError {
        let value = field.split('.').try_fold(None, |at: Option<&Value>, key| {
            Some(Some(at.map_or_else(|| self.settings.get(key), |v| v.get(key))?))
        });
        let value = value.flatten().map_or("missing".to_owned(), Value::to_string);
        CheckpointError::unsupported(self.path, format!("quantization_config.{field}: {value}"), hint)
    }
}

/// The tensors of a file set by name; modules take theirs.
type Pool = BTreeMap<String, RawTensor>;

/// One quantised module: its name, the file of its main tensor, and the tensors of the folder.
struct Module<'a> {
    name: &'a str,
    path: PathBuf,
    pool: &'a mut Pool,
}

impl Module<'_> {
    /// The tensor `NAME.suffix`, which is then used up.
    fn take(&mut self, suffix: &str) -> Option<HostTensor> {
        Some(self.pool.remove(&format!("{}.{suffix}", self.name))?.tensor)
    }

    fn need(&mut self, suffix: &str) -> Result<HostTensor, CheckpointError> {
        self.take(suffix).ok_or_else(|| {
            let what = format!("tensor {:?}", format!("{}.{suffix}", self.name));
            CheckpointError::missing(
                &self.path,
                what,
                "fetch the model again; quantised weights are in parts",
            )
        })
    }

    fn fault(&self, tensor: &HostTensor, expected: impl Into<String>) -> CheckpointError {
        let found = format!("{} {:?}", tensor.format().name(), tensor.shape());
        let what = format!("tensor {:?}", tensor.name());
        CheckpointError::malformed(&self.path, what, 0, found, expected.into())
    }

    /// A refusal of something about this module.
    fn unsupported(&self, what: impl std::fmt::Display, hint: &str) -> CheckpointError {
        CheckpointError::unsupported(&self.path, format!("{what} of {:?}", self.name), hint)
    }

    /// Checks type and number of dimensions.
    fn matrix(&self, tensor: &HostTensor, dtype: DType) -> Result<[usize; 2], CheckpointError> {
        match tensor.shape() {
            &[rows, cols] if tensor.format() == Format::Plain(dtype) && tensor.n_elements() > 0 => {
                Ok([rows, cols])
            }
            _ => Err(self.fault(tensor, format!("a matrix of {dtype}"))),
        }
    }

    /// The elements of a float tensor.
    fn floats(&self, tensor: &HostTensor) -> Result<Vec<f32>, CheckpointError> {
        match tensor.format() {
            Format::Plain(DType::F32 | DType::F16 | DType::BF16) => {
                tensor.to_f32().map_err(CheckpointError::tensor(&self.path))
            }
            _ => Err(self.fault(tensor, "F32, F16 or BF16")),
        }
    }

    /// Puts the finished weight where a plain one would be.
    fn put(&mut self, tensor: HostTensor) {
        let name = format!("{}.weight", self.name);
        let tensor = RawTensor { tensor: tensor.renamed(name.clone()), path: self.path.clone() };
        self.pool.insert(name, tensor);
    }
}

/// How a tool stores a module.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    Scaled(Option<[usize; 2]>),
    CompressedTensors(Option<[usize; 2]>),
    Gptq(gptq::Scheme),
    Awq(awq::Scheme),
    BitsAndBytes,
}

impl Method {
    fn of(settings: Settings<'_>) -> Result<Option<Method>, CheckpointError> {
        let method = match settings.str("quant_method") {
            Some("fp8" | "fbgemm_fp8") => Method::Scaled(scaled::block_size(settings)?),
            Some("modelopt") if settings.str("quant_algo") == Some("FP8") => Method::Scaled(None),
            Some("modelopt") => {
                return Err(settings.unsupported("quant_algo", "of modelopt's only FP8 is known here"));
            }
            Some("compressed-tensors") => packed::method(settings)?,
            Some("gptq") => Method::Gptq(gptq::Scheme::of(settings)?),
            Some("awq") => Method::Awq(awq::Scheme::of(settings)?),
            Some("bitsandbytes") => Method::BitsAndBytes,
            // The blocks of gpt-oss, which are known by their names.
            Some("mxfp4") => return Ok(None),
            _ => {
                let hint = "supported are fp8, fbgemm_fp8, modelopt (FP8), compressed-tensors, gptq, awq, \
                            bitsandbytes, mxfp4; take the unquantised model or a GGUF file of it";
                return Err(settings.unsupported("quant_method", hint));
            }
        };
        Ok(Some(method))
    }

    /// The end of the name of the tensor that makes a module a quantised one.
    fn marker(self) -> &'static [&'static str] {
        match self {
            Method::Gptq(_) | Method::Awq(_) => &[".qweight"],
            Method::CompressedTensors(_) => &[".weight_packed", ".weight"],
            Method::Scaled(_) | Method::BitsAndBytes => &[".weight"],
        }
    }

    /// Joins one module; returns whether its codes were copied.
    fn join(self, module: &mut Module<'_>, marker: &str) -> Result<bool, CheckpointError> {
        match self {
            Method::Scaled(block) => scaled::join(module, block, Integers::Refused).map(|()| false),
            Method::CompressedTensors(block) if marker == ".weight" => {
                scaled::join(module, block, Integers::Taken).map(|()| false)
            }
            Method::CompressedTensors(_) => packed::join(module).map(|()| false),
            Method::Gptq(scheme) => scheme.join(module).map(|()| true),
            Method::Awq(scheme) => scheme.join(module).map(|()| true),
            Method::BitsAndBytes => bitsandbytes::join(module).map(|()| false),
        }
    }
}

/// Joins what belongs together; everything else passes through.
pub(crate) fn join_quantised(
    raw: Vec<RawTensor>,
    config: &Map<String, Value>,
    config_path: &Path,
) -> Result<Joined, CheckpointError> {
    let settings = config.get("quantization_config").and_then(Value::as_object);
    // MLX writes its own settings under both names.
    let settings = settings.filter(|_| !config.contains_key("quantization"));
    let settings = settings.map(|settings| Settings { settings, path: config_path });
    let Some(method) = settings.map(Method::of).transpose()?.flatten() else {
        return Ok(Joined { tensors: raw, ..Joined::default() });
    };
    let mut pool: Pool = raw.into_iter().map(|raw| (raw.tensor.name().to_owned(), raw)).collect();
    let mut joined = Joined::default();
    for marker in method.marker() {
        let modules: Vec<String> =
            pool.keys().filter_map(|name| Some(name.strip_suffix(marker)?.to_owned())).collect();
        for name in modules {
            let Some(main) = pool.get(&format!("{name}{marker}")) else { continue };
            let (path, n_bytes) = (main.path.clone(), main.tensor.n_bytes() as u64);
            let mut module = Module { name: &name, path, pool: &mut pool };
            if method.join(&mut module, marker)? {
                joined.n_rearranged_bytes += n_bytes;
            }
        }
    }
    let is_harmless = |name: &str| HARMLESS.iter().any(|end| name.ends_with(end));
    let (ignored, tensors): (Vec<_>, Vec<_>) = pool.into_iter().partition(|(name, _)| is_harmless(name));
    joined.ignored = ignored.into_iter().map(|(name, _)| name).collect();
    joined.tensors = tensors.into_iter().map(|(_, raw)| raw).collect();
    Ok(joined)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn raw(name: &str, shape: &[usize], dtype: DType, fill: u8) -> RawTensor {
        let n_bytes = dtype.bytes_for(shape.iter().product()).unwrap();
        let tensor = HostTensor::new(name, shape, dtype, vec![fill; n_bytes].into()).unwrap();
        RawTensor { tensor, path: "t".into() }
    }

    fn join(raw: Vec<RawTensor>, settings: Value) -> Result<Joined, CheckpointError> {
        let config = json!({ "quantization_config": settings });
        join_quantised(raw, config.as_object().unwrap(), Path::new("config.json"))
    }

    fn error(raw: Vec<RawTensor>, settings: Value) -> String {
        join(raw, settings).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn settings_nobody_knows_are_refused_by_name() {
        for (settings, field) in [
            (json!({"quant_method": "novel"}), "quant_method: \"novel\""),
            (json!({"bits": 4}), "quant_method: missing"),
            (json!({"quant_method": "modelopt", "quant_algo": "NVFP4"}), "quant_algo: \"NVFP4\""),
            (json!({"quant_method": "fp8", "weight_block_size": [128]}), "weight_block_size: [128]"),
            (
                json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}),
                "version: \"gemv\"",
            ),
            (json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}), "format"),
            (
                json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}),
                "sparsity_config.format: \"sparse-bitmask\"",
            ),
            (
                json!({"quant_method": "compressed-tensors", "transform_config": {"config_groups": {}}}),
                "transform_config",
            ),
        ] {
            let text = error(Vec::new(), settings);
            assert!(text.contains(&format!("quantization_config.{field}")), "{text}");
        }
    }

    #[test]
    fn a_weight_without_its_scale_is_refused_and_activation_scales_are_left_out() {
        let fp8 = json!({"quant_method": "fp8", "activation_scheme": "static"});
        let weight = || raw("m.weight", &[4, 8], DType::F8E4M3, 0x38);
        assert!(error(vec![weight()], fp8.clone()).contains("\"m.weight_scale\" is missing"));
        let parts = vec![
            weight(),
            raw("m.weight_scale", &[], DType::F32, 0x40),
            raw("m.input_scale", &[], DType::F32, 0x40),
        ];
        let joined = join(parts, fp8).unwrap();
        assert_eq!((joined.tensors.len(), joined.ignored), (1, vec!["m.input_scale".to_owned()]));
    }

    #[test]
    fn blocks_may_end_beyond_the_matrix() {
        let fp8 = json!({"quant_method": "fp8", "weight_block_size": [3, 3]});
        let parts = |scales: &[usize]| {
            vec![
                raw("m.weight", &[4, 8], DType::F8E4M3, 0x38),
                raw("m.weight_scale_inv", scales, DType::F32, 0),
            ]
        };
        let joined = join(parts(&[2, 3]), fp8.clone()).unwrap();
        assert_eq!(joined.tensors[0].tensor.scales().len(), 4 * 3 * 4);
        assert!(error(parts(&[2, 2]), fp8).contains("one for each block of [4, 8]"));
    }

    #[test]
    fn bytes_that_may_be_pairs_of_floats_are_refused() {
        let parts =
            vec![raw("m.weight", &[4, 8], DType::I8, 1), raw("m.weight_scale_inv", &[1, 1], DType::F32, 0)];
        assert!(error(parts, json!({"quant_method": "fp8"})).contains("pairs of 4-bit floats"));
    }

    #[test]
    fn columns_grouped_by_importance_are_refused() {
        let settings = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true});
        let parts = |fill: u8| {
            vec![
                raw("m.qweight", &[8, 8], DType::I32, 0),
                raw("m.qzeros", &[2, 1], DType::I32, fill),
                raw("m.scales", &[2, 8], DType::F16, 0),
                raw("m.g_idx", &[64], DType::I32, 0),
            ]
        };
        assert!(error(parts(0), settings.clone()).contains("g_idx that is not in order"));
        let ones = parts(0xff).into_iter().filter(|raw| raw.tensor.name() != "m.g_idx").collect();
        assert!(error(ones, settings).contains("qzeros with the code 15"));
    }

    #[test]
    fn shapes_that_contradict_each_other_are_refused() {
        let settings = json!({"quant_method": "awq", "bits": 4, "group_size": 32});
        let parts = vec![
            raw("m.qweight", &[64, 1], DType::I32, 0),
            raw("m.qzeros", &[2, 1], DType::I32, 0),
            raw("m.scales", &[1, 8], DType::F16, 0),
        ];
        assert!(error(parts, settings).contains("\"m.scales\""));
        let empty = vec![
            raw("m.weight", &[1 << 40, 0], DType::F8E4M3, 0),
            raw("m.weight_scale", &[1], DType::F32, 0),
        ];
        assert!(error(empty, json!({"quant_method": "fp8"})).contains("a matrix of F8_E4M3"));
    }
}
