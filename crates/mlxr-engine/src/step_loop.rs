//! One step: schedule, forward, sample, commit.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use mlxr_tensor::{Batch, GuessedToken, MAX_LARGEST, Ranked, RowsWanted, TensorError};
use mlxr_text::StopMatch;

use crate::ahead::{InFlight, Work};
use crate::batch::{self, Contents, Guessed};
use crate::choice::Choice;
use crate::engine::Engine;
use crate::event::{Event, FinishReason, PromptToken, StopCause};
use crate::images::PlacedImage;
use crate::kv::{SwapIn, SwapOut};
use crate::runner::{Finished, Output, RankedLogits};
use crate::sampler::{Candidates, Logprobs, Need, SampleError, logprobs};
use crate::scheduler::{Plan, Scheduled};
use crate::{BlockId, SeqId};

impl Engine {
    /// Runs one step and returns what it led to, together with the events of cancellations since the last one.
    ///
    /// A forward that fails or panics ends the sequences that were in it; the engine goes on with the others.
    pub fn step(&mut self) -> Vec<Event> {
        if let Some(pacer) = &self.pacer {
            self.scheduler.set_pace(pacer.pace());
        }
        match self.take_ahead().or_else(|| self.begin_step(None)) {
            Some(step) => {
                self.ahead = self.begin_ahead(&step);
                self.finish_step(step);
            }
            None => self.last_step = None,
        }
        std::mem::take(&mut self.events)
    }

    /// Plans a step and hands it to the runner; `guessed` has the tokens that a step which still runs will choose. Nothing
    /// where there is nothing to run, or it failed.
    pub(crate) fn begin_step(&mut self, guessed: Option<Guessed>) -> Option<InFlight> {
        let plan = self.scheduler.schedule(|seq| self.choices[&seq].keys());
        self.publish_waiting();
        if plan.is_empty() {
            return None;
        }
        self.n_steps += 1;
        self.n_rows += plan.n_rows() as u64;
        let _span = tracing::debug_span!(
            "step",
            n_seqs = plan.rows.len(),
            n_rows = plan.n_rows(),
            n_preempted = plan.preempted.len()
        )
        .entered();
        let n_decoding = self.n_decoding(&plan);
        match self.forward(&plan, guessed.as_ref()) {
            Ok(work) => {
                let guessed =
                    guessed.map_or_else(BTreeSet::new, |guessed| guessed.rows.into_keys().collect());
                Some(InFlight { plan, work, n_decoding, dropped: BTreeSet::new(), guessed })
            }
            Err(reason) => {
                self.fail(&plan, &reason);
                None
            }
        }
    }

    /// Waits for a step and uses what it gave.
    fn finish_step(&mut self, step: InFlight) {
        let InFlight { plan, work, n_decoding, dropped, guessed: _ } = step;
        match self.output(&plan, work) {
            Ok(Finished { output, guesses }) => {
                self.commit(&plan, &dropped, &output, &guesses);
                self.check_guesses(&plan, &guesses);
                if let Output::Logits(logits) = output {
                    self.runner.recycle(logits);
                }
            }
            Err(reason) => {
                self.fail(&plan, &reason);
                if let Some(ahead) = self.ahead.take() {
                    self.fail(&ahead.plan, &reason);
                }
            }
        }
        self.observe(n_decoding, plan.n_rows() - n_decoding);
    }

    /// Sequences of a plan that wait for the token after one they have generated.
    fn n_decoding(&self, plan: &Plan) -> usize {
        let is_decoding = |scheduled: &&Scheduled| {
            let n_prompt = self.active[&self.choices[&scheduled.seq].request].n_prompt;
            scheduled.n_tokens == 1 && scheduled.start >= n_prompt
        };
        plan.rows.iter().filter(is_decoding).count()
    }

    /// Tells the pacer how long sequences waited for their tokens.
    fn observe(&mut self, n_decoding: usize, n_prompt_rows: usize) {
        let Some(pacer) = &mut self.pacer else { return };
        let now = (self.clock)();
        let last = self.last_step.replace(now);
        if let Some(last) = last.filter(|_| n_decoding > 0) {
            pacer.observe(now.saturating_duration_since(last), n_prompt_rows, n_decoding);
        }
    }

    /// What a sequence needs of its rows.
    fn need(&self, scheduled: &Scheduled) -> Need {
        let choice = &self.choices[&scheduled.seq];
        let active = &self.active[&choice.request];
        if scheduled.n_logits == 0 {
            Need::Best
        } else if active.spec.prompt_logprobs.is_some() || active.n_top_logprobs().is_some() {
            Need::Logits
        } else {
            choice.sampler.need()
        }
    }

