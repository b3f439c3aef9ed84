//! One token stream of a request, and the request it belongs to.

use std::sync::Arc;
use std::time::Instant;

use mlxr_text::{Detokenizer, StopMatch, StopMatcher};

use crate::event::{Event, FinishReason, StopCause, Timings, Usage};
use crate::images::PlacedImage;
use crate::loop_guard::LoopGuard;
use crate::request::Request;
use crate::sampler::Sampler;
use crate::scheduler::Scheduled;
use crate::{RequestId, SeqId};

/// The state of a choice between steps.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    pub request: RequestId,
    pub choice: u32,
    /// Prompt and output.
    pub tokens: Vec<u32>,
    /// The tokens as the prefix cache has them, where images take the place of some.
    pub keys: Option<Vec<u32>>,
    pub sampler: Sampler,
    pub text: Detokenizer,
    pub stops: StopMatcher,
    pub loops: Option<LoopGuard>,
}

impl Choice {
    /// What the prefix cache knows its tokens by.
    pub fn keys(&self) -> &[u32] {
        self.keys.as_deref().unwrap_or(&self.tokens)
    }

    /// Takes in a token of the output.
    pub fn push(&mut self, id: u32) {
        self.tokens.push(id);
        if let Some(keys) = &mut self.keys {
            keys.push(id);
        }
    }

    /// Text that no further token can change any more: the end of the stream.
    pub fn flush(mut self) -> (String, Option<usize>) {
        match self.stops.push(&self.text.finish()) {
            StopMatch::Text(text) => (text + &self.stops.finish(), None),
            StopMatch::Stopped { text, stop_idx } => (text, Some(stop_idx)),
        }
    }
}

/// A request from submission to finish.
#[derive(Debug)]
pub(crate) struct Active {
    pub id: RequestId,
    pub spec: Arc<Request>,
    pub seed: u64,
    pub n_prompt: usize,
    /// The prompt's images.
    pub images: Vec<PlacedImage>,
    /// Prompt tokens that were not computed because their blocks were cached.
    pub n_cached: usize,
    /// Prompt tokens that were found or computed at some time.
    n_reached: usize,
    pub max_tokens: usize,
    /// Choices that have a sequence, by their number.
    pub seqs: Vec<Option<SeqId>>,
    outcomes: Vec<Outcome>,
    n_completion: usize,
    submitted: Instant,
    started: Option<Instant>,
    prefilled: Option<Instant>,
}

/// What is known of a choice's result.
#[derive(Clone, Debug, Default)]
struct Outcome {
    reason: Option<FinishReason>,
    /// Events that wait for the ranking of `best_of`.
    events: Vec<Event>,
    logprob_sum: f64,
    n_tokens: usize,
}

impl Active {
    pub fn new(id: RequestId, spec: Arc<Request>, seed: u64, n_prompt: usize, max_tokens: usize) -> Self {
        let n_choices = spec.n_choices();
        Self {
            id,
            spec,
            seed,
            n_prompt,
            images: Vec::new(),
            n_cached: 0,
            n_reached: 0,
            max_tokens,
            seqs: vec![None; n_choices],
            outcomes: vec![Outcome::default(); n_choices],
            n_completion: 0,
            submitted: Instant::now(),
            started: None,
            prefilled: None,
        }
    }

    /// Whether choices are ranked before any of them is shown.
    pub fn is_ranked(&self) -> bool {
        self.outcomes.len() > self.spec.n
    }

    /// Whether there are choices that still wait for the end of the prompt.
    pub fn has_unforked(&self) -> bool {
        self.seqs.iter().zip(&self.outcomes).any(|(seq, outcome)| seq.is_none() && outcome.reason.is_none())
    }

    /// Whether a token's log-probability is needed.
    pub fn n_top_logprobs(&self) -> Option<usize> {
        self.spec.logprobs.or(self.is_ranked().then_some(0))
    }

    pub fn is_started(&self) -> bool {
        self.started.is_some()
    }

    pub fn submitted(&self) -> Instant {
        self.submitted
    }

