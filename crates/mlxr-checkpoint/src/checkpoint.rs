//! One checkpoint, whatever its format: a Hugging Face shaped config and canonical, mapped tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use mlxr_tensor::{HostTensor, RopePairing};
use serde_json::{Map, Value, json};

use crate::arch::{self, ArchSpec, Multimodal, Naming};
use crate::assemble::{Assembled, assemble};
use crate::embedding::{EmbeddingFiles, Pooling};
use crate::gguf::{self, GgufFile, GgufMetadata};
use crate::mapping::LoadOptions;
use crate::tokenizer::{self, ChatTemplates, TokenizerSource};
use crate::vision::VisionFiles;
use crate::{CheckpointError, json, mlx, published, safetensors};

/// Which kind of files a checkpoint came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    Gguf,
    Safetensors,
    Mlx,
}

impl CheckpointFormat {
    /// The name users read.
    pub const fn name(self) -> &'static str {
        match self {
            CheckpointFormat::Gguf => "GGUF",
            CheckpointFormat::Safetensors => "safetensors",
            CheckpointFormat::Mlx => "MLX",
        }
    }
}

/// An opened model. Tensors are mapped, so cloning and slicing them costs nothing.
#[derive(Debug)]
pub struct Checkpoint {
    pub path: PathBuf,
    pub format: CheckpointFormat,
    pub arch: &'static ArchSpec,
    /// Shaped like Hugging Face's config.json for every format.
    pub config: Map<String, Value>,
    /// Shaped like generation_config.json; empty when there is none.
    pub generation: Map<String, Value>,
    pub tokenizer: TokenizerSource,
    pub chat_template: Option<String>,
    /// Further templates by name (`tool_use`, `rag`).
    pub named_templates: BTreeMap<String, String>,
    pub rope_pairing: RopePairing,
    /// How hidden states become vectors, as far as the files say.
    pub embedding: EmbeddingFiles,
    /// What goes before the text model, where the model reads images.
    pub vision: Option<VisionFiles>,
    /// The metadata of a GGUF file.
    pub metadata: Option<GgufMetadata>,
    /// Tensors no table knows, under their names in the file; a loader that computes with the model refuses them.
    pub unknown: Vec<HostTensor>,
    /// File names of tensors the family is known not to need.
    pub ignored: Vec<String>,
    /// What an owner should know: metadata without effect here, weights that could not stay mapped.
    pub warnings: Vec<String>,
    tensors: BTreeMap<String, HostTensor>,
}

impl Checkpoint {
    /// Opens a GGUF file (of a split model: the first part), or a folder with safetensors files in Hugging Face's or
    /// MLX's layout.
    ///
    /// # Errors
    /// [`CheckpointError`] says which file and place is wrong and what to do; no input makes this panic.
    pub fn open(path: &Path) -> Result<Checkpoint, CheckpointError> {
        Self::open_with(path, LoadOptions::default())
    }

    /// [`Self::open`] with a choice of how pages get into memory.
    ///
    /// # Errors
    /// As [`Self::open`], and when memory cannot be locked.
    pub fn open_with(path: &Path, options: LoadOptions) -> Result<Checkpoint, CheckpointError> {
        if path.is_dir() {
            return Self::open_dir(path, options);
        }
        if path.extension().is_some_and(|e| e == "safetensors") {
            let hint = "name the folder that holds it; config.json and the tokenizer are needed too";
            return Err(CheckpointError::unsupported(path, "a safetensors file on its own", hint));
        }
        Self::from_gguf(path, gguf::open_series(path, options)?)
    }

    /// The tokenizer alone, of a model of any family or of a file with a vocabulary and no model.
    ///
    /// # Errors
    /// As [`Self::open`], but for what only a model needs.
    pub fn open_tokenizer(path: &Path) -> Result<TokenizerSource, CheckpointError> {
        if path.is_dir() {
            return tokenizer::source_from_dir(path);
        }
        Ok(TokenizerSource::Gguf(gguf::open_series(path, LoadOptions::default())?.metadata))
    }

