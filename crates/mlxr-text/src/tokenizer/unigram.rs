//! The best path through a Unigram vocabulary.
//!
//! Viterbi over byte positions with a trie of pieces (Kudo, 2018, "Subword regularization"). Sums are in `f32`, as in
//! the SentencePiece library, so that near ties fall the same way.

use ahash::AHashMap;

use super::TokenKind;
use super::spm::Piece;
use crate::TextError;

const UNKNOWN_PENALTY: f32 = 10.0;

/// A trie of pieces with their scores.
#[derive(Debug)]
pub(crate) struct Lattice {
    children: AHashMap<(u32, u8), u32>,
    /// Piece id per trie node, `NONE` inside a piece.
    ids: Vec<u32>,
    scores: Vec<f32>,
    unknown_score: f32,
    /// What a user-defined piece gets per byte, so that it always wins.
    bonus: f32,
    user_defined: Vec<bool>,
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Best {
    score: f32,
    start: usize,
    id: Option<u32>,
    reached: bool,
}

impl Lattice {
    pub(crate) fn new(pieces: &[Piece]) -> Result<Lattice, TextError> {
        let normal = || pieces.iter().filter(|p| p.kind == TokenKind::Normal).map(|p| p.score);
        let lowest = normal().fold(f32::INFINITY, f32::min);
        // The library starts from the smallest positive number, so negative scores leave user-defined pieces at -0.1.
        let highest = normal().fold(f32::MIN_POSITIVE, f32::max);
        if !lowest.is_finite() {
            return Err(TextError::malformed("vocabulary", "it has no normal token"));
        }
        let mut lattice = Lattice {
            children: AHashMap::new(),
            ids: vec![NONE],
            scores: pieces.iter().map(|p| p.score).collect(),
            unknown_score: lowest - UNKNOWN_PENALTY,
            bonus: highest,
            user_defined: pieces.iter().map(|p| p.kind == TokenKind::UserDefined).collect(),
        };
        for (id, piece) in pieces.iter().enumerate() {
            if matches!(piece.kind, TokenKind::Normal | TokenKind::UserDefined) {
                lattice.insert(&piece.text, id as u32);
            }
        }
        Ok(lattice)
    }

    fn insert(&mut self, text: &str, id: u32) {
        let mut node = 0;
        for byte in text.bytes() {
            let next = self.ids.len() as u32;
            node = *self.children.entry((node, byte)).or_insert(next);
            if node == next {
                self.ids.push(NONE);
            }
        }
        if node != 0 {
            self.ids[node as usize] = id;
        }
    }

    /// Hands out the pieces of the best path in order; `None` stands for an unknown character.
    pub(crate) fn cut(&self, text: &str, push: &mut impl FnMut(&str, Option<u32>)) {
        let mut best = vec![Best { score: 0.0, start: 0, id: None, reached: false }; text.len() + 1];
        for (start, c) in text.char_indices() {
            self.extend(text, start, c.len_utf8(), &mut best);
        }
        let mut path = Vec::new();
        let mut end = text.len();
        while 0 < end {
            let step = best[end];
            path.push((step.start..end, step.id));
            end = step.start;
        }
        for (range, id) in path.into_iter().rev() {
            push(&text[range], id);
        }
    }

    /// Offers every piece that begins at `start` to the position it ends at.
    fn extend(&self, text: &str, start: usize, char_len: usize, best: &mut [Best]) {
        let here = best[start].score;
        let mut covered = false;
        let mut node = 0;
        for (i, &byte) in text.as_bytes()[start..].iter().enumerate() {
            let Some(&next) = self.children.get(&(node, byte)) else { break };
            node = next;
            let id = self.ids[node as usize];
            if id == NONE {
                continue;
            }
            let len = i + 1;
            let score = if self.user_defined[id as usize] {
                len as f32 * self.bonus - 0.1
            } else {
                self.scores[id as usize]
            };
            offer(&mut best[start + len], score + here, start, Some(id));
            covered |= len == char_len;
        }
        if !covered {
            offer(&mut best[start + char_len], self.unknown_score + here, start, None);
        }
    }
}

fn offer(best: &mut Best, score: f32, start: usize, id: Option<u32>) {
    if !best.reached || best.score < score {
        *best = Best { score, start, id, reached: true };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_with_the_best_sum_wins() {
        let piece = |text: &str, score| Piece { text: text.to_owned(), score, kind: TokenKind::Normal };
        let pieces = [piece("a", -1.0), piece("b", -1.0), piece("ab", -1.5), piece("bc", -0.1)];
        let lattice = Lattice::new(&pieces).unwrap();
        let cut = |text: &str| {
            let mut out = Vec::new();
            lattice.cut(text, &mut |piece: &str, id| out.push((piece.to_owned(), id)));
            out
        };
        assert_eq!(cut("abc"), [("a".to_owned(), Some(0)), ("bc".to_owned(), Some(3))]);
        assert_eq!(cut("abé"), [("ab".to_owned(), Some(2)), ("é".to_owned(), None)]);
    }
}
