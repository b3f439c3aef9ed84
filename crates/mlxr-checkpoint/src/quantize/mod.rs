//! A GGUF file with its matrices in smaller types.

mod imatrix;
mod recipe;

use std::collections::BTreeMap;
use std::path::Path;

use mlxr_tensor::codec::can_quantise;
use mlxr_tensor::{DType, Format, HostTensor};

pub use imatrix::ImportanceMatrix;

use crate::CheckpointError;
use crate::convert::{Fallback, OnProgress, Progress, default_threads, transcode};
use crate::file_type::{FileType, QUANTISATION_VERSION};
use crate::gguf::{self, GgufMetadata, GgufWriter, MetaValue, RawTensor, TensorPlan};
use crate::mapping::LoadOptions;
use recipe::{ModelFacts, Role};

/// Choices beside the recipe.
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// Type of `output.weight` (or of the embedding where it is the output too) instead of the recipe's.
    pub output_type: Option<DType>,
    /// Type of `token_embd.weight` instead of the recipe's.
    pub embedding_type: Option<DType>,
    /// Types for tensors whose name contains the text; the first match counts.
    pub tensor_types: Vec<(String, DType)>,
    /// The recipe's base type for every matrix.
    pub pure: bool,
    /// Accept matrices that are quantised already and lose precision a second time.
    pub allow_requantise: bool,
    pub n_threads: usize,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self {
            output_type: None,
            embedding_type: None,
            tensor_types: Vec::new(),
            pure: false,
            allow_requantise: false,
            n_threads: default_threads(),
        }
    }
}

/// What a finished quantisation made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantised {
    pub bytes_before: u64,
    /// Size of the new file.
    pub bytes_after: u64,
    /// Number of tensors of each type.
    pub types: BTreeMap<DType, usize>,
    pub fallbacks: Vec<Fallback>,
    /// Quantised matrices for which the importance matrix has nothing.
    pub without_importance: Vec<String>,
}

/// Writes `src` (of a split model: the first part) as `dst` by a recipe.
///
/// # Errors
/// When the source cannot be read, a type cannot be made, importance is needed but missing, or `dst` cannot be written.
pub fn quantize_gguf(
    src: &Path,
    dst: &Path,
    recipe: FileType,
    importance: Option<&ImportanceMatrix>,
    options: &QuantizeOptions,
    on_progress: OnProgress<'_>,
) -> Result<Quantised, CheckpointError> {
    let file = gguf::open_series(src, LoadOptions::default())?;
    let mut tensors = file.tensors;
    // Rules count layers, whatever order the file has.
    tensors.sort_by_key(|raw| recipe::layer_of(raw.tensor.name()).unwrap_or(0));
    let planner =
        Planner { src, recipe, importance, options, facts: facts(&file.metadata, &tensors, importance) };
    let (plans, fallbacks) = planner.plan(&tensors)?;
    let metadata = new_metadata(&file.metadata, recipe, importance);
    let bytes_total = tensors.iter().map(|raw| raw.tensor.n_bytes() as u64).sum();
    let mut done = Quantised {
        bytes_before: bytes_total,
        bytes_after: 0,
        types: BTreeMap::new(),
        fallbacks,
        without_importance: Vec::new(),
    };
    let mut writer = GgufWriter::create(dst, &metadata, plans.clone())?;
    let mut bytes_done = 0;
    for (i, (raw, plan)) in tensors.iter().zip(&plans).enumerate() {
        let tensor = &raw.tensor;
        let progress =
            Progress { tensor: tensor.name(), n_done: i, n_tensors: plans.len(), bytes_done, bytes_total };
        if on_progress(progress).is_break() {
            return Err(CheckpointError::Cancelled);
        }
        let weights = match importance {
            Some(matrix) if plan.dtype.is_quantised() => matrix.for_tensor(tensor)?,
            _ => None,
        };
        if importance.is_some() && plan.dtype.is_quantised() && weights.is_none() {
            done.without_importance.push(tensor.name().to_owned());
        }
        let bytes = transcode::encode(tensor, plan.dtype, weights, options.n_threads)
            .map_err(CheckpointError::tensor(src))?;
        writer.tensor(&bytes)?;
        bytes_done += tensor.n_bytes() as u64;
        *done.types.entry(plan.dtype).or_default() += 1;
    }
    done.bytes_after = writer.finish()?;
    Ok(done)
}

fn facts(
    metadata: &GgufMetadata,
    tensors: &[RawTensor],
    importance: Option<&ImportanceMatrix>,
) -> ModelFacts {
    let arch = metadata.architecture().unwrap_or_default();
    let largest = |key: &str| {
        let value = metadata.get(&format!("{arch}.{key}"));
        let single = value.and_then(MetaValue::as_u64);
        let listed = value.and_then(MetaValue::as_array).and_then(|a| a.to_i64s()?.into_iter().max());
        single.or(listed.and_then(|n| u64::try_from(n).ok())).and_then(|n| usize::try_from(n).ok())
    };
    let names = || tensors.iter().map(|raw| raw.tensor.name());
    let n_layers = largest("block_count").unwrap_or(0);
    let n_heads = largest("attention.head_count").unwrap_or(1);
    let n_kv_heads = largest("attention.head_count_kv").unwrap_or(n_heads).max(1);
    ModelFacts {
        n_layers,
        n_gqa: n_heads / n_kv_heads,
        n_experts: largest("expert_count").unwrap_or(0),
        is_tied: !names().any(|name| Role::of(name) == Role::Output),
        is_llama_70b: arch == "llama" && n_layers == 80 && n_heads != n_kv_heads,
        has_importance: importance.is_some(),
        n_values: names().filter(|name| Role::of(name) == Role::Value).count(),
    }
}

