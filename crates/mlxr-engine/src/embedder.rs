//! Vectors and scores for many clients: a thread that runs whole texts of all of them in shared batches.
//!
//! A request hands in some texts and gets all their results at once. Every batch takes texts from all waiting requests
//! in turn, so a long list does not keep a short one waiting. Results do not depend on the company (see
//! [`Embedder`]). Invariants: a request waits in a bounded queue or is refused at once; one whose client is gone is
//! dropped before the next batch; a forward that panics fails the requests in its batch and nobody else's.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use mlxr_models::{Embedder, EmbedderHead, ModelKv, Text};
use mlxr_tensor::TensorError;
use mlxr_text::{Framed, TextError, Tokenizer};
use tokio::sync::oneshot;

use crate::Shutdown;
use crate::step_loop::panic_text;

/// What batches and the queue may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedderLimits {
    /// Rows of one forward; a single text of the model's context always fits.
    pub max_batch_tokens: usize,
    /// Texts of one forward.
    pub max_batch_texts: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Tokens of all texts that may wait.
    pub max_waiting_tokens: usize,
    /// Texts of one request, whose results are held until all are there.
    pub max_texts: usize,
}

impl Default for EmbedderLimits {
    fn default() -> Self {
        Self {
            max_batch_tokens: 2048,
            max_batch_texts: 64,
            max_waiting: 256,
            max_waiting_tokens: 4 << 20,
            max_texts: 8192,
        }
    }
}

/// Why there are no results.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    #[error("text {index} has no tokens")]
    Empty { index: usize },
    #[error("text {index} has {n_tokens} tokens, more than the model's context of {n_ctx}")]
    TooLong { index: usize, n_tokens: usize, n_ctx: usize },
    #[error("text {index} has the token {token}, but the vocabulary ends at {vocab}")]
    NoSuchToken { index: usize, token: u32, vocab: usize },
    #[error("text {index}: {reason}")]
    Encode { index: usize, reason: String },
    #[error("{n_texts} texts in one request, at most {max_texts} may be")]
    TooManyTexts { n_texts: usize, max_texts: usize },
    #[error("{n_waiting} requests wait already, at most {max_waiting} may")]
    QueueFull { n_waiting: usize, max_waiting: usize },
    #[error("{n_tokens} tokens in one request, at most {max_tokens} may wait")]
    TooMuch { n_tokens: usize, max_tokens: usize },
    #[error("the model is being unloaded")]
    Stopping,
    #[error("the forward failed: {reason}")]
    Failed { reason: String },
    /// What the model had on the device is gone, and it must be loaded anew.
    #[error("{reason}")]
    DeviceLost { reason: String },
}

/// What the thread has done and holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EmbedderStats {
    /// Requests that have not got all their results.
    pub n_waiting: usize,
    pub n_batches: u64,
    pub n_texts: u64,
    pub n_tokens: u64,
}

/// How texts become what a model reads.
#[derive(Clone, Copy, Debug)]
pub struct TextReader<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Tokens of one text at most, those of its frame included.
    pub n_ctx: usize,
    /// Cut what is longer, at the end; otherwise it is refused.
    pub is_cut: bool,
}

