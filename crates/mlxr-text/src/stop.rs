//! Stop strings in a stream of text.
//!
//! Text that could be the beginning of a stop string is held back until the next piece decides; nothing of a stop
//! string is ever let through, nor is anything else lost.

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopMatch {
    /// Text that is safe to show, possibly none.
    Text(String),
    /// A stop string was met: the text before it, and which one (an index into the list given).
    Stopped { text: String, stop_idx: usize },
}

/// Finds the first of several stop strings in text that arrives in pieces.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones never match.
    pub fn new(stops: impl IntoIterator<Item = String>) -> StopMatcher {
        StopMatcher { stops: stops.into_iter().collect(), held: String::new() }
    }

    /// Adds a piece of text. After a stop, the matcher is empty again.
    pub fn push(&mut self, piece: &str) -> StopMatch {
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .enumerate()
            .filter(|(_, stop)| !stop.is_empty())
            .filter_map(|(idx, stop)| self.held.find(stop.as_str()).map(|at| (at, idx)))
            .min();
        if let Some((at, stop_idx)) = first {
            self.held.truncate(at);
            return StopMatch::Stopped { text: std::mem::take(&mut self.held), stop_idx };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopMatch::Text(std::mem::replace(&mut self.held, rest))
    }

    /// The text held back when the stream ends without a stop string.
    pub fn finish(self) -> String {
        self.held
    }
}

/// The longest proper beginning of `stop` that `text` ends with, in bytes.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len().saturating_sub(1));
    (1..=longest).rev().find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(s: &str) -> StopMatch {
        StopMatch::Text(s.to_owned())
    }

    #[test]
    fn a_possible_beginning_is_held_back() {
        let mut stops = StopMatcher::new(["\n\nUser:".to_owned(), "é!".to_owned()]);
        assert_eq!(stops.push("hi\n"), text("hi"));
        assert_eq!(stops.push("\nUs"), text(""));
        assert_eq!(stops.push("e me é"), text("\n\nUse me "));
        assert_eq!(stops.push("!x"), StopMatch::Stopped { text: String::new(), stop_idx: 1 });
    }

    #[test]
    fn the_earliest_stop_wins() {
        let mut stops = StopMatcher::new(["bc".to_owned(), "ab".to_owned()]);
        assert_eq!(stops.push("xabc"), StopMatch::Stopped { text: "x".to_owned(), stop_idx: 1 });
    }

    proptest! {
        #[test]
        fn pieces_match_like_the_whole(pieces in prop::collection::vec("[ab]{0,3}", 0..12), stop in "[ab]{1,4}") {
            let whole: String = pieces.concat();
            let mut matcher = StopMatcher::new([stop.clone()]);
            let mut seen = String::new();
            let mut stopped = false;
            for piece in &pieces {
                match matcher.push(piece) {
                    StopMatch::Text(t) => seen.push_str(&t),
                    StopMatch::Stopped { text, .. } => { seen.push_str(&text); stopped = true; break; }
                }
            }
            if !stopped { seen.push_str(&matcher.finish()); }
            prop_assert_eq!(stopped, whole.contains(&stop));
            prop_assert_eq!(seen, whole.split(&stop).next().unwrap_or_default());
        }
    }
}
