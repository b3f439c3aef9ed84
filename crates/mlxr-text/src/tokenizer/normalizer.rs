//! SentencePiece's normaliser: character map, blanks to `▁`, runs of blanks, the blank before the first word.
//!
//! After "SentencePiece: A simple and language independent subword tokenizer" (Kudo and Richardson, 2018) and the
//! behaviour of its library.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind};

use super::charsmap::Charsmap;
use crate::TextError;

/// How blanks are spelt in pieces.
pub(crate) const BLANK: &str = "▁";

/// The settings of a model's normaliser.
#[derive(Debug, Clone)]
pub(crate) struct Normalizer {
    pub(crate) charsmap: Charsmap,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
    pub(crate) escape_whitespaces: bool,
    pub(crate) whitespace_as_suffix: bool,
    /// User-defined pieces pass unchanged.
    pub(crate) protected: Protected,
}

/// User-defined pieces, matched longest first at a place.
#[derive(Debug, Clone, Default)]
pub(crate) struct Protected(Option<AhoCorasick>);

impl Protected {
    pub(crate) fn new<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Result<Protected, TextError> {
        let pieces: Vec<&str> = pieces.into_iter().filter(|p| !p.is_empty()).collect();
        if pieces.is_empty() {
            return Ok(Protected(None));
        }
        AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .start_kind(aho_corasick::StartKind::Anchored)
            .build(pieces)
            .map(|automaton| Protected(Some(automaton)))
            .map_err(|e| TextError::malformed("user-defined pieces", e))
    }

    /// Length of the piece at the start of `text`, if any.
    pub(crate) fn len_at(&self, text: &str) -> Option<usize> {
        let input = Input::new(text).anchored(Anchored::Yes);
        self.0.as_ref()?.find(input).map(|m| m.end())
    }
}

impl Normalizer {
    /// The text as pieces spell it; `anew` when it begins one, so that the blank before the first word is due.
    pub(crate) fn normalize(&self, text: &str, anew: bool) -> String {
        let mut rest = text;
        if self.remove_extra_whitespaces {
            while !rest.is_empty() {
                let (to, len) = self.prefix(rest);
                if to != " " {
                    break;
                }
                rest = &rest[len..];
            }
        }
        if rest.is_empty() {
            return String::new();
        }
        let blank = if self.escape_whitespaces { BLANK } else { " " };
        let mut out = String::with_capacity(rest.len() + rest.len() / 4 + 4);
        if anew && self.add_dummy_prefix && !self.whitespace_as_suffix {
            out.push_str(blank);
        }
        let mut after_blank = self.remove_extra_whitespaces;
        while !rest.is_empty() {
            let (to, len) = self.prefix(rest);
            let to = if after_blank { to.trim_start_matches(' ') } else { to };
            for (i, word) in to.split(' ').enumerate() {
                if i != 0 {
                    out.push_str(blank);
                }
                out.push_str(word);
            }
            if !to.is_empty() {
                after_blank = to.ends_with(' ');
            }
            after_blank &= self.remove_extra_whitespaces;
            rest = &rest[len..];
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(blank).len());
        }
        if self.add_dummy_prefix && self.whitespace_as_suffix {
            out.push_str(blank);
        }
        out
    }

    /// What the start of a (non-empty) text becomes, and how much of it.
    fn prefix<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some(len) = self.protected.len_at(text) {
            return (&text[..len], len);
        }
        if let Some((len, to)) = self.charsmap.longest_match(text.as_bytes())
            && text.is_char_boundary(len)
        {
            return (to, len);
        }
        let len = text.chars().next().map_or(0, char::len_utf8);
        (&text[..len], len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalizer(extra: bool, suffix: bool) -> Normalizer {
        Normalizer {
            charsmap: Charsmap::default(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: extra,
            escape_whitespaces: true,
            whitespace_as_suffix: suffix,
            protected: Protected::new(["<x y>"]).unwrap(),
        }
    }

    #[test]
    fn blanks_are_spelt_and_runs_squeezed() {
        assert_eq!(normalizer(false, false).normalize(" a  b ", true), "▁▁a▁▁b▁");
        assert_eq!(normalizer(true, false).normalize("  a  b ", true), "▁a▁b");
        assert_eq!(normalizer(true, true).normalize("  a  b ", true), "a▁b▁");
        assert_eq!(normalizer(true, false).normalize("   ", true), "");
        assert_eq!(normalizer(false, false).normalize("<x y>", true), "▁<x▁y>");
    }
}