    /// Tokens generated, over all choices.
    pub fn n_completion(&self) -> usize {
        self.n_completion
    }

    pub fn mark_started(&mut self) {
        self.started.get_or_insert_with(Instant::now);
    }

    /// Counts prompt tokens that were found instead of computed. What the request computed itself before a pause is no
    /// saving.
    pub fn count_reused(&mut self, scheduled: &Scheduled) {
        if self.prefilled.is_none() {
            let known = self.n_reached.max(scheduled.start - scheduled.n_reused);
            self.n_cached += scheduled.start.saturating_sub(known);
            self.n_reached = self.n_reached.max(scheduled.start + scheduled.n_tokens);
        }
    }

    pub fn mark_prefilled(&mut self) {
        self.prefilled.get_or_insert_with(Instant::now);
        // Should the sequence lose its blocks, images are computed again like tokens.
        self.images.iter_mut().for_each(|image| image.rows = None);
    }

    /// Counts a token of a choice.
    pub fn count(&mut self, choice: u32, logprob: Option<f32>) {
        let outcome = &mut self.outcomes[choice as usize];
        outcome.n_tokens += 1;
        outcome.logprob_sum += f64::from(logprob.unwrap_or(0.0));
        self.n_completion += 1;
    }

    /// Passes on or keeps an event of a choice.
    pub fn emit(&mut self, choice: u32, event: Event, out: &mut Vec<Event>) {
        if self.is_ranked() {
            self.outcomes[choice as usize].events.push(event);
        } else {
            out.push(event);
        }
    }

    /// Ends a choice, and the request with its last one. Returns whether the request is done. A choice that has ended
    /// stays as it is.
    pub fn end_choice(
        &mut self,
        choice: u32,
        reason: FinishReason,
        text: String,
        out: &mut Vec<Event>,
    ) -> bool {
        let outcome = &mut self.outcomes[choice as usize];
        if outcome.reason.is_some() {
            return false;
        }
        outcome.reason = Some(reason.clone());
        self.seqs[choice as usize] = None;
        self.emit(choice, Event::ChoiceEnd { request: self.id, choice, reason, text }, out);
        let is_done = self.outcomes.iter().all(|outcome| outcome.reason.is_some());
        if is_done {
            self.finish(out);
        }
        is_done
    }

    fn finish(&mut self, out: &mut Vec<Event>) {
        let mut order: Vec<usize> = (0..self.outcomes.len()).collect();
        if self.is_ranked() {
            let score = |i: &usize| self.outcomes[*i].score();
            order.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
            order.truncate(self.spec.n);
            for (rank, &i) in order.iter().enumerate() {
                let events = std::mem::take(&mut self.outcomes[i].events);
                out.extend(events.into_iter().map(|event| event.with_choice(rank as u32)));
            }
        }
        let reason = self.outcomes[order[0]].reason.clone().expect("every choice has ended");
        let (n_prompt, n_completion, seed) = (self.n_prompt, self.n_completion, self.seed);
        let usage = Usage { n_prompt, n_cached: self.n_cached, n_completion, seed };
        out.push(Event::Finish { request: self.id, reason, usage, timings: self.timings() });
    }

    fn timings(&self) -> Timings {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let prefilled = self.prefilled.unwrap_or(now).max(started);
        Timings { queued: started - self.submitted, prefill: prefilled - started, decode: now - prefilled }
    }

    /// What a stop string's index means.
    pub fn stop_text(&self, stop_idx: usize) -> FinishReason {
        FinishReason::Stop(StopCause::Text(self.spec.stop[stop_idx].clone()))
    }
}

impl Outcome {
    /// Mean log-probability; a choice that failed or has no token ranks last.
    fn score(&self) -> f64 {
        match self.reason {
            Some(FinishReason::Stop(_) | FinishReason::Length) if self.n_tokens > 0 => {
                self.logprob_sum / self.n_tokens as f64
            }
            _ => f64::NEG_INFINITY,
        }
    }
}
