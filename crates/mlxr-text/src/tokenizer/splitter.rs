//! Pre-tokenizer regexes in linear time.
//!
//! The patterns tokenizers ship end in `\s+(?!\S)|\s+`, a look-ahead that automata cannot express and that costs a
//! backtracking engine one stack entry per blank.
//! That tail means "a run of blanks, without its last one when a word follows", so it is taken off the pattern, run as
//! a plain `\s+`, and the last blank is given back in code. Whatever else needs look-around or possessive quantifiers
//! goes to the backtracking engine.

use std::ops::Range;

use fancy_regex::Regex as Backtracking;
use regex_automata::meta::Regex as Automaton;

use crate::TextError;

const WHAT: &str = "pre-tokenizer pattern";
const TAILS: [&str; 3] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s", r"|\s+(?!\S)"];
/// cl100k's possessive quantifiers never give anything back that the greedy ones could use: the classes are disjoint.
pub(super) const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
const CL100K_GREEDY: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|\s*[\r\n]|\s+(?!\S)|\s+";
/// Groups of three digits counted from the right, as tokenizer.json spells it.
const DIGITS_TO_BOUNDARY: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
/// The same split as zero-width matches.
const DIGITS_ZERO_WIDTH: &str = r"(?=(\d{3})+(?!\d))";
const BLANKS_DOUBLING: &str = r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";

/// A compiled pattern.
#[derive(Debug)]
pub(crate) struct Splitter {
    matcher: Matcher,
}

#[derive(Debug)]
enum Matcher {
    /// Pattern 0 is the tokenizer's own; pattern 1, when present, is the run of blanks.
    Linear {
        automaton: Automaton,
        blanks: Blanks,
    },
    Digits {
        digits: Automaton,
        to_boundary: bool,
    },
    Backtracking(Box<Backtracking>),
}

#[derive(Debug, Clone, Copy)]
enum Blanks {
    /// All but the last blank when a word follows.
    ButLast,
    /// Powers of two from 512 down, none of them touching the word that follows.
    Doubling,
}

impl Splitter {
    pub(crate) fn new(pattern: &str) -> Result<Splitter, TextError> {
        if pattern.len() > 1 << 16 {
            return Err(TextError::malformed(WHAT, format!("{} bytes long", pattern.len())));
        }
        let pattern = if pattern == CL100K { CL100K_GREEDY } else { pattern };
        let matcher = match pattern {
            DIGITS_TO_BOUNDARY => Matcher::Digits { digits: automaton(&[r"\d+"])?, to_boundary: true },
            DIGITS_ZERO_WIDTH => Matcher::Digits { digits: automaton(&[r"\d+"])?, to_boundary: false },
            _ => Self::general(pattern)?,
        };
        Ok(Splitter { matcher })
    }

    fn general(pattern: &str) -> Result<Matcher, TextError> {
        if let Some(head) = pattern.strip_suffix(BLANKS_DOUBLING) {
            return Ok(Matcher::Linear { automaton: automaton(&[head, r"\s+"])?, blanks: Blanks::Doubling });
        }
        let head = TAILS.iter().find_map(|tail| pattern.strip_suffix(tail));
        let patterns: Vec<&str> = match head {
            Some(head) => vec![head, r"\s+"],
            None => vec![pattern],
        };
        if !has_possessive(pattern)
            && let Ok(automaton) = automaton(&patterns)
        {
            return Ok(Matcher::Linear { automaton, blanks: Blanks::ButLast });
        }
        let regex = fancy_regex::RegexBuilder::new(pattern)
            .backtrack_limit(10_000_000)
            .build()
            .map_err(|e| TextError::malformed(WHAT, e))?;
        Ok(Matcher::Backtracking(Box::new(regex)))
    }

    /// The byte ranges of every match, in order. Ranges may be empty for zero-width patterns.
    pub(crate) fn matches(&self, text: &str) -> Result<Vec<Range<usize>>, TextError> {
        match &self.matcher {
            Matcher::Linear { automaton, blanks } => Ok(linear_matches(automaton, *blanks, text)),
            Matcher::Digits { digits, to_boundary } => Ok(digit_matches(digits, *to_boundary, text)),
            Matcher::Backtracking(regex) => {
                let mut found = Vec::new();
                for m in regex.find_iter(text) {
                    let gave_up = |e| TextError::Encode { reason: format!("pre-tokenizer gave up: {e}") };
                    found.push(m.map_err(gave_up)?.range());
                }
                Ok(found)
            }
        }
    }

    /// The text cut at every match: matches and the gaps between them, in order, without empty pieces.
    pub(crate) fn pieces(&self, text: &str) -> Result<Vec<Range<usize>>, TextError> {
        let mut pieces = Vec::new();
        let mut end = 0;
        for m in self.matches(text)? {
            if end < m.start {
                pieces.push(end..m.start);
            }
            end = m.end;
            if !m.is_empty() {
                pieces.push(m);
            }
        }
        if end < text.len() {
            pieces.push(end..text.len());
        }
        Ok(pieces)
    }
}

fn automaton(patterns: &[&str]) -> Result<Automaton, TextError> {
    Automaton::builder()
        .configure(Automaton::config().nfa_size_limit(Some(32 << 20)))
        .build_many(patterns)
        .map_err(|e| TextError::malformed(WHAT, e))
}

/// Whether a quantifier is followed by `+`, which automata would read as "repeat again".
fn has_possessive(pattern: &str) -> bool {
    let bytes = pattern.as_bytes();
    let mut in_class = false;
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 1,
            b'[' => in_class = true,
            b']' => in_class = false,
            // `\p{L}+` ends in a brace but repeats nothing.
            b'+' | b'?' | b'*' | b'}'
                if !in_class
                    && bytes.get(i + 1) == Some(&b'+')
                    && (bytes[i] != b'}' || is_repetition(&bytes[..i])) =>
            {
                return true;
            }
            _ => {}
        }
        i += 1;
    }
    false
}

