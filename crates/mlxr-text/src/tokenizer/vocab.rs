//! What each id stands for: its bytes, its kind, and the rule for the first token of a text.

use std::collections::HashMap;

use crate::TextError;

/// The role of a token, as SentencePiece and GGUF number them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenKind {
    /// The kind behind a number in a SentencePiece model or a GGUF file.
    pub fn from_number(n: i64) -> Option<TokenKind> {
        Some(match n {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }
}

/// How the first visible token of a text differs from the same token further on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StartRule {
    /// It does not.
    Same,
    /// One leading space is the tokenizer's own and is dropped.
    DropSpace,
    /// One leading space is dropped from every token until something is visible.
    DropSpaces,
    /// Words are joined by spaces, so the stored bytes begin with one that the first word lacks.
    Words(Box<Pieces>),
}

/// Byte strings, one after another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Pieces {
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<(), TextError> {
        self.bytes.extend_from_slice(piece);
        let end = u32::try_from(self.bytes.len())
            .map_err(|_| TextError::malformed("vocabulary", "the tokens are longer than 4 GiB together"))?;
        self.ends.push(end);
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let at = id as usize;
        let end = *self.ends.get(at)? as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        Some(&self.bytes[start..end])
    }
}

/// The vocabulary as the detokeniser sees it.
#[derive(Debug)]
pub(crate) struct Vocab {
    pub(crate) pieces: Pieces,
    pub(crate) kinds: Vec<TokenKind>,
    pub(crate) start: StartRule,
    /// Token texts as the file spells them. Empty when the engine keeps its own index.
    pub(crate) ids: HashMap<Box<str>, u32>,
}

impl Vocab {
    pub(crate) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Control and unknown tokens: invisible when special tokens are skipped.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.kind(id) == Some(TokenKind::Control)
    }
}
