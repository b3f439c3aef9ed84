//! Finds special tokens in a text before the vocabulary's own algorithm sees it.

use aho_corasick::{AhoCorasick, MatchKind};

use super::TokenKind;
use crate::TextError;

/// A stretch of input: text to encode, or a token found in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

/// The special tokens of a vocabulary. Control tokens are read only when the caller allows it; user-defined ones always.
#[derive(Debug)]
pub(crate) struct SpecialTokens {
    all: Finder,
    user_defined: Finder,
}

#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    ids: Vec<u32>,
    /// Tokens that swallow the blanks after them.
    swallowing: Vec<u32>,
}

impl SpecialTokens {
    pub(crate) fn new<'a>(
        tokens: impl IntoIterator<Item = (u32, &'a str, TokenKind)>,
    ) -> Result<SpecialTokens, TextError> {
        let tokens: Vec<_> = tokens
            .into_iter()
            .filter(|(_, text, kind)| {
                let special =
                    matches!(kind, TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined);
                special && !text.is_empty()
            })
            .collect();
        let user_defined =
            tokens.iter().copied().filter(|(_, _, kind)| *kind == TokenKind::UserDefined).collect::<Vec<_>>();
        Ok(SpecialTokens { all: Finder::new(&tokens)?, user_defined: Finder::new(&user_defined)? })
    }

    /// The same tokens, of which those that `swallows` picks by id take the blanks after them along.
    pub(crate) fn swallowing(mut self, swallows: impl Fn(u32) -> bool) -> SpecialTokens {
        for finder in [&mut self.all, &mut self.user_defined] {
            finder.swallowing = finder.ids.iter().copied().filter(|&id| swallows(id)).collect();
        }
        self
    }

    /// The text cut at every special token, longest first where two begin at one place.
    pub(crate) fn split<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let finder = if parse_special { &self.all } else { &self.user_defined };
        let mut fragments = Vec::new();
        let mut end = 0;
        for found in finder.automaton.find_iter(text) {
            if found.start() < end {
                continue;
            }
            if end < found.start() {
                fragments.push(Fragment::Text(&text[end..found.start()]));
            }
            let id = finder.ids[found.pattern().as_usize()];
            fragments.push(Fragment::Token(id));
            end = found.end();
            if finder.swallowing.contains(&id) {
                end = text.len() - text[end..].trim_start().len();
            }
        }
        if end < text.len() {
            fragments.push(Fragment::Text(&text[end..]));
        }
        fragments
    }
}

impl Finder {
    fn new(tokens: &[(u32, &str, TokenKind)]) -> Result<Finder, TextError> {
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, text, _)| text))
            .map_err(|e| TextError::malformed("special tokens", e))?;
        Ok(Finder { automaton, ids: tokens.iter().map(|(id, ..)| *id).collect(), swallowing: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_tokens_are_read_on_request_and_swallow_blanks_where_told() {
        let tokens = [
            (7, "<|end|>", TokenKind::Control),
            (8, "<tool>", TokenKind::UserDefined),
            (9, "a", TokenKind::Normal),
        ];
        let special = SpecialTokens::new(tokens).unwrap().swallowing(|id| id == 7);
        let text = "a<|end|> \nb<tool> c";
        use Fragment::{Text, Token};
        assert_eq!(special.split(text, true), [Text("a"), Token(7), Text("b"), Token(8), Text(" c")]);
        assert_eq!(special.split(text, false), [Text("a<|end|> \nb"), Token(8), Text(" c")]);
    }
}
