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

    /// The text cut at every special token, longest first where two begin at one place.
    pub(crate) fn split<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let finder = if parse_special { &self.all } else { &self.user_defined };
        let mut fragments = Vec::new();
        let mut end = 0;
        for found in finder.automaton.find_iter(text) {
            if end < found.start() {
                fragments.push(Fragment::Text(&text[end..found.start()]));
            }
            fragments.push(Fragment::Token(finder.ids[found.pattern().as_usize()]));
            end = found.end();
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
        Ok(Finder { automaton, ids: tokens.iter().map(|(id, ..)| *id).collect() })
    }
}
