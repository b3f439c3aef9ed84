//! Broken tokenizer files: an error that says what is wrong, never a panic.

use std::fs;

use mlxr_checkpoint::{GgufMetadata, MetaArray, MetaValue, StringArray, TokenizerSource};
use mlxr_text::{EncodeOptions, HfFiles, SentencePieceFiles, TextError, TiktokenFiles, Tokenizer};
use serde_json::{Map, Value, json};

use crate::data;

fn hf(json: &[u8]) -> Result<Tokenizer, TextError> {
    let none = Map::new();
    Tokenizer::from_hf(&HfFiles { tokenizer_json: json, tokenizer_config: &none, special_tokens_map: &none })
}

fn sentencepiece(model: &[u8]) -> Result<Tokenizer, TextError> {
    let none = Map::new();
    Tokenizer::from_sentencepiece(&SentencePieceFiles {
        model,
        tokenizer_config: &none,
        added_tokens: &none,
        special_tokens_map: &none,
    })
}

fn tiktoken(ranks: &[u8]) -> Result<Tokenizer, TextError> {
    let mut config = Map::new();
    config.insert("pattern".to_owned(), r"\s+|\S+".into());
    let none = Map::new();
    Tokenizer::from_tiktoken(&TiktokenFiles { ranks, tokenizer_config: &config, special_tokens_map: &none })
}

/// Uses a tokenizer that loaded in spite of a mutation.
fn exercise(tokenizer: &Tokenizer) {
    for text in ["", "Hello  wörld 12\n", "<|im_end|><s> \u{1f600}"] {
        for parse_special in [false, true] {
            if let Ok(ids) = tokenizer.encode(text, EncodeOptions { add_special: true, parse_special }) {
                tokenizer.decode(&ids, false);
            }
        }
    }
    tokenizer.decode(&[0, 1, u32::MAX, 300], true);
}

/// Xorshift: the same mutations in every run.
struct Mutations(u64);

impl Mutations {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn apply(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        let at = self.below(out.len());
        match self.below(4) {
            0 => out.truncate(at),
            1 => out[at] ^= 1 << self.below(8),
            2 => out[at] = [b'9', b'"', b'}', 0xff, 0][self.below(5)],
            _ => {
                let n = self.below(40).min(out.len() - at);
                out.drain(at..at + n);
            }
        }
        out
    }
}

#[test]
fn mutated_files_never_panic() {
    let mut mutations = Mutations(0x9e37_79b9_7f4a_7c15);
    for entry in fs::read_dir(data::golden_path("")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let load: fn(&[u8]) -> Result<Tokenizer, TextError> = match name.split_once('.').unwrap_or_default().1
        {
            "tokenizer.json" => hf,
            "model" => sentencepiece,
            "tiktoken" => tiktoken,
            _ => continue,
        };
        let bytes = fs::read(&path).unwrap();
        load(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        let n = if bytes.len() < 1 << 16 { 150 } else { 12 };
        let loaded = (0..n).filter_map(|_| load(&mutations.apply(&bytes)).ok()).inspect(exercise).count();
        println!("{name}: {loaded} of {n} mutations load");
    }
}

#[test]
fn broken_tokenizer_json_is_named() {
    let valid: Value = data::golden("byte-level.tokenizer.json");
    let check = |pointer: &str, value: Value, message: &str| {
        let mut json = valid.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        let e = hf(&serde_json::to_vec(&json).unwrap()).unwrap_err().to_string();
        assert!(e.starts_with("malformed tokenizer.json: ") && e.contains(message), "{e}");
    };
    check("/model/merges/0", json!(["no", "such tokens"]), "out of vocabulary");
    check("/model/vocab/a", json!(4_294_967_295u32), "4294967295");
    check("/model/vocab/a", json!(-1), "-1");
    check("/model/vocab", json!("text"), "");
    check("/model", json!(3), "");
    check(
        "/pre_tokenizer",
        json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}),
        "pattern",
    );
    assert!(hf(b"{").is_err());
    assert!(hf(b"[]").is_err());
}

#[test]
fn broken_tiktoken_files_are_named() {
    let check = |file: &str, message: &str| {
        let e = tiktoken(file.as_bytes()).unwrap_err().to_string();
        assert!(e.contains(message), "{e}");
    };
    check("YQ==", "line 1: no space");
    check("\nYQ=== 1", "line 2: the token is not base64");
    check("YQ== -1", "the rank is not a number");
    check("YQ== 4294967295", "ids up to 4294967296");
    check("YQ== 0", "byte 0 is no token");
}

fn gguf(change: &[(&str, Option<MetaValue>)]) -> Result<Tokenizer, TextError> {
    let strings = |items: &[&str]| MetaValue::Array(MetaArray::Strings(StringArray::from_strings(items)));
    let mut entries = vec![
        ("tokenizer.ggml.model", MetaValue::String("gpt2".into())),
        ("tokenizer.ggml.pre", MetaValue::String("gpt-2".into())),
        ("tokenizer.ggml.tokens", strings(&["a", "b", "ab", "<|im_end|>"])),
        ("tokenizer.ggml.token_type", MetaValue::Array(MetaArray::of_i32(&[1, 1, 1, 3]))),
        ("tokenizer.ggml.merges", strings(&["a b"])),
        ("tokenizer.ggml.bos_token_id", MetaValue::U32(0)),
        ("tokenizer.ggml.eos_token_id", MetaValue::U32(3)),
    ];
    for (key, value) in change {
        entries.retain(|(k, _)| k != key);
        entries.extend(value.clone().map(|v| (*key, v)));
    }
    let metadata = GgufMetadata::from_entries(entries.into_iter().map(|(k, v)| (k.to_owned(), v)));
    Tokenizer::from_source(&TokenizerSource::Gguf(metadata))
}

#[test]
fn broken_gguf_vocabularies_are_named() {
    let good = gguf(&[]).unwrap();
    let options = EncodeOptions { add_special: false, parse_special: true };
    assert_eq!(good.encode("aab<|im_end|>", options).unwrap(), [0, 2, 3]);
    assert_eq!((good.eog_ids(), good.is_special(3)), (&[3][..], true));

    let text = |s: &str| Some(MetaValue::String(s.into()));
    let strings =
        |items: &[&str]| Some(MetaValue::Array(MetaArray::Strings(StringArray::from_strings(items))));
    let check = |key: &str, value: Option<MetaValue>, message: &str| {
        let e = gguf(&[(&format!("tokenizer.ggml.{key}"), value)]).unwrap_err().to_string();
        assert!(e.contains(message), "{key}: {e}");
    };
    check("model", None, "tokenizer.ggml.model is missing");
    check("model", text("rwkv"), "unsupported GGUF tokenizer model \"rwkv\"");
    check("model", text("plamo2"), "unsupported GGUF tokenizer model \"plamo2\"");
    check("pre", text("nobody"), "unsupported pre-tokenizer \"nobody\"");
    check("tokens", None, "no array of strings");
    check("token_type", Some(MetaValue::Array(MetaArray::of_i32(&[1]))), "1 entries for 4 tokens");
    check("scores", Some(MetaValue::Array(MetaArray::of_f32(&[0.0]))), "1 entries for 4 tokens");
    check("merges", None, "no array of strings");
    check("merges", strings(&["ab"]), "merge 0 is \"ab\"");
    check("merges", strings(&["a z"]), "out of vocabulary");
    check("bos_token_id", Some(MetaValue::U32(9)), "is 9 of 4 tokens");
}