    /// Begins the forward of a plan, and ends it where the runner computes while it is asked.
    fn forward(&mut self, plan: &Plan, guessed: Option<&Guessed>) -> Result<Work, FinishReason> {
        for scheduled in &plan.rows {
            let request = self.choices[&scheduled.seq].request;
            let active = self.active.get_mut(&request).expect("its sequence runs");
            active.mark_started();
            active.count_reused(scheduled);
        }
        self.read_images(plan)?;
        let contents = |seq| {
            let choice = &self.choices[&seq];
            Contents { tokens: &choice.tokens, images: &self.active[&choice.request].images }
        };
        let batch = batch::build(plan, self.scheduler.tables(), contents, guessed);
        // The runner's state is the arena's contents: whatever a panic left there belongs to sequences that end now.
        let need = plan.rows.iter().map(|scheduled| self.need(scheduled)).max().unwrap_or(Need::Best);
        caught(|| {
            self.swap(plan)?;
            self.run(plan, &batch, need)
        })
    }

    /// Computes the images of which a plan has rows.
    fn read_images(&mut self, plan: &Plan) -> Result<(), FinishReason> {
        for scheduled in &plan.rows {
            let chunk = scheduled.start..scheduled.start + scheduled.n_tokens;
            let request = self.choices[&scheduled.seq].request;
            let active = self.active.get_mut(&request).expect("its sequence runs");
            let is_needed =
                |image: &&mut PlacedImage| image.rows.is_none() && image.part_in(&chunk).is_some();
            for image in active.images.iter_mut().filter(is_needed) {
                image.rows = Some(caught(|| self.runner.image_rows(&image.pixels))?.into());
            }
        }
        Ok(())
    }

    /// Waits for what a step gives.
    fn output(&mut self, plan: &Plan, work: Work) -> Result<Finished, FinishReason> {
        let finished = match work {
            Work::Done(output) => Finished { output, guesses: Vec::new() },
            Work::Started(started) => caught(|| started.finish())?,
        };
        let n_rows = plan.rows.iter().map(|scheduled| scheduled.n_logits).sum::<usize>();
        let (n, expected) = match &finished.output {
            Output::Logits(logits) => (logits.len(), n_rows * self.runner.n_vocab()),
            Output::Best(best) => (best.len(), n_rows),
            Output::Largest(rows) => (rows.len(), n_rows),
            Output::Ranked(ranked) => (ranked.rows.len(), n_rows),
        };
        if n != expected {
            return Err(FinishReason::Error(format!("the forward gave {n} values instead of {expected}")));
        }
        Ok(finished)
    }

    /// Moves what sequences have stored out of the arena and back, before the step writes to it.
    fn swap(&mut self, plan: &Plan) -> Result<(), TensorError> {
        let ids = |blocks: &[BlockId]| blocks.iter().map(|block| block.0).collect::<Vec<u32>>();
        for SwapOut { seq, blocks } in &plan.swaps_out {
            let kept = self.runner.save_blocks(&ids(blocks))?;
            self.kept.insert(*seq, kept);
        }
        for SwapIn { seq, first, blocks } in &plan.swaps_in {
            let kept = self.kept.remove(seq).expect("what is booked is kept");
            self.runner.load_blocks(&ids(blocks), &*kept, *first);
        }
        Ok(())
    }

    /// Starts the batch where a device computes it, or runs it, for what is needed of it.
    fn run(&mut self, plan: &Plan, batch: &Batch, need: Need) -> Result<Work, TensorError> {
        let wanted = match need {
            Need::Best => RowsWanted::Best,
            Need::Largest(n) if n <= MAX_LARGEST => RowsWanted::Largest(n),
            Need::Ranked | Need::Drawn => RowsWanted::Ranked(MAX_LARGEST),
            Need::Largest(_) | Need::Logits => RowsWanted::All,
        };
        if let Some(started) = self.runner.start(&plan.copies, batch, wanted, &self.guesses(plan)) {
            return started.map(Work::Started);
        }
        let output = match need {
            Need::Best => self.runner.run_best(&plan.copies, batch).map(Output::Best),
            Need::Largest(n) if n <= MAX_LARGEST => {
                self.runner.run_largest(&plan.copies, batch, n).map(Output::Largest)
            }
            Need::Ranked => self.runner.run_ranked(&plan.copies, batch).map(Output::Ranked),
            Need::Largest(_) | Need::Drawn | Need::Logits => {
                self.runner.run(&plan.copies, batch).map(Output::Logits)
            }
        };
        output.map(Work::Done)
    }

