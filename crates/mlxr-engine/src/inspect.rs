//! What an engine has at hand, for people and tools that look at it from outside.

use std::time::{Duration, Instant};

use crate::choice::Active;
use crate::engine::Engine;
use crate::images::FIRST_KEY;
use crate::kv::{CacheStats, KvMap, PrefixMatch, PrefixStop, SeqOwner};
use crate::request::{Prompt, SubmitError};
use crate::scheduler::Progress;
use crate::{RequestId, SeqId};

/// Where a request is between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// It has not had a row yet.
    Waiting,
    /// Its prompt, or what a pause lost, is being computed.
    Prefilling,
    Decoding,
    /// It lost its blocks to others and waits to go on.
    Paused,
}

impl RequestState {
    pub const fn name(self) -> &'static str {
        match self {
            RequestState::Waiting => "waiting",
            RequestState::Prefilling => "prefilling",
            RequestState::Decoding => "decoding",
            RequestState::Paused => "paused",
        }
    }
}

/// A request that has not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestInfo {
    pub id: RequestId,
    /// [`Request::label`](crate::Request::label).
    pub label: Option<String>,
    pub state: RequestState,
    pub priority: i32,
    /// Choices generated.
    pub n_choices: usize,
    pub n_prompt: usize,
    /// Prompt tokens whose keys and values are there.
    pub n_done_prompt: usize,
    /// Those of them that were reused.
    pub n_cached: usize,
    /// Tokens generated so far, over all choices.
    pub n_generated: usize,
    /// Since submission.
    pub age: Duration,
}

/// A token and how it reads alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    pub id: u32,
    /// Bytes that are no text read as U+FFFD.
    pub text: String,
}

/// How much of a prompt the prefix cache would spare now, and why no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixExplanation {
    pub n_prompt: usize,
    /// Tokens whose keys and values would be reused: whole blocks.
    pub n_matched: usize,
    pub block_tokens: usize,
    /// Where the comparison ended: the first token that differs, or the first that is not cached.
    pub token_idx: usize,
    /// Characters of the prompt's text before that token, as its tokens spell it.
    pub char_idx: usize,
    pub stop: PrefixStop,
    /// For [`PrefixStop::Diverges`]: the cached token, and the prompt's in its place.
    pub differing: Option<(TokenText, TokenText)>,
}

impl Engine {
    /// Requests that have not finished, oldest first.
    pub fn requests(&self) -> Vec<RequestInfo> {
        self.active.values().map(|active| self.info(active)).collect()
    }

    fn info(&self, active: &Active) -> RequestInfo {
        let progress: Vec<Progress> =
            active.seqs.iter().flatten().filter_map(|&seq| self.scheduler.progress(seq)).collect();
        let state = if !active.is_started() {
            RequestState::Waiting
        } else if progress.is_empty() {
            RequestState::Paused
        } else if progress.iter().any(|progress| progress.n_stored + 1 >= progress.n_tokens) {
            RequestState::Decoding
        } else {
            RequestState::Prefilling
        };
        let n_stored = progress.iter().map(|progress| progress.n_stored).max().unwrap_or(0);
        RequestInfo {
            id: active.id,
            label: active.spec.label.clone(),
            state,
            priority: active.spec.priority,
            n_choices: active.seqs.len(),
            n_prompt: active.n_prompt,
            n_done_prompt: n_stored.min(active.n_prompt),
            n_cached: active.n_cached,
            n_generated: active.n_completion(),
            age: Instant::now().saturating_duration_since(active.submitted()),
        }
    }

    /// What the prefix cache holds and has done.
    pub fn cache_stats(&self) -> CacheStats {
        self.scheduler.tables().cache_stats()
    }

    /// Forgets all cached blocks, those in use included: nothing stored before is found again. Returns how many.
    pub fn clear_cache(&mut self) -> usize {
        self.scheduler.clear_cache()
    }

    /// What `n` blocks of the arena from `first` on hold, at most [`MAX_MAP_BLOCKS`](crate::kv::MAX_MAP_BLOCKS).
    pub fn kv_map(&self, first: usize, n: usize) -> KvMap {
        let tables = self.scheduler.tables();
        let blocks = tables.map(first, n);
        let mut seqs: Vec<SeqId> = blocks.iter().filter_map(|block| block.seq).collect();
        seqs.sort_unstable();
        seqs.dedup();
        let owner = |seq| {
            let choice = self.choices.get(&seq)?;
            Some(SeqOwner { seq, request: choice.request, choice: choice.choice })
        };
        KvMap {
            n_blocks: tables.stats().n_blocks,
            block_tokens: tables.block_tokens(),
            blocks,
            seqs: seqs.into_iter().filter_map(owner).collect(),
        }
    }

    /// How much of `prompt` the prefix cache would spare, and where and why it ends.
    ///
    /// # Errors
    /// The prompt's text cannot be encoded.
    pub fn explain_prefix(&self, prompt: &Prompt) -> Result<PrefixExplanation, SubmitError> {
        let tokens = match prompt {
            Prompt::Text(text, options) => self.tokenizer.encode(text, *options)?,
            Prompt::Tokens(ids) => ids.clone(),
        };
        if tokens.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        let PrefixMatch { n_matched, token_idx, stop } = self.scheduler.tables().explain(&tokens);
        let differing = match stop {
            PrefixStop::Diverges { cached, .. } => {
                Some((self.token_text(cached), self.token_text(tokens[token_idx])))
            }
            _ => None,
        };
        Ok(PrefixExplanation {
            n_prompt: tokens.len(),
            n_matched,
            block_tokens: self.scheduler.tables().block_tokens(),
            token_idx,
            char_idx: self.n_chars_before(token_idx, prompt, &tokens),
            stop,
            differing,
        })
    }

    /// Characters of a prompt's text before one of its tokens. Tokens that encoding put in front are not in the text.
    fn n_chars_before(&self, token_idx: usize, prompt: &Prompt, tokens: &[u32]) -> usize {
        let n_before = self.tokenizer.decode(&tokens[..token_idx], false).chars().count();
        let n_added = match prompt {
            Prompt::Text(text, _) => {
                let all = self.tokenizer.decode(tokens, false);
                all.strip_suffix(text.as_str()).map_or(0, |added| added.chars().count())
            }
            Prompt::Tokens(_) => 0,
        };
        n_before.saturating_sub(n_added)
    }

    fn token_text(&self, id: u32) -> TokenText {
        // The cache knows images by keys of their own.
        let id = if id < FIRST_KEY { id } else { self.runner.images().map_or(id, |images| images.token) };
        let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        TokenText { id, text: String::from_utf8_lossy(bytes).into_owned() }
    }
}
