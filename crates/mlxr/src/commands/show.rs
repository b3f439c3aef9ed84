//! `mlxr show`: what a model is, and what it will take in memory.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use mlxr_checkpoint::{Checkpoint, GgufMetadata, MetaArray, MetaValue, Pooling};
use mlxr_models::{DecoderConfig, EncoderConfig, MlpConfig, ModelError, VisionConfig};
use mlxr_server::catalogue::Modelfile;
use mlxr_tensor::{HostTensor, KvLayerSpec, KvSpec};
use mlxr_text::Tokenizer;
use serde_json::{Map, Value, json};

use crate::args::ShowArgs;
use crate::commands::catalogue::{self, NamedModel};
use crate::failure::failure;
use crate::model_source::ModelSource;
use crate::output::{self, DIM, Section};
use crate::{text, units};

/// Characters of a metadata value that are printed.
const MAX_VALUE_CHARS: usize = 96;

pub fn run(args: &ShowArgs) -> anyhow::Result<ExitCode> {
    let named =
        args.model.as_deref().map(|word| catalogue::named(&args.catalogue, word)).transpose()?.flatten();
    if args.modelfile {
        return show_modelfile(args, named.as_ref());
    }
    let source = match &named {
        Some(named) => named.source.clone(),
        None => ModelSource::named(args.model.as_deref()),
    };
    let ckpt = source.open()?;
    if args.template {
        let own = named.as_ref().and_then(|named| named.entry.settings.template.as_ref());
        let Some(template) = own.or(ckpt.chat_template.as_ref()) else {
            let hint = "`mlxr run` uses the built-in template of its family, or --template FILE";
            return Err(failure(format_args!("{source} has no chat template"), hint));
        };
        output::raw(template)?;
        output::raw(if template.ends_with('\n') { "" } else { "\n" })?;
    } else if args.tensors {
        show_tensors(&ckpt, args.json)?;
    } else if args.metadata {
        show_metadata(&ckpt, args.json)?;
    } else {
        let facts = Facts::gather(args, &source, &ckpt)?;
        if args.json {
            let mut json = facts.to_json();
            if let Some(named) = &named {
                json["catalogue"] = catalogue_json(named);
            }
            output::json(&json)?;
        } else {
            let mut out = output::styled();
            if let Some(named) = &named {
                catalogue_section(named).write(&mut out)?;
            }
            facts.print(&mut out)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_modelfile(args: &ShowArgs, named: Option<&NamedModel>) -> anyhow::Result<ExitCode> {
    let Some(NamedModel { name, entry, .. }) = named else {
        let model = args.model.as_deref().map_or_else(|| "it".to_owned(), |path| path.display().to_string());
        let hint = "`mlxr list` shows the models that have one";
        return Err(failure(format_args!("{model} is not in the catalogue and has no Modelfile"), hint));
    };
    output::raw(&Modelfile::write(name, &entry.settings, entry.settings.template.as_deref()))?;
    Ok(ExitCode::SUCCESS)
}

/// What the catalogue says beside the weights.
fn catalogue_section(named: &NamedModel) -> Section {
    let settings = &named.entry.settings;
    let mut section = Section::new("catalogue");
    section.row("name", &named.name);
    if let Some(parent) = &settings.parent {
        section.row("made from", parent);
    }
    if let Some(system) = &settings.system {
        section.row("system", system.replace('\n', " "));
    }
    for (name, value) in settings.parameters.lines() {
        section.row(name, value);
    }
    if !settings.messages.is_empty() {
        section.row("messages", settings.messages.len());
    }
    if settings.template.is_some() {
        section.row("template", "its own (--template prints it)");
    }
    section
}

fn catalogue_json(named: &NamedModel) -> Value {
    let settings = &named.entry.settings;
    let messages = settings.messages.iter().map(|m| json!({"role": m.role, "content": m.content}));
    json!({
        "name": named.name,
        "from": settings.parent,
        "system": settings.system,
        "template": settings.template,
        "parameters": settings.parameters.as_map(),
        "messages": messages.collect::<Vec<_>>(),
        "license": settings.licenses,
        "pin": settings.pin,
    })
}

/// Tensors of one storage format.
struct FormatShare {
    name: String,
    n_tensors: usize,
    n_bytes: u64,
}

/// What a model takes while it runs.
struct Memory {
    n_ctx: u32,
    kv_type: &'static str,
    weights_bytes: u64,
    /// `None` when the heads do not fit the type's quant blocks.
    kv_bytes: Option<u64>,
}

/// What models of both kinds have.
struct Shape {
    n_ctx_train: u32,
    n_layers: usize,
    hidden: usize,
    mlp: String,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    /// The sliding windows of the layers that have one.
    windows: Vec<u32>,
    /// Whether the output shares the embedding's weights; `None` where there is no output of that kind.
    tied: Option<bool>,
    /// What a token leaves behind; nothing in a model that only reads.
    kv_layers: Vec<KvLayerSpec>,
    /// What reads images.
    vision: Option<VisionConfig>,
}

impl Shape {
    fn of(ckpt: &Checkpoint) -> Result<Shape, ModelError> {
        if ckpt.arch.encoder {
            let config = EncoderConfig::for_checkpoint(ckpt)?;
            return Ok(Shape {
                n_ctx_train: config.n_ctx,
                n_layers: config.layers.len(),
                hidden: config.hidden,
                mlp: config.intermediate.to_string(),
                n_heads: config.n_heads,
                n_kv_heads: config.n_heads,
                head_dim: config.head_dim,
                windows: config.layers.iter().filter_map(|layer| layer.window).collect(),
                tied: None,
                kv_layers: Vec::new(),
                vision: None,
            });
        }
        let config = DecoderConfig::for_checkpoint(ckpt)?;
        let mlp = match config.layers.first().map(|layer| layer.mlp) {
            Some(MlpConfig::Dense { intermediate }) => intermediate.to_string(),
            Some(MlpConfig::Experts { n_experts, intermediate, router }) => {
                format!("{n_experts} experts of {intermediate}, {} per token", router.top_k)
            }
            None => String::new(),
        };
        Ok(Shape {
            n_ctx_train: config.n_ctx_train,
            n_layers: config.layers.len(),
            hidden: config.hidden,
            mlp,
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            head_dim: config.head_dim,
            windows: config.layers.iter().filter_map(|layer| layer.window).collect(),
            tied: Some(config.tied),
            kv_layers: config.kv_layers(),
            vision: VisionConfig::for_checkpoint(ckpt, &config)?,
        })
    }
}

struct Facts<'a> {
    source: &'a ModelSource,
    ckpt: &'a Checkpoint,
    shape: Shape,
    n_params: u64,
    formats: Vec<FormatShare>,
    tokenizer: anyhow::Result<Tokenizer>,
    memory: Memory,
}

impl<'a> Facts<'a> {
    fn gather(args: &ShowArgs, source: &'a ModelSource, ckpt: &'a Checkpoint) -> anyhow::Result<Facts<'a>> {
        let shape = Shape::of(ckpt)?;
        let n_bytes = |t: &HostTensor| t.n_bytes() as u64;
        let n_ctx = args.n_ctx.unwrap_or(shape.n_ctx_train);
        let kv =
            KvSpec { n_blocks: 1, block_tokens: 16, dtype: args.kv_type, layers: shape.kv_layers.clone() };
        let kv_bytes = kv.bytes_per_token().and_then(|bytes| (bytes as u64).checked_mul(n_ctx.into()));
        let weights_bytes = ckpt.tensors().map(n_bytes).sum();
        let memory = Memory { n_ctx, kv_type: args.kv_type.name(), weights_bytes, kv_bytes };
        Ok(Facts {
            source,
            ckpt,
            // Rotary factors are a GGUF file's way to store what config.json computes.
            n_params: ckpt
                .tensors()
                .filter(|t| !t.name().starts_with("rope_factors."))
                .map(|t| t.n_elements() as u64)
                .sum(),
            formats: formats(ckpt),
            tokenizer: text::tokenizer(ckpt),
            memory,
            shape,
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.model_section().write(out)?;
        self.weights_section().write(out)?;
        self.attention_section().write(out)?;
        self.tokenizer_section().write(out)?;
        if !self.ckpt.generation.is_empty() {
            let mut section = Section::new("generation defaults");
            for (key, value) in &self.ckpt.generation {
                section.row(key, value);
            }
            section.write(out)?;
        }
        self.memory_section().write(out)
    }

    fn model_section(&self) -> Section {
        let (ckpt, shape) = (self.ckpt, &self.shape);
        let mut section = Section::new("model");
        section.row("model", self.source);
        if let Some(name) = ckpt.metadata.as_ref().and_then(|m| m.str("general.name")) {
            section.row("name", name);
        }
        section
            .row("format", ckpt.format.name())
            .row("architecture", self.architecture())
            .row("parameters", units::count(self.n_params))
            .row("context", shape.n_ctx_train)
            .row("layers", shape.n_layers)
            .row("hidden", shape.hidden);
        if !shape.mlp.is_empty() {
            section.row("mlp", &shape.mlp);
        }
        if let Some(vision) = &shape.vision {
            let [_, height, width] = vision.image_shape();
            section.row("images", format!("{width} x {height} pixels, {} tokens each", vision.n_rows()));
        }
        if let Some(is_tied) = shape.tied {
            section.row("embedding", if is_tied { "tied to the output" } else { "separate from the output" });
        }
        if let Some(pooling) = self.pooling() {
            section.row("pooling", pooling.name());
        }
        section
    }

    /// The family, and of a model that reads images that of its text model.
    fn architecture(&self) -> String {
        let text = self.ckpt.arch.model_type;
        let vision = self.ckpt.vision.as_ref();
        vision.map_or_else(|| text.to_owned(), |files| format!("{} on {text}", files.model_type))
    }

    /// How texts become vectors, where the model is one for that.
    fn pooling(&self) -> Option<Pooling> {
        let usual = self.ckpt.arch.encoder.then_some(Pooling::Mean);
        self.ckpt.embedding.pooling.or(usual)
    }

    fn weights_section(&self) -> Section {
        let total = self.memory.weights_bytes;
        let mut section = Section::new("weights");
        for FormatShare { name, n_tensors, n_bytes } in &self.formats {
            let share = *n_bytes as f64 / total.max(1) as f64 * 100.0;
            section.row(name, format!("{:>10}  {share:5.1} %  {n_tensors} tensors", units::bytes(*n_bytes)));
        }
        let bits = total as f64 * 8.0 / self.n_params.max(1) as f64;
        section.row("total", format!("{:>10}  {bits:.2} bits per weight", units::bytes(total)));
        if !self.ckpt.unknown.is_empty() {
            let names: Vec<&str> = self.ckpt.unknown.iter().map(HostTensor::name).take(4).collect();
            section.row("unknown", format!("{} tensors: {}, ...", self.ckpt.unknown.len(), names.join(", ")));
        }
        for warning in &self.ckpt.warnings {
            section.row("warning", warning.clone());
        }
        section
    }

    fn attention_section(&self) -> Section {
        let shape = &self.shape;
        let mut section = Section::new("attention");
        section.row("heads", shape.n_heads).row("KV heads", shape.n_kv_heads).row("head dim", shape.head_dim);
        if let Some(window) = shape.windows.first() {
            let (n_windows, n_layers) = (shape.windows.len(), shape.n_layers);
            section.row("sliding window", format!("{window}, in {n_windows} of {n_layers} layers"));
        }
        section
    }

    fn tokenizer_section(&self) -> Section {
        let mut section = Section::new("tokenizer");
        match &self.tokenizer {
            Err(error) => {
                section.row("unusable", format!("{error:#}").replace('\n', "; "));
            }
            Ok(tokenizer) => {
                let named = |id: u32| format!("{id} {}", text::quoted(tokenizer.token_bytes(id)));
                let or_none = |id: Option<u32>| id.map_or("none".to_owned(), named);
                let ends: Vec<String> = tokenizer.eog_ids().iter().map(|&id| named(id)).collect();
                section
                    .row("vocabulary", tokenizer.n_vocab())
                    .row("begin", or_none(tokenizer.bos()))
                    .row("end", or_none(tokenizer.eos()))
                    .row("ends generation", ends.join(", "));
            }
        }
        let template = match &self.ckpt.chat_template {
            Some(template) => format!("{} characters (--template prints it)", template.chars().count()),
            None => "none".to_owned(),
        };
        section.row("chat template", template);
        section
    }

    fn memory_section(&self) -> Section {
        let Memory { n_ctx, kv_type, weights_bytes, kv_bytes } = self.memory;
        let mut section = Section::new("memory");
        section.row("weights", format!("{:>10}", units::bytes(weights_bytes)));
        if self.shape.kv_layers.is_empty() {
            return section;
        }
        let kv_name = format!("KV, {kv_type}");
        match kv_bytes {
            Some(kv_bytes) => section
                .row(kv_name, format!("{:>10}  {n_ctx} tokens", units::bytes(kv_bytes)))
                .row("together", format!("{:>10}", units::bytes(weights_bytes + kv_bytes))),
            None => section.row(kv_name, "not possible: a head is no whole number of quant blocks"),
        };
        section
    }

    fn to_json(&self) -> Value {
        let (ckpt, shape, memory) = (self.ckpt, &self.shape, &self.memory);
        let formats: Vec<Value> = self
            .formats
            .iter()
            .map(|f| json!({ "format": f.name, "n_tensors": f.n_tensors, "n_bytes": f.n_bytes }))
            .collect();
        let tokenizer = match &self.tokenizer {
            Err(error) => json!({ "error": format!("{error:#}") }),
            Ok(t) => json!({
                "n_vocab": t.n_vocab(), "bos_id": t.bos(), "eos_id": t.eos(), "eog_ids": t.eog_ids(),
            }),
        };
        json!({
            "model": self.source.to_string(),
            "format": ckpt.format.name(),
            "architecture": ckpt.arch.model_type,
            "n_params": self.n_params,
            "n_bytes": memory.weights_bytes,
            "n_ctx_train": shape.n_ctx_train,
            "n_layers": shape.n_layers,
            "hidden": shape.hidden,
            "n_heads": shape.n_heads,
            "n_kv_heads": shape.n_kv_heads,
            "head_dim": shape.head_dim,
            "tied_embedding": shape.tied,
            "pooling": self.pooling().map(Pooling::name),
            "vision": shape.vision.as_ref().map(|vision| json!({
                "model_type": ckpt.vision.as_ref().map(|files| files.model_type),
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "n_tokens": vision.n_rows(),
            })),
            "formats": formats,
            "warnings": ckpt.warnings,
            "unknown_tensors": ckpt.unknown.iter().map(HostTensor::name).collect::<Vec<_>>(),
            "tokenizer": tokenizer,
            "chat_template": ckpt.chat_template,
            "generation": ckpt.generation,
            "memory": {
                "n_ctx": memory.n_ctx,
                "kv_type": memory.kv_type,
                "weights_bytes": memory.weights_bytes,
                "kv_bytes": memory.kv_bytes,
                "total_bytes": memory.kv_bytes.map(|kv| kv + memory.weights_bytes),
            },
        })
    }
}

/// Storage formats by the bytes they take, most first.
fn formats(ckpt: &Checkpoint) -> Vec<FormatShare> {
    let mut by_name: BTreeMap<String, FormatShare> = BTreeMap::new();
    for tensor in ckpt.tensors() {
        let name = tensor.format().name();
        let share = by_name.entry(name.clone()).or_insert(FormatShare { name, n_tensors: 0, n_bytes: 0 });
        share.n_tensors += 1;
        share.n_bytes += tensor.n_bytes() as u64;
    }
    let mut shares: Vec<FormatShare> = by_name.into_values().collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.n_bytes));
    shares
}

fn show_tensors(ckpt: &Checkpoint, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let tensors: Vec<Value> = ckpt
            .tensors()
            .map(|t| json!({ "name": t.name(), "shape": t.shape(), "format": t.format().name(), "n_bytes": t.n_bytes() }))
            .collect();
        return output::json(&tensors);
    }
    let width = ckpt.tensors().map(|t| t.name().len()).max().unwrap_or(0);
    let mut out = output::styled();
    for tensor in ckpt.tensors() {
        let shape: Vec<String> = tensor.shape().iter().map(usize::to_string).collect();
        let (format, size) = (tensor.format().name(), units::bytes(tensor.n_bytes() as u64));
        writeln!(out, "{:<width$}  {:<8}  {size:>10}  [{}]", tensor.name(), format, shape.join(", "))?;
    }
    Ok(())
}

