//! Text to tokens and back.

use mlxr_api::native::text::{DetokenizeAnswer, DetokenizeRequest, Piece, TokenizeAnswer, TokenizeRequest};
use mlxr_text::{EncodeOptions, Tokenizer};

use super::unknown_fields;
use crate::ServeError;
use crate::loaded::Loaded;
use crate::notices::Notices;

/// # Errors
/// The text cannot be encoded.
pub fn tokenize(
    wire: &TokenizeRequest,
    model: &Loaded,
    strict: bool,
) -> Result<(TokenizeAnswer, Notices), ServeError> {
    let notices = unknown_fields(&wire.unknown, strict || wire.strict == Some(true))?;
    let tokens = encode(model.tokenizer(), "text", &wire.text, wire.add_special, wire.parse_special)?;
    let pieces = || tokens.iter().map(|&id| piece(model.tokenizer(), id)).collect();
    let answer = TokenizeAnswer {
        model: model.name().to_owned(),
        n_tokens: tokens.len(),
        pieces: (wire.with_pieces == Some(true)).then(pieces),
        tokens,
        warnings: notices.warnings(),
    };
    Ok((answer, notices))
}

/// Tokens of a text in the field of that name.
///
/// # Errors
/// The text cannot be encoded.
pub fn encode(
    tokenizer: &Tokenizer,
    field: &str,
    text: &str,
    add_special: Option<bool>,
    parse_special: Option<bool>,
) -> Result<Vec<u32>, ServeError> {
    let options = EncodeOptions {
        add_special: add_special.unwrap_or(true),
        parse_special: parse_special.unwrap_or(true),
    };
    let encoded = tokenizer.encode(text, options);
    encoded.map_err(|error| ServeError::invalid(field, error.to_string()))
}

/// Refuses tokens that are none of the model's.
///
/// # Errors
/// [`ServeError`] names the first.
pub fn check_ids(field: &str, tokens: &[u32], tokenizer: &Tokenizer) -> Result<(), ServeError> {
    let n_vocab = tokenizer.n_vocab();
    let Some(i) = tokens.iter().position(|&id| id as usize >= n_vocab) else { return Ok(()) };
    let field = format!("{field}[{i}]");
    let reason = format!("{field} is {}, but the vocabulary has {n_vocab}", tokens[i]);
    Err(ServeError::invalid(field, reason))
}

fn piece(tokenizer: &Tokenizer, id: u32) -> Piece {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default().to_vec();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Piece { id, text, bytes, is_special: tokenizer.is_special(id) }
}

/// # Errors
/// There is no such token.
pub fn detokenize(
    wire: &DetokenizeRequest,
    model: &Loaded,
    strict: bool,
) -> Result<(DetokenizeAnswer, Notices), ServeError> {
    let notices = unknown_fields(&wire.unknown, strict || wire.strict == Some(true))?;
    check_ids("tokens", &wire.tokens, model.tokenizer())?;
    let answer = DetokenizeAnswer {
        model: model.name().to_owned(),
        text: model.tokenizer().decode(&wire.tokens, wire.skip_special == Some(true)),
        warnings: notices.warnings(),
    };
    Ok((answer, notices))
}
