//! Damaged tokenizer.json files: an error or a tokenizer, never a panic.

use std::fs;
use std::path::Path;

use mlxr_checkpoint::TokenizerSource;
use mlxr_text::{EncodeOptions, Tokenizer};

#[test]
fn damaged_tokenizer_files_do_not_panic() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/tokenizer");
    let mut n_refused = 0;
    let files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(files.len() >= 9);
    for path in files {
        let source = TokenizerSource::HfJson {
            tokenizer_json: fs::read(&path).unwrap().into(),
            tokenizer_config: serde_json::Map::new(),
            special_tokens_map: serde_json::Map::new(),
        };
        match Tokenizer::from_source(&source) {
            Err(_) => n_refused += 1,
            Ok(tokenizer) => {
                let options = EncodeOptions { add_special: true, parse_special: true };
                if let Ok(ids) = tokenizer.encode("aaaa aaaaaaaaaaaaaaaaab", options) {
                    let _ = tokenizer.decode(&ids, false);
                }
            }
        }
    }
    assert!(n_refused >= 3, "{n_refused}");
}
