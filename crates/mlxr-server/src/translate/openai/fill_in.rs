//! `suffix`: text to write between what stands before and what comes after, for models trained on it.

use mlxr_text::{EncodeOptions, Tokenizer};

use crate::ServeError;

/// The marks around prefix, suffix and what is missing, as model families spell them.
const MARKS: [[&str; 3]; 5] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];

/// The prompt that asks for what is missing between `prefix` and `suffix`.
///
/// # Errors
/// When the model's vocabulary has no marks for it.
pub fn tokens(tokenizer: &Tokenizer, prefix: &str, suffix: &str) -> Result<Vec<u32>, ServeError> {
    let ids = |marks: &[&str; 3]| {
        let [before, after, missing] = marks.map(|mark| tokenizer.id_of(mark));
        Some([before?, after?, missing?])
    };
    let Some([before, after, missing]) = MARKS.iter().find_map(ids) else {
        return Err(ServeError::invalid("suffix", "suffix: this model was not trained to fill in text"));
    };
    let text = |text| tokenizer.encode(text, EncodeOptions { add_special: false, parse_special: false });
    // What the model expects at the beginning of any text.
    let mut tokens = tokenizer.encode("", EncodeOptions { add_special: true, parse_special: false })?;
    tokens.push(before);
    tokens.extend(text(prefix)?);
    tokens.push(after);
    tokens.extend(text(suffix)?);
    tokens.push(missing);
    Ok(tokens)
}
