//! The `tokenizer.*` keys of a GGUF file from the tokenizer of a model folder.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::gguf_keys::Entries;
use super::pre_tokenizer;
use super::sentencepiece::{self, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use crate::gguf::{MetaArray, MetaValue, StringArray};
use crate::tokenizer::TokenizerSource;
use crate::{Checkpoint, CheckpointError, json};

/// A vocabulary larger than this is a damaged file.
const MAX_VOCAB: usize = 4_000_000;

/// Score of tokens that are never the result of a merge.
const ADDED_SCORE: f32 = -1000.0;

/// One row of the vocabulary.
#[derive(Clone, Debug)]
struct Token {
    text: Vec<u8>,
    score: f32,
    kind: i32,
}

/// All keys; `pre` names the cut before BPE where tokenizer.json describes one that has no known name.
pub(crate) fn entries(
    ckpt: &Checkpoint,
    n_vocab: usize,
    pre: Option<&str>,
) -> Result<Entries, CheckpointError> {
    let mut entries = match sentencepiece_model(ckpt)? {
        Some(model) => from_sentencepiece(ckpt, n_vocab, &model)?,
        None => match &ckpt.tokenizer {
            TokenizerSource::HfJson { tokenizer_json, .. } => from_json(ckpt, n_vocab, tokenizer_json, pre)?,
            TokenizerSource::None => vec![("tokenizer.ggml.model".to_owned(), MetaValue::from("no_vocab"))],
            TokenizerSource::Tiktoken { .. } => {
                let hint = "make a tokenizer.json of it with the transformers library first";
                return Err(CheckpointError::unsupported(&ckpt.path, "writing a tiktoken vocabulary", hint));
            }
            TokenizerSource::SentencePiece { .. } | TokenizerSource::Gguf(_) => {
                return Err(CheckpointError::unsupported(&ckpt.path, "this tokenizer", "use a model folder"));
            }
        },
    };
    if let Some(template) = &ckpt.chat_template {
        entries.push(("tokenizer.chat_template".to_owned(), MetaValue::from(template.as_str())));
    }
    for (name, template) in &ckpt.named_templates {
        entries.push((format!("tokenizer.chat_template.{name}"), MetaValue::from(template.as_str())));
    }
    if !ckpt.named_templates.is_empty() {
        let names = StringArray::from_strings(ckpt.named_templates.keys());
        let names = MetaValue::Array(MetaArray::Strings(names));
        entries.push(("tokenizer.chat_templates".to_owned(), names));
    }
    Ok(entries)
}

/// `tokenizer.model` says more than the tokenizer.json made from it: scores and kinds.
fn sentencepiece_model(ckpt: &Checkpoint) -> Result<Option<Bytes>, CheckpointError> {
    if let TokenizerSource::SentencePiece { model, .. } = &ckpt.tokenizer {
        return Ok(Some(model.clone()));
    }
    let path = ckpt.path.join("tokenizer.model");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes: Bytes = json::read_bytes(&path)?.into();
    Ok(sentencepiece::parse(&bytes).is_some().then_some(bytes))
}

fn put_arrays(entries: &mut Entries, tokens: &[Token], with_scores: bool) {
    let mut put = |key: &str, array| entries.push((format!("tokenizer.ggml.{key}"), MetaValue::Array(array)));
    put("tokens", MetaArray::Strings(StringArray::from_strings(tokens.iter().map(|t| &t.text))));
    if with_scores {
        put("scores", MetaArray::of_f32(&tokens.iter().map(|t| t.score).collect::<Vec<_>>()));
    }
    put("token_type", MetaArray::of_i32(&tokens.iter().map(|t| t.kind).collect::<Vec<_>>()));
}

fn from_sentencepiece(ckpt: &Checkpoint, n_vocab: usize, bytes: &Bytes) -> Result<Entries, CheckpointError> {
    let path = ckpt.path.join("tokenizer.model");
    let model = sentencepiece::parse(bytes).ok_or_else(|| {
        CheckpointError::malformed(&path, "file", 0, "bytes of another kind", "a SentencePiece model")
    })?;
    let mut tokens = padding(n_vocab);
    for (token, piece) in tokens.iter_mut().zip(model.pieces) {
        *token = Token { text: piece.text, score: piece.score, kind: piece.kind };
    }
    if let TokenizerSource::SentencePiece { added_tokens, .. } = &ckpt.tokenizer {
        for (text, id) in added_tokens {
            let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
            if let Some(token) = id.and_then(|id| tokens.get_mut(id)) {
                *token = Token { text: text.clone().into_bytes(), score: ADDED_SCORE, kind: USER_DEFINED };
            }
        }
    }
    let config = tokenizer_config(ckpt);
    if let Some(added) = config.get("added_tokens_decoder").and_then(Value::as_object) {
        for (id, entry) in added {
            if let Some(token) = id.parse::<usize>().ok().and_then(|id| tokens.get_mut(id)) {
                let kind = token.kind;
                *token = added_token(entry, true);
                // A piece that is a byte or unknown stays what it is.
                if kind == BYTE || kind == UNKNOWN {
                    token.kind = kind;
                }
            }
        }
    }
    let kind = if model.is_unigram { "t5" } else { "llama" };
    let mut entries = vec![
        ("tokenizer.ggml.model".to_owned(), MetaValue::from(kind)),
        ("tokenizer.ggml.pre".to_owned(), MetaValue::from("default")),
    ];
    if let Some(add) = model.add_dummy_prefix.or(config.get("add_prefix_space").and_then(Value::as_bool)) {
        entries.push(("tokenizer.ggml.add_space_prefix".to_owned(), MetaValue::Bool(add)));
    }
    put_arrays(&mut entries, &tokens, true);
    put_specials(ckpt, &Value::Null, &ids_of(&tokens), &mut entries);
    const UNKNOWN_ID: &str = "tokenizer.ggml.unknown_token_id";
    let unknown = tokens.iter().position(|t| t.kind == UNKNOWN);
    if let Some(id) = unknown.filter(|_| entries.iter().all(|(key, _)| key != UNKNOWN_ID)) {
        entries.push((UNKNOWN_ID.to_owned(), MetaValue::U32(id as u32)));
    }
    Ok(entries)
}

fn from_json(
    ckpt: &Checkpoint,
    n_vocab: usize,
    tokenizer_json: &Bytes,
    pre: Option<&str>,
) -> Result<Entries, CheckpointError> {
    let path = ckpt.path.join("tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(tokenizer_json).map_err(CheckpointError::json(&path))?;
    let refuse = |what: String, hint: &str| CheckpointError::unsupported(&path, what, hint);
    let model = &tokenizer["model"];
    if model["type"] == "WordPiece" {
        return from_word_piece(ckpt, n_vocab, &path, &tokenizer);
    }
    let (Some("BPE"), Some(vocab)) = (model["type"].as_str().or(Some("BPE")), model["vocab"].as_object())
    else {
        return Err(refuse(
            format!("a tokenizer of type {}", model["type"]),
            "only BPE and WordPiece are written to GGUF",
        ));
    };
    let is_spm = replaces_spaces(&tokenizer["normalizer"]) || model["byte_fallback"] == true;
    let merges = merges(&model["merges"])
        .ok_or_else(|| refuse("merges that are not pairs of tokens".to_owned(), crate::error::DAMAGED))?;
    let mut tokens = padding(n_vocab);
    for (text, id) in vocab {
        let token = Token { text: text.clone().into_bytes(), score: ADDED_SCORE, kind: NORMAL };
        place(&mut tokens, id, token).ok_or_else(|| outside(&path, text, id, n_vocab))?;
    }
    if is_spm {
        score_by_merges(&mut tokens, vocab, &merges, model);
    }
    for entry in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let token = added_token(entry, is_spm);
        let text = String::from_utf8_lossy(&token.text).into_owned();
        let keep_unknown = entry["content"] == model["unk_token"] && is_spm;
        let token = if keep_unknown { Token { kind: UNKNOWN, ..token } } else { token };
        place(&mut tokens, &entry["id"], token)
            .ok_or_else(|| outside(&path, &text, &entry["id"], n_vocab))?;
    }
    let mut entries = Entries::new();
    let mut put = |key: &str, value| entries.push((format!("tokenizer.ggml.{key}"), value));
    if is_spm {
        put("model", MetaValue::from("llama"));
        put("pre", MetaValue::from("default"));
        put("add_space_prefix", MetaValue::Bool(prepends_space(&tokenizer)));
    } else {
        let name = pre.or_else(|| pre_tokenizer::name_of(&tokenizer)).ok_or_else(|| {
            let what = format!("the pre-tokenizer {}", tokenizer["pre_tokenizer"]);
            refuse(what, "name the one of tokenizer.ggml.pre that cuts text the same way")
        })?;
        put("model", MetaValue::from("gpt2"));
        put("pre", MetaValue::from(name));
    }
    put_arrays(&mut entries, &tokens, is_spm);
    if !is_spm {
        let joined = merges.iter().map(|(a, b)| format!("{} {}", a.replace(' ', "Ġ"), b.replace(' ', "Ġ")));
        let array = MetaArray::Strings(StringArray::from_strings(joined));
        entries.push(("tokenizer.ggml.merges".to_owned(), MetaValue::Array(array)));
    }
    put_specials(ckpt, &tokenizer, &ids_of(&tokens), &mut entries);
    Ok(entries)
}

/// BERT's vocabulary: pieces that begin a word get a block before them, those inside one lose their `##`.
fn from_word_piece(
    ckpt: &Checkpoint,
    n_vocab: usize,
    path: &std::path::Path,
    tokenizer: &Value,
) -> Result<Entries, CheckpointError> {
    let (model, normalizer) = (&tokenizer["model"], &tokenizer["normalizer"]);
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or("##");
    let usual = prefix == "##" && normalizer["type"] == "BertNormalizer";
    let Some(vocab) = model["vocab"].as_object().filter(|_| usual) else {
        let what = format!("WordPiece with the prefix {prefix:?} and the normalizer {}", normalizer["type"]);
        return Err(CheckpointError::unsupported(path, what, "only BERT's own kind is written to GGUF"));
    };
    let mut tokens = padding(n_vocab);
    for (text, id) in vocab {
        let spelt = text.strip_prefix(prefix).map_or_else(|| format!("\u{2581}{text}"), str::to_owned);
        let token = Token { text: spelt.into_bytes(), score: ADDED_SCORE, kind: NORMAL };
        place(&mut tokens, id, token).ok_or_else(|| outside(path, text, id, n_vocab))?;
    }
    for entry in tokenizer["added_tokens"].as_array().into_iter().flatten() {
        let token = Token { kind: CONTROL, ..added_token(entry, false) };
        let text = String::from_utf8_lossy(&token.text).into_owned();
        place(&mut tokens, &entry["id"], token).ok_or_else(|| outside(path, &text, &entry["id"], n_vocab))?;
    }
    let lowercase = normalizer["lowercase"].as_bool().unwrap_or(true);
    let mut entries = vec![
        ("tokenizer.ggml.model".to_owned(), MetaValue::from("bert")),
        ("tokenizer.ggml.pre".to_owned(), MetaValue::from("default")),
        ("tokenizer.ggml.normalizer.lowercase".to_owned(), MetaValue::Bool(lowercase)),
    ];
    if let Some(strip) = normalizer["strip_accents"].as_bool() {
        entries.push(("tokenizer.ggml.normalizer.strip_accents".to_owned(), MetaValue::Bool(strip)));
    }
    let n_types = ckpt.config.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(1);
    let n_types = MetaValue::U32(u32::try_from(n_types).unwrap_or(1));
    entries.push(("tokenizer.ggml.token_type_count".to_owned(), n_types));
    put_arrays(&mut entries, &tokens, false);
    let ids = ids_of(&tokens);
    put_specials(ckpt, tokenizer, &ids, &mut entries);
    // The first token of a text, which BERT's tokenizer knows by another name.
    let config = tokenizer_config(ckpt);
    let cls = config.get("cls_token").and_then(|e| e.as_str().or_else(|| e["content"].as_str()));
    if let Some(id) = ids.get(cls.unwrap_or("[CLS]")) {
        const FIRST: &str = "tokenizer.ggml.bos_token_id";
        entries.retain(|(key, _)| key != FIRST);
        entries.push((FIRST.to_owned(), MetaValue::U32(*id)));
    }
    Ok(entries)
}

fn outside(path: &std::path::Path, text: &str, id: &Value, n_vocab: usize) -> CheckpointError {
    let what = format!("token {text:?} with id {id} beside an embedding of {n_vocab} rows");
    CheckpointError::unsupported(path, what, "the tokenizer and the weights must be of the same model")
}

fn padding(n_vocab: usize) -> Vec<Token> {
    let n_vocab = n_vocab.min(MAX_VOCAB);
    (0..n_vocab)
        .map(|i| Token { text: format!("[PAD{i}]").into_bytes(), score: -10_000.0, kind: UNUSED })
        .collect()
}

fn place(tokens: &mut [Token], id: &Value, token: Token) -> Option<()> {
    *tokens.get_mut(usize::try_from(id.as_u64()?).ok()?)? = token;
    Some(())
}

/// An entry of `added_tokens` or `added_tokens_decoder`.
fn added_token(entry: &Value, is_spm: bool) -> Token {
    let text = entry["content"].as_str().unwrap_or_default();
    if entry["special"] == true || looks_special(text) {
        return Token { text: text.into(), score: ADDED_SCORE, kind: CONTROL };
    }
    // Text the user can type is matched before spaces are escaped.
    let text = if is_spm { text.replace('▁', " ") } else { text.to_owned() };
    Token { text: text.into(), score: ADDED_SCORE, kind: USER_DEFINED }
}

/// Tokens that some makers forgot to mark.
fn looks_special(text: &str) -> bool {
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || (text.starts_with("<|") && text.ends_with("|>"))
        || (text.starts_with("<｜") && text.ends_with("｜>"))
        || (text.starts_with("<unused") && text.ends_with('>'))
}

/// `["a b", ..]` or `[["a", "b"], ..]`.
fn merges(value: &Value) -> Option<Vec<(&str, &str)>> {
    let Some(list) = value.as_array() else { return Some(Vec::new()) };
    list.iter()
        .map(|item| match item {
            Value::String(text) => text.split_once(' '),
            Value::Array(two) => match &two[..] {
                [Value::String(a), Value::String(b)] => Some((a.as_str(), b.as_str())),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// Whether spaces become `▁`, as in vocabularies that came from SentencePiece.
fn replaces_spaces(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        Some("Replace") => normalizer["content"] == "▁",
        Some("Sequence") => {
            normalizer["normalizers"].as_array().is_some_and(|a| a.iter().any(replaces_spaces))
        }
        _ => false,
    }
}

/// Whether a space is put before the text.
fn prepends_space(tokenizer: &Value) -> bool {
    fn prepends(step: &Value) -> bool {
        match step["type"].as_str() {
            Some("Prepend") => step["prepend"] == "▁",
            Some("Metaspace") => step["prepend_scheme"] != "never" && step["add_prefix_space"] != false,
            Some("Sequence") => ["normalizers", "pretokenizers"]
                .iter()
                .any(|key| step[*key].as_array().is_some_and(|a| a.iter().any(prepends))),
            _ => false,
        }
    }
    prepends(&tokenizer["normalizer"]) || prepends(&tokenizer["pre_tokenizer"])
}

/// SentencePiece merges the pair with the best score first: the rank of a merge, negated, gives the same order.
fn score_by_merges(tokens: &mut [Token], vocab: &Map<String, Value>, merges: &[(&str, &str)], model: &Value) {
    for (rank, (a, b)) in merges.iter().enumerate() {
        let id =
            vocab.get(&format!("{a}{b}")).and_then(Value::as_u64).and_then(|id| usize::try_from(id).ok());
        if let Some(token) = id.and_then(|id| tokens.get_mut(id))
            && token.score == ADDED_SCORE
        {
            token.score = -(rank as f32);
        }
    }
    let single = -(merges.len() as f32);
    for token in tokens.iter_mut().filter(|t| t.kind == NORMAL) {
        let text = String::from_utf8_lossy(&token.text).into_owned();
        if text.chars().count() == 1 && token.score == ADDED_SCORE {
            token.score = single;
        }
        let byte = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
        if byte.is_some_and(|hex| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok()) {
            (token.score, token.kind) = (0.0, BYTE);
        }
        if model["unk_token"] == *text {
            token.kind = UNKNOWN;
        }
    }
}

fn tokenizer_config(ckpt: &Checkpoint) -> Map<String, Value> {
    match &ckpt.tokenizer {
        TokenizerSource::HfJson { tokenizer_config, .. }
        | TokenizerSource::SentencePiece { tokenizer_config, .. }
        | TokenizerSource::Tiktoken { tokenizer_config, .. } => tokenizer_config.clone(),
        TokenizerSource::Gguf(_) | TokenizerSource::None => Map::new(),
    }
}

fn ids_of(tokens: &[Token]) -> HashMap<String, u32> {
    let text = |t: &Token| String::from_utf8_lossy(&t.text).into_owned();
    tokens.iter().enumerate().map(|(id, t)| (text(t), id as u32)).collect()
}

/// Ids of the special tokens, and which of them every prompt gets.
fn put_specials(ckpt: &Checkpoint, tokenizer: &Value, ids: &HashMap<String, u32>, entries: &mut Entries) {
    const KINDS: [(&str, &str); 5] =
        [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("sep", "seperator"), ("pad", "padding")];
    let config = tokenizer_config(ckpt);
    let mut found = BTreeMap::new();
    for (kind, gguf) in KINDS {
        let entry = config.get(&format!("{kind}_token"));
        let text = entry.and_then(|e| e.as_str().or_else(|| e["content"].as_str()));
        let from_text = text.and_then(|text| ids.get(text).copied());
        // A null in tokenizer_config.json means there is none, whatever config.json says.
        let silent = !config.contains_key(&format!("{kind}_token"));
        let from_config = ckpt.config.get(&format!("{kind}_token_id")).filter(|_| silent);
        let from_config =
            from_config.and_then(|v| if let Value::Array(all) = v { all.first() } else { Some(v) });
        let id = from_text.or_else(|| u32::try_from(from_config?.as_u64()?).ok());
        if let Some(id) = id {
            found.insert(kind, id);
            entries.push((format!("tokenizer.ggml.{gguf}_token_id"), MetaValue::U32(id)));
        }
    }
    let ends = ckpt.generation.get("eos_token_id").and_then(Value::as_array).into_iter().flatten();
    let more = ends.filter_map(|v| u32::try_from(v.as_u64()?).ok()).filter(|id| found.get("eos") != Some(id));
    for (key, id) in ["eot", "eom"].iter().zip(more) {
        entries.push((format!("tokenizer.ggml.{key}_token_id"), MetaValue::U32(id)));
    }
    for kind in ["bos", "eos"] {
        let add = config.get(&format!("add_{kind}_token")).and_then(Value::as_bool);
        // Without a tokenizer.json to ask, readers know what is usual for the kind of vocabulary.
        let id = found.get(kind).copied().filter(|_| !tokenizer.is_null());
        let add = add.or_else(|| Some(template_adds(tokenizer, kind, ids, id?)));
        if let Some(add) = add {
            entries.push((format!("tokenizer.ggml.add_{kind}_token"), MetaValue::Bool(add)));
        }
    }
}

/// Whether the post-processor puts this token at its end of the text.
fn template_adds(tokenizer: &Value, kind: &str, ids: &HashMap<String, u32>, id: u32) -> bool {
    let processor = &tokenizer["post_processor"];
    let steps = processor["processors"].as_array().map_or(std::slice::from_ref(processor), Vec::as_slice);
    steps.iter().filter(|step| step["type"] == "TemplateProcessing").any(|step| {
        let single = step["single"].as_array().map(Vec::as_slice).unwrap_or_default();
        let piece = if kind == "bos" { single.first() } else { single.last() };
        let text = piece.and_then(|p| p["SpecialToken"]["id"].as_str());
        text.and_then(|text| ids.get(text)) == Some(&id)
    })
}
