//! A checkpoint's tokenizer and chat template, and tokens as people read them.

use std::path::Path;

use anyhow::Context;
use mlxr_checkpoint::Checkpoint;
use mlxr_text::{ChatTemplate, TemplateTokens, Tokenizer};

/// The tokenizer, with the end-of-generation ids of the generation config.
pub fn tokenizer(ckpt: &Checkpoint) -> anyhow::Result<Tokenizer> {
    let tokenizer = Tokenizer::from_source(&ckpt.tokenizer)
        .with_context(|| format!("cannot read the tokenizer of {}", ckpt.path.display()))?;
    Ok(tokenizer.with_generation_config(&ckpt.generation))
}

/// The chat template: the file given, the model's own, or the built-in one for its family.
pub fn chat_template(
    ckpt: &Checkpoint,
    tokenizer: &Tokenizer,
    file: Option<&Path>,
) -> anyhow::Result<ChatTemplate> {
    let template = match (file, &ckpt.chat_template) {
        (Some(file), _) => ChatTemplate::from_file(file, TemplateTokens::of(tokenizer))?,
        (None, Some(source)) => ChatTemplate::new(source, TemplateTokens::of(tokenizer)).context(
            "cannot use the model's chat template\nhint: --template FILE gives another, --raw does without",
        )?,
        (None, None) => {
            tracing::warn!(
                "the model has no chat template; a built-in one is used (--template FILE gives another)"
            );
            ChatTemplate::fallback(ckpt.arch.model_type, tokenizer)?
        }
    };
    Ok(template)
}

/// A token's bytes between quotes, control characters and broken UTF-8 escaped.
pub fn quoted(bytes: Option<&[u8]>) -> String {
    let mut text = String::from("\"");
    for chunk in bytes.unwrap_or_default().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                c if c.is_control() => text.extend(c.escape_default()),
                c => text.push(c),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_quoted_so_that_every_byte_shows() {
        assert_eq!(quoted(Some(" h\u{e9}\n\"".as_bytes())), "\" h\u{e9}\\n\\\"\"");
        assert_eq!(quoted(Some(b"\xf0\x9f")), "\"\\xf0\\x9f\"");
        assert_eq!(quoted(None), "\"\"");
    }
}
