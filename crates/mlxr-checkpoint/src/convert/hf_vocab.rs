//! tokenizer.json from the `tokenizer.ggml.*` keys of a GGUF file.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::pre_tokenizer;
use super::sentencepiece::{BYTE, CONTROL, UNKNOWN, USER_DEFINED};
use crate::CheckpointError;
use crate::gguf::GgufMetadata;

/// The files of a tokenizer.
pub(crate) struct HfTokenizer {
    pub tokenizer_json: Value,
    pub tokenizer_config: Map<String, Value>,
}

struct Vocab {
    texts: Vec<String>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
}

/// `None` when the file has no tokenizer.
pub(crate) fn from_gguf(
    path: &Path,
    metadata: &GgufMetadata,
) -> Result<Option<HfTokenizer>, CheckpointError> {
    let refuse = |what: String, hint: &str| CheckpointError::unsupported(path, what, hint);
    let kind = match metadata.str("tokenizer.ggml.model") {
        None | Some("no_vocab") => return Ok(None),
        Some(kind) => kind,
    };
    let vocab = read_vocab(path, metadata)?;
    let (model, pre_tokenizer, normalizer, decoder) = match kind {
        "gpt2" => {
            let pre = metadata.str("tokenizer.ggml.pre").unwrap_or("default");
            let Some((pre_tokenizer, ignore_merges)) = pre_tokenizer::describe(pre) else {
                let hint = "copy tokenizer.json from the original model";
                return Err(refuse(format!("the pre-tokenizer {pre:?} in tokenizer.json"), hint));
            };
            let merges = metadata.strings("tokenizer.ggml.merges");
            let merges: Vec<Value> = merges
                .into_iter()
                .flat_map(|all| all.iter())
                .filter_map(|m| std::str::from_utf8(m).ok()?.split_once(' '))
                .map(|(a, b)| json!([a, b]))
                .collect();
            let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
            (bpe(&vocab, merges, false, ignore_merges), pre_tokenizer, Value::Null, decoder)
        }
        "llama" => {
            let prefix = metadata.bool("tokenizer.ggml.add_space_prefix").unwrap_or(true);
            let model = bpe(&vocab, merges_by_score(&vocab), true, false);
            (model, Value::Null, spm_normalizer(prefix), spm_decoder(prefix))
        }
        other => {
            let hint = "copy the tokenizer files from the original model";
            return Err(refuse(format!("writing a tokenizer of kind {other:?} as tokenizer.json"), hint));
        }
    };
    let added = added_tokens(&vocab);
    let tokenizer_json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(metadata, &vocab),
        "decoder": decoder,
        "model": model,
    });
    Ok(Some(HfTokenizer { tokenizer_json, tokenizer_config: tokenizer_config(metadata, &vocab) }))
}

fn read_vocab(path: &Path, metadata: &GgufMetadata) -> Result<Vocab, CheckpointError> {
    let Some(tokens) = metadata.strings("tokenizer.ggml.tokens") else {
        let hint = "the file's vocabulary is incomplete; copy the tokenizer of the original model";
        return Err(CheckpointError::missing(path, "metadata \"tokenizer.ggml.tokens\"", hint));
    };
    let n = tokens.len();
    let mut kinds = metadata.i32s("tokenizer.ggml.token_type").unwrap_or_default();
    kinds.resize(n, super::sentencepiece::NORMAL);
    let mut scores = metadata.f32s("tokenizer.ggml.scores").unwrap_or_default();
    scores.resize(n, 0.0);
    let texts = tokens.iter().map(|t| String::from_utf8_lossy(t).into_owned()).collect();
    Ok(Vocab { texts, kinds, scores })
}

fn bpe(vocab: &Vocab, merges: Vec<Value>, byte_fallback: bool, ignore_merges: bool) -> Value {
    // Added tokens too: the tokenizers library gives those that are not here ids of its own.
    let entries: Map<String, Value> =
        vocab.texts.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let unknown = vocab.kinds.iter().position(|&k| k == UNKNOWN).map(|id| vocab.texts[id].clone());
    json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": unknown,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": byte_fallback,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": entries,
        "merges": merges,
    })
}

/// SentencePiece joins the pair whose piece scores best; every way to cut a piece in two is a merge of that score.
fn merges_by_score(vocab: &Vocab) -> Vec<Value> {
    /// Longer pieces are spaces or rulers; cutting them everywhere would take quadratic time.
    const MAX_PIECE_BYTES: usize = 256;
    let ids: HashMap<&str, usize> = vocab.texts.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let mut found: Vec<(f32, usize, usize)> = Vec::new();
    for (id, text) in vocab.texts.iter().enumerate() {
        let is_piece = !matches!(vocab.kinds[id], CONTROL | UNKNOWN | BYTE) && text.len() <= MAX_PIECE_BYTES;
        if !is_piece {
            continue;
        }
        for (at, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(at);
            if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                found.push((vocab.scores[id], left, right));
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    found.into_iter().map(|(_, left, right)| json!([vocab.texts[left], vocab.texts[right]])).collect()
}

fn spm_normalizer(prefix: bool) -> Value {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    if prefix {
        json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    } else {
        replace
    }
}

fn spm_decoder(prefix: bool) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

fn added_tokens(vocab: &Vocab) -> Vec<Value> {
    let is_added = |kind: i32| matches!(kind, CONTROL | USER_DEFINED | UNKNOWN);
    let entry = |(id, text): (usize, &String)| {
        json!({
            "id": id,
            "content": text,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": false,
            "special": vocab.kinds[id] != USER_DEFINED,
        })
    };
    vocab.texts.iter().enumerate().filter(|&(id, _)| is_added(vocab.kinds[id])).map(entry).collect()
}

fn special(metadata: &GgufMetadata, vocab: &Vocab, key: &str) -> Option<(usize, String)> {
    let id = metadata.u32(&format!("tokenizer.ggml.{key}_token_id"))? as usize;
    Some((id, vocab.texts.get(id)?.clone()))
}

/// Puts the tokens in place that every prompt gets.
fn post_processor(metadata: &GgufMetadata, vocab: &Vocab) -> Value {
    let wanted = |kind: &str, usually: bool| {
        let add = metadata.bool(&format!("tokenizer.ggml.add_{kind}_token")).unwrap_or(usually);
        special(metadata, vocab, kind).filter(|_| add)
    };
    let is_spm = metadata.str("tokenizer.ggml.model") == Some("llama");
    let (bos, eos) = (wanted("bos", is_spm), wanted("eos", false));
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |t: &Option<(usize, String)>, type_id: u32| {
        t.as_ref().map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": type_id}}))
    };
    let side = |name: &str, type_id: u32| {
        let text = json!({"Sequence": {"id": name, "type_id": type_id}});
        token(&bos, type_id).into_iter().chain([text]).chain(token(&eos, type_id)).collect::<Vec<Value>>()
    };
    let specials: Map<String, Value> = [&bos, &eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [side("A", 0), side("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": side("A", 0),
        "pair": pair,
        "special_tokens": specials,
    })
}

fn tokenizer_config(metadata: &GgufMetadata, vocab: &Vocab) -> Map<String, Value> {
    const KINDS: [(&str, &str); 4] = [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")];
    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    for (hf, gguf) in KINDS {
        let text = special(metadata, vocab, gguf).map(|(_, text)| text);
        config.insert(format!("{hf}_token"), json!(text));
    }
    for kind in ["bos", "eos"] {
        if let Some(add) = metadata.bool(&format!("tokenizer.ggml.add_{kind}_token")) {
            config.insert(format!("add_{kind}_token"), json!(add));
        }
    }
    config
}
