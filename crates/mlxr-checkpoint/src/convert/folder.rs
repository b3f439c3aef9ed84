//! Model folders: Hugging Face safetensors and MLX.

use std::fs;
use std::path::Path;

use mlxr_tensor::codec::{quantise_mlx, quantise_mlx_float};
use mlxr_tensor::{DType, Format, HostTensor, MlxFloat};
use serde_json::{Map, Value, json};

use super::plan::{self, Output};
use super::{Converted, OnProgress, Reporter, default_threads, hf_vocab, transcode};
use crate::arch::Naming;
use crate::safetensors::{self, Entry};
use crate::tokenizer::TokenizerSource;
use crate::{Checkpoint, CheckpointError, CheckpointFormat, atomic};

/// Files of a tokenizer, and of what makes vectors of hidden states, that are copied as they are.
const COPIED_FILES: [&str; 14] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tiktoken.model",
    "qwen.tiktoken",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// What a written folder is like.
#[derive(Clone, Debug)]
pub struct FolderOptions {
    /// Type of what is not quantised; as it is stored when absent (BF16 for what was quantised).
    pub dtype: Option<DType>,
    /// Data in one file at most.
    pub max_shard_bytes: u64,
    pub n_threads: usize,
}

impl Default for FolderOptions {
    fn default() -> Self {
        Self { dtype: None, max_shard_bytes: 5_000_000_000, n_threads: default_threads() }
    }
}

/// How an MLX folder is quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxQuantisation {
    Affine { bits: u8, group_size: u16 },
    Float(MlxFloat),
}

impl MlxQuantisation {
    fn group_size(self) -> usize {
        match self {
            MlxQuantisation::Affine { group_size, .. } => group_size.into(),
            MlxQuantisation::Float(mode) => mode.group_size(),
        }
    }

    /// The entry in config.json.
    fn settings(self) -> Value {
        match self {
            MlxQuantisation::Affine { bits, group_size } => {
                json!({"group_size": group_size, "bits": bits, "mode": "affine"})
            }
            MlxQuantisation::Float(mode) => {
                let name = match mode {
                    MlxFloat::Mxfp4 => "mxfp4",
                    MlxFloat::Nvfp4 => "nvfp4",
                    MlxFloat::Mxfp8 => "mxfp8",
                };
                json!({"group_size": mode.group_size(), "bits": mode.bits(), "mode": name})
            }
        }
    }
}

/// Writes a GGUF model as a Hugging Face folder, its tokenizer rebuilt as tokenizer.json.
///
/// # Errors
/// When the source cannot be read or not be told in that format, or `dst` exists or cannot be written.
pub fn gguf_to_hf(
    src: &Path,
    dst: &Path,
    options: &FolderOptions,
    on_progress: OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    let ckpt = Checkpoint::open(src)?;
    if ckpt.format != CheckpointFormat::Gguf {
        let hint = "name a GGUF file; for MLX folders use the conversion from MLX";
        return Err(CheckpointError::unsupported(src, "a folder in place of a GGUF file", hint));
    }
    write_folder(&ckpt, dst, Naming::Hf, None, options, on_progress)
}

/// Writes an MLX folder as a Hugging Face folder, its weights dequantised.
///
/// # Errors
/// As [`gguf_to_hf`].
pub fn mlx_to_hf(
    src: &Path,
    dst: &Path,
    options: &FolderOptions,
    on_progress: OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    let ckpt = Checkpoint::open(src)?;
    if ckpt.format == CheckpointFormat::Gguf {
        return Err(CheckpointError::unsupported(
            src,
            "a GGUF file in place of an MLX folder",
            "name a folder",
        ));
    }
    write_folder(&ckpt, dst, Naming::Hf, None, options, on_progress)
}

/// Writes a Hugging Face folder (or a GGUF file) as an MLX folder, quantised or not.
///
/// # Errors
/// As [`gguf_to_hf`].
pub fn hf_to_mlx(
    src: &Path,
    dst: &Path,
    quantisation: Option<MlxQuantisation>,
    options: &FolderOptions,
    on_progress: OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    let ckpt = Checkpoint::open(src)?;
    write_folder(&ckpt, dst, Naming::Mlx, quantisation, options, on_progress)
}

