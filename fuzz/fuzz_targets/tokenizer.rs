//! tokenizer.json, and the text it then meets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mlxr_checkpoint::TokenizerSource;
use mlxr_text::{EncodeOptions, Tokenizer};

fuzz_target!(|data: &[u8]| {
    let source = TokenizerSource::HfJson {
        tokenizer_json: data.to_vec().into(),
        tokenizer_config: serde_json::Map::new(),
        special_tokens_map: serde_json::Map::new(),
    };
    if let Ok(tokenizer) = Tokenizer::from_source(&source) {
        let options = EncodeOptions { add_special: true, parse_special: true };
        let text = String::from_utf8_lossy(&data[..data.len().min(256)]);
        if let Ok(ids) = tokenizer.encode(&text, options) {
            let _ = tokenizer.decode(&ids, false);
        }
    }
});
