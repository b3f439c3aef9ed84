//! What a sequence is held to, token by token: reasoning within its budget, then an answer within its grammar.
//!
//! The grammar applies only once the reasoning has ended. A tag may end in the middle of a token; what follows it
//! there already belongs to the answer.

use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

use super::factory::Inner;
use super::matcher::Matcher;
use super::{Grammar, GrammarError};
use crate::EncodeOptions;
use crate::reasoning::ReasoningTags;

/// White space let through between the end of the reasoning and the answer, in bytes.
const MAX_LEAD_BYTES: usize = 4;

/// What a request demands of its tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Constraint {
    /// The language of the answer.
    pub grammar: Option<Grammar>,
    /// How the model marks its reasoning, when it does. Not used with a grammar of tool calls in channels, which says
    /// itself where the reasoning is.
    pub reasoning: Option<ReasoningTags>,
    /// Tokens of reasoning after which its end is forced.
    pub reasoning_budget: Option<usize>,
}

impl Constraint {
    /// Whether there is anything to hold a sequence to.
    pub fn is_empty(&self) -> bool {
        self.grammar.is_none() && (self.reasoning.is_none() || self.reasoning_budget.is_none())
    }
}

/// Tokens that may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask(SimpleVob);

impl TokenMask {
    pub fn allows(&self, id: u32) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }

    /// The tokens, ascending.
    pub fn ids(&self) -> Vec<u32> {
        self.0.to_list()
    }

    /// Bit `id % 32` of word `id / 32`.
    pub fn words(&self) -> &[u32] {
        self.0.as_slice()
    }
}

/// Where a sequence is. Cheap enough to clone for a fork.
#[derive(Clone)]
pub struct ConstraintState {
    inner: Arc<Inner>,
    matcher: Option<Matcher>,
    tags: Option<ReasoningTags>,
    budget: usize,
    /// The forced end of the reasoning.
    closing: Arc<[u32]>,
    phase: Phase,
}

#[derive(Clone)]
enum Phase {
    /// So far nothing but a beginning of the opening tag, if anything. `answer` is the grammar after it, as long as
    /// it could also be an answer.
    Opening { seen: Vec<u8>, answer: Option<Matcher> },
    /// `tail` may contain a beginning of the closing tag.
    Thinking { tail: Vec<u8>, n_tokens: usize },
    /// The end is being forced; so many of its tokens are out.
    Closing { n_out: usize },
    /// `lead` bytes of white space may still come before the answer.
    Answering { lead: usize },
}

impl ConstraintState {
    pub(crate) fn new(
        inner: Arc<Inner>,
        constraint: &Constraint,
        matcher: Option<Matcher>,
    ) -> Result<ConstraintState, GrammarError> {
        let covers_reasoning = constraint.grammar.as_ref().is_some_and(|grammar| grammar.covers_reasoning);
        let tags = constraint.reasoning.clone().filter(|_| !covers_reasoning);
        let phase = match &tags {
            None => Phase::Answering { lead: 0 },
            Some(tags) if tags.is_open => Phase::Thinking { tail: Vec::new(), n_tokens: 0 },
            Some(_) => Phase::Opening { seen: Vec::new(), answer: matcher.clone() },
        };
        let text = tags.as_ref().map(|tags| tags.forced_end.as_str()).unwrap_or_default();
        let closing = inner
            .tokenizer
            .encode(text, EncodeOptions { add_special: false, parse_special: true })
            .map_err(|e| GrammarError::Failed { reason: e.to_string() })?;
        let budget = constraint.reasoning_budget.unwrap_or(usize::MAX);
        let mut state = ConstraintState { inner, matcher, tags, budget, closing: closing.into(), phase };
        state.enforce_budget();
        Ok(state)
    }

