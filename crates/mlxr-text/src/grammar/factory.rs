//! A vocabulary as grammars see it: a trie of token bytes, built once per model.

use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::GrammarInit;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use super::matcher::Matcher;
use super::{Constraint, ConstraintState, Grammar, GrammarError, limits};
use crate::{TokenKind, Tokenizer};

/// Compiles grammars for one vocabulary. Cheap to clone.
#[derive(Clone)]
pub struct GrammarFactory {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) trie: TokTrie,
    parsers: ParserFactory,
}

/// The trie with the one tokenisation grammars need: any that spells the bytes.
struct Env(TokTrie);

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

impl GrammarFactory {
    /// Builds the trie: once per model, it takes about a second for 128k tokens.
    ///
    /// # Errors
    /// [`GrammarError`] when the vocabulary is empty or has no end-of-generation token.
    pub fn for_tokenizer(tokenizer: &Tokenizer) -> Result<GrammarFactory, GrammarError> {
        let n_vocab = u32::try_from(tokenizer.n_vocab()).unwrap_or(u32::MAX);
        let eog: Vec<u32> = tokenizer.eog_ids().iter().copied().filter(|&id| id < n_vocab).collect();
        let Some(&first) = eog.first() else {
            return Err(GrammarError::Vocabulary { reason: "has no end-of-generation token" });
        };
        let eos = tokenizer.eos().filter(|id| eog.contains(id)).unwrap_or(first);
        let words: Vec<Vec<u8>> = (0..n_vocab).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(n_vocab, eos), &words);
        let ends: Vec<u32> = std::iter::once(eos).chain(eog.into_iter().filter(|&id| id != eos)).collect();
        let trie = trie.with_eos_tokens(&ends);
        let env: TokEnv = Arc::new(Env(trie.clone()));
        let slices = SlicedBiasComputer::general_slices();
        let mut parsers = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
            .map_err(|e| GrammarError::compile("vocabulary", &e))?;
        parsers.quiet();
        *parsers.limits_mut() = limits();
        Ok(GrammarFactory { inner: Arc::new(Inner { tokenizer: tokenizer.clone(), trie, parsers }) })
    }

    /// The state of a sequence under `constraint`, before its first token.
    ///
    /// # Errors
    /// [`GrammarError`] when the grammar needs more than it may, or names tokens the vocabulary lacks.
    pub fn start(&self, constraint: &Constraint) -> Result<ConstraintState, GrammarError> {
        let matcher = constraint.grammar.as_ref().map(|grammar| self.matcher(grammar)).transpose()?;
        ConstraintState::new(self.inner.clone(), constraint, matcher)
    }

    fn matcher(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        let inner = &self.inner;
        let init = GrammarInit::Serialized(grammar.serialized(&|text| inner.control(text)));
        let parser = inner.parsers.create_parser_from_init_default(init);
        Matcher::new(parser.map_err(|e| GrammarError::compile("compiled", &e))?)
    }
}

impl Inner {
    /// The id of a text that is one control token.
    pub(crate) fn control(&self, text: &str) -> Option<u32> {
        self.tokenizer.id_of(text).filter(|&id| self.tokenizer.is_special(id))
    }
}

/// A token's bytes in the trie: those of control tokens are out of reach of texts.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match tokenizer.kind(id) {
        Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte) => bytes.to_vec(),
        Some(TokenKind::Control) => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        Some(TokenKind::Unknown | TokenKind::Unused) | None => Vec::new(),
    }
}

impl std::fmt::Debug for GrammarFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrammarFactory").field("n_vocab", &self.inner.trie.vocab_size()).finish()
    }
}