    /// Reads a GGUF file that is in memory already, such as one compiled into a program; `name` is for messages.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_gguf_bytes(name: &Path, bytes: &Bytes) -> Result<Checkpoint, CheckpointError> {
        Self::from_gguf(name, GgufFile::parse(name, bytes)?)
    }

    fn from_gguf(path: &Path, file: GgufFile) -> Result<Checkpoint, CheckpointError> {
        let metadata = file.metadata;
        let Some(name) = metadata.architecture() else {
            let hint = "this may be a vocabulary, an adapter or an importance matrix instead of a model";
            return Err(CheckpointError::missing(path, "metadata \"general.architecture\"", hint));
        };
        let number = |key: &str| metadata.u64(&format!("{name}.{key}")).unwrap_or(0);
        let found = ArchSpec::for_gguf(name, number("expert_count"), number("attention.sliding_window"));
        let Some(arch) = found else {
            return Err(CheckpointError::UnknownArchitecture {
                path: path.to_owned(),
                found: name.to_owned(),
                supported: ArchSpec::supported_gguf(),
            });
        };
        let mut config = arch::config_from_gguf(arch, &metadata);
        let assembled = assemble(arch, Naming::Gguf, &config, file.tensors)?;
        arch::complete_config(arch, &mut config);
        let attention_factor = metadata.f32(&format!("{name}.rope.scaling.attn_factor")).map(f64::from);
        arch::fill_scaling(&mut config, |name| assembled.tensors.get(name), attention_factor);
        let has = |name: &str| assembled.tensors.contains_key(name);
        config.insert("tie_word_embeddings".to_owned(), json!(!has("lm_head.weight")));
        config.insert("attention_bias".to_owned(), json!(has("layers.0.attn.q.bias")));
        config.insert("mlp_bias".to_owned(), json!(has("layers.0.mlp.down.bias")));
        let pairing = if arch.gguf_permutes_qk { RopePairing::Interleaved } else { RopePairing::Half };
        let parts = Parts {
            format: CheckpointFormat::Gguf,
            config,
            generation: arch::generation_from_gguf(&metadata),
            templates: tokenizer::chat_templates_from_gguf(&metadata),
            tokenizer: TokenizerSource::Gguf(metadata.clone()),
            rope_pairing: pairing,
            embedding: EmbeddingFiles::from_gguf(path, &metadata)?,
            vision: None,
            warnings: arch::unread_keys(path, arch, &metadata)?,
            metadata: Some(metadata),
        };
        Ok(Self::from_parts(path, arch, parts, assembled))
    }

    fn open_dir(dir: &Path, options: LoadOptions) -> Result<Checkpoint, CheckpointError> {
        let config_path = dir.join("config.json");
        if !config_path.is_file() {
            let hint = "name a GGUF file, or a folder with config.json and *.safetensors";
            return Err(CheckpointError::missing(dir, "config.json", hint));
        }
        let mut config = json::read_object(&config_path)?;
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned();
        let multimodal = Multimodal::for_model_type(&model_type);
        let arch = match multimodal {
            Some(family) => text_arch(family, &mut config, &config_path)?,
            None => ArchSpec::for_model_type(&model_type).ok_or_else(|| {
                let supported = ArchSpec::supported();
                CheckpointError::UnknownArchitecture {
                    path: config_path.clone(),
                    found: model_type,
                    supported,
                }
            })?,
        };
        arch::normalise_config(&mut config);
        arch::complete_config(arch, &mut config);
        let files = safetensors::open_dir(dir, options)?;
        let is_mlx =
            mlx::settings(&config).is_some() || files.metadata.get("format").is_some_and(|f| f == "mlx");
        let tensors = mlx::join_quantised(files.tensors, &config, &config_path)?;
        let joined = published::join_quantised(tensors, &config, &config_path)?;
        let (tower, text) = match multimodal {
            Some(family) => family.part(joined.tensors),
            None => (Vec::new(), joined.tensors),
        };
        let mut assembled = assemble(arch, Naming::Hf, &config, text)?;
        if let Some(family) = multimodal {
            assembled.extend(assemble(family.tower, Naming::Hf, &config, tower)?);
        }
        assembled.ignored.extend(joined.ignored);
        let mut warnings = Vec::new();
        if joined.n_rearranged_bytes > 0 {
            let n_mib = joined.n_rearranged_bytes >> 20;
            warnings
                .push(format!("quantised weights were rearranged: {n_mib} MiB are in memory, not mapped"));
        }
        settle_tied_head(&mut config, &mut assembled);
        settle_classifier(&mut assembled);
        let (embedding, dense) = EmbeddingFiles::from_dir(dir, &config, options)?;
        assembled.tensors.extend(dense.into_iter().map(|tensor| (tensor.name().to_owned(), tensor)));
        let tokenizer = tokenizer::source_from_dir(dir)?;
        let parts = Parts {
            format: if is_mlx { CheckpointFormat::Mlx } else { CheckpointFormat::Safetensors },
            config,
            generation: json::read_object_if_present(&dir.join("generation_config.json"))?,
            templates: tokenizer::chat_templates_from_dir(dir, &tokenizer)?,
            tokenizer,
            rope_pairing: RopePairing::Half,
            embedding,
            vision: multimodal.map(|family| VisionFiles::from_dir(dir, family.model_type)).transpose()?,
            metadata: None,
            warnings,
        };
        Ok(Self::from_parts(dir, arch, parts, assembled))
    }

    fn from_parts(path: &Path, arch: &'static ArchSpec, parts: Parts, assembled: Assembled) -> Checkpoint {
        Checkpoint {
            path: path.to_owned(),
            format: parts.format,
            arch,
            config: parts.config,
            generation: parts.generation,
            tokenizer: parts.tokenizer,
            chat_template: parts.templates.default,
            named_templates: parts.templates.named,
            rope_pairing: parts.rope_pairing,
            embedding: parts.embedding,
            vision: parts.vision,
            metadata: parts.metadata,
            warnings: parts.warnings,
            unknown: assembled.unknown,
            ignored: assembled.ignored,
            tensors: assembled.tensors,
        }
    }

    /// Whether the model reads texts and makes vectors or scores of them, and generates nothing.
    pub fn is_embedder(&self) -> bool {
        let both_ways = self.config.get("use_bidirectional_attention") == Some(&Value::Bool(true));
        self.arch.encoder
            || both_ways
            || self.embedding.pooling.is_some_and(|pooling| pooling != Pooling::None)
    }

    /// The tensor with this canonical name.
    pub fn tensor(&self, canonical: &str) -> Option<&HostTensor> {
        self.tensors.get(canonical)
    }

    /// All canonical tensors, sorted by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &HostTensor> {
        self.tensors.values()
    }
}

