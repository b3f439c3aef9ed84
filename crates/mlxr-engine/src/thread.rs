//! An engine on its own thread, and the handle that async code holds.
//!
//! The thread is the only one that touches the engine. Commands reach it through a bounded channel and are looked at
//! between steps; events leave through one channel per client that never makes the thread wait. That channel needs no
//! bound of its own: a request has one event per token, one per choice, one per prompt chunk and a finish, so the
//! context limits what a client that does not read can pile up. A task of the runtime fills those channels, step by step:
//! were the thread to wake the clients' tasks itself, each would take the processor from it before it reached the next.
//!
//! Invariants: an accepted request gets exactly one finish, also when the thread panics; a request whose receiver is
//! gone is cancelled before the next step.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{mpsc, oneshot};

use crate::inspect::{PrefixExplanation, RequestInfo};
use crate::kv::{CacheStats, IntegrityError, KvMap};
use crate::request::Prompt;
use crate::step_loop::panic_text;
use crate::{Engine, EngineStats, Event, FinishReason, Request, RequestId, SubmitError, Timings, Usage};

/// Commands that are not submissions and may wait for the end of a step.
const MAX_OTHER_COMMANDS: usize = 64;

/// How long there has been nothing to do when memory kept for the next step is given back.
const REST_AFTER: Duration = Duration::from_secs(1);

/// Where the events of one or more requests go.
pub type EventSender = mpsc::UnboundedSender<Event>;
/// Dropping it cancels the requests that send to it.
pub type EventReceiver = mpsc::UnboundedReceiver<Event>;

/// A way for events to reach a client.
pub fn event_channel() -> (EventSender, EventReceiver) {
    mpsc::unbounded_channel()
}

/// Events of one step, each with where it goes.
type Deliveries = Vec<(EventSender, Event)>;

/// Passes events on to their clients.
async fn distribute(mut steps: mpsc::UnboundedReceiver<Deliveries>) {
    while let Some(step) = steps.recv().await {
        for (client, event) in step {
            // A client that has gone needs no news, and is cancelled before the next step.
            let _ = client.send(event);
        }
    }
}

/// Why the thread did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineThreadError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error("{n_commands} commands wait for the engine already")]
    Busy { n_commands: usize },
    #[error("the engine is shutting down")]
    Stopping,
    #[error("the engine failed: {reason}")]
    Failed { reason: String },
}

/// What becomes of the requests that run when the thread is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// They finish.
    Drain,
    /// They are cancelled before the next step.
    Cancel,
}

enum Command {
    Submit {
        request: Box<Request>,
        events: EventSender,
        reply: oneshot::Sender<Result<RequestId, EngineThreadError>>,
    },
    Cancel(RequestId),
    CheckIntegrity(oneshot::Sender<Result<(), IntegrityError>>),
    Requests(oneshot::Sender<Vec<RequestInfo>>),
    ExplainPrefix(Prompt, oneshot::Sender<Result<PrefixExplanation, SubmitError>>),
    ClearCache(oneshot::Sender<usize>),
    KvMap(Range<usize>, oneshot::Sender<KvMap>),
    /// Look at the orders.
    Wake,
}

const RUN: u8 = 0;
const DRAIN: u8 = 1;
const CANCEL: u8 = 2;

/// What both sides see without asking.
struct Shared {
    n_ctx: usize,
    max_waiting: usize,
    /// Submissions the thread has not looked at.
    n_unseen: AtomicUsize,
    /// Sequences in the scheduler's queue, kept by the engine.
    n_waiting: Arc<AtomicUsize>,
    orders: AtomicU8,
    stats: Mutex<EngineStats>,
    /// Why the thread ended, once it has.
    end: OnceLock<End>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum End {
    Stopped,
    Failed(String),
}

/// The way to an engine's thread. Cheap to clone; the thread ends when the last clone is gone and its requests are
/// done.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
    commands: SyncSender<Command>,
}

