//! The small tokenizers of golden/text as a GGUF file would embed them: the same ids.

use mlxr_checkpoint::{GgufMetadata, MetaArray, MetaType, MetaValue, StringArray};
use mlxr_text::{EncodeOptions, Tokenizer};
use serde_json::{Map, Value};

use crate::data;

fn strings<S: AsRef<[u8]>>(items: impl IntoIterator<Item = S>) -> MetaValue {
    MetaValue::Array(MetaArray::Strings(StringArray::from_strings(items)))
}

fn tokenizer(entries: Vec<(&str, MetaValue)>) -> Tokenizer {
    let entries = entries.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value));
    Tokenizer::from_gguf(&GgufMetadata::from_entries(entries)).unwrap()
}

/// Token texts of a tokenizer.json in id order.
fn tokens(json: &Value) -> Vec<String> {
    let vocab: &Map<String, Value> = json.pointer("/model/vocab").and_then(Value::as_object).unwrap();
    let mut tokens: Vec<(u64, String)> =
        vocab.iter().map(|(text, id)| (id.as_u64().unwrap(), text.clone())).collect();
    tokens.sort();
    tokens.into_iter().map(|(_, text)| text).collect()
}

#[test]
fn word_piece_from_gguf_gives_the_reference_ids() {
    let json = data::golden("wordpiece.tokenizer.json");
    let tokens = tokens(&json);
    let special = |t: &str| t.starts_with('[') && t.ends_with(']');
    let kinds: Vec<i32> = tokens.iter().map(|t| if special(t) { 3 } else { 1 }).collect();
    let texts = tokens.iter().map(|t| match t.strip_prefix("##") {
        Some(rest) => rest.to_owned(),
        None if special(t) => t.clone(),
        None => format!("▁{t}"),
    });
    let role = |t: &str| MetaValue::U32(tokens.iter().position(|token| token == t).unwrap() as u32);
    let tokenizer = tokenizer(vec![
        ("model", MetaValue::String("bert".into())),
        ("tokens", strings(texts)),
        ("token_type", MetaValue::Array(MetaArray::of_i32(&kinds))),
        ("unknown_token_id", role("[UNK]")),
        ("bos_token_id", role("[CLS]")),
        ("seperator_token_id", role("[SEP]")),
    ]);
    let options = EncodeOptions { add_special: false, parse_special: true };
    data::check_cases(&tokenizer, &data::golden("wordpiece.json"), options, true);
    let ids = tokenizer.encode("", EncodeOptions { add_special: true, parse_special: false }).unwrap();
    assert_eq!(ids, [2, 3], "[CLS] [SEP]");
}

/// The fields of a protobuf message: number, then the bytes or the number it holds.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8], u64)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let n = match tag & 7 {
            0 => {
                found.push((tag >> 3, &[][..], varint(&mut message)));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut message) as usize,
        };
        let (bytes, rest) = message.split_at(n);
        message = rest;
        found.push((tag >> 3, bytes, 0));
    }
    found
}

#[test]
fn unigram_from_gguf_gives_the_reference_ids() {
    let file = std::fs::read(data::golden_path("unigram.model")).unwrap();
    let (mut texts, mut scores, mut kinds, mut charsmap) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, bytes, _) in fields(&file) {
        match number {
            1 => {
                let piece = fields(bytes);
                let get = |n| piece.iter().find(|(number, ..)| *number == n);
                texts.push(get(1).unwrap().1);
                scores.push(get(2).map_or(0.0, |f| f32::from_le_bytes(f.1.try_into().unwrap())));
                kinds.push(get(3).map_or(1, |f| f.2 as i32));
            }
            3 => charsmap = fields(bytes).iter().find(|(n, ..)| *n == 2).map_or(Vec::new(), |f| f.1.to_vec()),
            _ => {}
        }
    }
    let mut entries = vec![
        ("model", MetaValue::String("t5".into())),
        ("tokens", strings(texts)),
        ("scores", MetaValue::Array(MetaArray::of_f32(&scores))),
        ("token_type", MetaValue::Array(MetaArray::of_i32(&kinds))),
        ("unknown_token_id", MetaValue::U32(0)),
        ("add_space_prefix", MetaValue::Bool(true)),
        ("remove_extra_whitespaces", MetaValue::Bool(true)),
    ];
    if !charsmap.is_empty() {
        let bytes = charsmap.into();
        entries
            .push(("precompiled_charsmap", MetaValue::Array(MetaArray::Numbers { of: MetaType::U8, bytes })));
    }
    let tokenizer = tokenizer(entries);
    data::check_cases(&tokenizer, &data::golden("unigram.json"), EncodeOptions::default(), true);
}
