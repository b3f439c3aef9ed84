//! How a model's hidden states become one vector, as the files beside the weights say: sentence-transformers'
//! `modules.json` and what it names, or the keys of a GGUF file.

use std::collections::BTreeMap;
use std::path::Path;

use mlxr_tensor::HostTensor;
use serde_json::{Map, Value};

use crate::gguf::GgufMetadata;
use crate::mapping::LoadOptions;
use crate::{CheckpointError, json, safetensors};

/// Modules in `modules.json` at most; real models have three or five.
const MAX_MODULES: usize = 32;

/// Which rows of the last hidden state make a text's vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Every row by itself.
    None,
    Mean,
    /// The first row.
    Cls,
    Last,
    /// The classification head's output: the model scores pairs of texts.
    Rank,
}

impl Pooling {
    const ALL: [Pooling; 5] = [Pooling::None, Pooling::Mean, Pooling::Cls, Pooling::Last, Pooling::Rank];

    /// The name users read.
    pub const fn name(self) -> &'static str {
        match self {
            Pooling::None => "none",
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Last => "last",
            Pooling::Rank => "rank",
        }
    }

    /// `pooling_type` in a GGUF file.
    pub const fn gguf_id(self) -> u32 {
        match self {
            Pooling::None => 0,
            Pooling::Mean => 1,
            Pooling::Cls => 2,
            Pooling::Last => 3,
            Pooling::Rank => 4,
        }
    }
}

/// A linear layer on the pooled vector, and the function after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenseModule {
    /// The tensors are `dense.{index}.weight` and, where `has_bias`, `dense.{index}.bias`.
    pub index: usize,
    pub has_bias: bool,
    /// The class as the file names it, such as `torch.nn.modules.linear.Identity`.
    pub activation: String,
}

/// To which lengths a model's vectors may be cut, as its config.json says: `matryoshka_dimensions` lists them,
/// `is_matryoshka` alone allows any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Matryoshka {
    /// Nothing says that a part of a vector means anything.
    #[default]
    Unsaid,
    Any,
    Of(Vec<usize>),
}

impl Matryoshka {
    fn from_config(config: &Map<String, Value>) -> Matryoshka {
        let lengths = config.get("matryoshka_dimensions").and_then(Value::as_array);
        let mut lengths: Vec<usize> =
            lengths.into_iter().flatten().filter_map(|length| whole(Some(length))).collect();
        lengths.sort_unstable();
        match config.get("is_matryoshka") {
            _ if !lengths.is_empty() => Matryoshka::Of(lengths),
            Some(Value::Bool(true)) => Matryoshka::Any,
            _ => Matryoshka::Unsaid,
        }
    }

