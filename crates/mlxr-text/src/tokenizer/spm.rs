//! SentencePiece models: pieces with scores, cut by pair merging (BPE) or by the best path (Unigram).

use ahash::AHashMap;

use super::merge::{line_up, merge};
use super::normalizer::{Normalizer, Protected};
use super::unigram::Lattice;
use super::{TokenKind, byte_level};
use crate::TextError;

/// One entry of a vocabulary.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: TokenKind,
}

/// A SentencePiece model ready to cut normalised text.
#[derive(Debug)]
pub(crate) struct SpmEngine {
    normalizer: Normalizer,
    model: Model,
    unknown: u32,
    /// Ids of `<0x00>` to `<0xFF>` when the model falls back to bytes.
    bytes: Option<Box<[u32; 256]>>,
}

#[derive(Debug)]
enum Model {
    Bpe(Bpe),
    Unigram(Lattice),
}

/// Which algorithm a model was trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Bpe,
    Unigram,
}

impl SpmEngine {
    pub(crate) fn new(
        pieces: &[Piece],
        algorithm: Algorithm,
        normalizer: Normalizer,
        unknown: Option<u32>,
        byte_fallback: bool,
    ) -> Result<SpmEngine, TextError> {
        if let Some((id, _)) = pieces.iter().enumerate().find(|(_, p)| !p.score.is_finite()) {
            return Err(TextError::malformed(
                "vocabulary",
                format!("the score of token {id} is not a number"),
            ));
        }
        let bytes = if byte_fallback { byte_ids(pieces)? } else { None };
        let unknown = unknown
            .or_else(|| pieces.iter().position(|p| p.kind == TokenKind::Unknown).map(|id| id as u32))
            .ok_or_else(|| TextError::malformed("vocabulary", "it has no unknown token"))?;
        let model = match algorithm {
            Algorithm::Bpe => Model::Bpe(Bpe::new(pieces)?),
            Algorithm::Unigram => Model::Unigram(Lattice::new(pieces)?),
        };
        Ok(SpmEngine { normalizer, model, unknown, bytes })
    }

    /// Ids of a text; `anew` when it begins one, so that the blank before the first word is due.
    pub(crate) fn encode(&self, text: &str, anew: bool, out: &mut Vec<u32>) {
        self.cut(&self.normalizer.normalize(text, anew), out);
    }

    fn cut(&self, text: &str, out: &mut Vec<u32>) {
        let mut after_unknown = false;
        let mut push = |piece: &str, id: Option<u32>| {
            let id = id.filter(|&id| id != self.unknown);
            match (id, &self.bytes) {
                (Some(id), _) => out.push(id),
                (None, Some(bytes)) => out.extend(piece.bytes().map(|b| bytes[usize::from(b)])),
                // A run of unknown characters is one unknown token.
                (None, None) if after_unknown => {}
                (None, None) => out.push(self.unknown),
            }
            after_unknown = id.is_none() && self.bytes.is_none();
        };
        match &self.model {
            Model::Bpe(bpe) => bpe.cut(text, &self.normalizer.protected, &mut push),
            Model::Unigram(lattice) => lattice.cut(text, &mut push),
        }
    }
}

fn byte_ids(pieces: &[Piece]) -> Result<Option<Box<[u32; 256]>>, TextError> {
    let mut ids = Box::new([u32::MAX; 256]);
    for (id, piece) in pieces.iter().enumerate() {
        if piece.kind == TokenKind::Byte {
            let byte = byte_level::fallback_byte(&piece.text).ok_or_else(|| {
                TextError::malformed("vocabulary", format!("byte token {id} is spelt {:?}", piece.text))
            })?;
            ids[usize::from(byte)] = id as u32;
        }
    }
    match ids.iter().filter(|&&id| id == u32::MAX).count() {
        0 => Ok(Some(ids)),
        256 => Ok(None),
        n => Err(TextError::malformed("vocabulary", format!("{n} of 256 byte tokens are missing"))),
    }
}

/// Merging by score.
#[derive(Debug)]
struct Bpe {
    /// Piece text to id, rank (smaller merges first) and whether it must be taken apart again.
    index: AHashMap<Box<str>, (u32, u32, bool)>,
    longest: usize,
}

impl Bpe {
    fn new(pieces: &[Piece]) -> Result<Bpe, TextError> {
        let mut index = AHashMap::with_capacity(pieces.len());
        let mut longest = 0;
        for (id, piece) in pieces.iter().enumerate() {
            let mergeable =
                matches!(piece.kind, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused);
            if !mergeable || piece.text.is_empty() {
                continue;
            }
            longest = longest.max(piece.text.len());
            let unused = piece.kind == TokenKind::Unused;
            index.insert(piece.text.as_str().into(), (id as u32, descending_rank(piece.score), unused));
        }
        Ok(Bpe { index, longest })
    }

    fn cut(&self, text: &str, protected: &Protected, push: &mut impl FnMut(&str, Option<u32>)) {
        let mut stretches = Vec::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let frozen = protected.len_at(rest);
            let len = frozen.unwrap_or(c.len_utf8());
            stretches.push((len, frozen.is_some()));
            rest = &rest[len..];
        }
        let mut symbols = line_up(stretches);
        // Where a piece that must be taken apart again was put together.
        let mut seams: AHashMap<&str, usize> = AHashMap::new();
        merge(&mut symbols, |range, seam| {
            if self.longest < range.len() {
                return None;
            }
            let piece = &text[range.clone()];
            let &(_, rank, unused) = self.index.get(piece)?;
            if unused {
                seams.insert(piece, seam - range.start);
            }
            Some(rank)
        });
        for symbol in symbols.iter().filter(|s| s.len > 0) {
            let mut open = vec![&text[symbol.range()]];
            while let Some(piece) = open.pop() {
                match (self.index.get(piece), seams.get(piece)) {
                    (Some((_, _, true)), Some(&seam)) => open.extend([&piece[seam..], &piece[..seam]]),
                    (found, _) => push(piece, found.map(|(id, ..)| *id)),
                }
            }
        }
    }
}

/// Orders scores from high to low as unsigned numbers.
fn descending_rank(score: f32) -> u32 {
    // Both zeros rank alike.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_scores_rank_first() {
        let scores = [3.5, 0.0, -0.5, -1.0, -1e9];
        assert!(scores.windows(2).all(|w| descending_rank(w[0]) < descending_rank(w[1])));
        assert_eq!(descending_rank(-0.0), descending_rank(0.0));
    }
}
