//! Decides who runs how many rows in the next step. It plans and keeps the books; it computes nothing.
//!
//! Running sequences come first, then new ones, under one budget of rows. A sequence in prefill and one in decode
//! differ only in how many tokens they have left to store, so a long prompt is cut to what the budget leaves: every
//! running sequence is promised one row per step before any of them gets more.
//!
//! Order is by [`Rank`]: priority and age on one scale, fixed at submission. When blocks run out, the last-ranked
//! running sequence gives all of its blocks back and waits to be computed again, but for what is kept of it outside of
//! the arena (`kv/overflow.rs`); the first-ranked one can therefore always proceed, and nobody waits forever because one
//! priority level is worth only `aging_steps` of age.
//!
//! A step may be planned while the one before runs: [`Scheduler::expect_tokens`] counts tokens that are still to be chosen.
//! A sequence that is sure to end with its token is not among them and has nothing to store meanwhile.
//!
//! Invariants: being in `waiting` or in `running` is the status; a waiting sequence owns no blocks; a running one has
//! at least one token to store when a step is planned, or a step runs with which it ends.

use std::collections::BTreeMap;

use mlxr_tensor::BlockCopy;

use crate::SeqId;
use crate::kv::{BlockTable, BlockTables, IntegrityError, Overflow, SwapIn, SwapOut};
use crate::pacing::Pace;

/// What a step may take at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of one step.
    pub max_batch_tokens: usize,
    /// Rows of one step whose logits are read back: the bound on logits in memory.
    pub max_logit_rows: usize,
    /// Running sequences, choices still to be forked included.
    pub max_seqs: usize,
    /// Steps of waiting that weigh as much as one level of priority.
    pub aging_steps: u32,
}

/// Place in the queue, first is smallest: submission step less what priority is worth, then order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    due: i64,
    arrival: u64,
}

/// What the scheduler knows of a sequence.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub seq: SeqId,
    rank: Rank,
    /// Tokens known so far: the prompt and what was sampled. All but the last are stored when it decodes.
    n_tokens: usize,
    /// Choices that will be forked off once the prompt is stored.
    n_forks: usize,
    /// Whether the last of them is still to be chosen.
    is_expecting: bool,
    /// Rows from this position on give logits. The last known token always does.
    logits_from: usize,
}

/// A new sequence for [`Scheduler::submit`].
#[derive(Clone, Copy, Debug)]
pub struct NewSequence {
    pub seq: SeqId,
    pub priority: i32,
    pub n_prompt: usize,
    /// Choices that will be forked off once the prompt is stored.
    pub n_forks: usize,
    /// Whether every prompt row gives logits (prompt logprobs) or only the last.
    pub logits: PromptLogits,
}

/// Which prompt rows give logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptLogits {
    Last,
    All,
}

/// One sequence's share of a step: rows `start..start + n_tokens` of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduled {
    pub seq: SeqId,
    pub start: usize,
    pub n_tokens: usize,
    /// Tokens before `start` that were found in the prefix cache since the sequence's last rows.
    pub n_reused: usize,
    /// The last `n_logits` of these rows give logits.
    pub n_logits: usize,
    /// The last row is the last known token: its logits choose the next one.
    pub is_complete: bool,
}

/// How far a running sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Tokens whose keys and values have a place.
    pub n_stored: usize,
    /// Tokens known.
    pub n_tokens: usize,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub rows: Vec<Scheduled>,
    /// Block copies to run before anything is written.
    pub copies: Vec<BlockCopy>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SeqId>,
    /// What is kept of them, to be copied out before anything else.
    pub swaps_out: Vec<SwapOut>,
    /// What comes back of others, before anything is written.
    pub swaps_in: Vec<SwapIn>,
}

/// Plans steps over waiting and running sequences and owns their block tables.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// Narrower limits while sequences decode.
    pace: Option<Pace>,
    tables: BlockTables,
    overflow: Overflow,
    waiting: BTreeMap<Rank, Sequence>,
    /// By rank.
    running: Vec<Sequence>,
    n_steps: u64,
    n_submitted: u64,
    n_preemptions: u64,
}

