//! What there is to say about models, in memory or not.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mlxr_api::ollama::models::{
    ListedModel, ModelDetails, RunningModel, ShowResponse, ShownMessage, TensorInfo,
};
use mlxr_checkpoint::{Checkpoint, MetaArray, MetaValue};
use mlxr_text::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::time;
use crate::ServeError;
use crate::catalogue::{Entry, ModelSettings, Modelfile};
use crate::images::ImageReader;
use crate::loaded::{Loaded, ModelSource, template};
use crate::model_list::ModelSpec;
use crate::translate::conversation::Abilities;
use crate::translate::openai::fill_in;

/// Of a model in memory, which has no age, the end of its weights tells versions apart.
const SAMPLE_BYTES: usize = 1 << 20;

/// What is known of a model from its files.
pub struct Facts {
    ckpt: Checkpoint,
    modified: SystemTime,
    digest: String,
    settings: ModelSettings,
}

impl Facts {
    /// Opens the files; reads no weights. Blocks.
    ///
    /// # Errors
    /// The files are broken.
    pub fn gather(spec: &ModelSpec, created_s: u64) -> Result<Facts, ServeError> {
        let ckpt = spec.source.open().map_err(ServeError::internal)?;
        let mut hash = Sha256::new();
        let modified = match &spec.source {
            ModelSource::Path(path) => {
                let modified = std::fs::metadata(path).and_then(|found| found.modified());
                let modified = modified.map_err(ServeError::internal)?;
                describe(&ckpt, modified, &mut hash);
                modified
            }
            ModelSource::Bytes { bytes, .. } => {
                describe(&ckpt, UNIX_EPOCH, &mut hash);
                hash.update(&bytes[bytes.len().saturating_sub(SAMPLE_BYTES)..]);
                UNIX_EPOCH + Duration::from_secs(created_s)
            }
        };
        let settings = spec.settings.clone();
        if let Some(source) = spec.entry_source.clone() {
            hash.update(Entry { source, settings: settings.clone() }.to_yaml());
        }
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Facts { ckpt, modified: spec.modified.unwrap_or(modified), digest, settings })
    }

    /// As `/api/tags` lists it.
    pub fn listed(&self, name: &str) -> ListedModel {
        ListedModel {
            name: name.to_owned(),
            model: name.to_owned(),
            modified_at: time::rfc3339(self.modified),
            size: self.ckpt.summary().n_bytes,
            digest: self.digest.clone(),
            details: self.details(),
        }
    }

    /// As `/api/ps` lists it; it goes at `until`, if ever.
    pub fn running(&self, model: &Loaded, until: Option<Instant>) -> RunningModel {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let expires = left.and_then(|left| SystemTime::now().checked_add(left));
        RunningModel {
            name: model.name().to_owned(),
            model: model.name().to_owned(),
            size: model.total_bytes(),
            digest: self.digest.clone(),
            details: self.details(),
            expires_at: expires.map_or_else(|| time::NEVER.to_owned(), time::rfc3339),
            // The engine's arithmetic is the processor's.
            size_vram: 0,
            context_length: u64::from(model.plan().n_ctx),
        }
    }

    fn family(&self) -> &str {
        let gguf = self.ckpt.metadata.as_ref().and_then(|metadata| metadata.architecture());
        gguf.unwrap_or(self.ckpt.arch.model_type)
    }

    fn details(&self) -> ModelDetails {
        let summary = self.ckpt.summary();
        let family = self.family().to_owned();
        ModelDetails {
            parent_model: self.settings.parent.clone().unwrap_or_default(),
            format: self.ckpt.format.name().to_lowercase(),
            families: vec![family.clone()],
            family,
            parameter_size: count(summary.n_parameters),
            quantization_level: summary.formats.first().map_or_else(String::new, |share| share.format.name()),
        }
    }

    /// As `/api/show` has it; `is_verbose` adds what is long.
    ///
    /// # Errors
    /// The tokenizer or the template is broken.
    pub fn show(&self, name: &str, is_verbose: bool) -> Result<ShowResponse, ServeError> {
        let ckpt = &self.ckpt;
        let tokenizer = Tokenizer::from_source(&ckpt.tokenizer).map_err(ServeError::internal)?;
        if ckpt.is_embedder() {
            return Ok(self.show_embedder(name, is_verbose));
        }
        let settings = &self.settings;
        let template = template(ckpt, &tokenizer, settings).map_err(ServeError::internal)?;
        Ok(ShowResponse {
            license: self.license(),
            modelfile: Modelfile::write(name, settings, Some(template.source())),
            parameters: parameters(&ckpt.generation, settings).join("\n"),
            template: template.source().to_owned(),
            system: settings.system.clone().unwrap_or_default(),
            messages: self.messages(),
            details: self.details(),
            model_info: self.model_info(is_verbose),
            tensors: is_verbose.then(|| self.tensors()),
            capabilities: capabilities(&self.ckpt, &template, &tokenizer),
            modified_at: time::rfc3339(self.modified),
        })
    }

    /// A model that makes vectors or scores has no template and samples nothing.
    fn show_embedder(&self, name: &str, is_verbose: bool) -> ShowResponse {
        ShowResponse {
            license: self.license(),
            modelfile: Modelfile::write(name, &self.settings, None),
            parameters: String::new(),
            template: String::new(),
            system: String::new(),
            messages: Vec::new(),
            details: self.details(),
            model_info: self.model_info(is_verbose),
            tensors: is_verbose.then(|| self.tensors()),
            capabilities: vec!["embedding".to_owned()],
            modified_at: time::rfc3339(self.modified),
        }
    }

    /// What the catalogue has, else what the file names.
    fn license(&self) -> Option<String> {
        let own = &self.settings.licenses;
        let named = || self.ckpt.metadata.as_ref().and_then(|metadata| metadata.str("general.license"));
        if own.is_empty() { named().map(str::to_owned) } else { Some(own.join("\n")) }
    }

    fn messages(&self) -> Vec<ShownMessage> {
        let messages = self.settings.messages.iter();
        messages.map(|m| ShownMessage { role: m.role.clone(), content: m.content.clone() }).collect()
    }

    /// The metadata of a GGUF file, or the same facts under the same names.
    fn model_info(&self, is_verbose: bool) -> Map<String, Value> {
        let ckpt = &self.ckpt;
        let mut info = Map::new();
        let family = self.family();
        info.insert("general.architecture".to_owned(), json!(family));
        info.insert("general.parameter_count".to_owned(), json!(ckpt.summary().n_parameters));
        if let Some(metadata) = &ckpt.metadata {
            let entries = metadata.iter().filter(|(key, _)| *key != "tokenizer.chat_template");
            info.extend(entries.map(|(key, value)| (key.to_owned(), meta_json(value, is_verbose))));
            return info;
        }
        for (ours, theirs) in [
            ("context_length", "max_position_embeddings"),
            ("embedding_length", "hidden_size"),
            ("block_count", "num_hidden_layers"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("vocab_size", "vocab_size"),
        ] {
            if let Some(value) = ckpt.config.get(theirs) {
                info.insert(format!("{family}.{ours}"), value.clone());
            }
        }
        info
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let tensors = self.ckpt.tensors();
        tensors
            .map(|tensor| TensorInfo {
                name: tensor.name().to_owned(),
                r#type: tensor.format().name(),
                shape: tensor.shape().to_vec(),
            })
            .collect()
    }
}