fn write_folder(
    ckpt: &Checkpoint,
    dst: &Path,
    naming: Naming,
    quantisation: Option<MlxQuantisation>,
    options: &FolderOptions,
    on_progress: OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    if dst.exists() {
        let hint = "choose a new folder, or remove the old one first";
        return Err(CheckpointError::unsupported(dst, "writing over something that exists", hint));
    }
    let outputs = plan::outputs(ckpt, naming)?;
    let pieces: Vec<Vec<Piece>> = outputs.iter().map(|o| pieces(o, naming, quantisation, options)).collect();
    let parent = dst.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    atomic::create_dir(parent)?;
    let work = tempfile::Builder::new()
        .prefix(".mlxr-")
        .suffix(".part")
        .tempdir_in(parent)
        .map_err(CheckpointError::io(parent, "create the folder"))?;
    write_config(ckpt, work.path(), &outputs, naming, quantisation, options)?;
    write_tokenizer(ckpt, work.path())?;
    let mut maker = Maker {
        ckpt,
        outputs: &outputs,
        pieces: &pieces,
        n_threads: options.n_threads,
        reporter: Reporter::new(&outputs, on_progress),
        next: (0, 0),
        made: Vec::new(),
    };
    let entries: Vec<Entry> = pieces.iter().flatten().map(|p| p.entry.clone()).collect();
    let format = if naming == Naming::Mlx { "mlx" } else { "pt" };
    let metadata: Map<String, Value> = [("format".to_owned(), json!(format))].into_iter().collect();
    let n_bytes =
        safetensors::write_dir(work.path(), &entries, &metadata, options.max_shard_bytes, &mut |_| {
            maker.next_bytes()
        })?;
    let done = work.keep();
    publish(&done, dst)?;
    Ok(Converted { n_tensors: entries.len(), n_bytes, fallbacks: Vec::new() })
}

/// Gives the finished folder its name, or leaves nothing.
fn publish(done: &Path, dst: &Path) -> Result<(), CheckpointError> {
    let open_up = || -> std::io::Result<()> {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(done, fs::Permissions::from_mode(0o755))?;
        }
        fs::rename(done, dst)
    };
    open_up().map_err(|error| {
        // The error says what went wrong; what is left of the attempt is of no use to anyone.
        if let Err(left) = fs::remove_dir_all(done) {
            tracing::warn!(path = %done.display(), %left, "unfinished folder not removed");
        }
        CheckpointError::io(dst, "rename the finished folder")(error)
    })
}

/// What becomes of an output: one tensor, or the parts of a quantised one.
struct Piece {
    entry: Entry,
    coding: Coding,
}

#[derive(Clone, Copy)]
enum Coding {
    Plain(DType),
    /// Quantise, or take over what is quantised in this way already.
    Quantised(MlxQuantisation, Part),
    /// Keep the stored form.
    Stored(Part),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Weight,
    Scales,
    Biases,
}

/// Scales and biases of weights that come as f32 are f16 no more precise than the codes.
const SCALE_TYPE: DType = DType::BF16;

fn pieces(
    output: &Output,
    naming: Naming,
    quantisation: Option<MlxQuantisation>,
    options: &FolderOptions,
) -> Vec<Piece> {
    let first = &output.parts[0];
    let module = output.name.strip_suffix(".weight");
    let grouped = |format| matches!(format, Format::MlxAffine { .. } | Format::MlxFloat(_));
    let alike = output.parts.iter().all(|p| p.format() == first.format());
    if let (Naming::Mlx, Some(module), true) = (naming, module, grouped(first.format()) && alike) {
        return quantised_pieces(output, module, first.format(), Coding::Stored);
    }
    if let (Some(module), Some(how)) = (module, quantisation)
        && can_be_quantised(output, how)
    {
        let format = match how {
            MlxQuantisation::Affine { bits, group_size } => {
                Format::MlxAffine { bits, group_size, scale: SCALE_TYPE }
            }
            MlxQuantisation::Float(mode) => Format::MlxFloat(mode),
        };
        return quantised_pieces(output, module, format, |part| Coding::Quantised(how, part));
    }
    let dtype = options.dtype.unwrap_or(match first.format() {
        Format::Plain(dtype) if !dtype.is_quantised() => dtype,
        _ => DType::BF16,
    });
    vec![piece(output.name.clone(), dtype, output.shape.clone(), Coding::Plain(dtype))]
}

fn can_be_quantised(output: &Output, how: MlxQuantisation) -> bool {
    let cols = output.shape.last().copied().unwrap_or(1);
    let is_router = [".router.weight", ".mlp.gate.weight", ".block_sparse_moe.gate.weight"];
    output.shape.len() >= 2
        && cols.is_multiple_of(how.group_size())
        && !is_router.iter().any(|end| output.name.ends_with(end))
}