    /// Whether a vector's first `n_dims` elements are a vector too.
    pub fn allows(&self, n_dims: usize) -> bool {
        match self {
            Matryoshka::Unsaid => false,
            Matryoshka::Any => true,
            Matryoshka::Of(lengths) => lengths.contains(&n_dims),
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EmbeddingFiles {
    pub pooling: Option<Pooling>,
    pub dense: Vec<DenseModule>,
    /// Tokens of one text at most, where that is less than the model has positions for.
    pub max_tokens: Option<usize>,
    /// Texts put before an input, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt for inputs that name none.
    pub default_prompt: Option<String>,
    /// The function on a pair's score, where the files name one.
    pub score_activation: Option<String>,
    pub matryoshka: Matryoshka,
}

impl EmbeddingFiles {
    /// Reads the files of a model folder; also the tensors of its dense layers.
    pub(crate) fn from_dir(
        dir: &Path,
        config: &Map<String, Value>,
        options: LoadOptions,
    ) -> Result<(EmbeddingFiles, Vec<HostTensor>), CheckpointError> {
        let mut files = EmbeddingFiles {
            score_activation: score_activation(config),
            matryoshka: Matryoshka::from_config(config),
            ..Default::default()
        };
        let mut tensors = Vec::new();
        files.read_prompts(dir)?;
        let sentence = json::read_object_if_present(&dir.join("sentence_bert_config.json"))?;
        let tokenizer = json::read_object_if_present(&dir.join("tokenizer_config.json"))?;
        files.max_tokens = whole(sentence.get("max_seq_length")).or(whole(tokenizer.get("model_max_length")));
        let path = dir.join("modules.json");
        if path.is_file() {
            let modules: Vec<Map<String, Value>> =
                serde_json::from_slice(&json::read_bytes(&path)?).map_err(CheckpointError::json(&path))?;
            if modules.len() > MAX_MODULES {
                let found = format!("{} modules", modules.len());
                return Err(CheckpointError::malformed(&path, "list", 0, found, "a few"));
            }
            for module in &modules {
                files.read_module(dir, &path, module, options, &mut tensors)?;
            }
        }
        if is_classifier(config) {
            files.pooling = Some(Pooling::Rank);
        }
        Ok((files, tensors))
    }

    /// `ARCH.pooling_type`.
    pub(crate) fn from_gguf(path: &Path, metadata: &GgufMetadata) -> Result<EmbeddingFiles, CheckpointError> {
        let key = format!("{}.pooling_type", metadata.architecture().unwrap_or_default());
        let Some(value) = metadata.get(&key) else { return Ok(EmbeddingFiles::default()) };
        let id = value.as_u32();
        let pooling =
            Pooling::ALL.into_iter().find(|pooling| Some(pooling.gguf_id()) == id).ok_or_else(|| {
                let what =
                    format!("metadata {key:?} = {}", id.map_or_else(|| "?".to_owned(), |id| id.to_string()));
                CheckpointError::unsupported(path, what, "known are 0 none, 1 mean, 2 cls, 3 last, 4 rank")
            })?;
        Ok(EmbeddingFiles { pooling: Some(pooling), ..Default::default() })
    }

    /// What goes before a text: the prompt of that name, without a name the default one. `None` is an unknown name.
    pub fn prompt(&self, name: Option<&str>) -> Option<&str> {
        match name.or(self.default_prompt.as_deref()) {
            None => Some(""),
            Some(name) => self.prompts.get(name).map(String::as_str),
        }
    }

    fn read_prompts(&mut self, dir: &Path) -> Result<(), CheckpointError> {
        let config = json::read_object_if_present(&dir.join("config_sentence_transformers.json"))?;
        if let Some(Value::Object(prompts)) = config.get("prompts") {
            let texts =
                prompts.iter().filter_map(|(name, text)| Some((name.clone(), text.as_str()?.to_owned())));
            self.prompts = texts.collect();
        }
        let default = config.get("default_prompt_name").and_then(Value::as_str);
        self.default_prompt = default.filter(|name| self.prompts.contains_key(*name)).map(str::to_owned);
        Ok(())
    }

    fn read_module(
        &mut self,
        dir: &Path,
        list: &Path,
        module: &Map<String, Value>,
        options: LoadOptions,
        tensors: &mut Vec<HostTensor>,
    ) -> Result<(), CheckpointError> {
        let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, folder) = (text("type"), text("path"));
        let folder = inside(dir, folder).ok_or_else(|| {
            CheckpointError::unsupported(
                list,
                format!("the path {folder:?}"),
                "modules lie in the model's folder",
            )
        })?;
        // The package moved its modules; only the class says what they are.
        match kind.rsplit('.').next().unwrap_or_default() {
            // Vectors have length 1 here in any case.
            "Transformer" | "Normalize" => Ok(()),
            "Pooling" => {
                let path = folder.join("config.json");
                self.pooling = Some(pooling(&path, &json::read_object(&path)?)?);
                Ok(())
            }
            "Dense" => {
                let (dense, mut found) = read_dense(&folder, self.dense.len(), options)?;
                self.dense.push(dense);
                tensors.append(&mut found);
                Ok(())
            }
            _ => {
                let hint = "supported are Transformer, Pooling, Dense and Normalize";
                Err(CheckpointError::unsupported(list, format!("the module {kind:?}"), hint))
            }
        }
    }
}

/// Whether the model is one that scores pairs.
fn is_classifier(config: &Map<String, Value>) -> bool {
    let classes = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
    classes.filter_map(Value::as_str).any(|class| class.ends_with("ForSequenceClassification"))
}

/// What sentence-transformers says of a cross-encoder in config.json, in its newer and its older place.
fn score_activation(config: &Map<String, Value>) -> Option<String> {
    let newer = config.get("sentence_transformers").and_then(|s| s.get("activation_fn"));
    let older = config.get("sbert_ce_default_activation_function");
    newer.or(older).and_then(Value::as_str).map(str::to_owned)
}

/// A number of tokens; tokenizers that set no limit say so by a number beyond all sense.
fn whole(value: Option<&Value>) -> Option<usize> {
    value.and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok()).filter(|n| (1..1 << 30).contains(n))
}

/// A folder below `dir`, or nothing when the path leads out of it.
fn inside(dir: &Path, path: &str) -> Option<std::path::PathBuf> {
    let plain = Path::new(path).components().all(|c| matches!(c, std::path::Component::Normal(_)));
    plain.then(|| dir.join(path))
}

/// The one mode a pooling module has switched on.
fn pooling(path: &Path, config: &Map<String, Value>) -> Result<Pooling, CheckpointError> {
    const MODES: [(&str, &str, Pooling); 3] = [
        ("cls", "pooling_mode_cls_token", Pooling::Cls),
        ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
        ("lasttoken", "pooling_mode_lasttoken", Pooling::Last),
    ];
    let refuse = |what: String| {
        CheckpointError::unsupported(
            path,
            what,
            "supported are the modes cls, mean and lasttoken, one at a time",
        )
    };
    if config.get("include_prompt") == Some(&Value::Bool(false)) {
        return Err(refuse("pooling that leaves the prompt out (include_prompt)".to_owned()));
    }
    if let Some(mode) = config.get("pooling_mode").filter(|mode| !mode.is_null()) {
        let known = MODES.iter().find(|(name, _, _)| mode == name);
        return known.map(|(_, _, pooling)| *pooling).ok_or_else(|| refuse(format!("pooling mode {mode}")));
    }
    let on: Vec<&String> = config
        .iter()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == Value::Bool(true))
        .map(|(key, _)| key)
        .collect();
    let known = |key: &str| MODES.iter().find(|(_, name, _)| *name == key).map(|(_, _, pooling)| *pooling);
    match on[..] {
        // What the package does when nobody says.
        [] => Ok(Pooling::Mean),
        [key] => known(key).ok_or_else(|| refuse(key.clone())),
        _ => Err(refuse(format!("{} pooling modes together", on.len()))),
    }
}