/// What tells one version of a model from another without reading its weights: age, config, and how each tensor is
/// stored.
fn describe(ckpt: &Checkpoint, modified: SystemTime, hash: &mut Sha256) {
    let age = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    hash.update(age.to_le_bytes());
    hash.update(ckpt.path.as_os_str().as_encoded_bytes());
    hash.update(Value::Object(ckpt.config.clone()).to_string());
    for tensor in ckpt.tensors() {
        hash.update(format!(
            "{}{}{:?}{};",
            tensor.name(),
            tensor.format().name(),
            tensor.shape(),
            tensor.n_bytes()
        ));
    }
}

/// `27.3M`, `7B`.
fn count(n: u64) -> String {
    let units = [(1_000_000_000, "B"), (1_000_000, "M"), (1000, "K")];
    let Some((size, unit)) = units.into_iter().find(|(size, _)| *size <= n) else { return n.to_string() };
    let text = format!("{:.1}", n as f64 / size as f64);
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// The generation config, by Ollama's names, and what the catalogue says over it.
fn parameters(generation: &Map<String, Value>, settings: &ModelSettings) -> Vec<String> {
    let names = [
        ("temperature", "temperature"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
        ("min_p", "min_p"),
        ("typical_p", "typical_p"),
        ("repeat_penalty", "repetition_penalty"),
        ("num_predict", "max_new_tokens"),
    ];
    let line = |(ours, theirs): (&str, &str)| Some(format!("{ours} {}", generation.get(theirs)?));
    let own = settings.parameters.lines();
    let is_own = |name: &str| own.iter().any(|(known, _)| *known == name);
    let mut lines: Vec<String> =
        names.into_iter().filter(|(ours, _)| !is_own(ours)).filter_map(line).collect();
    lines.extend(own.iter().map(|(name, value)| match *name {
        "stop" => format!("stop {}", Value::from(value.as_str())),
        name => format!("{name} {value}"),
    }));
    lines
}

fn capabilities(ckpt: &Checkpoint, template: &ChatTemplate, tokenizer: &Tokenizer) -> Vec<String> {
    let abilities = Abilities::of(template);
    let all = [
        (true, "completion"),
        (fill_in::tokens(tokenizer, "", "").is_ok(), "insert"),
        (ImageReader::of(ckpt, tokenizer).is_ok(), "vision"),
        (abilities.tools.is_some(), "tools"),
        (abilities.thinking.is_some(), "thinking"),
    ];
    all.into_iter().filter(|(is_able, _)| *is_able).map(|(_, name)| name.to_owned()).collect()
}

/// Lists are null unless asked for, as Ollama has it.
fn meta_json(value: &MetaValue, is_verbose: bool) -> Value {
    if let Some(array) = value.as_array() {
        return if is_verbose { array_json(array) } else { Value::Null };
    }
    if let Some(flag) = value.as_bool() {
        return json!(flag);
    }
    if let Some(text) = value.as_str() {
        return json!(text);
    }
    if let Some(n) = value.as_u64() {
        return json!(n);
    }
    value.as_i64().map_or_else(|| json!(value.as_f64()), |n| json!(n))
}

fn array_json(array: &MetaArray) -> Value {
    if let Some(strings) = array.strings() {
        return strings.iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect();
    }
    if let Some(flags) = array.to_bools() {
        return json!(flags);
    }
    (0..array.len()).map(|i| array.number(i).map_or(Value::Null, |value| meta_json(&value, false))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        for (n, expected) in [
            (12, "12"),
            (1500, "1.5K"),
            (27_300_000, "27.3M"),
            (7_000_000_000, "7B"),
            (8_030_000_000, "8B"),
            (70_600_000_000, "70.6B"),
        ] {
            assert_eq!(count(n), expected);
        }
    }

    #[test]
    fn a_generation_config_goes_by_ollama_s_names() {
        let config = json!({"temperature": 0.6, "repetition_penalty": 1.1, "do_sample": true});
        let config = config.as_object().unwrap();
        let mut settings = ModelSettings::default();
        assert_eq!(parameters(config, &settings), ["temperature 0.6", "repeat_penalty 1.1"]);
        settings.parameters.set_text("temperature", "0.25").unwrap();
        settings.parameters.set_text("stop", "<end>").unwrap();
        assert_eq!(
            parameters(config, &settings),
            ["repeat_penalty 1.1", "temperature 0.25", "stop \"<end>\""]
        );
    }
}