impl TextReader<'_> {
    /// A text; `index` is its place among others, for errors.
    ///
    /// # Errors
    /// It cannot be encoded, or is too long.
    pub fn text(&self, index: usize, text: &str) -> Result<Text, EmbedError> {
        let max_tokens = if self.is_cut { self.n_ctx } else { usize::MAX };
        let text = self.framed(index, self.tokenizer.encode_within(text, max_tokens))?;
        // All are of the first text.
        Ok(Text { types: Vec::new(), ..text })
    }

    /// A pair to be compared, the second text cut to `max_second` tokens in any case. The first is never cut.
    ///
    /// # Errors
    /// It cannot be encoded, or is too long.
    pub fn pair(
        &self,
        index: usize,
        first: &str,
        second: &str,
        max_second: usize,
    ) -> Result<Text, EmbedError> {
        let max_tokens = if self.is_cut { self.n_ctx } else { usize::MAX };
        self.framed(index, self.tokenizer.encode_pair_within(first, second, max_second, max_tokens))
    }

    /// Tokens that somebody else has made.
    ///
    /// # Errors
    /// They are too many.
    pub fn tokens(&self, index: usize, mut tokens: Vec<u32>) -> Result<Text, EmbedError> {
        if self.is_cut {
            tokens.truncate(self.n_ctx);
        }
        self.checked(index, Text { tokens, types: Vec::new() })
    }

    fn framed(&self, index: usize, found: Result<Framed, TextError>) -> Result<Text, EmbedError> {
        let framed = found.map_err(|error| EmbedError::Encode { index, reason: error.to_string() })?;
        self.checked(index, Text { tokens: framed.ids, types: framed.types })
    }

    fn checked(&self, index: usize, text: Text) -> Result<Text, EmbedError> {
        let (n_tokens, n_ctx) = (text.tokens.len(), self.n_ctx);
        if n_tokens > n_ctx {
            return Err(EmbedError::TooLong { index, n_tokens, n_ctx });
        }
        Ok(text)
    }
}

/// One result per text, in order.
type Answer = Result<Vec<Vec<f32>>, EmbedError>;

/// A request and how far it has come.
struct Job {
    texts: Vec<Text>,
    /// The first text that has not run; those before it have results or are in the batch.
    next: usize,
    results: Vec<Vec<f32>>,
    reply: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    n_tokens: usize,
    stop: Option<Shutdown>,
    stats: EmbedderStats,
}

struct Shared {
    limits: EmbedderLimits,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// Ends the thread when the last handle is gone.
struct Owner {
    shared: Arc<Shared>,
    embedder: Arc<Embedder>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop.get_or_insert(Shutdown::Drain);
        self.shared.wake.notify_one();
    }
}

/// The way to an embedder's thread. Cheap to clone.
#[derive(Clone)]
pub struct EmbedderHandle(Arc<Owner>);

impl EmbedderHandle {
    /// Starts the thread; its scratch is allocated here.
    ///
    /// # Errors
    /// No thread, or no memory for the scratch.
    pub fn spawn(embedder: Arc<Embedder>, limits: EmbedderLimits) -> io::Result<EmbedderHandle> {
        let n_ctx = embedder.n_ctx() as usize;
        let limits = EmbedderLimits {
            max_batch_tokens: limits.max_batch_tokens.max(n_ctx),
            max_batch_texts: limits.max_batch_texts.max(1),
            ..limits
        };
        let scratch = new_scratch(&embedder, &limits).map_err(io::Error::other)?;
        let shared = Arc::new(Shared { limits, queue: Mutex::default(), wake: Condvar::new() });
        let worker = Worker { embedder: embedder.clone(), shared: shared.clone(), scratch: Some(scratch) };
        let thread = std::thread::Builder::new().name("mlxr-embedder".to_owned()).spawn(|| worker.main())?;
        Ok(EmbedderHandle(Arc::new(Owner { shared, embedder, thread: Mutex::new(Some(thread)) })))
    }

    /// Tokens of one text at most.
    pub fn n_ctx(&self) -> usize {
        self.0.embedder.n_ctx() as usize
    }

    /// What comes out for a text.
    pub fn head(&self) -> EmbedderHead {
        self.0.embedder.head()
    }

    pub fn stats(&self) -> EmbedderStats {
        let queue = lock(&self.0.shared.queue);
        EmbedderStats { n_waiting: queue.jobs.len(), ..queue.stats }
    }

    /// The results of all texts, in order. Dropping the future cancels what has not run.
    ///
    /// # Errors
    /// [`EmbedError`] says why there are none; texts are checked before anything runs.
    pub async fn run(&self, texts: Vec<Text>) -> Answer {
        self.submit(texts)?.await.unwrap_or(Err(EmbedError::Stopping))
    }