    fn fail(&mut self, plan: &Plan, reason: &FinishReason) {
        tracing::error!(?reason, "the forward failed");
        for scheduled in &plan.rows {
            self.end_seq(scheduled.seq, reason.clone());
        }
        // Nobody knows what the device has left of the arena, or what was copied out of it.
        self.scheduler.clear_cache();
        self.scheduler.clear_overflow();
        self.kept.clear();
    }

    fn commit(&mut self, plan: &Plan, dropped: &BTreeSet<SeqId>, output: &Output, guesses: &[GuessedToken]) {
        let rows = Row::all(output, guesses, self.runner.n_vocab());
        let mut rest = rows.as_slice();
        let mut wanted = Vec::with_capacity(plan.rows.len());
        for scheduled in &plan.rows {
            let rows;
            (rows, rest) = rest.split_at(scheduled.n_logits);
            if self.counts(dropped, scheduled.seq) {
                self.commit_rows(scheduled, rows, &mut wanted);
            }
        }
        let mut undecided = Vec::new();
        for (seq, drawn) in self.draw(&wanted) {
            match drawn {
                Ok(Some(drawn)) => self.commit_token(seq, drawn),
                Ok(None) => undecided.push(seq),
                Err(error) => self.end_seq(seq, FinishReason::Error(error.to_string())),
            }
        }
        if let (Output::Ranked(ranked), false) = (output, undecided.is_empty()) {
            self.draw_from_logits(ranked, &wanted, &undecided);
        }
    }

