//! One grammar being followed.

use llguidance::TokenParser;
use llguidance::toktrie::{SimpleVob, TokTrie};

use super::GrammarError;

/// llguidance's matcher with our errors.
#[derive(Clone)]
pub(crate) struct Matcher(Box<llguidance::Matcher>);

impl Matcher {
    pub(crate) fn new(parser: TokenParser) -> Result<Matcher, GrammarError> {
        let mut matcher = llguidance::Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(error) => Err(GrammarError::compile("compiled", &error)),
            None => {
                // A grammar without any text shows here, and the automaton's caches are warm for the first token.
                matcher.compute_mask_or_eos().map_err(|e| GrammarError::compile("compiled", &e))?;
                Ok(Matcher(Box::new(matcher)))
            }
        }
    }

    /// Tokens that may come next; the end-of-generation tokens are among them where the text may end.
    pub(crate) fn mask(&mut self) -> Result<SimpleVob, GrammarError> {
        self.0.compute_mask_or_eos().map_err(failed)
    }

    pub(crate) fn consume(&mut self, id: u32) -> Result<(), GrammarError> {
        match self.0.try_consume_tokens(&[id]).map_err(failed)? {
            0 => Err(GrammarError::Refused { id }),
            _ => Ok(()),
        }
    }

    /// Takes in bytes that were part of a token. Whether they follow the grammar; if not, some were taken.
    pub(crate) fn consume_bytes(&mut self, trie: &TokTrie, bytes: &[u8]) -> Result<bool, GrammarError> {
        let ids = trie.greedy_tokenize(bytes);
        if trie.decode_raw(&ids) != bytes {
            return Ok(false);
        }
        Ok(self.0.try_consume_tokens(&ids).map_err(failed)? == ids.len())
    }

    /// Whether nothing can follow.
    pub(crate) fn is_done(&self) -> bool {
        self.0.is_stopped()
    }
}

fn failed(error: impl ToString) -> GrammarError {
    let reason = error.to_string();
    GrammarError::Failed { reason: reason.lines().next().unwrap_or_default().to_owned() }
}
