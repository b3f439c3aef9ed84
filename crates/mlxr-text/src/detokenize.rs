//! Ids to text as they arrive.
//!
//! Invariant: the pieces pushed out, joined, are exactly the lossy UTF-8 reading of the tokens' bytes joined; a
//! character whose bytes are spread over several tokens comes out whole with the last of them.

use std::sync::Arc;

use crate::tokenizer::StartRule;
use crate::{TokenKind, Tokenizer};

/// A streaming detokeniser.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Control tokens that are spelt out nevertheless.
    shown: Arc<[u32]>,
    /// Nothing visible yet, so the first-token rule still applies.
    at_start: bool,
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A detokeniser at the start of a text, hiding special tokens.
    pub fn new(tokenizer: &Tokenizer) -> Detokenizer {
        Detokenizer {
            tokenizer: tokenizer.clone(),
            skip_special: true,
            shown: Arc::new([]),
            at_start: true,
            pending: Vec::new(),
        }
    }

    /// Whether control tokens are hidden (the default) or spelt out.
    pub fn skip_special(mut self, skip: bool) -> Detokenizer {
        self.skip_special = skip;
        self
    }

    /// Control tokens to spell out although the others are hidden.
    pub fn showing(mut self, ids: impl Into<Arc<[u32]>>) -> Detokenizer {
        self.shown = ids.into();
        self
    }

    /// A detokeniser that continues a text which ends with `prompt`, so that its first token keeps its leading space.
    pub fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Detokenizer {
        let mut detokenizer = Detokenizer::new(tokenizer);
        // Only whether anything visible came before matters, and a character cut in two by the prompt's end.
        for &id in prompt.iter().rev().take(16).collect::<Vec<_>>().into_iter().rev() {
            detokenizer.push(id);
        }
        detokenizer
    }

    /// The text that one more token makes certain: whole characters only, possibly none.
    pub fn push(&mut self, id: u32) -> String {
        let vocab = self.tokenizer.vocab();
        if self.skip_special && vocab.is_special(id) && !self.shown.contains(&id) {
            return String::new();
        }
        let Some(mut piece) = vocab.pieces.get(id) else { return String::new() };
        if vocab.kind(id) == Some(TokenKind::Unknown) {
            // Its surface may begin with a space of its own.
            self.at_start = false;
        }
        if self.at_start {
            let was_blank = piece.first() == Some(&b' ');
            match &vocab.start {
                StartRule::Same => self.at_start = false,
                StartRule::DropSpace => {
                    self.at_start = piece.is_empty();
                    piece = piece.strip_prefix(b" ").unwrap_or(piece);
                }
                StartRule::DropSpaces => {
                    piece = piece.strip_prefix(b" ").unwrap_or(piece);
                    self.at_start = piece.is_empty() && was_blank;
                }
                StartRule::Words(first) => {
                    self.at_start = false;
                    piece = first.get(id).unwrap_or(piece);
                }
            }
        }
        self.pending.extend_from_slice(piece);
        self.drain()
    }

    /// What is left: U+FFFD for a character that never became whole.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }

    /// Takes everything but an unfinished character off `pending`.
    fn drain(&mut self) -> String {
        let keep = unfinished_len(&self.pending);
        let whole = self.pending.len() - keep;
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        text
    }
}

/// How many bytes at the end begin a character that more bytes could finish.
fn unfinished_len(bytes: &[u8]) -> usize {
    // The longest beginning is three bytes of four.
    for n in (1..=bytes.len().min(3)).rev() {
        let tail = &bytes[bytes.len() - n..];
        // A lead byte not preceded by an unfinished character is where a new reading starts.
        if tail[0] >= 0xc2
            && let Err(e) = std::str::from_utf8(tail)
            && e.valid_up_to() == 0
            && e.error_len().is_none()
        {
            return n;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain_all(chunks: &[&[u8]]) -> String {
        let mut pending: Vec<u8> = Vec::new();
        let mut out = String::new();
        for chunk in chunks {
            pending.extend_from_slice(chunk);
            let whole = pending.len() - unfinished_len(&pending);
            out.push_str(&String::from_utf8_lossy(&pending[..whole]));
            pending.drain(..whole);
        }
        out + &String::from_utf8_lossy(&pending)
    }

    #[test]
    fn every_cut_of_a_byte_string_reads_like_the_whole() {
        let samples: [&[u8]; 8] = [
            "aé€😀z".as_bytes(),
            b"\xf0\x9f\x98",
            b"\xf0\x9f\xf0\x9f\x98\x80",
            b"\xe2\x82\xe2\x82\xac\x80\x80",
            b"\xed\xa0\x80x",
            b"\xf4\x90\x80\x80",
            b"\xc0\xaf\xc3",
            b"\xe0\x80\x80\xf1\x80",
        ];
        for bytes in samples {
            let expected = String::from_utf8_lossy(bytes).into_owned();
            for mask in 0..1u32 << (bytes.len() - 1) {
                let mut chunks = Vec::new();
                let mut start = 0;
                for i in 1..=bytes.len() {
                    if i == bytes.len() || mask & (1 << (i - 1)) != 0 {
                        chunks.push(&bytes[start..i]);
                        start = i;
                    }
                }
                assert_eq!(drain_all(&chunks), expected, "{bytes:x?} cut by {mask:b}");
            }
        }
    }
}