impl EngineHandle {
    /// Moves the engine to a thread of its own; events reach their clients while `runtime` runs.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn spawn(engine: Engine, runtime: &runtime::Handle) -> io::Result<EngineHandle> {
        let max_waiting = engine.max_waiting();
        let (commands, inbox) = sync_channel(max_waiting + MAX_OTHER_COMMANDS);
        let shared = Arc::new(Shared {
            n_ctx: engine.n_ctx(),
            max_waiting,
            n_unseen: AtomicUsize::new(0),
            n_waiting: engine.n_waiting.clone(),
            orders: AtomicU8::new(RUN),
            stats: Mutex::new(engine.stats()),
            end: OnceLock::new(),
            thread: Mutex::new(None),
        });
        let (deliveries, steps) = mpsc::unbounded_channel();
        runtime.spawn(distribute(steps));
        let worker = Worker { engine, inbox, shared: shared.clone(), clients: BTreeMap::new(), deliveries };
        let thread = std::thread::Builder::new().name("mlxr-engine".to_owned()).spawn(|| worker.main())?;
        *lock(&shared.thread) = Some(thread);
        Ok(EngineHandle { shared, commands })
    }

    /// Tokens of one sequence at most.
    pub fn n_ctx(&self) -> usize {
        self.shared.n_ctx
    }

    /// What the engine had done and held after its last step.
    pub fn stats(&self) -> EngineStats {
        *lock(&self.shared.stats)
    }

    /// Why the thread broke down, if it did.
    pub fn failure(&self) -> Option<&str> {
        match self.shared.end.get() {
            Some(End::Failed(reason)) => Some(reason),
            Some(End::Stopped) | None => None,
        }
    }

    /// Hands a request in. A full queue is refused at once, everything else by the engine before its next step. The
    /// request is cancelled when the receiver of `events` is dropped.
    ///
    /// # Errors
    /// [`EngineThreadError`] says why the request was not taken.
    pub async fn submit(
        &self,
        request: Request,
        events: EventSender,
    ) -> Result<RequestId, EngineThreadError> {
        let (reply, answer) = oneshot::channel();
        let unseen = Unseen::claim(&self.shared)?;
        self.send(Command::Submit { request: Box::new(request), events, reply })?;
        unseen.leave_to_thread();
        answer.await.map_err(|_| self.end_error())?
    }

    /// Ends a request before the next step; its finish event still comes.
    ///
    /// # Errors
    /// The engine is gone, or far behind on its commands.
    pub fn cancel(&self, id: RequestId) -> Result<(), EngineThreadError> {
        self.send(Command::Cancel(id))
    }

    /// Balances the books of the KV cache between two steps.
    ///
    /// # Errors
    /// The engine is gone, or far behind on its commands.
    pub async fn check_integrity(&self) -> Result<Result<(), IntegrityError>, EngineThreadError> {
        self.ask(Command::CheckIntegrity).await
    }

    /// Requests that have not finished, oldest first. Those not yet seen by the thread are not among them.
    ///
    /// # Errors
    /// The engine is gone, or far behind on its commands.
    pub async fn requests(&self) -> Result<Vec<RequestInfo>, EngineThreadError> {
        self.ask(Command::Requests).await
    }

    /// How much of a prompt the prefix cache would spare now, and where and why it ends.
    ///
    /// # Errors
    /// The engine is gone, or far behind on its commands; the prompt is empty or cannot be encoded.
    pub async fn explain_prefix(&self, prompt: Prompt) -> Result<PrefixExplanation, EngineThreadError> {
        Ok(self.ask(|reply| Command::ExplainPrefix(prompt, reply)).await??)
    }

    /// What the prefix cache held and had done after the last step.
    pub fn cache_stats(&self) -> CacheStats {
        self.stats().cache
    }

    /// Forgets all cached blocks. Returns how many those were.
    ///
    /// # Errors
    /// The engine is gone, or far behind on its commands.
    pub async fn clear_cache(&self) -> Result<usize, EngineThreadError> {
        self.ask(Command::ClearCache).await
    }

    /// What the blocks of a range hold, at most [`MAX_MAP_BLOCKS`](crate::kv::MAX_MAP_BLOCKS) of them.
    ///
    /// # Errors
    /// The engine is gone, or far behind on its commands.
    pub async fn kv_map(&self, blocks: Range<usize>) -> Result<KvMap, EngineThreadError> {
        self.ask(|reply| Command::KvMap(blocks, reply)).await
    }

    /// Sends a command and waits for its reply.
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, EngineThreadError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply))?;
        answer.await.map_err(|_| self.end_error())
    }

    /// Takes no more requests and ends the thread once those it has are done.
    pub fn shut_down(&self, shutdown: Shutdown) {
        let orders = if shutdown == Shutdown::Drain { DRAIN } else { CANCEL };
        self.shared.orders.fetch_max(orders, Ordering::AcqRel);
        // A thread with a full inbox is awake; one that has ended needs no orders.
        let _ = self.commands.try_send(Command::Wake);
    }

    /// Waits until the thread has ended and given back the engine's memory. Blocks; the first caller waits, later ones
    /// return at once.
    pub fn join(&self) {
        let thread = lock(&self.shared.thread).take();
        if let Some(thread) = thread {
            // Panics of the thread are caught inside it and kept in `end`.
            let _ = thread.join();
        }
    }

    fn send(&self, command: Command) -> Result<(), EngineThreadError> {
        self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => {
                EngineThreadError::Busy { n_commands: self.shared.max_waiting + MAX_OTHER_COMMANDS }
            }
            TrySendError::Disconnected(_) => self.end_error(),
        })
    }

    fn end_error(&self) -> EngineThreadError {
        match self.failure() {
            Some(reason) => EngineThreadError::Failed { reason: reason.to_owned() },
            None => EngineThreadError::Stopping,
        }
    }
}

impl std::fmt::Debug for EngineHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineHandle")
            .field("stats", &self.stats())
            .field("failure", &self.failure())
            .finish()
    }
}

