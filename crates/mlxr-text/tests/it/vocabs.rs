//! Vocabularies of real models (MLXR_TESTDATA) against the ids of their own tokenizers.

use std::path::Path;

use mlxr_checkpoint::GgufMetadata;
use mlxr_text::{EncodeOptions, SentencePieceFiles, Tokenizer};
use serde_json::Map;

use crate::data;

const SEPARATOR: &str = "\n__ggml_vocab_test__\n";

fn metadata(path: &Path) -> GgufMetadata {
    let bytes = std::fs::read(path).unwrap();
    mlxr_checkpoint::gguf::read_metadata(path, &bytes.into()).unwrap()
}

fn check_vocab(path: &Path) -> usize {
    let tokenizer =
        Tokenizer::from_gguf(&metadata(path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let sibling =
        |extension: &str| std::fs::read_to_string(format!("{}.{extension}", path.display())).unwrap();
    let (inputs, outputs) = (sibling("inp"), sibling("out"));
    let texts: Vec<&str> = inputs.split(SEPARATOR).collect();
    let mut lines = outputs.lines();
    for text in &texts {
        // A last, empty text has no line.
        let line = lines.next().unwrap_or_default();
        let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
        let ids = tokenizer.encode(text, EncodeOptions::default()).unwrap();
        assert_eq!(ids, expected, "{}: {text:?}", path.display());
    }
    assert_eq!(lines.next(), None, "{}", path.display());
    texts.len()
}

#[test]
fn embedded_vocabularies_give_the_reference_ids() {
    let Some(dir) = data::folder("MLXR_TESTDATA") else { return };
    let mut n_files = 0;
    for entry in std::fs::read_dir(dir.join("vocabs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "gguf") {
            println!("{}: {} texts", path.display(), check_vocab(&path));
            n_files += 1;
        }
    }
    assert_ne!(n_files, 0, "no vocabularies in {}", dir.display());
}

fn llama2() -> Option<Tokenizer> {
    let dir = data::folder("MLXR_TESTDATA")?;
    let model = std::fs::read(dir.join("vocabs/llama2-sentencepiece.model")).unwrap();
    let none = Map::new();
    let files = SentencePieceFiles {
        model: &model,
        tokenizer_config: &none,
        added_tokens: &none,
        special_tokens_map: &none,
    };
    Some(Tokenizer::from_sentencepiece(&files).unwrap())
}

#[test]
fn llama2_gives_the_ids_of_the_sentencepiece_library() {
    let Some(tokenizer) = llama2() else { return };
    let golden = data::golden("llama2-sentencepiece.json");
    data::check_cases(&tokenizer, &golden, EncodeOptions::default(), true);
}