fn read_dense(
    folder: &Path,
    index: usize,
    options: LoadOptions,
) -> Result<(DenseModule, Vec<HostTensor>), CheckpointError> {
    let config = json::read_object(&folder.join("config.json"))?;
    let activation = config.get("activation_function").and_then(Value::as_str).unwrap_or("torch.nn.Tanh");
    let mut dense = DenseModule { index, has_bias: false, activation: activation.to_owned() };
    let mut tensors = Vec::new();
    for raw in safetensors::open_dir(folder, options)?.tensors {
        let part = match raw.tensor.name() {
            "linear.weight" => "weight",
            "linear.bias" => "bias",
            other => {
                let what = format!("the tensor {other:?} of a dense layer");
                return Err(CheckpointError::unsupported(
                    &raw.path,
                    what,
                    "known are linear.weight and linear.bias",
                ));
            }
        };
        dense.has_bias |= part == "bias";
        tensors.push(raw.tensor.renamed(format!("dense.{index}.{part}")));
    }
    Ok((dense, tensors))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests are tests")]
mod tests {
    use serde_json::json;

    use super::*;

    fn mode(config: Value) -> Result<Pooling, String> {
        pooling(Path::new("config.json"), config.as_object().unwrap()).map_err(|e| e.to_string())
    }

    #[test]
    fn one_mode_is_read_in_either_form_and_others_are_refused_by_name() {
        assert_eq!(
            mode(json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})),
            Ok(Pooling::Cls)
        );
        assert_eq!(mode(json!({"pooling_mode": "lasttoken"})), Ok(Pooling::Last));
        assert_eq!(mode(json!({"word_embedding_dimension": 4})), Ok(Pooling::Mean));
        let refused = mode(json!({"pooling_mode_weightedmean_tokens": true})).unwrap_err();
        assert!(refused.contains("pooling_mode_weightedmean_tokens"), "{refused}");
        let two = json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true});
        assert!(mode(two).unwrap_err().contains("2 pooling modes"));
        assert!(mode(json!({"pooling_mode": "mean", "include_prompt": false})).is_err());
    }

    #[test]
    fn only_what_the_config_allows_may_be_cut() {
        let read = |config: Value| Matryoshka::from_config(config.as_object().unwrap());
        let listed = read(json!({"is_matryoshka": true, "matryoshka_dimensions": [256, 64]}));
        assert_eq!(listed, Matryoshka::Of(vec![64, 256]));
        assert!(listed.allows(64) && !listed.allows(65));
        assert!(read(json!({"is_matryoshka": true})).allows(65));
        assert_eq!(read(json!({"is_matryoshka": false})), Matryoshka::Unsaid);
        assert!(!read(json!({"matryoshka_dimensions": []})).allows(64));
    }

    #[test]
    fn modules_stay_in_the_model_s_folder() {
        let dir = Path::new("/models/m");
        assert_eq!(inside(dir, "1_Pooling"), Some(dir.join("1_Pooling")));
        assert_eq!(inside(dir, ""), Some(dir.join("")));
        assert_eq!(inside(dir, "../other"), None);
        assert_eq!(inside(dir, "/etc"), None);
    }
}