/// A place in the queue for a submission that is on its way to the thread.
struct Unseen<'a>(&'a Shared);

impl Unseen<'_> {
    fn claim(shared: &Shared) -> Result<Unseen<'_>, SubmitError> {
        let n_unseen = shared.n_unseen.fetch_add(1, Ordering::AcqRel);
        let unseen = Unseen(shared);
        let n_waiting = n_unseen + shared.n_waiting.load(Ordering::Acquire);
        if n_waiting >= shared.max_waiting {
            return Err(SubmitError::QueueFull { n_waiting, max_waiting: shared.max_waiting });
        }
        Ok(unseen)
    }

    /// The thread gives the place back when it looks at the submission.
    fn leave_to_thread(self) {
        std::mem::forget(self);
    }
}

impl Drop for Unseen<'_> {
    fn drop(&mut self) {
        self.0.n_unseen.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The thread's side.
struct Worker {
    engine: Engine,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    clients: BTreeMap<RequestId, EventSender>,
    deliveries: mpsc::UnboundedSender<Deliveries>,
}

impl Worker {
    fn main(mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.run()));
        let Worker { engine, clients, shared, inbox, deliveries } = self;
        let end = match result {
            Ok(()) => End::Stopped,
            Err(panic) => {
                let reason = format!("the engine panicked: {}", panic_text(&*panic));
                let finish = |(request, client)| {
                    let reason = FinishReason::Error(reason.clone());
                    let (usage, timings) = (Usage::default(), Timings::default());
                    (client, Event::Finish { request, reason, usage, timings })
                };
                // Without a runtime there are no clients.
                let _ = deliveries.send(clients.into_iter().map(finish).collect());
                End::Failed(reason)
            }
        };
        // Before the inbox goes, so that whoever finds it gone finds the reason.
        let _ = shared.end.set(end);
        drop(inbox);
        drop(engine);
    }

    fn run(&mut self) {
        while self.take_commands() {
            self.cancel_abandoned();
            let events = self.engine.step();
            self.publish();
            self.deliver(events);
        }
    }

    /// Looks at everything in the inbox; waits for something when there is nothing else to do. Returns whether to go
    /// on.
    fn take_commands(&mut self) -> bool {
        if self.engine.is_idle() {
            if self.shared.orders.load(Ordering::Acquire) != RUN {
                return false;
            }
            let command = match self.inbox.recv_timeout(REST_AFTER) {
                Err(RecvTimeoutError::Timeout) => {
                    self.engine.rest();
                    self.inbox.recv().ok()
                }
                received => received.ok(),
            };
            let Some(command) = command else { return false };
            self.obey(command);
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.obey(command);
        }
        if self.shared.orders.load(Ordering::Acquire) == CANCEL {
            for id in self.clients.keys() {
                self.engine.cancel(*id);
            }
        }
        true
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { request, events, reply } => {
                let result = self.accept(*request, events);
                self.shared.n_unseen.fetch_sub(1, Ordering::AcqRel);
                // A client that no longer wants the answer has dropped its receiver too.
                let _ = reply.send(result);
            }
            Command::Cancel(id) => {
                self.engine.cancel(id);
            }
            Command::CheckIntegrity(reply) => {
                let _ = reply.send(self.engine.check_integrity());
            }
            Command::Requests(reply) => {
                let _ = reply.send(self.engine.requests());
            }
            Command::ExplainPrefix(prompt, reply) => {
                let _ = reply.send(self.engine.explain_prefix(&prompt));
            }
            Command::KvMap(range, reply) => {
                let _ = reply.send(self.engine.kv_map(range.start, range.len()));
            }
            Command::ClearCache(reply) => {
                let n_blocks = self.engine.clear_cache();
                self.publish();
                let _ = reply.send(n_blocks);
            }
            Command::Wake => {}
        }
    }

    fn accept(&mut self, request: Request, events: EventSender) -> Result<RequestId, EngineThreadError> {
        if self.shared.orders.load(Ordering::Acquire) != RUN {
            return Err(EngineThreadError::Stopping);
        }
        let id = self.engine.submit(request)?;
        self.clients.insert(id, events);
        Ok(id)
    }

    /// Cancels requests nobody listens to any more.
    fn cancel_abandoned(&mut self) {
        let engine = &mut self.engine;
        self.clients.retain(|id, client| {
            let is_gone = client.is_closed();
            if is_gone {
                engine.cancel(*id);
            }
            !is_gone
        });
    }

    fn publish(&self) {
        *lock(&self.shared.stats) = self.engine.stats();
    }

    fn deliver(&mut self, events: Vec<Event>) {
        let mut step = Deliveries::with_capacity(events.len());
        for event in events {
            let id = event.request();
            let is_last = matches!(event, Event::Finish { .. });
            let client = if is_last { self.clients.remove(&id) } else { self.clients.get(&id).cloned() };
            step.extend(client.map(|client| (client, event)));
        }
        if !step.is_empty() {
            // Without a runtime there are no clients.
            let _ = self.deliveries.send(step);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