    /// The tokens that may come next; `None` is all of them.
    ///
    /// # Errors
    /// [`GrammarError`] when the grammar hits a limit: the sequence cannot go on.
    pub fn mask(&mut self) -> Result<Option<TokenMask>, GrammarError> {
        let mask = match &mut self.phase {
            Phase::Thinking { tail, .. } => {
                let close = self.tags.as_ref().map(|tags| tags.close.as_bytes()).unwrap_or_default();
                self.matcher.is_some().then(|| while_thinking(&self.inner, tail, close))
            }
            Phase::Closing { n_out } => Some(self.inner.trie.singleton_token_set(self.closing[*n_out])),
            Phase::Opening { seen, answer } => {
                if self.matcher.is_none() {
                    return Ok(None);
                }
                let mut mask = match answer {
                    Some(answer) => answer.mask()?,
                    None => self.inner.trie.alloc_token_set(),
                };
                let open = self.tags.as_ref().map(|tags| tags.open.as_bytes()).unwrap_or_default();
                allow_spelling(&self.inner, &open[seen.len().min(open.len())..], &mut mask);
                Some(mask)
            }
            Phase::Answering { lead } => match &mut self.matcher {
                None => None,
                Some(matcher) => {
                    let mut mask = matcher.mask()?;
                    allow_blanks(&self.inner, *lead, &mut mask);
                    Some(mask)
                }
            },
        };
        Ok(mask.map(TokenMask))
    }

    /// Takes in the token that was chosen.
    ///
    /// # Errors
    /// [`GrammarError`] when the token was not in the mask, or the grammar hits a limit.
    pub fn commit(&mut self, id: u32) -> Result<(), GrammarError> {
        let bytes = self.inner.tokenizer.token_bytes(id).unwrap_or_default().to_vec();
        match std::mem::replace(&mut self.phase, Phase::Answering { lead: 0 }) {
            Phase::Opening { seen, answer } => self.commit_opening(id, seen, answer, &bytes)?,
            Phase::Thinking { tail, n_tokens } => self.commit_thinking(tail, n_tokens + 1, &bytes)?,
            Phase::Closing { n_out } if n_out + 1 < self.closing.len() => {
                self.phase = Phase::Closing { n_out: n_out + 1 };
            }
            Phase::Closing { .. } => self.phase = Phase::Answering { lead: MAX_LEAD_BYTES },
            Phase::Answering { lead } => self.commit_answer(id, lead, &bytes)?,
        }
        self.enforce_budget();
        Ok(())
    }