#[derive(Clone, Copy)]
struct Budget {
    tokens: usize,
    logit_rows: usize,
}

impl Scheduler {
    /// # Panics
    /// When the limits do not give every running sequence a row; the engine's options are checked before.
    pub fn new(limits: Limits, tables: BlockTables) -> Self {
        assert!(0 < limits.max_seqs && limits.max_seqs <= limits.max_batch_tokens.min(limits.max_logit_rows));
        Self {
            limits,
            pace: None,
            tables,
            overflow: Overflow::default(),
            waiting: BTreeMap::new(),
            running: Vec::new(),
            n_steps: 0,
            n_submitted: 0,
            n_preemptions: 0,
        }
    }

    /// The same with what preempted sequences have stored kept outside of the arena, up to so many blocks.
    pub fn with_overflow(self, max_blocks: usize) -> Self {
        Self { overflow: Overflow::new(max_blocks), ..self }
    }

    pub fn overflow(&self) -> &Overflow {
        &self.overflow
    }

    /// Gives up what is kept of preempted sequences: they are computed again.
    pub fn clear_overflow(&mut self) {
        self.overflow.clear();
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Sets what steps may take beside sequences that decode, and up to how many sequences new ones start.
    pub fn set_pace(&mut self, pace: Pace) {
        self.pace = Some(pace);
    }

    pub fn tables(&self) -> &BlockTables {
        &self.tables
    }

    pub fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn n_running(&self) -> usize {
        self.running.len()
    }

    pub fn n_preemptions(&self) -> u64 {
        self.n_preemptions
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Puts a sequence in the queue. The caller has checked that it fits the arena when alone.
    ///
    /// # Panics
    /// When the prompt is empty or has more choices than may ever run.
    pub fn submit(&mut self, new: NewSequence) {
        assert!(new.n_prompt > 0, "{} has no tokens to store", new.seq);
        assert!(new.n_forks < self.limits.max_seqs, "{} has more choices than may run", new.seq);
        let age_worth = i64::from(new.priority) * i64::from(self.limits.aging_steps);
        let rank = Rank { due: self.n_steps as i64 - age_worth, arrival: self.n_submitted };
        self.n_submitted += 1;
        let logits_from = match new.logits {
            PromptLogits::Last => usize::MAX,
            PromptLogits::All => 0,
        };
        let NewSequence { seq, n_prompt, n_forks, .. } = new;
        let sequence = Sequence { seq, rank, n_tokens: n_prompt, n_forks, is_expecting: false, logits_from };
        self.waiting.insert(rank, sequence);
    }

    /// Plans the next step. The slots it hands out count as stored from now on: run the plan or
    /// [`Self::finish`] its sequences. `tokens` yields all known tokens of a sequence; it is asked only when there is a
    /// prefix cache.
    pub fn schedule<'a>(&mut self, tokens: impl Fn(SeqId) -> &'a [u32]) -> Plan {
        self.n_steps += 1;
        self.tables.begin_step();
        let mut budget = Budget { tokens: self.max_rows(), logit_rows: self.limits.max_logit_rows };
        let mut plan = Plan::default();
        let mut next = 0;
        while next < self.running.len() {
            if self.n_left(&self.running[next]) == 0 {
                next += 1;
                continue;
            }
            let n_later = self.running[next + 1..].iter().filter(|later| self.n_left(later) > 0).count();
            let share = Budget { tokens: budget.tokens - n_later, logit_rows: budget.logit_rows - n_later };
            match self.reserve(next, share, &tokens, &mut plan.copies) {
                Some(scheduled) => {
                    budget.spend(&scheduled);
                    plan.rows.push(scheduled);
                    next += 1;
                }
                None => {
                    let (seq, swap) = self.preempt_last();
                    plan.preempted.push(seq);
                    plan.swaps_out.extend(swap);
                }
            }
        }
        if plan.preempted.is_empty() {
            self.admit(budget, &tokens, &mut plan);
        }
        self.tables.trim();
        plan
    }

    /// Rows of the next step. A pace counts only for those who wait for a next token.
    fn max_rows(&self) -> usize {
        let n_decoding = self.running.iter().filter(|sequence| self.n_left(sequence) == 1).count();
        match self.pace {
            Some(pace) if n_decoding > 0 => {
                let n_rows = (n_decoding + pace.max_prompt_rows).max(self.running.len());
                n_rows.min(self.limits.max_batch_tokens)
            }
            _ => self.limits.max_batch_tokens,
        }
    }

    /// Tokens of a sequence that are known and not stored.
    fn n_left(&self, sequence: &Sequence) -> usize {
        sequence.n_tokens - self.tables.get(sequence.seq).map_or(0, BlockTable::n_tokens)
    }

    /// Whether a sequence may run beside the others. Alone it always may.
    fn has_place(&self, new: &Sequence) -> bool {
        let max_seqs = self.pace.map_or(self.limits.max_seqs, |pace| pace.max_seqs);
        self.running.is_empty() || self.n_places_taken() + 1 + new.n_forks <= max_seqs
    }

    /// The tokens of a sequence that need not be computed where they are cached: the last one gives the logits that
    /// choose the next, and others may be wanted too.
    fn reusable<'a>(&self, sequence: &Sequence, tokens: impl Fn(SeqId) -> &'a [u32]) -> &'a [u32] {
        if !self.tables.has_cache() {
            return &[];
        }
        &tokens(sequence.seq)[..sequence.logits_from.min(sequence.n_tokens - 1)]
    }

    /// Slots for as many rows of `running[idx]` as the budget allows, or `None` when blocks ran out.
    fn reserve<'a>(
        &mut self,
        idx: usize,
        budget: Budget,
        tokens: impl Fn(SeqId) -> &'a [u32],
        copies: &mut Vec<BlockCopy>,
    ) -> Option<Scheduled> {
        let sequence = &self.running[idx];
        let n_reused = self.tables.reuse(sequence.seq, self.reusable(sequence, tokens));
        let start = self.tables.get(sequence.seq).expect("running sequences have tables").n_tokens();
        let n_left = sequence.n_tokens - start;
        assert!(n_left > 0, "{} has nothing to run", sequence.seq);
        let n_silent = sequence.logits_from.min(sequence.n_tokens - 1).saturating_sub(start);
        let n_tokens = n_left.min(budget.tokens).min(n_silent + budget.logit_rows);
        self.tables.append(sequence.seq, n_tokens, copies).ok()?;
        Some(Scheduled {
            seq: sequence.seq,
            start,
            n_tokens,
            n_reused,
            n_logits: n_tokens.saturating_sub(n_silent),
            is_complete: n_tokens == n_left,
        })
    }

    /// Takes the last-ranked sequence's blocks. What it has stored of them is kept where there is room.
    fn preempt_last(&mut self) -> (SeqId, Option<SwapOut>) {
        let sequence = self.running.pop().expect("only a running sequence can lack blocks");
        let seq = sequence.seq;
        let table = self.tables.get(seq).expect("running sequences have tables");
        let swap = self.overflow.keep(seq, table.n_tokens(), table.blocks());
        self.tables.remove(seq);
        self.n_preemptions += 1;
        self.waiting.insert(sequence.rank, sequence);
        (seq, swap)
    }

    /// Gives a sequence that starts again blocks for what is kept of it, behind what is still cached.
    fn bring_back<'a>(&mut self, idx: usize, tokens: impl Fn(SeqId) -> &'a [u32], plan: &mut Plan) {
        let sequence = &self.running[idx];
        let seq = sequence.seq;
        let Some(n_kept) = self.overflow.take(seq) else { return };
        self.tables.reuse(seq, self.reusable(sequence, tokens));
        let n_stored = self.tables.get(seq).map_or(0, BlockTable::n_tokens);
        let n_more = n_kept.saturating_sub(n_stored);
        self.tables.append(seq, n_more, &mut plan.copies).expect("enough free blocks were counted");
        let first = n_stored / self.tables.block_tokens();
        let blocks = self.tables.get(seq).map_or(&[][..], |table| &table.blocks()[first..]).to_vec();
        self.overflow.count_in(blocks.len());
        plan.swaps_in.push(SwapIn { seq, first, blocks });
    }

    /// Starts waiting sequences in order of rank while rows, places and blocks last.
    fn admit<'a>(&mut self, mut budget: Budget, tokens: impl Fn(SeqId) -> &'a [u32], plan: &mut Plan) {
        while budget.tokens > 0 && budget.logit_rows > 0 {
            let Some((&rank, first)) = self.waiting.first_key_value() else { break };
            if !self.has_place(first) || !self.has_blocks_for(first, &tokens) {
                break; // those behind wait too: order is what keeps large requests from starving
            }
            let sequence = self.waiting.remove(&rank).expect("it was just seen");
            self.tables.insert(sequence.seq);
            let idx = self.running.partition_point(|other| other.rank < rank);
            self.running.insert(idx, sequence);
            self.bring_back(idx, &tokens, plan);
            let scheduled = self
                .reserve(idx, budget, &tokens, &mut plan.copies)
                .expect("enough free blocks were counted");
            budget.spend(&scheduled);
            plan.rows.push(scheduled);
        }
    }

    /// Running sequences and the choices they will fork.
    fn n_places_taken(&self) -> usize {
        self.running.iter().map(|sequence| 1 + sequence.n_forks).sum()
    }

    /// Whether all known tokens of `new` fit beside what running sequences still have to store, so that it is not
    /// let in only to be preempted. Alone it always fits.
    fn has_blocks_for<'a>(&self, new: &Sequence, tokens: impl Fn(SeqId) -> &'a [u32]) -> bool {
        if self.running.is_empty() {
            return true;
        }
        // Cached blocks that are idle are taken from the free ones like others; those in use cost nothing.
        let n_shared = self.tables.n_used_blocks_of(self.reusable(new, tokens));
        let n_needed = new.n_tokens.div_ceil(self.tables.block_tokens()) - n_shared;
        self.n_promised_blocks() + n_needed <= self.tables.n_free()
    }

    /// Blocks that running sequences still need for the tokens they have.
    fn n_promised_blocks(&self) -> usize {
        let needed =
            |sequence: &Sequence| self.tables.n_blocks_to_append(sequence.seq, self.n_left(sequence));
        self.running.iter().map(needed).sum()
    }

    /// Counts a token for each of these sequences that a running step is yet to choose; the next plan has its row. Returns
    /// whether that can be: nobody may lose blocks for a token that is not known. Nothing changes where it cannot.
    ///
    /// # Panics
    /// When one of them is not running.
    pub fn expect_tokens(&mut self, seqs: &[SeqId]) -> bool {
        for &seq in seqs {
            let sequence = self.running_mut(seq);
            sequence.n_tokens += 1;
            sequence.is_expecting = true;
        }
        let has_room = self.n_promised_blocks() <= self.tables.n_free();
        if !has_room {
            for &seq in seqs {
                let sequence = self.running_mut(seq);
                sequence.n_tokens -= 1;
                sequence.is_expecting = false;
            }
        }
        has_room
    }

    /// Gives up the slot of a sequence's last token, which another was stored in: the next plan has its row again.
    ///
    /// # Panics
    /// When the sequence is not running.
    pub fn take_back(&mut self, seq: SeqId) {
        let n_known = self.running_mut(seq).n_tokens;
        self.tables.truncate(seq, n_known - 1);
    }

    /// Marks the logits of a step's rows as used, so that a recomputed prompt does not give them twice.
    pub fn commit_logits(&mut self, scheduled: &Scheduled) {
        let end = scheduled.start + scheduled.n_tokens;
        let sequence = self.running_mut(scheduled.seq);
        sequence.logits_from = sequence.logits_from.max(end);
    }

    /// Makes the blocks a sequence has filled findable; `tokens` are all it has.
    pub fn register(&mut self, seq: SeqId, tokens: &[u32]) {
        self.tables.register(seq, tokens);
    }

    /// One more known token, which may have been expected: the sequence decodes it in the next step.
    ///
    /// # Panics
    /// When the sequence is not running.
    pub fn push_token(&mut self, seq: SeqId) {
        let sequence = self.running_mut(seq);
        if !std::mem::take(&mut sequence.is_expecting) {
            sequence.n_tokens += 1;
        }
    }

    /// Starts `child` with everything `parent` has stored, on the place kept for it.
    ///
    /// # Panics
    /// When `parent` is not running or has no choice left to fork.
    pub fn fork(&mut self, parent: SeqId, child: SeqId) {
        let arrival = self.n_submitted;
        self.n_submitted += 1;
        let sequence = self.running_mut(parent);
        sequence.n_forks = sequence.n_forks.checked_sub(1).expect("a place was kept for the choice");
        let rank = Rank { due: sequence.rank.due, arrival };
        let forked = Sequence { seq: child, rank, n_forks: 0, logits_from: usize::MAX, ..*sequence };
        let n_stored = self.tables.get(parent).expect("running sequences have tables").n_tokens();
        self.tables.fork(parent, child, n_stored);
        let idx = self.running.partition_point(|other| other.rank < rank);
        self.running.insert(idx, forked);
    }

    /// How far a sequence is, if it runs.
    pub fn progress(&self, seq: SeqId) -> Option<Progress> {
        let sequence = self.running.iter().find(|sequence| sequence.seq == seq)?;
        let n_stored = self.tables.get(seq).map_or(0, BlockTable::n_tokens);
        Some(Progress { n_stored, n_tokens: sequence.n_tokens })
    }

    /// Forgets what is cached. Returns how many blocks that were.
    pub fn clear_cache(&mut self) -> usize {
        self.tables.clear_cache()
    }

    /// Takes a sequence out, wherever it is, and frees its blocks. Returns whether it was there.
    pub fn finish(&mut self, seq: SeqId) -> bool {
        self.overflow.take(seq);
        if let Some(idx) = self.running.iter().position(|sequence| sequence.seq == seq) {
            self.running.remove(idx);
            self.tables.remove(seq);
            return true;
        }
        let rank = self.waiting.values().find(|sequence| sequence.seq == seq).map(|sequence| sequence.rank);
        rank.and_then(|rank| self.waiting.remove(&rank)).is_some()
    }

    /// The pool's books balance, and exactly the running sequences own blocks.
    ///
    /// # Errors
    /// What does not balance.
    pub fn check_integrity(&self) -> Result<(), IntegrityError> {
        for sequence in self.waiting.values() {
            if self.tables.get(sequence.seq).is_some() {
                return Err(IntegrityError::WaitingOwnsBlocks { seq: sequence.seq });
            }
        }
        if self.tables.n_tables() != self.running.len() {
            return Err(IntegrityError::Tables {
                n_tables: self.tables.n_tables(),
                n_running: self.running.len(),
            });
        }
        self.tables.check_integrity()
    }

    fn running_mut(&mut self, seq: SeqId) -> &mut Sequence {
        self.running.iter_mut().find(|sequence| sequence.seq == seq).expect("the sequence is running")
    }
}

