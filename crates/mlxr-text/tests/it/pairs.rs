//! The tokenizers of embedding models and cross-encoders (`golden/embeddings`): the ids that sentence-transformers
//! feeds them, for texts and for pairs, from tokenizer.json, from vocab.txt alone and from a converted GGUF file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use mlxr_checkpoint::Checkpoint;
use mlxr_checkpoint::convert::{GgufOptions, hf_to_gguf};
use mlxr_text::{EncodeOptions, Tokenizer};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/embeddings").join(name)
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder(&format!("{name}.json"))).unwrap()).unwrap()
}

fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::from_source(&Checkpoint::open_tokenizer(path).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn check_texts(tokenizer: &Tokenizer, golden: &Value, what: &str) {
    let options = EncodeOptions { add_special: true, parse_special: false };
    for (text, ids) in golden["texts"].as_array().unwrap().iter().zip(numbers(&golden["ids"])) {
        assert_eq!(tokenizer.encode(text.as_str().unwrap(), options).unwrap(), ids, "{what}: {text}");
    }
}

fn check_pairs(tokenizer: &Tokenizer, golden: &Value, what: &str) {
    for (i, (pair, ids)) in
        golden["pairs"].as_array().unwrap().iter().zip(numbers(&golden["ids"])).enumerate()
    {
        let (first, second) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let (found, types) = tokenizer.encode_pair(first, second).unwrap();
        assert_eq!(found, ids, "{what}: {pair}");
        // Models without token types are not given any by the reference.
        let expected = &numbers(&golden["types"])[i];
        assert!(expected.is_empty() || types == *expected, "{what}: {types:?}");
    }
}

#[test]
fn texts_and_pairs_have_the_reference_ids() {
    for name in ["bert", "nomic_bert", "modernbert", "qwen3", "gemma3", "xlm_roberta"] {
        check_texts(&tokenizer(&folder(name)), &golden(name), name);
    }
    for name in ["bert_rank", "modernbert_rank", "xlm_roberta_rank"] {
        check_pairs(&tokenizer(&folder(name)), &golden(name), name);
    }
}

#[test]
fn a_converted_file_has_the_same_ids() {
    let dir = tempfile::tempdir().unwrap();
    let convert = |name: &str, pre: Option<&str>| {
        let path = dir.path().join(format!("{name}.gguf"));
        let options = GgufOptions { pre_tokenizer: pre.map(str::to_owned), ..GgufOptions::default() };
        hf_to_gguf(&folder(name), &path, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        tokenizer(&path)
    };
    for name in ["bert", "nomic_bert"] {
        check_texts(&convert(name, None), &golden(name), name);
    }
    for name in ["modernbert", "qwen3"] {
        check_texts(&convert(name, Some("gpt-2")), &golden(name), name);
    }
    check_pairs(&convert("bert_rank", None), &golden("bert_rank"), "bert_rank");
    check_pairs(&convert("modernbert_rank", Some("gpt-2")), &golden("modernbert_rank"), "modernbert_rank");
}

#[test]
fn vocab_txt_alone_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(folder("bert/tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(u64, &str)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(text, id)| (id.as_u64().unwrap(), text.as_str()))
        .collect();
    tokens.sort_unstable();
    let lines: String = tokens.iter().map(|(_, text)| format!("{text}\n")).collect();
    std::fs::write(dir.path().join("vocab.txt"), lines).unwrap();
    let found = tokenizer(dir.path());
    check_texts(&found, &golden("bert"), "vocab.txt");
    check_pairs(&found, &golden("bert_rank"), "vocab.txt");
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
    let cased = tokenizer(dir.path());
    let ids = |tokenizer: &Tokenizer| tokenizer.encode("The", EncodeOptions::default()).unwrap();
    assert_ne!(ids(&cased), ids(&found), "case is kept when the folder says so");
}