    /// [`Self::run`] for callers without a runtime.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_blocking(&self, texts: Vec<Text>) -> Answer {
        self.submit(texts)?.blocking_recv().unwrap_or(Err(EmbedError::Stopping))
    }

    /// Takes no more requests and ends the thread: `Drain` finishes what waits, `Cancel` drops it.
    pub fn shut_down(&self, shutdown: Shutdown) {
        let mut queue = lock(&self.0.shared.queue);
        if queue.stop != Some(Shutdown::Cancel) {
            queue.stop = Some(shutdown);
        }
        drop(queue);
        self.0.shared.wake.notify_one();
    }

    /// Waits until the thread has ended. Blocks; the first caller waits, later ones return at once.
    pub fn join(&self) {
        let thread = lock(&self.0.thread).take();
        if let Some(thread) = thread {
            // Panics of a forward are caught inside; any other has no one left to tell.
            let _ = thread.join();
        }
    }

    fn submit(&self, texts: Vec<Text>) -> Result<oneshot::Receiver<Answer>, EmbedError> {
        let n_tokens = self.check(&texts)?;
        let (reply, answer) = oneshot::channel();
        let limits = &self.0.shared.limits;
        let mut queue = lock(&self.0.shared.queue);
        if queue.stop.is_some() {
            return Err(EmbedError::Stopping);
        }
        let n_waiting = queue.jobs.len();
        // A single request that large could never be taken.
        if n_tokens > limits.max_waiting_tokens {
            return Err(EmbedError::TooMuch { n_tokens, max_tokens: limits.max_waiting_tokens });
        }
        if n_waiting >= limits.max_waiting || queue.n_tokens + n_tokens > limits.max_waiting_tokens {
            return Err(EmbedError::QueueFull { n_waiting, max_waiting: limits.max_waiting });
        }
        queue.n_tokens += n_tokens;
        queue.jobs.push_back(Job { next: 0, results: Vec::with_capacity(texts.len()), texts, reply });
        drop(queue);
        self.0.shared.wake.notify_one();
        Ok(answer)
    }

    /// The number of tokens of texts that can run.
    fn check(&self, texts: &[Text]) -> Result<usize, EmbedError> {
        let (n_ctx, vocab) = (self.n_ctx(), self.0.embedder.vocab());
        let max_texts = self.0.shared.limits.max_texts;
        if texts.len() > max_texts {
            return Err(EmbedError::TooManyTexts { n_texts: texts.len(), max_texts });
        }
        for (index, text) in texts.iter().enumerate() {
            let n_tokens = text.tokens.len();
            if n_tokens == 0 {
                return Err(EmbedError::Empty { index });
            }
            if n_tokens > n_ctx {
                return Err(EmbedError::TooLong { index, n_tokens, n_ctx });
            }
            if let Some(&token) = text.tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(EmbedError::NoSuchToken { index, token, vocab });
            }
        }
        Ok(texts.iter().map(|text| text.tokens.len()).sum())
    }
}

impl std::fmt::Debug for EmbedderHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbedderHandle").field("head", &self.head()).field("stats", &self.stats()).finish()
    }
}

fn new_scratch(embedder: &Embedder, limits: &EmbedderLimits) -> Result<ModelKv, TensorError> {
    embedder.scratch(limits.max_batch_tokens, limits.max_batch_texts)
}

/// The thread's side.
struct Worker {
    embedder: Arc<Embedder>,
    shared: Arc<Shared>,
    /// Made anew after a panic has left it in an unknown state.
    scratch: Option<ModelKv>,
}

/// The texts of a batch that came from one job: how many, in the order of the queue.
type Shares = Vec<usize>;