struct Planner<'a> {
    src: &'a Path,
    recipe: FileType,
    importance: Option<&'a ImportanceMatrix>,
    options: &'a QuantizeOptions,
    facts: ModelFacts,
}

impl Planner<'_> {
    fn plan(&self, tensors: &[RawTensor]) -> Result<(Vec<TensorPlan>, Vec<Fallback>), CheckpointError> {
        let mut fallbacks = Vec::new();
        let mut n_values = 0;
        let mut plans = Vec::new();
        for raw in tensors {
            let tensor = &raw.tensor;
            let wanted = self.wanted(tensor, n_values);
            n_values += usize::from(Role::of(tensor.name()) == Role::Value);
            let dtype = recipe::fallback(wanted, tensor.cols());
            if dtype != wanted {
                fallbacks.push(Fallback { tensor: tensor.name().to_owned(), wanted, stored: dtype });
            }
            self.check(tensor, dtype)?;
            plans.push(TensorPlan { name: tensor.name().to_owned(), shape: tensor.shape().to_vec(), dtype });
        }
        Ok((plans, fallbacks))
    }

    fn wanted(&self, tensor: &HostTensor, n_values: usize) -> DType {
        let Format::Plain(stored) = tensor.format() else { return DType::F32 };
        let name = tensor.name();
        if !recipe::is_quantised(name, tensor.shape()) {
            return stored;
        }
        let role = Role::of(name);
        let is_output = role == Role::Output || (self.facts.is_tied && role == Role::TokenEmbedding);
        let named = self.options.tensor_types.iter().find(|(part, _)| name.contains(part.as_str()));
        let chosen = named.map(|(_, dtype)| *dtype);
        let chosen = chosen.or(self.options.embedding_type.filter(|_| role == Role::TokenEmbedding));
        let chosen = chosen.or(self.options.output_type.filter(|_| is_output));
        chosen.unwrap_or_else(|| {
            if self.options.pure {
                self.recipe.base()
            } else {
                recipe::type_for(self.recipe, &self.facts, name, tensor.shape(), n_values)
            }
        })
    }

    /// Whether the tensor can be made what is planned.
    fn check(&self, tensor: &HostTensor, dtype: DType) -> Result<(), CheckpointError> {
        let Format::Plain(stored) = tensor.format() else { return Ok(()) };
        if stored == dtype {
            return Ok(());
        }
        let refuse = |what: String, hint: &str| Err(CheckpointError::unsupported(self.src, what, hint));
        let name = tensor.name();
        if stored.is_quantised() && !self.options.allow_requantise {
            let what = format!("quantising {name:?}, which is {stored} already, to {dtype}");
            return refuse(what, "start from an F16, BF16 or F32 file, or allow requantising");
        }
        if !can_quantise(dtype) {
            return refuse(format!("making {dtype} (for {name:?})"), "choose another recipe");
        }
        let covered = self.importance.is_some_and(|m| m.entries.contains_key(name));
        let is_end = matches!(Role::of(name), Role::Output | Role::TokenEmbedding);
        if self.recipe.needs_importance() && dtype == self.recipe.base() && !covered && !is_end {
            let what = format!("{} without importance for {name:?}", self.recipe);
            return refuse(what, "give an importance matrix made from a calibration text");
        }
        Ok(())
    }
}

/// The source's metadata with what the recipe changes; a file in parts becomes whole.
fn new_metadata(old: &GgufMetadata, recipe: FileType, importance: Option<&ImportanceMatrix>) -> GgufMetadata {
    let kept = old.iter().filter(|(key, _)| !key.starts_with("split."));
    let mut entries: Vec<(String, MetaValue)> = kept.map(|(k, v)| (k.to_owned(), v.clone())).collect();
    let mut put = |key: &str, value: MetaValue| entries.push((key.to_owned(), value));
    put("general.file_type", MetaValue::U32(recipe.id()));
    put("general.quantization_version", MetaValue::U32(QUANTISATION_VERSION));
    if let Some(matrix) = importance {
        let file = matrix.path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        put("quantize.imatrix.file", MetaValue::from(file));
        put("quantize.imatrix.entries_count", MetaValue::U32(matrix.entries.len() as u32));
        if let Some(dataset) = matrix.datasets.first() {
            put("quantize.imatrix.dataset", MetaValue::from(dataset.as_str()));
        }
        if let Some(n) = matrix.n_chunks {
            put("quantize.imatrix.chunks_count", MetaValue::U32(n));
        }
    }
    GgufMetadata::from_entries(entries)
}