/// Everything but the tensors.
struct Parts {
    format: CheckpointFormat,
    config: Map<String, Value>,
    generation: Map<String, Value>,
    templates: ChatTemplates,
    tokenizer: TokenizerSource,
    rope_pairing: RopePairing,
    embedding: EmbeddingFiles,
    vision: Option<VisionFiles>,
    metadata: Option<GgufMetadata>,
    warnings: Vec<String>,
}

/// The family of a multimodal model's text model, which becomes the configuration's `model_type`.
fn text_arch(
    family: &Multimodal,
    config: &mut Map<String, Value>,
    path: &Path,
) -> Result<&'static ArchSpec, CheckpointError> {
    let stated = config.get("text_config").and_then(|text| text.get("model_type")).and_then(Value::as_str);
    let arch = family.text_arch(stated).ok_or_else(|| CheckpointError::UnknownArchitecture {
        path: path.to_owned(),
        found: format!("{} on {}", family.model_type, stated.unwrap_or_default()),
        supported: format!("{} on {}", family.model_type, family.supported_texts()),
    })?;
    config.insert("model_type".to_owned(), json!(arch.model_type));
    Ok(arch)
}

/// A head that config.json says is tied to the embedding is not read, even when the file repeats it.
fn settle_tied_head(config: &mut Map<String, Value>, assembled: &mut Assembled) {
    const HEAD: &str = "lm_head.weight";
    let has_head = assembled.tensors.contains_key(HEAD);
    let tied = config.entry("tie_word_embeddings").or_insert(json!(!has_head));
    if tied.as_bool() == Some(true) && has_head {
        assembled.tensors.remove(HEAD);
        assembled.ignored.push(HEAD.to_owned());
    }
}

/// What is left of a pre-trained model's head when no scores come out at its end is of no use.
fn settle_classifier(assembled: &mut Assembled) {
    if assembled.tensors.contains_key("cls.out.weight") {
        return;
    }
    let left: Vec<String> =
        assembled.tensors.keys().filter(|name| name.starts_with("cls.")).cloned().collect();
    for name in left {
        assembled.tensors.remove(&name);
        assembled.ignored.push(name);
    }
}
