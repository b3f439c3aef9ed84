//! Byte-pair merging, the one loop behind every pairwise vocabulary.
//!
//! Neighbours are merged best first (smallest key, then leftmost) until no pair is left: a heap of candidates over a
//! linked list of symbols, `n log n` in the length of the text.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A stretch of the text being merged. A length of zero marks one that went into its left neighbour.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Symbol {
    pub(crate) start: u32,
    pub(crate) len: u32,
    /// Never merges with a neighbour.
    pub(crate) frozen: bool,
    prev: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;

impl Symbol {
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

/// Lines up contiguous stretches given by their lengths.
pub(crate) fn line_up(stretches: impl IntoIterator<Item = (usize, bool)>) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = Vec::new();
    let mut start = 0;
    for (len, frozen) in stretches {
        let at = symbols.len() as u32;
        symbols.push(Symbol {
            start,
            len: len as u32,
            frozen,
            prev: at.checked_sub(1).unwrap_or(NONE),
            next: at + 1,
        });
        start += len as u32;
    }
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    symbols
}

/// Merges in place. `key` gives the rank of the pair that makes up a stretch, split at a place; `None` for no pair.
pub(crate) fn merge(
    symbols: &mut [Symbol],
    mut key: impl FnMut(std::ops::Range<usize>, usize) -> Option<u32>,
) {
    let mut heap = BinaryHeap::new();
    let mut offer = |heap: &mut BinaryHeap<_>, symbols: &[Symbol], left: u32, right: u32| {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&symbols[left as usize], &symbols[right as usize]);
        if l.frozen || r.frozen {
            return;
        }
        let len = l.len + r.len;
        let range = l.start as usize..(l.start + len) as usize;
        if let Some(key) = key(range, r.start as usize) {
            heap.push(Reverse((key, left, right, len)));
        }
    };
    for right in 1..symbols.len() as u32 {
        offer(&mut heap, symbols, right - 1, right);
    }
    while let Some(Reverse((_, left, right, len))) = heap.pop() {
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        if l.len == 0 || r.len == 0 || l.len + r.len != len {
            continue;
        }
        symbols[right as usize].len = 0;
        let merged = &mut symbols[left as usize];
        merged.len = len;
        merged.next = r.next;
        let prev = merged.prev;
        if r.next != NONE {
            symbols[r.next as usize].prev = left;
        }
        offer(&mut heap, symbols, prev, left);
        offer(&mut heap, symbols, left, r.next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_pair_goes_first_and_ties_go_left() {
        let text = b"aaab";
        let mut symbols = line_up(text.iter().map(|_| (1, false)));
        merge(&mut symbols, |range, _| match &text[range] {
            b"aa" => Some(1),
            b"ab" => Some(0),
            _ => None,
        });
        let pieces: Vec<&[u8]> = symbols.iter().filter(|s| s.len > 0).map(|s| &text[s.range()]).collect();
        assert_eq!(pieces, [&b"aa"[..], b"ab"]);
    }
}