fn quantised_pieces(
    output: &Output,
    module: &str,
    format: Format,
    coding: impl Fn(Part) -> Coding,
) -> Vec<Piece> {
    let (bits, group_size, scale) = match format {
        Format::MlxAffine { bits, group_size, scale } => (bits.into(), group_size.into(), scale),
        Format::MlxFloat(mode) => (mode.bits(), mode.group_size(), DType::U8),
        Format::Plain(dtype) => {
            return vec![piece(output.name.clone(), dtype, output.shape.clone(), coding(Part::Weight))];
        }
        Format::Scaled { .. } | Format::Codebook { .. } => {
            let dtype = DType::BF16;
            return vec![piece(output.name.clone(), dtype, output.shape.clone(), Coding::Plain(dtype))];
        }
    };
    let with_cols = |cols: usize| {
        let mut shape = output.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = cols;
        }
        shape
    };
    let cols = output.shape.last().copied().unwrap_or(1);
    let mut pieces = vec![
        piece(output.name.clone(), DType::U32, with_cols(cols * bits / 32), coding(Part::Weight)),
        piece(format!("{module}.scales"), scale, with_cols(cols / group_size), coding(Part::Scales)),
    ];
    if format.has_biases() {
        pieces.push(piece(
            format!("{module}.biases"),
            scale,
            with_cols(cols / group_size),
            coding(Part::Biases),
        ));
    }
    pieces
}

fn piece(name: String, dtype: DType, shape: Vec<usize>, coding: Coding) -> Piece {
    let n_bytes = (shape.iter().product::<usize>() * dtype.block_bytes()) as u64;
    Piece { entry: Entry { name, dtype, shape, n_bytes }, coding }
}

/// Makes the bytes of the pieces in order; the parts of a quantised tensor come from one pass over it.
struct Maker<'a> {
    ckpt: &'a Checkpoint,
    outputs: &'a [Output],
    pieces: &'a [Vec<Piece>],
    n_threads: usize,
    reporter: Reporter<'a>,
    /// The output and the piece of it that comes next.
    next: (usize, usize),
    /// Parts made together with an earlier one.
    made: Vec<(Part, Vec<u8>)>,
}

impl Maker<'_> {
    fn next_bytes(&mut self) -> Result<Vec<u8>, CheckpointError> {
        while self.pieces[self.next.0].len() == self.next.1 {
            self.next = (self.next.0 + 1, 0);
        }
        let (i, k) = self.next;
        self.next.1 += 1;
        let output = &self.outputs[i];
        if k == 0 {
            self.reporter.next(output)?;
            self.made.clear();
        }
        match self.pieces[i][k].coding {
            Coding::Plain(dtype) => self.plain(output, dtype),
            Coding::Stored(part) => Ok(stored(output, part)),
            Coding::Quantised(how, part) => {
                if k == 0 {
                    self.made = self.quantise(output, how)?;
                }
                let at = self.made.iter().position(|(p, _)| *p == part);
                Ok(at.map(|at| self.made.swap_remove(at).1).unwrap_or_default())
            }
        }
    }

    fn plain(&self, output: &Output, dtype: DType) -> Result<Vec<u8>, CheckpointError> {
        let mut bytes = Vec::new();
        for part in &output.parts {
            let part = transcode::encode(part, dtype, None, self.n_threads);
            bytes.extend(part.map_err(CheckpointError::tensor(&self.ckpt.path))?);
        }
        Ok(bytes)
    }

    fn quantise(
        &self,
        output: &Output,
        how: MlxQuantisation,
    ) -> Result<Vec<(Part, Vec<u8>)>, CheckpointError> {
        let fail = CheckpointError::tensor(&self.ckpt.path);
        let made = || {
            let mut parts =
                [(Part::Weight, Vec::new()), (Part::Scales, Vec::new()), (Part::Biases, Vec::new())];
            for tensor in &output.parts {
                let values = tensor.to_f32()?;
                let made = match how {
                    MlxQuantisation::Affine { bits, group_size } => {
                        let (data, scales, biases) =
                            quantise_mlx(&values, tensor.cols(), bits, group_size, SCALE_TYPE)?;
                        [data, scales, biases]
                    }
                    MlxQuantisation::Float(mode) => {
                        let (data, scales) = quantise_mlx_float(mode, &values, tensor.cols())?;
                        [data, scales, Vec::new()]
                    }
                };
                for ((_, bytes), made) in parts.iter_mut().zip(made) {
                    bytes.extend(made);
                }
            }
            Ok(parts.into())
        };
        made().map_err(fail)
    }
}

