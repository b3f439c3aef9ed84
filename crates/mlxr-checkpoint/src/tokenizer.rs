//! Where a checkpoint's tokenizer and chat template are, as raw material for the text crate.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::gguf::GgufMetadata;
use crate::{CheckpointError, json, word_piece};

/// The tokenizer as the checkpoint ships it.
#[derive(Clone, Debug, Default)]
pub enum TokenizerSource {
    /// `tokenizer.json` of the Hugging Face tokenizers library.
    HfJson {
        tokenizer_json: Bytes,
        tokenizer_config: Map<String, Value>,
        special_tokens_map: Map<String, Value>,
    },
    /// A SentencePiece `tokenizer.model`; `added_tokens` is `added_tokens.json` (text -> id).
    SentencePiece {
        model: Bytes,
        tokenizer_config: Map<String, Value>,
        added_tokens: Map<String, Value>,
        special_tokens_map: Map<String, Value>,
    },
    /// A tiktoken file: a base64 token and its rank on each line.
    Tiktoken { ranks: Bytes, tokenizer_config: Map<String, Value>, special_tokens_map: Map<String, Value> },
    /// The `tokenizer.ggml.*` keys of a GGUF file.
    Gguf(GgufMetadata),
    #[default]
    None,
}

/// The chat templates of a checkpoint: the default one and those with names (`tool_use`, `rag`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    pub default: Option<String>,
    pub named: BTreeMap<String, String>,
}

/// Tokenizer files of a model folder, the most complete kind first.
pub(crate) fn source_from_dir(dir: &Path) -> Result<TokenizerSource, CheckpointError> {
    let tokenizer_config = json::read_object_if_present(&dir.join("tokenizer_config.json"))?;
    let special_tokens_map = json::read_object_if_present(&dir.join("special_tokens_map.json"))?;
    let json_path = dir.join("tokenizer.json");
    if json_path.is_file() {
        let tokenizer_json = json::read_bytes(&json_path)?.into();
        return Ok(TokenizerSource::HfJson { tokenizer_json, tokenizer_config, special_tokens_map });
    }
    let model_path = dir.join("tokenizer.model");
    if model_path.is_file() {
        let bytes: Bytes = json::read_bytes(&model_path)?.into();
        if is_tiktoken(&bytes) {
            return Ok(TokenizerSource::Tiktoken { ranks: bytes, tokenizer_config, special_tokens_map });
        }
        let added_tokens = json::read_object_if_present(&dir.join("added_tokens.json"))?;
        return Ok(TokenizerSource::SentencePiece {
            model: bytes,
            tokenizer_config,
            added_tokens,
            special_tokens_map,
        });
    }
    for name in ["tiktoken.model", "qwen.tiktoken"] {
        let path = dir.join(name);
        if path.is_file() {
            let ranks = json::read_bytes(&path)?.into();
            return Ok(TokenizerSource::Tiktoken { ranks, tokenizer_config, special_tokens_map });
        }
    }
    let path = dir.join("vocab.txt");
    if path.is_file() {
        let vocab = read_text(&path)?;
        let tokenizer_json = word_piece::tokenizer_json(&vocab, &tokenizer_config);
        return Ok(TokenizerSource::HfJson { tokenizer_json, tokenizer_config, special_tokens_map });
    }
    Ok(TokenizerSource::None)
}

/// Whether `tokenizer.model` is text of the form `BASE64 RANK` (Llama 3) instead of a SentencePiece message.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let mut words = line.trim_ascii().split(|&b| b == b' ');
    let is_base64 =
        |w: &[u8]| !w.is_empty() && w.iter().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(b));
    let is_rank = |w: &[u8]| !w.is_empty() && w.iter().all(u8::is_ascii_digit);
    words.next().is_some_and(is_base64) && words.next().is_some_and(is_rank) && words.next().is_none()
}

/// `chat_template.jinja`, `chat_template.json`, or `chat_template` in tokenizer_config.json (a string, or a list of
/// named templates), and `additional_chat_templates/NAME.jinja`.
pub(crate) fn chat_templates_from_dir(
    dir: &Path,
    source: &TokenizerSource,
) -> Result<ChatTemplates, CheckpointError> {
    let mut found = ChatTemplates::default();
    let config = match source {
        TokenizerSource::HfJson { tokenizer_config, .. }
        | TokenizerSource::SentencePiece { tokenizer_config, .. }
        | TokenizerSource::Tiktoken { tokenizer_config, .. } => {
            tokenizer_config.get("chat_template").cloned()
        }
        _ => json::read_object_if_present(&dir.join("tokenizer_config.json"))?.remove("chat_template"),
    };
    let from_json = json::read_object_if_present(&dir.join("chat_template.json"))?.remove("chat_template");
    for value in [config, from_json].into_iter().flatten() {
        add_template_value(&mut found, &value);
    }
    let jinja = dir.join("chat_template.jinja");
    if jinja.is_file() {
        found.default = Some(read_text(&jinja)?);
    }
    let more = dir.join("additional_chat_templates");
    if more.is_dir() {
        for entry in std::fs::read_dir(&more).map_err(CheckpointError::io(&more, "list the folder"))? {
            let path = entry.map_err(CheckpointError::io(&more, "list the folder"))?.path();
            if path.extension().is_some_and(|e| e == "jinja")
                && let Some(name) = path.file_stem().and_then(|s| s.to_str())
            {
                found.named.insert(name.to_owned(), read_text(&path)?);
            }
        }
    }
    Ok(found)
}

fn add_template_value(found: &mut ChatTemplates, value: &Value) {
    match value {
        Value::String(text) => found.default = Some(text.clone()),
        Value::Array(items) => {
            for item in items {
                let text = |key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
                match (text("name").as_deref(), text("template")) {
                    (Some("default"), Some(template)) => found.default = Some(template),
                    (Some(name), Some(template)) => {
                        found.named.insert(name.to_owned(), template);
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

fn read_text(path: &Path) -> Result<String, CheckpointError> {
    String::from_utf8(json::read_bytes(path)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to() as u64;
        CheckpointError::malformed(path, "text", at, "bytes that are not UTF-8", "UTF-8 text")
    })
}

/// `tokenizer.chat_template` and `tokenizer.chat_template.NAME`.
pub(crate) fn chat_templates_from_gguf(metadata: &GgufMetadata) -> ChatTemplates {
    const KEY: &str = "tokenizer.chat_template";
    let mut found = ChatTemplates { default: metadata.str(KEY).map(str::to_owned), ..Default::default() };
    for (key, value) in metadata.iter() {
        if let Some(name) = key.strip_prefix(KEY).and_then(|rest| rest.strip_prefix('.'))
            && let Some(text) = value.as_str()
        {
            found.named.insert(name.to_owned(), text.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_templates_has_a_default_and_names() {
        let mut found = ChatTemplates::default();
        let list = serde_json::json!([
            {"name": "default", "template": "A"},
            {"name": "tool_use", "template": "B"},
        ]);
        add_template_value(&mut found, &list);
        assert_eq!(found.default.as_deref(), Some("A"));
        assert_eq!(found.named.get("tool_use").map(String::as_str), Some("B"));
    }

    #[test]
    fn tiktoken_files_are_told_from_sentencepiece() {
        assert!(is_tiktoken(b"IQ== 0\nIg== 1\n"));
        assert!(!is_tiktoken(b"\n\x0e\n\x05<unk>\x15\0\0"));
    }
}
