//! The next step, begun while a device computes this one.
//!
//! What the next step needs of this one are its tokens, and those the device guesses by the chain that the host runs
//! afterwards (`mlxr-tensor/src/ahead.rs`). So the host plans and records the next step at once, with a slot for each token
//! that is still to be chosen. When the tokens are known, a sequence that has ended, or whose token is not the guessed one,
//! has a row in the step that has begun which counts for nothing: its slot is given back. Whatever is written to that slot
//! afterwards is computed later, since a device computes in order.
//!
//! A sequence that is sure to end with its token has no row in the next step. Where the next token of a sequence cannot be
//! guessed, or somebody would lose blocks for it, the next step waits for this one.

use std::collections::{BTreeMap, BTreeSet};

use mlxr_tensor::{Guess, GuessedToken};

use crate::SeqId;
use crate::batch::Guessed;
use crate::engine::Engine;
use crate::runner::{Output, Started};
use crate::scheduler::{Plan, Scheduled};

/// A step that has begun.
pub(crate) struct InFlight {
    pub plan: Plan,
    pub work: Work,
    /// Sequences that decode.
    pub n_decoding: usize,
    /// Sequences whose rows were computed from a token they do not have.
    pub dropped: BTreeSet<SeqId>,
    /// Sequences whose last token was a guess when the step began.
    pub guessed: BTreeSet<SeqId>,
}

pub(crate) enum Work {
    Done(Output),
    Started(Started),
}

/// What is known of a sequence's next token before it is chosen.
enum Outlook {
    /// It is the last one.
    Ends,
    Guessed,
    Unknown,
}

impl Engine {
    /// Whether a sequence's rows of a step that has dropped some still count.
    pub(crate) fn counts(&self, dropped: &BTreeSet<SeqId>, seq: SeqId) -> bool {
        self.choices.contains_key(&seq) && !dropped.contains(&seq)
    }

    /// The step that has begun, unless nobody is left to whom its rows belong.
    pub(crate) fn take_ahead(&mut self) -> Option<InFlight> {
        let step = self.ahead.take()?;
        let has_rows = step.plan.rows.iter().any(|scheduled| self.counts(&step.dropped, scheduled.seq));
        has_rows.then_some(step)
    }

    /// Begins the step after one that runs, if all it needs of that can be guessed.
    pub(crate) fn begin_ahead(&mut self, step: &InFlight) -> Option<InFlight> {
        let Work::Started(started) = &step.work else { return None };
        let mut rows = BTreeMap::new();
        let mut n_logits = 0;
        for scheduled in &step.plan.rows {
            n_logits += scheduled.n_logits;
            if !scheduled.is_complete || !self.counts(&step.dropped, scheduled.seq) {
                continue;
            }
            match self.outlook(scheduled) {
                Outlook::Ends => {}
                Outlook::Guessed => {
                    rows.insert(scheduled.seq, n_logits as u32 - 1);
                }
                Outlook::Unknown => return None,
            }
        }
        let seqs: Vec<SeqId> = rows.keys().copied().collect();
        if !self.scheduler.expect_tokens(&seqs) {
            return None;
        }
        self.begin_step(Some(Guessed { tokens: started.tokens.clone(), rows }))
    }

    fn outlook(&self, scheduled: &Scheduled) -> Outlook {
        let choice = &self.choices[&scheduled.seq];
        let active = &self.active[&choice.request];
        let n_generated = choice.tokens.len() - active.n_prompt;
        if active.has_unforked() {
            Outlook::Unknown
        } else if n_generated + 1 >= active.max_tokens {
            Outlook::Ends
        } else if choice.sampler.can_guess() {
            Outlook::Guessed
        } else {
            Outlook::Unknown
        }
    }

    /// How the tokens of a plan's output rows can be guessed; of those nobody asks for, the likeliest.
    pub(crate) fn guesses(&self, plan: &Plan) -> Vec<Guess> {
        let mut guesses = Vec::new();
        for scheduled in plan.rows.iter().filter(|scheduled| scheduled.n_logits > 0) {
            guesses.extend((1..scheduled.n_logits).map(|_| Guess::BEST));
            let choice = &self.choices[&scheduled.seq];
            let n_prompt = self.active[&choice.request].n_prompt;
            let token_idx = (scheduled.start + scheduled.n_tokens).checked_sub(n_prompt);
            let guess =
                token_idx.and_then(|token_idx| choice.sampler.guess(&choice.tokens, token_idx as u64));
            guesses.push(guess.unwrap_or(Guess::BEST));
        }
        guesses
    }

    /// Compares the tokens of a step with what it guessed of them, where the next step has begun with that.
    pub(crate) fn check_guesses(&mut self, plan: &Plan, guesses: &[GuessedToken]) {
        let Some(ahead) = &mut self.ahead else { return };
        let mut n_logits = 0;
        for scheduled in &plan.rows {
            n_logits += scheduled.n_logits;
            let seq = scheduled.seq;
            let Some(choice) = self.choices.get(&seq).filter(|_| ahead.guessed.contains(&seq)) else {
                continue;
            };
            if guesses[n_logits - 1].id != choice.tokens.last().copied() {
                tracing::debug!(%seq, "another token than the guessed one");
                self.scheduler.take_back(seq);
                ahead.dropped.insert(seq);
            }
        }
    }
}