fn stored(output: &Output, part: Part) -> Vec<u8> {
    let of = |tensor: &HostTensor| match part {
        Part::Weight => tensor.data().clone(),
        Part::Scales => tensor.scales().clone(),
        Part::Biases => tensor.biases().clone(),
    };
    output.parts.iter().flat_map(of).collect()
}

fn write_config(
    ckpt: &Checkpoint,
    dir: &Path,
    outputs: &[Output],
    naming: Naming,
    quantisation: Option<MlxQuantisation>,
    options: &FolderOptions,
) -> Result<(), CheckpointError> {
    let mut config = ckpt.config.clone();
    for key in ["quantization", "quantization_config", "rope_parameters"] {
        config.remove(key);
    }
    config.insert("architectures".to_owned(), json!([ckpt.arch.hf_class]));
    let stored = outputs.iter().find_map(|o| match o.parts[0].format() {
        Format::Plain(dtype) if !dtype.is_quantised() && o.shape.len() > 1 => Some(dtype),
        _ => None,
    });
    let torch = match options.dtype.or(stored).unwrap_or(DType::BF16) {
        DType::F32 => "float32",
        DType::F16 => "float16",
        _ => "bfloat16",
    };
    config.insert("torch_dtype".to_owned(), json!(torch));
    if naming == Naming::Mlx
        && let Some(settings) = mlx_settings(outputs, quantisation)
    {
        config.insert("quantization".to_owned(), settings.clone());
        config.insert("quantization_config".to_owned(), settings);
    }
    atomic::write(&dir.join("config.json"), format!("{:#}\n", Value::Object(config)).as_bytes())?;
    if !ckpt.generation.is_empty() {
        let text = format!("{:#}\n", Value::Object(ckpt.generation.clone()));
        atomic::write(&dir.join("generation_config.json"), text.as_bytes())?;
    }
    Ok(())
}

/// The scheme asked for, and modules that keep another one.
fn mlx_settings(outputs: &[Output], quantisation: Option<MlxQuantisation>) -> Option<Value> {
    let kept = outputs.iter().filter_map(|output| {
        let how = match output.parts[0].format() {
            Format::MlxAffine { bits, group_size, .. } => MlxQuantisation::Affine { bits, group_size },
            Format::MlxFloat(mode) => MlxQuantisation::Float(mode),
            Format::Plain(_) | Format::Scaled { .. } | Format::Codebook { .. } => return None,
        };
        Some((output.name.strip_suffix(".weight")?.to_owned(), how))
    });
    let kept: Vec<_> = kept.collect();
    let usual = quantisation.or(kept.first().map(|(_, how)| *how))?;
    let mut settings = usual.settings();
    for (module, how) in kept.into_iter().filter(|(_, how)| *how != usual) {
        settings[module] = how.settings();
    }
    Some(settings)
}

fn write_tokenizer(ckpt: &Checkpoint, dir: &Path) -> Result<(), CheckpointError> {
    let TokenizerSource::Gguf(metadata) = &ckpt.tokenizer else {
        for file in COPIED_FILES {
            let (from, to) = (ckpt.path.join(file), dir.join(file));
            if from.is_file() {
                if let Some(parent) = to.parent() {
                    atomic::create_dir(parent)?;
                }
                let bytes = fs::read(&from).map_err(CheckpointError::io(&from, "read the file"))?;
                atomic::write(&to, &bytes)?;
            }
        }
        return Ok(());
    };
    let Some(mut tokenizer) = hf_vocab::from_gguf(&ckpt.path, metadata)? else { return Ok(()) };
    if let Some(template) = &ckpt.chat_template {
        tokenizer.tokenizer_config.insert("chat_template".to_owned(), json!(template));
        atomic::write(&dir.join("chat_template.jinja"), template.as_bytes())?;
    }
    let config = format!("{:#}\n", Value::Object(tokenizer.tokenizer_config));
    atomic::write(&dir.join("tokenizer_config.json"), config.as_bytes())?;
    atomic::write(&dir.join("tokenizer.json"), format!("{:#}\n", tokenizer.tokenizer_json).as_bytes())
}