impl Budget {
    fn spend(&mut self, scheduled: &Scheduled) {
        self.tokens -= scheduled.n_tokens;
        self.logit_rows -= scheduled.n_logits;
    }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn n_rows(&self) -> usize {
        self.rows.iter().map(|scheduled| scheduled.n_tokens).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A request of the simulation: id, prompt length, tokens it generates.
    #[derive(Clone, Copy, Debug)]
    struct Job {
        new: NewSequence,
        n_new: usize,
    }

    fn job(id: u64, n_prompt: usize, n_new: usize) -> Job {
        let new =
            NewSequence { seq: SeqId(id), priority: 0, n_prompt, n_forks: 0, logits: PromptLogits::Last };
        Job { new, n_new }
    }

    fn scheduler(limits: Limits, n_blocks: usize) -> Scheduler {
        Scheduler::new(limits, BlockTables::new(n_blocks, 4))
    }

    fn limits(max_batch_tokens: usize) -> Limits {
        Limits { max_batch_tokens, max_logit_rows: max_batch_tokens, max_seqs: 4, aging_steps: 16 }
    }

    /// Plays all jobs to their end as an engine would, checking every step. Returns one line per step.
    fn play(scheduler: &mut Scheduler, jobs: &[Job]) -> String {
        let mut n_left: BTreeMap<SeqId, usize> = jobs.iter().map(|job| (job.new.seq, job.n_new)).collect();
        for job in jobs {
            scheduler.submit(job.new);
        }
        let (mut steps, mut finished, mut next_fork) = (Vec::new(), Vec::new(), 1000);
        while !scheduler.is_idle() {
            assert!(steps.len() < 10_000, "no progress");
            let plan = scheduler.schedule(|_| &[]);
            assert!(!plan.is_empty(), "a step without rows");
            check_plan(scheduler, &plan);
            steps.push(show(&plan));
            for scheduled in plan.rows.iter().filter(|scheduled| scheduled.is_complete) {
                scheduler.commit_logits(scheduled);
                let mut chosen = vec![scheduled.seq];
                while scheduler.running_mut(scheduled.seq).n_forks > 0 {
                    let child = SeqId(next_fork);
                    next_fork += 1;
                    scheduler.fork(scheduled.seq, child);
                    n_left.insert(child, n_left[&scheduled.seq]);
                    chosen.push(child);
                }
                for seq in chosen {
                    let left = n_left.get_mut(&seq).unwrap();
                    *left -= 1;
                    if *left == 0 {
                        assert!(scheduler.finish(seq));
                        finished.push(seq);
                    } else {
                        scheduler.push_token(seq);
                    }
                }
            }
            assert_eq!(scheduler.check_integrity(), Ok(()));
        }
        assert_eq!(finished.len(), n_left.len(), "each sequence ends once");
        assert_eq!(scheduler.tables().n_free(), scheduler.tables().stats().n_blocks, "blocks leaked");
        steps.join(" / ")
    }

    fn check_plan(scheduler: &Scheduler, plan: &Plan) {
        let limits = scheduler.limits();
        assert!(plan.n_rows() <= limits.max_batch_tokens);
        assert!(plan.rows.iter().map(|row| row.n_logits).sum::<usize>() <= limits.max_logit_rows);
        assert!(plan.rows.len() <= limits.max_seqs);
        assert!(plan.rows.iter().all(|row| row.n_tokens > 0));
        assert_eq!(plan.rows.len(), scheduler.n_running(), "every running sequence moves in every step");
    }

    /// `seq@start+n_tokens`, with `!seq` for a preemption.
    fn show(plan: &Plan) -> String {
        let preempted = plan.preempted.iter().map(|seq| format!("!{}", seq.0));
        let rows = plan.rows.iter().map(|row| format!("{}@{}+{}", row.seq.0, row.start, row.n_tokens));
        preempted.chain(rows).collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn check(budget: usize, n_blocks: usize, jobs: &[Job], expected: &str) {
        assert_eq!(play(&mut scheduler(limits(budget), n_blocks), jobs), expected);
    }

    #[test]
    fn a_long_prompt_is_cut_to_the_budget_and_decode_goes_on_beside_it() {
        check(8, 16, &[job(0, 2, 3), job(1, 12, 2)], "0@0+2 1@0+6 / 0@2+1 1@6+6 / 0@3+1 1@12+1");
    }

    #[test]
    fn a_running_prompt_leaves_a_row_for_everyone_behind_it() {
        check(4, 16, &[job(0, 7, 1), job(1, 5, 1)], "0@0+4 / 0@4+3 1@0+1 / 1@1+4");
        check(
            4,
            16,
            &[job(0, 1, 2), job(1, 9, 1), job(2, 2, 2)],
            "0@0+1 1@0+3 / 0@1+1 1@3+3 / 1@6+3 2@0+1 / 2@1+1 / 2@2+1",
        );
    }

    #[test]
    fn the_youngest_is_preempted_and_computed_again() {
        // Two blocks of four: both prompts fit, but there is no third block for the fifth token.
        check(8, 2, &[job(0, 4, 2), job(1, 4, 2)], "0@0+4 1@0+4 / !1 0@4+1 / 1@0+5");
    }

    #[test]
    fn a_sequence_waits_until_its_whole_prompt_fits() {
        check(8, 3, &[job(0, 8, 2), job(1, 8, 1)], "0@0+8 / 0@8+1 / 1@0+8");
    }

    #[test]
    fn a_higher_priority_goes_first_and_age_catches_up() {
        let urgent = |id, priority| Job { new: NewSequence { priority, ..job(id, 4, 1).new }, n_new: 1 };
        let one = Limits { max_seqs: 1, ..limits(8) };
        let mut fresh = scheduler(one, 8);
        assert_eq!(play(&mut fresh, &[job(0, 4, 1), urgent(1, 2)]), "1@0+4 / 0@0+4");
        // 33 steps of age outweigh two levels of priority at 16 steps each.
        let mut aged = scheduler(one, 8);
        aged.submit(job(0, 4, 1).new);
        aged.n_steps += 33;
        aged.submit(urgent(1, 2).new);
        assert_eq!(aged.schedule(|_| &[]).rows[0].seq, SeqId(0));
    }

    #[test]
    fn prompt_logits_are_bounded_by_rows_and_not_given_twice() {
        let scored = Job { new: NewSequence { logits: PromptLogits::All, ..job(0, 7, 1).new }, n_new: 1 };
        let narrow = Limits { max_logit_rows: 4, ..limits(8) };
        let mut scheduler = scheduler(narrow, 8);
        scheduler.submit(scored.new);
        let first = scheduler.schedule(|_| &[]).rows[0];
        assert_eq!((first.n_tokens, first.n_logits, first.is_complete), (4, 4, false));
        scheduler.commit_logits(&first);
        scheduler.preempt_last();
        // Computed again, the first four rows are silent.
        let again = scheduler.schedule(|_| &[]).rows[0];
        assert_eq!((again.start, again.n_tokens, again.n_logits, again.is_complete), (0, 7, 3, true));
    }

    #[test]
    fn choices_share_the_prompt_and_keep_their_places() {
        let two = Job { new: NewSequence { n_forks: 1, ..job(0, 5, 2).new }, n_new: 2 };
        let mut scheduler = scheduler(Limits { max_seqs: 2, ..limits(8) }, 8);
        assert_eq!(play(&mut scheduler, &[two, job(1, 3, 1)]), "0@0+5 / 0@5+1 1000@5+1 / 1@0+3");
        assert_eq!(scheduler.tables().n_copies(), 1);
    }

    fn jobs() -> impl Strategy<Value = Vec<Job>> {
        let one = (1usize..24, 1usize..9, -2i32..3, 0usize..3, any::<bool>()).prop_map(
            |(n_prompt, n_new, priority, n_forks, scored)| {
                let logits = if scored { PromptLogits::All } else { PromptLogits::Last };
                Job { new: NewSequence { seq: SeqId(0), priority, n_prompt, n_forks, logits }, n_new }
            },
        );
        proptest::collection::vec(one, 1..12).prop_map(|mut jobs| {
            for (i, job) in jobs.iter_mut().enumerate() {
                job.new.seq = SeqId(i as u64);
            }
            jobs
        })
    }

    proptest! {
        #[test]
        fn every_job_ends_once_within_budget_and_without_leaks(
            jobs in jobs(),
            max_batch_tokens in 4usize..20,
            max_logit_rows in 4usize..8,
            n_blocks in 8usize..20, // the largest job alone needs 31 tokens: 8 blocks of 4
        ) {
            let limits = Limits { max_batch_tokens, max_logit_rows, max_seqs: 4, aging_steps: 3 };
            play(&mut scheduler(limits, n_blocks), &jobs);
        }
    }

    #[test]
    fn a_low_priority_is_served_under_a_steady_stream_of_higher_ones() {
        let mut scheduler = scheduler(Limits { max_seqs: 1, ..limits(8) }, 8);
        scheduler.submit(NewSequence { priority: -1, ..job(0, 4, 1).new });
        for id in 1..200 {
            scheduler.submit(NewSequence { priority: 1, ..job(id, 4, 1).new });
            let ran = scheduler.schedule(|_| &[]).rows[0].seq;
            assert!(scheduler.finish(ran));
            if ran == SeqId(0) {
                return;
            }
        }
        panic!("starved");
    }
}