    /// Chooses the next tokens of sequences that the largest logits did not decide.
    fn draw_from_logits(&mut self, ranked: &RankedLogits, wanted: &[(SeqId, Row<'_>)], undecided: &[SeqId]) {
        let wanted = wanted.iter().filter_map(|&(seq, row)| match row {
            Row::Ranked(i, ..) if undecided.contains(&seq) => Some((seq, i as u32)),
            _ => None,
        });
        let (seqs, rows): (Vec<SeqId>, Vec<u32>) = wanted.unzip();
        let logits = match (ranked.logits)(&rows) {
            Ok(logits) => logits,
            Err(error) => {
                let reason = FinishReason::DeviceLost(error.to_string());
                return undecided.iter().for_each(|&seq| self.end_seq(seq, reason.clone()));
            }
        };
        let rows = logits.chunks_exact(self.runner.n_vocab()).map(Row::Logits);
        let wanted: Vec<(SeqId, Row<'_>)> = seqs.into_iter().zip(rows).collect();
        for (seq, drawn) in self.draw(&wanted) {
            match drawn {
                Ok(Some(drawn)) => self.commit_token(seq, drawn),
                Ok(None) => unreachable!("logits decide"),
                Err(error) => self.end_seq(seq, FinishReason::Error(error.to_string())),
            }
        }
    }

    /// Chooses the next token of each sequence from its row, all at the same time: none depends on another.
    fn draw(&mut self, wanted: &[(SeqId, Row<'_>)]) -> Vec<(SeqId, Result<Option<Drawn>, SampleError>)> {
        let rows: BTreeMap<SeqId, Row<'_>> = wanted.iter().copied().collect();
        let mut draws = Vec::with_capacity(rows.len());
        for (&seq, choice) in &mut self.choices {
            let Some(&row) = rows.get(&seq) else { continue };
            let active = &self.active[&choice.request];
            let (n_prompt, n_top) = (active.n_prompt, active.n_top_logprobs());
            let n_vocab = self.runner.n_vocab();
            draws.push(Mutex::new(Draw { seq, choice, row, n_vocab, n_prompt, n_top, result: None }));
        }
        self.runner.parallel(draws.len(), &|i| {
            let mut draw = draws[i].lock().unwrap_or_else(PoisonError::into_inner);
            draw.result = Some(SCRATCH.with_borrow_mut(|scratch| draw.run(scratch)));
        });
        let draws = draws.into_iter().map(|draw| draw.into_inner().unwrap_or_else(PoisonError::into_inner));
        draws.map(|draw| (draw.seq, draw.result.expect("every row was drawn from"))).collect()
    }

    /// Uses the logits of one sequence; what the next tokens are to be chosen from goes to `wanted`.
    fn commit_rows<'a>(
        &mut self,
        scheduled: &Scheduled,
        rows: &[Row<'a>],
        wanted: &mut Vec<(SeqId, Row<'a>)>,
    ) {
        let seq = scheduled.seq;
        self.scheduler.register(seq, self.choices[&seq].keys());
        if let Err(error) = self.commit_prompt(scheduled, rows) {
            return self.end_seq(seq, FinishReason::Error(error.to_string()));
        }
        self.scheduler.commit_logits(scheduled);
        if !scheduled.is_complete {
            return;
        }
        let row = *rows.last().expect("a complete sequence gives logits");
        let request = self.choices[&seq].request;
        let active = self.active.get_mut(&request).expect("its sequence runs");
        active.mark_prefilled();
        if active.max_tokens == 0 {
            self.end_request(request, &FinishReason::Length);
            return;
        }
        wanted.extend(self.fork_choices(seq).into_iter().map(|choice| match row {
            // What was drawn for one choice says nothing of the others.
            Row::Ranked(i, ranked, _) if choice != seq => (choice, Row::Ranked(i, ranked, None)),
            _ => (choice, row),
        }));
    }

    /// Reports the log-probabilities of the prompt tokens that `rows` predict, if they are wanted.
    fn commit_prompt(&mut self, scheduled: &Scheduled, rows: &[Row<'_>]) -> Result<(), SampleError> {
        let choice = &self.choices[&scheduled.seq];
        let active = &self.active[&choice.request];
        let Some(n_top) = active.spec.prompt_logprobs else { return Ok(()) };
        let first = scheduled.start + scheduled.n_tokens - rows.len();
        let mut tokens = Vec::new();
        if first == 0 {
            tokens.push(PromptToken { id: choice.tokens[0], logprobs: None });
        }
        for (position, row) in (first..).zip(rows) {
            if let Row::Logits(row) = row
                && position + 1 < active.n_prompt
            {
                let id = choice.tokens[position + 1];
                tokens.push(PromptToken { id, logprobs: Some(logprobs(row, id, n_top)?) });
            }
        }
        if !tokens.is_empty() {
            self.events.push(Event::Prompt { request: choice.request, tokens });
        }
        Ok(())
    }

    /// Forks off the choices that wait for the end of the prompt. Returns them all, the parent first.
    fn fork_choices(&mut self, parent: SeqId) -> Vec<SeqId> {
        let mut seqs = vec![parent];
        let state = &self.choices[&parent];
        let request = state.request;
        if state.tokens.len() > self.active[&request].n_prompt {
            return seqs;
        }
        for choice in 1..self.active[&request].seqs.len() as u32 {
            let child = self.new_seq();
            self.scheduler.fork(parent, child);
            let active = self.active.get_mut(&request).expect("its sequence runs");
            active.seqs[choice as usize] = Some(child);
            let mut state = self.choices[&parent].clone();
            state.choice = choice;
            state.sampler = state.sampler.for_choice(active.seed, choice);
            self.choices.insert(child, state);
            seqs.push(child);
        }
        seqs
    }

    /// Takes in the next token of a sequence and decides whether it was the last.
    fn commit_token(&mut self, seq: SeqId, Drawn { id, logprobs: found }: Drawn) {
        let state = self.choices.get_mut(&seq).expect("a sequence has its state");
        let active = self.active.get_mut(&state.request).expect("its sequence runs");
        state.push(id);
        state.sampler.accept(self.tokenizer.token_bytes(id).unwrap_or_default());
        active.count(state.choice, found.as_ref().map(|found| found.token.logprob));
        self.n_generated += 1;

        let logprobs = found.filter(|_| active.spec.logprobs.is_some());
        let (request, choice) = (state.request, state.choice);
        let cause = if self.tokenizer.eog_ids().contains(&id) {
            Some(StopCause::EndOfGeneration(id))
        } else {
            active.spec.stop_ids.contains(&id).then_some(StopCause::Id(id))
        };
        if let Some(cause) = cause {
            if logprobs.is_some() {
                let text = String::new();
                active.emit(choice, Event::Token { request, choice, id, text, logprobs }, &mut self.events);
            }
            self.end_seq(seq, FinishReason::Stop(cause));
            return;
        }
        let piece = state.text.push(id);
        let (text, stop_idx) = match state.stops.push(&piece) {
            StopMatch::Text(text) => (text, None),
            StopMatch::Stopped { text, stop_idx } => (text, Some(stop_idx)),
        };
        active.emit(choice, Event::Token { request, choice, id, text, logprobs }, &mut self.events);
        let n_generated = state.tokens.len() - active.n_prompt;
        let is_loop = state.loops.as_mut().is_some_and(|loops| loops.push(id));
        let is_done = state.sampler.is_done();
        if let Some(stop_idx) = stop_idx {
            let reason = active.stop_text(stop_idx);
            self.end_seq(seq, reason);
        } else if is_done {
            self.end_seq(seq, FinishReason::Stop(StopCause::Grammar));
        } else if is_loop {
            self.end_seq(seq, FinishReason::Loop);
        } else if n_generated == active.max_tokens {
            self.end_seq(seq, FinishReason::Length);
        } else {
            self.scheduler.push_token(seq);
        }
    }

    fn end_seq(&mut self, seq: SeqId, reason: FinishReason) {
        let Some(state) = self.choices.get(&seq) else { return };
        let (request, choice) = (state.request, state.choice);
        if self.active[&request].has_unforked() {
            // The choices that were to come from this sequence will never have one.
            self.end_request(request, &reason);
        } else {
            self.end_choice(request, choice, reason);
        }
    }
}

/// What a step gave for one row.
#[derive(Clone, Copy)]
enum Row<'a> {
    Logits(&'a [f32]),
    /// The token of the largest logit, if the row is a distribution.
    Best(Option<u32>),
    /// The largest logits by rank, if the row is a distribution.
    Largest(&'a [(u32, f32)]),
    /// Its number, the largest logits with their share of the whole, and what was drawn from all if that is sure.
    Ranked(usize, &'a Ranked, Option<u32>),
}

impl Row<'_> {
    fn all<'a>(output: &'a Output, guesses: &[GuessedToken], n_vocab: usize) -> Vec<Row<'a>> {
        let sure = |i: usize| guesses.get(i).filter(|token| token.is_sure).and_then(|token| token.id);
        match output {
            Output::Logits(logits) => logits.chunks_exact(n_vocab).map(Row::Logits).collect(),
            Output::Best(best) => best.iter().copied().map(Row::Best).collect(),
            Output::Largest(rows) => rows.iter().map(|ranked| Row::Largest(ranked)).collect(),
            Output::Ranked(RankedLogits { rows, .. }) => {
                rows.iter().enumerate().map(|(i, ranked)| Row::Ranked(i, ranked, sure(i))).collect()
            }
        }
    }
}

/// A token that was chosen.
struct Drawn {
    id: u32,
    logprobs: Option<Logprobs>,
}

/// One choice of a token.
struct Draw<'a> {
    seq: SeqId,
    choice: &'a mut Choice,
    row: Row<'a>,
    n_vocab: usize,
    n_prompt: usize,
    n_top: Option<usize>,
    /// Nothing is drawn where the row does not decide.
    result: Option<Result<Option<Drawn>, SampleError>>,
}

thread_local! {
    static SCRATCH: RefCell<Candidates> = RefCell::default();
}

impl Draw<'_> {
    fn run(&mut self, scratch: &mut Candidates) -> Result<Option<Drawn>, SampleError> {
        let Choice { sampler, tokens, .. } = &mut *self.choice;
        let token_idx = (tokens.len() - self.n_prompt) as u64;
        let id = match self.row {
            Row::Best(best) => best.ok_or(SampleError::NoDistribution)?,
            Row::Largest(ranked) => sampler.sample_ranked(ranked, tokens, token_idx, scratch)?,
            Row::Ranked(_, ranked, Some(sure)) if !ranked.largest.is_empty() => sure,
            Row::Ranked(_, ranked, _) => {
                match sampler.sample_from(ranked, self.n_vocab, tokens, token_idx, scratch)? {
                    Some(id) => id,
                    None => return Ok(None),
                }
            }
            Row::Logits(row) => {
                let id = sampler.sample(row, tokens, token_idx, scratch)?;
                let logprobs = self.n_top.map(|n_top| logprobs(row, id, n_top)).transpose()?;
                return Ok(Some(Drawn { id, logprobs }));
            }
        };
        Ok(Some(Drawn { id, logprobs: None }))
    }
}

/// What `work` gives, or why its sequences end.
fn caught<T>(work: impl FnOnce() -> Result<T, TensorError>) -> Result<T, FinishReason> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error @ (TensorError::DeviceLost { .. } | TensorError::OutOfMemory { .. }))) => {
            Err(FinishReason::DeviceLost(error.to_string()))
        }
        Ok(Err(error)) => Err(FinishReason::Error(error.to_string())),
        Err(panic) => Err(FinishReason::Error(format!("the forward panicked: {}", panic_text(&*panic)))),
    }
}

/// The message of a panic, if it has one.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
