//! One format from another. Every function opens the source, checks that the target can hold it, and writes files
//! that appear whole or not at all.

mod folder;
mod gguf_keys;
mod hf_vocab;
mod plan;
mod pre_tokenizer;
mod sentencepiece;
pub(crate) mod transcode;
mod vocab;

use std::ops::ControlFlow;
use std::path::Path;
use std::thread;

use mlxr_tensor::{DType, Format, HostTensor, MlxFloat};

use crate::arch::{self, Naming};
use crate::file_type::FileType;
use crate::gguf::{GgufMetadata, GgufWriter, MetaValue, TensorPlan};
use crate::{Checkpoint, CheckpointError, CheckpointFormat};
use plan::Output;

pub use folder::{FolderOptions, MlxQuantisation, gguf_to_hf, hf_to_mlx, mlx_to_hf};

/// How far a conversion has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor being written.
    pub tensor: &'a str,
    pub n_done: usize,
    pub n_tensors: usize,
    /// Bytes of the source read so far, and in all.
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// Called before every tensor; `Break` stops the work and leaves no file.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>;

/// What a converted file is like.
#[derive(Clone, Debug)]
pub struct GgufOptions {
    /// Type of the matrices: F32, F16, BF16 or any type that can be quantised to without a recipe.
    pub dtype: DType,
    /// `general.name`; the folder's name when absent.
    pub name: Option<String>,
    /// `tokenizer.ggml.pre`, for tokenizers whose way of cutting text has no known name.
    pub pre_tokenizer: Option<String>,
    pub n_threads: usize,
}

impl Default for GgufOptions {
    fn default() -> Self {
        Self { dtype: DType::F16, name: None, pre_tokenizer: None, n_threads: default_threads() }
    }
}

/// What a finished conversion made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    pub n_tensors: usize,
    pub n_bytes: u64,
    /// Tensors that could not have the type asked for.
    pub fallbacks: Vec<Fallback>,
}

/// A tensor stored as another type than the one asked for, because its rows do not fit that one's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    pub tensor: String,
    pub wanted: DType,
    pub stored: DType,
}

/// As many threads as there are CPUs, within reason.
pub(crate) fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(16)
}

/// Writes the safetensors or MLX folder `src` as one GGUF file `dst`.
///
/// # Errors
/// When the source cannot be read, is not understood in full, or the target cannot be written.
pub fn hf_to_gguf(
    src: &Path,
    dst: &Path,
    options: &GgufOptions,
    on_progress: OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    let ckpt = Checkpoint::open(src)?;
    if ckpt.format == CheckpointFormat::Gguf {
        let hint = "use quantize to change the type of its tensors";
        return Err(CheckpointError::unsupported(src, "converting GGUF to GGUF", hint));
    }
    checkpoint_to_gguf(&ckpt, dst, options, on_progress)
}

fn checkpoint_to_gguf(
    ckpt: &Checkpoint,
    dst: &Path,
    options: &GgufOptions,
    on_progress: OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    let mut outputs = plan::outputs(ckpt, Naming::Gguf)?;
    let (hparams, extra) = gguf_keys::hparams(ckpt)?;
    outputs.extend(extra.into_iter().map(|tensor| Output {
        name: tensor.name().to_owned(),
        shape: tensor.shape().to_vec(),
        parts: vec![tensor],
    }));
    let n_vocab = ckpt.tensor("embed_tokens.weight").map_or(0, HostTensor::rows);
    let mut entries = general_entries(ckpt, options);
    entries.extend(arch::sampling_entries(&ckpt.generation));
    entries.extend(hparams);
    entries.extend(vocab::entries(ckpt, n_vocab, options.pre_tokenizer.as_deref())?);
    let mut fallbacks = Vec::new();
    let plans: Vec<TensorPlan> = outputs
        .iter()
        .map(|output| {
            let dtype = target_type(output, options.dtype, &mut fallbacks);
            TensorPlan { name: output.name.clone(), shape: output.shape.clone(), dtype }
        })
        .collect();
    let dtypes: Vec<DType> = plans.iter().map(|p| p.dtype).collect();
    let mut writer = GgufWriter::create(dst, &GgufMetadata::from_entries(entries), plans)?;
    let mut reporter = Reporter::new(&outputs, on_progress);
    for (output, dtype) in outputs.iter().zip(dtypes) {
        reporter.next(output)?;
        let mut bytes = Vec::new();
        for part in &output.parts {
            let part = transcode::encode(part, dtype, None, options.n_threads);
            bytes.extend(part.map_err(CheckpointError::tensor(&ckpt.path))?);
        }
        writer.tensor(&bytes)?;
    }
    let n_bytes = writer.finish()?;
    Ok(Converted { n_tensors: outputs.len(), n_bytes, fallbacks })
}

fn general_entries(ckpt: &Checkpoint, options: &GgufOptions) -> Vec<(String, MetaValue)> {
    let folder = ckpt.path.file_name().and_then(|n| n.to_str()).unwrap_or(ckpt.arch.model_type);
    let name = options.name.as_deref().unwrap_or(folder);
    let mut entries = vec![
        ("general.architecture", MetaValue::from(ckpt.arch.gguf_arch)),
        ("general.type", MetaValue::from("model")),
        ("general.name", MetaValue::from(name)),
    ];
    if let Some(file_type) = FileType::of_dtype(options.dtype) {
        entries.push(("general.file_type", MetaValue::U32(file_type.id())));
    }
    if options.dtype.is_quantised() {
        entries
            .push(("general.quantization_version", MetaValue::U32(crate::file_type::QUANTISATION_VERSION)));
    }
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Vectors, norms and routers stay exact; matrices get the type asked for if their rows fit.
fn target_type(output: &Output, wanted: DType, fallbacks: &mut Vec<Fallback>) -> DType {
    if stays_f32(&output.name, &output.shape) {
        return DType::F32;
    }
    if output.parts.iter().all(|p| p.format() == Format::MlxFloat(MlxFloat::Mxfp4)) {
        return DType::MXFP4;
    }
    let cols = output.shape.last().copied().unwrap_or(1);
    if cols.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    fallbacks.push(Fallback { tensor: output.name.clone(), wanted, stored: DType::F16 });
    DType::F16
}

/// Whether a GGUF tensor is too small or too delicate to be anything but F32.
pub(crate) fn stays_f32(name: &str, shape: &[usize]) -> bool {
    shape.len() <= 1
        || !name.ends_with(".weight")
        || name.ends_with("_norm.weight")
        || name.ends_with("ffn_gate_inp.weight")
}

/// Counts tensors and bytes for the progress callback.
struct Reporter<'a> {
    on_progress: OnProgress<'a>,
    n_done: usize,
    n_tensors: usize,
    bytes_done: u64,
    bytes_total: u64,
}

impl<'a> Reporter<'a> {
    fn new(outputs: &[Output], on_progress: OnProgress<'a>) -> Self {
        let bytes_total = outputs.iter().map(Output::n_source_bytes).sum();
        Self { on_progress, n_done: 0, n_tensors: outputs.len(), bytes_done: 0, bytes_total }
    }

    fn next(&mut self, output: &Output) -> Result<(), CheckpointError> {
        let Self { n_done, n_tensors, bytes_done, bytes_total, .. } = *self;
        let progress = Progress { tensor: &output.name, n_done, n_tensors, bytes_done, bytes_total };
        if (self.on_progress)(progress).is_break() {
            return Err(CheckpointError::Cancelled);
        }
        self.n_done += 1;
        self.bytes_done += output.n_source_bytes();
        Ok(())
    }
}
