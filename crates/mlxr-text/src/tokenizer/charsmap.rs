//! SentencePiece's precompiled character map: a double-array trie from spellings to their normal form.
//!
//! Layout: `u32` byte length of the trie, the trie as little-endian `u32` units, then NUL-terminated replacement
//! strings. A unit packs label, leaf flag and offset as in the Darts-clone library. Everything is checked here once so
//! that lookups need no further care.

use crate::TextError;

const WHAT: &str = "precompiled charsmap";

/// A character map in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Charsmap {
    units: Vec<u32>,
    replacements: String,
}

impl Charsmap {
    /// Reads a map; an empty blob maps nothing.
    pub(crate) fn parse(blob: &[u8]) -> Result<Charsmap, TextError> {
        if blob.is_empty() {
            return Ok(Charsmap::default());
        }
        let bad = |reason: String| TextError::malformed(WHAT, reason);
        let (len, rest) =
            blob.split_first_chunk::<4>().ok_or_else(|| bad(format!("{} bytes", blob.len())))?;
        let len = u32::from_le_bytes(*len) as usize;
        if rest.len() < len || !len.is_multiple_of(4) {
            return Err(bad(format!("trie of {len} bytes in {}", rest.len())));
        }
        let (trie, replacements) = rest.split_at(len);
        let units: Vec<u32> = trie.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        let replacements = std::str::from_utf8(replacements).map_err(|e| bad(e.to_string()))?.to_owned();
        let map = Charsmap { units, replacements };
        map.check_values().map_err(bad)?;
        Ok(map)
    }

    /// Every step from a node a walk can reach stays in the trie, and every leaf names a NUL-terminated replacement.
    fn check_values(&self) -> Result<(), String> {
        let Some(&root) = self.units.first() else { return Ok(()) };
        let mut seen = vec![false; self.units.len()];
        let mut open = vec![offset(root)];
        while let Some(base) = open.pop() {
            if self.units.len() <= base | 0xff {
                return Err(format!("node {base} in a trie of {} units", self.units.len()));
            }
            if std::mem::replace(&mut seen[base], true) {
                continue;
            }
            for byte in 1..=255u32 {
                let at = base ^ byte as usize;
                let unit = self.units[at];
                if label(unit) != byte {
                    continue;
                }
                let child = at ^ offset(unit);
                if has_leaf(unit) {
                    let value = self.units.get(child).map(|leaf| (leaf & 0x7fff_ffff) as usize);
                    if value.and_then(|value| self.replacement(value)).is_none() {
                        return Err(format!("replacement {value:?} of {} bytes", self.replacements.len()));
                    }
                }
                open.push(child);
            }
        }
        Ok(())
    }

    /// The longest spelling at the start of `text`: its length and its normal form.
    pub(crate) fn longest_match(&self, text: &[u8]) -> Option<(usize, &str)> {
        let mut at = offset(*self.units.first()?);
        let mut best = None;
        for (i, &byte) in text.iter().enumerate() {
            at ^= usize::from(byte);
            let Some(&unit) = self.units.get(at) else { break };
            if byte == 0 || label(unit) != u32::from(byte) {
                break;
            }
            at ^= offset(unit);
            if has_leaf(unit)
                && let Some(&leaf) = self.units.get(at)
            {
                best = self.replacement((leaf & 0x7fff_ffff) as usize).map(|to| (i + 1, to)).or(best);
            }
        }
        best
    }

    fn replacement(&self, at: usize) -> Option<&str> {
        let rest = self.replacements.get(at..)?;
        rest.split_once('\0').map(|(to, _)| to)
    }
}

fn has_leaf(unit: u32) -> bool {
    (unit >> 8) & 1 == 1
}

fn label(unit: u32) -> u32 {
    unit & ((1 << 31) | 0xff)
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lying_lengths_are_refused() {
        assert_eq!(Charsmap::parse(&[]), Ok(Charsmap::default()));
        for blob in [&[1, 2][..], &[8, 0, 0, 0, 1], &[3, 0, 0, 0, 1, 2, 3], &[0, 0, 0, 0, 0xff]] {
            assert!(Charsmap::parse(blob).is_err(), "{blob:?}");
        }
    }

    #[test]
    fn a_walk_outside_the_trie_is_refused() {
        let mut blob = vec![4, 0, 0, 0];
        blob.extend_from_slice(&u32::MAX.to_le_bytes());
        assert!(Charsmap::parse(&blob).is_err());
    }
}