fn is_repetition(before_brace: &[u8]) -> bool {
    let open = before_brace.iter().rposition(|&b| b == b'{');
    open.is_some_and(|at| before_brace[at + 1..].iter().all(|b| b.is_ascii_digit() || *b == b','))
}

fn linear_matches(automaton: &Automaton, blanks: Blanks, text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at <= text.len() {
        let input = regex_automata::Input::new(text).range(at..);
        let Some(m) = automaton.find(input) else { break };
        if m.is_empty() {
            // No shipped pattern matches nothing; step over one character so that a strange one still ends.
            at = next_char(text, m.end());
            continue;
        }
        if m.pattern().as_usize() == 0 {
            found.push(m.range());
            at = m.end();
            continue;
        }
        at = match blanks {
            Blanks::ButLast => {
                let end = give_back_last_blank(text, m.range());
                found.push(m.start()..end);
                end
            }
            Blanks::Doubling => {
                split_doubling(text, m.range(), &mut found);
                m.end()
            }
        };
    }
    found
}

fn next_char(text: &str, at: usize) -> usize {
    at + text[at..].chars().next().map_or(1, char::len_utf8)
}

/// Where a run of blanks ends when the last one belongs to the word that follows.
fn give_back_last_blank(text: &str, run: Range<usize>) -> usize {
    if run.end == text.len() {
        return run.end;
    }
    let last = text[run.clone()].chars().next_back().map_or(0, char::len_utf8);
    if last == run.len() { run.end } else { run.end - last }
}

fn split_doubling(text: &str, run: Range<usize>, found: &mut Vec<Range<usize>>) {
    let bounds: Vec<usize> =
        text[run.clone()].char_indices().map(|(i, _)| run.start + i).chain([run.end]).collect();
    let touches_word = usize::from(run.end < text.len());
    let mut at = 0;
    let n = bounds.len() - 1;
    while at < n {
        let free = n - at - touches_word.min(n - at - 1);
        let take = [512, 256, 128, 64, 32, 16, 8, 4, 2].into_iter().find(|&len| len <= free).unwrap_or(1);
        found.push(bounds[at]..bounds[at + take]);
        at += take;
    }
}

fn digit_matches(digits: &Automaton, to_boundary: bool, text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for run in digits.find_iter(text) {
        let word_follows =
            text[run.end()..].chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_' || is_mark(c));
        if to_boundary && word_follows {
            continue;
        }
        let bounds: Vec<usize> =
            text[run.range()].char_indices().map(|(i, _)| run.start() + i).chain([run.end()]).collect();
        let n = bounds.len() - 1;
        let mut at = 0;
        while at < n {
            let take = if (n - at).is_multiple_of(3) { 3 } else { (n - at) % 3 };
            found.push(bounds[at]..bounds[at + take]);
            at += take;
        }
    }
    found
}

fn is_mark(c: char) -> bool {
    unicode_normalization::char::is_combining_mark(c)
}

#[cfg(test)]
impl Splitter {
    pub(crate) fn backtracks(&self) -> bool {
        matches!(self.matcher, Matcher::Backtracking(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(pattern: &str, text: &str) -> Vec<String> {
        let splitter = Splitter::new(pattern).unwrap();
        splitter.pieces(text).unwrap().into_iter().map(|r| text[r].to_owned()).collect()
    }

    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    #[test]
    fn the_last_blank_goes_to_the_word_that_follows() {
        assert_eq!(pieces(GPT2, "a   b\t\tc  "), ["a", "  ", " b", "\t", "\t", "c", "  "]);
    }

    #[test]
    fn the_automaton_agrees_with_the_backtracking_engine() {
        let oracle = Backtracking::new(GPT2).unwrap();
        for text in ["", " ", "  x", "\u{3000}\u{3000}é 12 34  !?\r\n\n x", "it's  we'll\u{85}go"] {
            let expected: Vec<_> = oracle.find_iter(text).map(|m| m.unwrap().range()).collect();
            assert_eq!(Splitter::new(GPT2).unwrap().matches(text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_megabyte_of_blanks_is_one_piece() {
        let text = " ".repeat(1 << 20);
        assert_eq!(pieces(GPT2, &text).len(), 1);
    }

    #[test]
    fn digits_group_from_the_right() {
        assert_eq!(pieces(DIGITS_TO_BOUNDARY, "x 1234567 12a"), ["x ", "1", "234", "567", " 12a"]);
        assert_eq!(pieces(DIGITS_ZERO_WIDTH, "1234"), ["1", "234"]);
    }

    #[test]
    fn doubling_blanks_agree_with_the_backtracking_engine() {
        let pattern = format!(r"\S+{BLANKS_DOUBLING}");
        let oracle = Backtracking::new(&pattern).unwrap();
        let splitter = Splitter::new(&pattern).unwrap();
        for n in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100, 511, 512, 513, 700] {
            for tail in ["", "x"] {
                let text = format!("{}{tail}", " ".repeat(n));
                let expected: Vec<_> = oracle.find_iter(&text).map(|m| m.unwrap().range()).collect();
                assert_eq!(splitter.matches(&text).unwrap(), expected, "{n} {tail:?}");
            }
        }
    }

    #[test]
    fn possessive_quantifiers_are_recognised() {
        assert!(has_possessive(r"\p{L}++"));
        assert!(has_possessive(r"\p{N}{1,3}+"));
        assert!(!has_possessive(r"[^\r\n\p{L}]?\p{L}+"));
        assert!(!has_possessive(r"[?+]"));
    }
}