impl Worker {
    fn main(mut self) {
        while let Some((texts, shares)) = self.next_batch() {
            let results = self.forward(&texts);
            self.deliver(texts, shares, results);
        }
    }

    /// Waits for work and takes it; nothing when it is time to end.
    fn next_batch(&self) -> Option<(Vec<Text>, Shares)> {
        let mut queue = lock(&self.shared.queue);
        loop {
            if queue.stop == Some(Shutdown::Cancel) {
                queue.jobs.clear();
            }
            let gone = |job: &Job| job.reply.is_closed();
            let n_gone: usize = queue.jobs.iter().filter(|job| gone(job)).map(Job::n_tokens_left).sum();
            queue.jobs.retain(|job| !gone(job));
            queue.n_tokens = queue.n_tokens.saturating_sub(n_gone);
            while queue.jobs.front().is_some_and(|job| job.texts.is_empty())
                && let Some(job) = queue.jobs.pop_front()
            {
                // Nothing asked for, nothing to wait for; a client that has gone needs no news.
                let _ = job.reply.send(Ok(Vec::new()));
            }
            if !queue.jobs.is_empty() {
                return Some(take(&mut queue, &self.shared.limits));
            }
            if queue.stop.is_some() {
                return None;
            }
            queue = self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn forward(&mut self, texts: &[Text]) -> Answer {
        let failed = |error: TensorError| {
            let reason = error.to_string();
            match error {
                TensorError::DeviceLost { .. } | TensorError::OutOfMemory { .. } => {
                    EmbedError::DeviceLost { reason }
                }
                _ => EmbedError::Failed { reason },
            }
        };
        let mut scratch = match self.scratch.take() {
            Some(scratch) => scratch,
            None => new_scratch(&self.embedder, &self.shared.limits).map_err(failed)?,
        };
        let result = catch_unwind(AssertUnwindSafe(|| self.embedder.run(texts, &mut scratch)));
        match result {
            Ok(results) => {
                self.scratch = Some(scratch);
                results.map_err(failed)
            }
            Err(panic) => {
                let reason = format!("it panicked: {}", panic_text(&*panic));
                tracing::error!(reason, "an embedding batch failed");
                Err(EmbedError::Failed { reason })
            }
        }
    }

    /// Gives the results to their jobs, in the order they were taken; jobs that have all of theirs are answered.
    fn deliver(&self, texts: Vec<Text>, shares: Shares, results: Answer) {
        let mut queue = lock(&self.shared.queue);
        let n_tokens: usize = texts.iter().map(|text| text.tokens.len()).sum();
        queue.n_tokens = queue.n_tokens.saturating_sub(n_tokens);
        queue.stats.n_batches += 1;
        queue.stats.n_texts += texts.len() as u64;
        queue.stats.n_tokens += n_tokens as u64;
        let mut results = results.map(Vec::into_iter);
        // Only this thread takes jobs out, so the first ones are those the batch was made of.
        let n_jobs = shares.len();
        let mut rest = VecDeque::with_capacity(queue.jobs.len());
        for share in shares {
            let Some(mut job) = queue.jobs.pop_front() else { break };
            match &mut results {
                Ok(results) => job.results.extend(results.by_ref().take(share)),
                Err(error) => {
                    queue.n_tokens = queue.n_tokens.saturating_sub(job.n_tokens_left());
                    let _ = job.reply.send(Err(error.clone()));
                    continue;
                }
            }
            if job.results.len() == job.texts.len() {
                // A client that has gone needs no results.
                let _ = job.reply.send(Ok(job.results));
            } else {
                rest.push_back(job);
            }
        }
        debug_assert!(n_jobs > 0, "a batch has a text");
        // Who had a turn goes behind who had none.
        queue.jobs.append(&mut rest);
    }
}

impl Job {
    fn n_tokens_left(&self) -> usize {
        self.texts.iter().skip(self.next).map(|text| text.tokens.len()).sum()
    }
}

/// The texts of the next batch: one of each job in turn until no more fit. The jobs they came from are the first of
/// the queue.
fn take(queue: &mut Queue, limits: &EmbedderLimits) -> (Vec<Text>, Shares) {
    let n_jobs = queue.jobs.len().min(limits.max_batch_texts);
    let mut picked: Vec<Vec<Text>> = vec![Vec::new(); n_jobs];
    let (mut room, mut n_left) = (limits.max_batch_tokens, limits.max_batch_texts);
    let mut progress = true;
    while progress {
        progress = false;
        for (job, picked) in queue.jobs.iter_mut().zip(&mut picked) {
            let fits = |text: &&mut Text| text.tokens.len() <= room;
            let Some(text) = job.texts.get_mut(job.next).filter(fits) else { continue };
            if n_left == 0 {
                break;
            }
            let text = std::mem::take(text);
            room -= text.tokens.len();
            n_left -= 1;
            job.next += 1;
            picked.push(text);
            progress = true;
        }
    }
    // Jobs none of whose texts fitted go behind those that are in the batch.
    let (mut taken, mut passed) = (VecDeque::new(), VecDeque::new());
    let mut shares = Vec::new();
    let mut texts = Vec::new();
    for picked in picked {
        let Some(job) = queue.jobs.pop_front() else { break };
        if picked.is_empty() {
            passed.push_back(job);
        } else {
            shares.push(picked.len());
            texts.extend(picked);
            taken.push_back(job);
        }
    }
    taken.append(&mut passed);
    taken.append(&mut queue.jobs);
    queue.jobs = taken;
    (texts, shares)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Receiver = oneshot::Receiver<Answer>;

    fn job(lens: &[usize]) -> (Job, Receiver) {
        let (reply, answer) = oneshot::channel();
        let text = |&n: &usize| Text { tokens: vec![n as u32; n], types: Vec::new() };
        (Job { texts: lens.iter().map(text).collect(), next: 0, results: Vec::new(), reply }, answer)
    }

    /// The lengths of the texts of each batch until all have run.
    fn batches(jobs: &[&[usize]], max_batch_tokens: usize, max_batch_texts: usize) -> Vec<Vec<usize>> {
        let limits = EmbedderLimits { max_batch_tokens, max_batch_texts, ..EmbedderLimits::default() };
        let (jobs, _answers): (VecDeque<Job>, Vec<Receiver>) = jobs.iter().map(|lens| job(lens)).unzip();
        let mut queue = Queue { jobs, ..Queue::default() };
        let mut batches = Vec::new();
        while !queue.jobs.is_empty() {
            let (texts, shares) = take(&mut queue, &limits);
            assert_eq!(shares.iter().sum::<usize>(), texts.len());
            batches.push(texts.iter().map(|text| text.tokens.len()).collect());
            let n = shares.len();
            queue.jobs.rotate_left(n);
            queue.jobs.retain(|job| job.next < job.texts.len());
        }
        batches
    }

    #[test]
    fn a_batch_takes_from_every_request_in_turn() {
        assert_eq!(batches(&[&[5, 5, 5, 5], &[3]], 100, 64), [vec![5, 5, 5, 5, 3]]);
        // The short request does not wait for the long one.
        let found = batches(&[&[5, 5, 5, 5], &[3]], 10, 64);
        assert_eq!(found, [vec![5, 3], vec![5, 5], vec![5]]);
        assert_eq!(batches(&[&[1, 1, 1], &[1]], 100, 2), [vec![1, 1], vec![1, 1]]);
    }

    #[test]
    fn a_text_as_long_as_the_budget_gets_its_turn() {
        assert_eq!(batches(&[&[4, 4, 4], &[10]], 10, 64), [vec![4, 4], vec![10], vec![4]]);
        assert_eq!(batches(&[&[10], &[10], &[1]], 10, 64), [vec![10], vec![10], vec![1]]);
    }
}