    /// Whether the grammar allows nothing more, not even white space.
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Answering { .. }) && self.matcher.as_ref().is_some_and(Matcher::is_done)
    }

    /// Whether the model is reasoning, and the grammar does not apply yet.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.phase, Phase::Thinking { .. } | Phase::Closing { .. })
    }

    fn enforce_budget(&mut self) {
        if let Phase::Thinking { n_tokens, .. } = self.phase
            && n_tokens >= self.budget
            && !self.closing.is_empty()
        {
            self.phase = Phase::Closing { n_out: 0 };
        }
    }

    fn commit_opening(
        &mut self,
        id: u32,
        mut seen: Vec<u8>,
        answer: Option<Matcher>,
        bytes: &[u8],
    ) -> Result<(), GrammarError> {
        let open = self.tags.as_ref().map(|tags| tags.open.clone()).unwrap_or_default();
        seen.extend_from_slice(bytes);
        if let Some(rest) = seen.strip_prefix(open.as_bytes()) {
            let rest = rest.to_vec();
            return self.commit_thinking(Vec::new(), 0, &rest);
        }
        let had_answer = answer.is_some();
        let mut refused = None;
        let answer = answer.and_then(|mut answer| match answer.consume(id) {
            Ok(()) => Some(answer),
            Err(e) => {
                refused = Some(e);
                None
            }
        });
        if open.as_bytes().starts_with(&seen) {
            self.phase = Phase::Opening { seen, answer };
            return Ok(());
        }
        self.phase = Phase::Answering { lead: 0 };
        if self.matcher.is_some() {
            if answer.is_none() {
                return Err(refused.filter(|_| had_answer).unwrap_or(GrammarError::Refused { id }));
            }
            self.matcher = answer;
        }
        Ok(())
    }

    fn commit_thinking(
        &mut self,
        mut tail: Vec<u8>,
        n_tokens: usize,
        bytes: &[u8],
    ) -> Result<(), GrammarError> {
        let close = self.tags.as_ref().map(|tags| tags.close.clone()).unwrap_or_default();
        tail.extend_from_slice(bytes);
        if let Some(at) = find(&tail, close.as_bytes()) {
            self.phase = Phase::Answering { lead: MAX_LEAD_BYTES };
            let rest = tail[at + close.len()..].trim_ascii_start();
            if let Some(matcher) = &mut self.matcher
                && !rest.is_empty()
                && !matcher.consume_bytes(&self.inner.trie, rest)?
            {
                return Err(GrammarError::Failed {
                    reason: "the answer began inside the token that ended the reasoning".to_owned(),
                });
            }
            return Ok(());
        }
        let keep = close.len().saturating_sub(1).min(tail.len());
        tail.drain(..tail.len() - keep);
        self.phase = Phase::Thinking { tail, n_tokens };
        Ok(())
    }

    fn commit_answer(&mut self, id: u32, lead: usize, bytes: &[u8]) -> Result<(), GrammarError> {
        let is_blank = !bytes.is_empty() && bytes.len() <= lead && bytes.trim_ascii().is_empty();
        if is_blank {
            self.phase = Phase::Answering { lead: lead - bytes.len() };
            return Ok(());
        }
        self.phase = Phase::Answering { lead: 0 };
        match &mut self.matcher {
            // The end token of a finished answer.
            Some(matcher) if matcher.is_done() && self.inner.tokenizer.eog_ids().contains(&id) => Ok(()),
            Some(matcher) => matcher.consume(id),
            None => Ok(()),
        }
    }
}

impl std::fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintState").field("is_reasoning", &self.is_reasoning()).finish_non_exhaustive()
    }
}

/// All tokens but those that end the text, for the answer is still to come, and those that finish the closing tag and
/// already say something of an answer, which the grammar has not seen.
fn while_thinking(inner: &Inner, tail: &[u8], close: &[u8]) -> SimpleVob {
    let mut mask = inner.trie.alloc_token_set();
    mask.set_all(true);
    for &id in inner.tokenizer.eog_ids().iter().filter(|&&id| (id as usize) < inner.trie.vocab_size()) {
        mask.disallow_token(id);
    }
    let n_begun = (1..close.len().min(tail.len() + 1)).rev().find(|&n| tail.ends_with(&close[..n]));
    let Some(n_begun) = n_begun else { return mask };
    for id in 0..inner.trie.vocab_size() as u32 {
        let rest = inner.tokenizer.token_bytes(id).and_then(|bytes| bytes.strip_prefix(&close[n_begun..]));
        if rest.is_some_and(|rest| !rest.trim_ascii().is_empty()) {
            mask.disallow_token(id);
        }
    }
    mask
}

/// Adds the tokens that begin `text`, or are it with white space behind.
fn allow_spelling(inner: &Inner, text: &[u8], mask: &mut SimpleVob) {
    for n in 1..=text.len() {
        if let Some(id) = inner.trie.token_id_at_bytes(&text[..n]) {
            mask.allow_token(id);
        }
    }
    if let Some(id) = std::str::from_utf8(text).ok().and_then(|text| inner.control(text)) {
        mask.allow_token(id);
    }
}

/// Adds the tokens of white space alone, up to `n_bytes` of it.
fn allow_blanks(inner: &Inner, n_bytes: usize, mask: &mut SimpleVob) {
    for blank in ["\n", "\n\n", " ", "\n\n\n", "\n\n\n\n"] {
        if blank.len() <= n_bytes
            && let Some(id) = inner.trie.token_id_at_bytes(blank.as_bytes())
        {
            mask.allow_token(id);
        }
    }
}

/// Where `text` contains `part` first.
fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() {
        return None;
    }
    text.windows(part.len()).position(|window| window == part)
}
