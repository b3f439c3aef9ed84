//! Where test data lies: goldens in the repository, larger inputs in folders that variables name.

use std::path::PathBuf;

use mlxr_text::{EncodeOptions, Tokenizer};
use serde_json::Value;

/// A folder named by an environment variable; says so and gives `None` when it is not set.
pub fn folder(variable: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        println!("{variable} is not set: the checks on that folder are skipped");
    }
    folder
}

/// The path of a file in `golden/text`.
pub fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden/text").join(name)
}

/// A JSON file in `golden/text`.
pub fn golden(name: &str) -> Value {
    let path = golden_path(name);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A JSON list of token ids.
pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Checks every `{text, ids, decoded}` of a golden file; `decoded` is there where the reference decodes as we do.
pub fn check_cases(tokenizer: &Tokenizer, golden: &Value, options: EncodeOptions, skip_special: bool) {
    let cases = golden["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(tokenizer.encode(text, options).unwrap(), expected, "{text:?}");
        if let Some(decoded) = case["decoded"].as_str() {
            assert_eq!(tokenizer.decode(&expected, skip_special), decoded, "{text:?}");
        }
    }
}
