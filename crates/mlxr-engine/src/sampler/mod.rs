//! From a row of logits to the next token.
//!
//! A [`Sampler`] belongs to one choice of a request. What it returns is a function of the logits, the tokens so far
//! and `(seed, choice, token index)`: not of the batch, the schedule, or the platform.

mod candidates;
mod dry;
mod grammar;
mod guess;
mod logprobs;
mod mirostat;
mod params;
mod penalties;
mod rng;
mod temperature;
mod truncate;

use std::ops::Range;
use std::sync::Arc;

use mlxr_tensor::{EXP_SUM_TOLERANCE, MAX_LEFT_OUT, Ranked, largest};
use mlxr_text::grammar::{ConstraintState, GrammarError};

pub use candidates::{Candidate, Candidates};
pub use dry::{BreakTracker, Dry, MAX_BREAKER_BYTES, MAX_BREAKERS};
pub use logprobs::{Logprobs, TokenLogprob, logprobs};
pub use mirostat::Mirostat;
pub use params::{MAX_LOGIT_BIASES, MIN_TEMPERATURE, ParamError, SamplingParams, Stage};
pub use penalties::Penalties;
pub use rng::{Draw, TokenRng};

/// No token can be chosen. Ends the sequence, not the engine.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    #[error("the model's logit for token {id} is {logit}")]
    BadLogit { id: u32, logit: f32 },
    /// As [`Self::BadLogit`], of a row that was not read.
    #[error("the model's logits are no distribution: one is no number or infinite, or none is finite")]
    NoDistribution,
    #[error("no token is left to choose from")]
    NoCandidate,
    #[error("token {id} is outside the vocabulary of {n_vocab}")]
    NoSuchToken { id: u32, n_vocab: usize },
    #[error(transparent)]
    Grammar(#[from] GrammarError),
}

/// What a sampler has to know of a row of logits; the later include the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Which is the largest: it wins whatever came before.
    Best,
    /// So many of the largest.
    Largest(usize),
    /// The largest and their share of the whole, which nearly always decides.
    Ranked,
    /// The token a device draws from all of them, if it is sure of it.
    Drawn,
    Logits,
}

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: Arc<SamplingParams>,
    /// Tokens `ignore_eos` forbids.
    forbidden: Arc<[u32]>,
    rng: TokenRng,
    /// Mirostat's bound on surprise.
    mu: f32,
    breaks: Option<BreakTracker>,
    constraint: Option<ConstraintState>,
}

impl Sampler {
    /// A sampler that has seen no token. `eog_ids` are the ids `ignore_eos` forbids.
    pub fn new(params: Arc<SamplingParams>, seed: u64, eog_ids: &[u32]) -> Self {
        let forbidden: Arc<[u32]> = if params.ignore_eos { eog_ids.into() } else { Arc::new([]) };
        let breaks = (!params.dry.is_off()).then(|| BreakTracker::new(&params.dry.breakers));
        Self {
            mu: params.mirostat.initial_mu(),
            rng: TokenRng::new(seed, 0),
            forbidden,
            breaks,
            constraint: None,
            params,
        }
    }

    /// The same sampler, held to a constraint.
    pub fn with_constraint(self, constraint: Option<ConstraintState>) -> Self {
        Self { constraint, ..self }
    }

    /// Whether the constraint allows nothing more.
    pub fn is_done(&self) -> bool {
        self.constraint.as_ref().is_some_and(ConstraintState::is_done)
    }

    /// The same state with the random numbers of another choice.
    pub fn for_choice(&self, seed: u64, choice: u32) -> Self {
        Self { rng: TokenRng::new(seed, choice), ..self.clone() }
    }

    /// Takes in one token's text, of the prompt or of the output, in order.
    pub fn accept(&mut self, bytes: &[u8]) {
        if let Some(breaks) = &mut self.breaks {
            breaks.push(bytes);
        }
    }

