//! A tokenizer.json for folders that only have BERT's `vocab.txt`.

use bytes::Bytes;
use serde_json::{Map, Value, json};

/// The tokenizer that `vocab` (a token per line) and tokenizer_config.json describe.
pub(crate) fn tokenizer_json(vocab: &str, config: &Map<String, Value>) -> Bytes {
    let mut ids = Map::new();
    for (id, token) in vocab.lines().enumerate() {
        ids.entry(token.trim_end()).or_insert(json!(id));
    }
    let flag = |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
    let token = |key: &str, default: &str| {
        let value = config.get(key).and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
        value.unwrap_or(default).to_owned()
    };
    let special =
        [("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]"), ("pad_token", "[PAD]")]
            .map(|(key, default)| token(key, default));
    let mask = token("mask_token", "[MASK]");
    let [unk, cls, sep, _] = &special;
    let added = special.iter().chain([&mask]).filter_map(|text| {
        Some(json!({
            "id": ids.get(text)?, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }))
    });
    let added: Vec<Value> = added.collect();
    let role = |text: &str| json!({"id": text, "ids": [ids.get(text)], "tokens": [text]});
    let processor = if ids.contains_key(cls) && ids.contains_key(sep) {
        let special = |text: &str, type_id: u32| json!({"SpecialToken": {"id": text, "type_id": type_id}});
        let text = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
        json!({
            "type": "TemplateProcessing",
            "single": [special(cls, 0), text("A", 0), special(sep, 0)],
            "pair": [special(cls, 0), text("A", 0), special(sep, 0), text("B", 1), special(sep, 1)],
            "special_tokens": {cls.clone(): role(cls), sep.clone(): role(sep)},
        })
    } else {
        Value::Null
    };
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": flag("tokenize_chinese_chars", true),
            "strip_accents": config.get("strip_accents").and_then(Value::as_bool),
            "lowercase": flag("do_lower_case", true),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": processor,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": unk, "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": ids,
        },
    });
    file.to_string().into()
}