fn show_metadata(ckpt: &Checkpoint, as_json: bool) -> anyhow::Result<()> {
    let entries: Map<String, Value> = match &ckpt.metadata {
        Some(metadata) => gguf_json(metadata),
        None => ckpt.config.clone(),
    };
    if as_json {
        return output::json(&entries);
    }
    let width = entries.keys().map(String::len).max().unwrap_or(0);
    let mut out = output::styled();
    for (key, value) in &entries {
        writeln!(out, "{DIM}{key:<width$}{DIM:#}  {}", shortened(&value.to_string()))?;
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MAX_VALUE_CHARS) {
        Some((end, _)) => format!("{}... ({} characters)", &text[..end], text.chars().count()),
        None => text.to_owned(),
    }
}

fn gguf_json(metadata: &GgufMetadata) -> Map<String, Value> {
    metadata.iter().map(|(key, value)| (key.to_owned(), meta_json(value))).collect()
}

fn meta_json(value: &MetaValue) -> Value {
    if let MetaValue::Array(array) = value {
        return array_json(array);
    }
    match value {
        MetaValue::Bool(v) => json!(v),
        // The shortest number that reads back as the same f32, not its long form as f64.
        MetaValue::F32(v) => v.to_string().parse::<f64>().map_or(Value::Null, |v| json!(v)),
        MetaValue::F64(v) => json!(v),
        _ => match (value.as_str(), value.as_i64(), value.as_u64()) {
            (Some(text), ..) => json!(text),
            (_, Some(n), _) => json!(n),
            (_, _, n) => json!(n),
        },
    }
}

fn array_json(array: &MetaArray) -> Value {
    match array {
        MetaArray::Strings(strings) => strings.iter().map(String::from_utf8_lossy).collect(),
        MetaArray::Nested(items) => items.iter().map(array_json).collect(),
        MetaArray::Numbers { .. } => {
            (0..array.len()).filter_map(|i| array.number(i)).map(|value| meta_json(&value)).collect()
        }
    }
}