    /// Chooses the generated token `token_idx` (counted from 0) from `logits`. `history` is every token so far, the
    /// prompt included; `scratch` is only there to be reused.
    ///
    /// # Errors
    /// [`SampleError`] when the logits are no distribution or nothing is left of it.
    pub fn sample(
        &mut self,
        logits: &[f32],
        history: &[u32],
        token_idx: u64,
        scratch: &mut Candidates,
    ) -> Result<u32, SampleError> {
        let best = logprobs::check_logits(logits)?;
        if self.is_best(best) {
            return Ok(best);
        }
        match self.need() {
            Need::Largest(n) => self.reset_to_ranked(scratch, &largest(logits, n)),
            _ => scratch.reset(logits),
        }
        self.choose(logits.len(), history, token_idx, scratch, None)
    }

    /// As [`Self::sample`], from the largest logits alone, by rank, as many as [`Self::need`] says or more. None are there
    /// of a row that is no distribution.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_ranked(
        &mut self,
        ranked: &[(u32, f32)],
        history: &[u32],
        token_idx: u64,
        scratch: &mut Candidates,
    ) -> Result<u32, SampleError> {
        let &(best, _) = ranked.first().ok_or(SampleError::NoDistribution)?;
        if self.is_best(best) {
            return Ok(best);
        }
        self.reset_to_ranked(scratch, ranked);
        self.choose(ranked.len(), history, token_idx, scratch, None)
    }

    /// As [`Self::sample`], from what [`Ranked`] says of a row. `None` where that does not decide, and nothing has changed.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_from(
        &mut self,
        row: &Ranked,
        n_vocab: usize,
        history: &[u32],
        token_idx: u64,
        scratch: &mut Candidates,
    ) -> Result<Option<u32>, SampleError> {
        let is_whole = row.largest.len() == n_vocab;
        let after = match self.need() {
            Need::Best => return self.sample_ranked(&row.largest, history, token_idx, scratch).map(Some),
            Need::Largest(n) if n <= row.largest.len() || is_whole || row.largest.is_empty() => {
                return self.sample_ranked(&row.largest, history, token_idx, scratch).map(Some);
            }
            Need::Ranked => self.first_stage(),
            _ => return Ok(None),
        };
        if row.largest.is_empty() {
            return Err(SampleError::NoDistribution);
        }
        self.reset_to_ranked(scratch, &row.largest);
        let is_decided = match after {
            Some(Stage::TopP) => {
                truncate::top_p_of(scratch, self.params.top_p, self.exp_sum_of_allowed(row, n_vocab))
            }
            _ => truncate::min_p_of(scratch, self.params.min_p, is_whole),
        };
        if !is_decided {
            return Ok(None);
        }
        self.choose(n_vocab, history, token_idx, scratch, after).map(Some)
    }

    /// What has to be known of a row of logits.
    pub fn need(&self) -> Need {
        let Some(n_lowered) = self.n_lowered() else { return Need::Logits };
        let n_lowered = n_lowered + self.forbidden.len();
        if self.params.is_greedy() {
            return if n_lowered == 0 { Need::Best } else { Need::Largest(1 + n_lowered) };
        }
        match self.first_stage() {
            // As many others are among the largest as those that may lose have left behind.
            Some(Stage::TopK) => Need::Largest(self.params.top_k + n_lowered),
            Some(Stage::TopP | Stage::MinP) if self.leaves_logits() => Need::Ranked,
            Some(Stage::Temperature) if self.leaves_logits() && self.draws_from_all() => Need::Drawn,
            _ => Need::Logits,
        }
    }

    /// How many tokens may lose by biases and penalties, if none gains and nothing else changes logits.
    fn n_lowered(&self) -> Option<usize> {
        let params = &*self.params;
        let has = |stage| params.order.contains(&stage);
        if self.constraint.is_some() || (has(Stage::Dry) && self.breaks.is_some()) {
            return None;
        }
        if params.logit_bias.iter().any(|&(_, bias)| bias > 0.0) {
            return None;
        }
        let n_penalised = if has(Stage::Penalties) { params.penalties.n_lowered()? } else { 0 };
        Some(params.logit_bias.len() + n_penalised)
    }

    /// Whether the token is drawn from the whole row, forbidden tokens left out, at one temperature.
    fn draws_from_all(&self) -> bool {
        let has_one_temperature =
            self.params.order.iter().filter(|stage| **stage == Stage::Temperature).count() == 1;
        let is_last = self.params.order.last() == Some(&Stage::Temperature);
        self.params.dynatemp_range == 0.0
            && self.params.mirostat == Mirostat::Off
            && has_one_temperature
            && is_last
            && self.forbidden.len() <= MAX_LEFT_OUT
    }

    /// Whether the token of the largest logit is the one to choose, whatever the others are.
    fn is_best(&self, best: u32) -> bool {
        self.params.is_greedy() && self.leaves_logits() && !self.forbidden.contains(&best)
    }

    /// Starts over with the largest logits of a row, less those of forbidden tokens.
    fn reset_to_ranked(&self, scratch: &mut Candidates, ranked: &[(u32, f32)]) {
        let allowed = ranked.iter().filter(|(id, _)| !self.forbidden.contains(id));
        scratch.reset_to_ranked(allowed.copied());
    }

    /// Between what bounds the sum of the exponentials of allowed tokens lies, relative to the largest of those. Forbidden
    /// ones that are not among the largest have the last one's logit at most.
    fn exp_sum_of_allowed(&self, row: &Ranked, n_vocab: usize) -> Range<f64> {
        let is_forbidden = |id: &u32| self.forbidden.contains(id);
        let best = row.largest.iter().find(|(id, _)| !is_forbidden(id)).map_or(0.0, |&(_, logit)| logit);
        let exp = |logit: f32| f64::from(logit - best).exp();
        let (mut found, mut n_found) = (0.0, 0);
        for &(_, logit) in row.largest.iter().filter(|(id, _)| is_forbidden(id)) {
            found += exp(logit);
            n_found += 1;
        }
        let n_behind = (self.forbidden.len() - n_found).min(n_vocab - row.largest.len());
        let behind = row.largest.last().map_or(0.0, |&(_, last)| exp(last)) * n_behind as f64;
        let sum = f64::from(row.exp_sum) * row.largest.first().map_or(0.0, |&(_, first)| exp(first));
        let tolerance = f64::from(EXP_SUM_TOLERANCE);
        sum * (1.0 - tolerance) - found - behind..sum * (1.0 + tolerance) - found
    }

    /// Runs the chain on the candidates and draws; the stages up to `after` have left nothing else.
    fn choose(
        &mut self,
        n_vocab: usize,
        history: &[u32],
        token_idx: u64,
        scratch: &mut Candidates,
        after: Option<Stage>,
    ) -> Result<u32, SampleError> {
        penalties::logit_bias(scratch, &self.params.logit_bias);
        for &id in &*self.forbidden {
            scratch.update(id, |_| f32::NEG_INFINITY);
        }
        if let Some(constraint) = &mut self.constraint {
            grammar::keep_allowed(constraint, scratch)?;
        }
        if scratch.best().is_none_or(|best| best.logit == f32::NEG_INFINITY) {
            return Err(SampleError::NoCandidate);
        }
        let n_done = self.params.order.iter().position(|&stage| Some(stage) == after).map_or(0, |i| i + 1);
        for &stage in &self.params.order[n_done..] {
            if self.runs(stage) {
                self.apply(stage, scratch, history, token_idx);
            }
        }
        let u = self.rng.uniform(token_idx, Draw::Token);
        let chosen = if self.params.is_greedy() {
            scratch.best().copied()
        } else if self.params.mirostat != Mirostat::Off {
            self.params.mirostat.sample(scratch, &mut self.mu, n_vocab, u)
        } else {
            scratch.softmax();
            scratch.pick(u).copied()
        };
        let id = chosen.map(|candidate| candidate.id).ok_or(SampleError::NoCandidate)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.commit(id)?;
        }
        Ok(id)
    }

    /// The first stage that changes anything, if none before the stages does.
    fn first_stage(&self) -> Option<Stage> {
        let params = &*self.params;
        let is_idle = |stage: &Stage| match stage {
            Stage::Penalties | Stage::Dry => true,
            Stage::TopK => params.top_k == 0,
            Stage::TopNSigma => params.top_n_sigma == 0.0,
            Stage::Typical => params.typical_p == 1.0,
            Stage::TopP => params.top_p == 1.0,
            Stage::MinP => params.min_p == 0.0,
            Stage::Xtc => params.xtc_probability == 0.0,
            Stage::Temperature => false,
        };
        let first = params.order.iter().copied().find(|stage| !is_idle(stage));
        first.filter(|&stage| self.runs(stage))
    }

    /// Whether no bias, constraint or penalty changes any logit.
    fn leaves_logits(&self) -> bool {
        let params = &*self.params;
        let has_penalties = params.order.contains(&Stage::Penalties) && !params.penalties.is_off();
        let has_dry = params.order.contains(&Stage::Dry) && self.breaks.is_some();
        params.logit_bias.is_empty() && self.constraint.is_none() && !has_penalties && !has_dry
    }

    /// Whether a stage takes part, see [`SamplingParams`].
    fn runs(&self, stage: Stage) -> bool {
        match stage {
            Stage::Penalties | Stage::Dry => true,
            Stage::Temperature => !self.params.is_greedy(),
            _ => !self.params.is_greedy() && self.params.mirostat == Mirostat::Off,
        }
    }

    fn apply(&self, stage: Stage, candidates: &mut Candidates, history: &[u32], token_idx: u64) {
        let params = &*self.params;
        match stage {
            Stage::Penalties => params.penalties.apply(candidates, history),
            Stage::Dry => {
                if let Some(breaks) = &self.breaks {
                    params.dry.apply(candidates, history, breaks.breaks());
                }
            }
            Stage::TopNSigma => truncate::top_n_sigma(candidates, params.top_n_sigma),
            Stage::TopK => truncate::top_k(candidates, params.top_k),
            Stage::Typical => truncate::typical(candidates, params.typical_p),
            Stage::TopP => truncate::top_p(candidates, params.top_p),
            Stage::MinP => truncate::min_p(candidates, params.min_p),
            Stage::Xtc if params.xtc_probability > 0.0 => {
                let u = self.rng.uniform(token_idx, Draw::Xtc);
                truncate::xtc(candidates, params.xtc_probability, params.xtc_threshold, u);
            }
            Stage::Xtc => {}
            Stage::Temperature if params.dynatemp_range > 0.0 => temperature::dynamic_temperature(
                candidates,
                params.temperature,
                params.dynatemp_range,
                params.dynatemp_exponent,
            ),
            Stage::Temperature => temperature::temperature(candidates, params.temperature),
        }
    }

    /// The distribution the next draw comes from, most likely first: the chain without mirostat and without XTC's
    /// chance, which is taken as `xtc_u`.
    #[cfg(test)]
    fn distribution(&self, logits: &[f32], history: &[u32], token_idx: u64) -> Vec<(u32, f32)> {
        let mut candidates = Candidates::default();
        candidates.reset(logits);
        penalties::logit_bias(&mut candidates, &self.params.logit_bias);
        for &stage in &self.params.order {
            self.apply(stage, &mut candidates, history, token_idx);
        }
        candidates.softmax();
        candidates.items().iter().map(|c| (c.id, c.p)).collect()
    }
}

#[cfg(test)]
mod tests;
