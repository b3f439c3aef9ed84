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

/// The folder's vocabulary, one token per line, in a folder of its own.
fn vocab_txt(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::read(folder(name).join("tokenizer.json")).unwrap();
    let json: Value = serde_json::from_slice(&file).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens: Vec<(u64, &str)> =
        vocab.iter().map(|(text, id)| (id.as_u64().unwrap(), text.as_str())).collect();
    tokens.sort_unstable();
    let lines: String = tokens.iter().map(|(_, text)| format!("{text}\n")).collect();
    std::fs::write(dir.path().join("vocab.txt"), lines).unwrap();
    dir
}

#[test]
fn vocab_txt_alone_is_enough() {
    let dir = vocab_txt("bert");
    let found = tokenizer(dir.path());
    check_texts(&found, &golden("bert"), "vocab.txt");
    check_pairs(&tokenizer(vocab_txt("bert_rank").path()), &golden("bert_rank"), "vocab.txt");
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"do_lower_case": false}"#).unwrap();
    let cased = tokenizer(dir.path());
    let ids = |tokenizer: &Tokenizer| tokenizer.encode("The", EncodeOptions::default()).unwrap();
    assert_ne!(ids(&cased), ids(&found), "case is kept when the folder says so");
}

#[test]
fn what_is_cut_keeps_its_frame() {
    for name in ["bert", "modernbert", "qwen3", "xlm_roberta"] {
        let tokenizer = tokenizer(&folder(name));
        let text = "The cat sat on the mat, once upon a time.";
        let options = EncodeOptions { add_special: true, parse_special: false };
        let (whole, frame) =
            (tokenizer.encode(text, options).unwrap(), tokenizer.encode("", options).unwrap());
        let plain = tokenizer.encode(text, EncodeOptions::default()).unwrap();
        for max in frame.len()..=whole.len() {
            let cut = tokenizer.encode_within(text, max).unwrap();
            assert_eq!((cut.ids.len(), cut.types.len(), cut.n_whole), (max, max, whole.len()), "{name}");
            let n_text = max - frame.len();
            let n_head = whole.iter().zip(&plain).position(|(id, _)| *id == plain[0]).unwrap();
            assert_eq!(cut.ids[n_head..n_head + n_text], plain[..n_text], "{name}, {max}");
            assert_eq!(cut.ids[n_head + n_text..], whole[n_head + plain.len()..], "{name}, {max}");
        }
        assert_eq!(tokenizer.encode_within(text, usize::MAX).unwrap().ids, whole);
        // Room for less than the frame leaves the frame.
        assert_eq!(tokenizer.encode_within(text, 0).unwrap().ids, frame, "{name}");
    }
}

#[test]
fn of_a_pair_only_the_second_text_is_cut() {
    for name in ["bert_rank", "modernbert_rank", "xlm_roberta_rank"] {
        let tokenizer = tokenizer(&folder(name));
        let (first, second) = ("what sat on the mat?", "The cat sat on the mat, once upon a time.");
        let (whole, types) = tokenizer.encode_pair(first, second).unwrap();
        let (frame, _) = tokenizer.encode_pair(first, "").unwrap();
        let n_second = whole.len() - frame.len();
        let tail = whole.len() - 1;
        for keep in 0..=n_second {
            let expected = [&whole[..tail - (n_second - keep)], &whole[tail..]].concat();
            let by_length =
                tokenizer.encode_pair_within(first, second, usize::MAX, frame.len() + keep).unwrap();
            let by_second = tokenizer.encode_pair_within(first, second, keep, usize::MAX).unwrap();
            assert_eq!(by_length.ids, expected, "{name}, {keep}");
            assert_eq!(by_second, by_length, "{name}, {keep}");
            assert_eq!(by_length.types.last(), types.last());
            assert_eq!((by_length.types.len(), by_length.n_whole), (expected.len(), whole.len()));
        }
        // The first text alone is too long already.
        let long = tokenizer.encode_pair_within(first, second, usize::MAX, 3).unwrap();
        assert_eq!(long.ids, frame, "{name}");
    }
}
