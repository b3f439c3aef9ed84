//! The engine on its own thread: what clients see, and what happens when they go away.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock};

use mlxr_engine::{
    Engine, EngineHandle, EngineOptions, EngineThreadError, Event, EventReceiver, FinishReason, Prompt,
    Request, RequestState, Runner, SamplingParams, Shutdown, SubmitError, event_channel,
};
use mlxr_tensor::{Batch, BlockCopy, TensorError};
use tokio::runtime::{Builder, Runtime};

use crate::fake::{self, FakeRunner, N_VOCAB};

/// Tasks run while a test waits.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().unwrap());

fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.block_on(future)
}

fn spawn(engine: Engine) -> EngineHandle {
    EngineHandle::spawn(engine, RUNTIME.handle()).unwrap()
}

fn request(n_prompt: u32, max_tokens: usize) -> Request {
    Request {
        sampling: SamplingParams { ignore_eos: true, seed: Some(7), ..SamplingParams::default() },
        max_tokens: Some(max_tokens),
        ..Request::new(Prompt::Tokens((0..n_prompt).map(|i| 3 + i % 200).collect()))
    }
}

/// Every token of a request and how it ended.
async fn collect(events: &mut EventReceiver) -> (Vec<u32>, FinishReason) {
    let mut ids = Vec::new();
    loop {
        match events.recv().await.expect("an accepted request finishes") {
            Event::Token { id, .. } => ids.push(id),
            Event::Finish { reason, .. } => return (ids, reason),
            _ => {}
        }
    }
}

/// A runner that says when it starts a forward and waits for permission to do it.
struct Gate {
    inner: FakeRunner,
    started: Sender<()>,
    go: Receiver<()>,
}

impl Runner for Gate {
    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        // A test that is over neither listens nor sends any more.
        let _ = self.started.send(());
        let _ = self.go.recv();
        self.inner.run(copies, batch)
    }
}

struct Gated {
    handle: EngineHandle,
    started: Receiver<()>,
    go: Sender<()>,
}

fn gated(max_waiting: usize) -> Gated {
    let (started_send, started) = channel();
    let (go, go_receive) = channel();
    let options = EngineOptions { max_waiting, max_seqs: 2, ..EngineOptions::default() };
    let inner = FakeRunner::new(64, options.block_tokens, Box::new(fake::hashed));
    let gate = Gate { inner, started: started_send, go: go_receive };
    let engine = Engine::with_runner(Box::new(gate), fake::tokenizer(), 64, &options).unwrap();
    Gated { handle: spawn(engine), started, go }
}

/// A runner that says when it runs and when it is told to rest.
struct Resting {
    inner: FakeRunner,
    said: Sender<&'static str>,
}

impl Runner for Resting {
    fn n_vocab(&self) -> usize {
        N_VOCAB
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        let _ = self.said.send("ran");
        self.inner.run(copies, batch)
    }

    fn rest(&mut self) {
        let _ = self.said.send("rested");
    }
}

#[test]
fn a_runner_with_nothing_to_do_is_told_to_rest() {
    let (send, said) = channel();
    let options = EngineOptions::default();
    let inner = FakeRunner::new(64, options.block_tokens, Box::new(fake::hashed));
    let runner = Resting { inner, said: send };
    let handle = spawn(Engine::with_runner(Box::new(runner), fake::tokenizer(), 64, &options).unwrap());
    for _ in 0..2 {
        block_on(async {
            let (send, mut events) = event_channel();
            handle.submit(request(4, 3), send).await.unwrap();
            assert_eq!(collect(&mut events).await.1, FinishReason::Length);
        });
        // A request may come after a rest, and never does a rest come between the steps of one.
        let mut runs = said.iter().skip_while(|&word| word == "rested").take_while(|&word| word == "ran");
        assert_eq!(runs.by_ref().count(), 3);
    }
    handle.shut_down(Shutdown::Drain);
    handle.join();
}

#[test]
fn requests_through_the_thread_give_what_the_engine_gives() {
    let expected = fake::run(&mut fake::roomy(), request(20, 12)).choices[&0].ids.clone();
    let handle = spawn(fake::roomy());
    block_on(async {
        let mut streams = Vec::new();
        for _ in 0..8 {
            let (send, receive) = event_channel();
            handle.submit(request(20, 12), send).await.unwrap();
            streams.push(receive);
        }
        for mut events in streams {
            assert_eq!(collect(&mut events).await, (expected.clone(), FinishReason::Length));
        }
        assert_eq!(handle.check_integrity().await.unwrap(), Ok(()));
    });
    let blocks = handle.stats().blocks;
    assert_eq!(blocks.n_free, blocks.n_blocks);
}

#[test]
fn a_dropped_receiver_cancels_before_the_next_step() {
    let Gated { handle, started, go } = gated(4);
    block_on(async {
        let (send, events) = event_channel();
        handle.submit(request(40, 1000), send).await.unwrap();
        started.recv().unwrap();
        drop(events);
    });
    drop(go);
    handle.shut_down(Shutdown::Drain);
    handle.join();
    let stats = handle.stats();
    assert_eq!((stats.n_steps, stats.n_running), (1, 0));
    assert_eq!(stats.blocks.n_free, stats.blocks.n_blocks);
    assert!(started.try_recv().is_err(), "no forward ran for a client that had gone");
}

#[test]
fn a_full_queue_is_refused_while_a_forward_runs() {
    let Gated { handle, started, go } = gated(2);
    block_on(async {
        let (send, mut running) = event_channel();
        handle.submit(request(4, 3), send).await.unwrap();
        started.recv().unwrap();
        // The thread is inside a forward: these two are on their way to it, the third finds no room.
        let (send, mut waiting) = event_channel();
        let mut first = Box::pin(handle.submit(request(4, 3), send.clone()));
        let mut second = Box::pin(handle.submit(request(4, 3), send.clone()));
        assert!(is_pending(&mut first) && is_pending(&mut second));
        let refused = handle.submit(request(4, 3), send).await.unwrap_err();
        let EngineThreadError::Submit(SubmitError::QueueFull { n_waiting: 2, max_waiting: 2 }) = refused
        else {
            panic!("{refused:?}");
        };
        drop(go);
        first.await.unwrap();
        second.await.unwrap();
        assert_eq!(collect(&mut running).await.1, FinishReason::Length);
        for _ in 0..2 {
            assert_eq!(collect(&mut waiting).await.1, FinishReason::Length);
        }
        // There is room again.
        let (send, mut events) = event_channel();
        handle.submit(request(4, 3), send).await.unwrap();
        assert_eq!(collect(&mut events).await.1, FinishReason::Length);
    });
}

fn is_pending<T>(future: &mut (impl Future<Output = T> + Unpin)) -> bool {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut cx).is_pending()
}

#[test]
fn requests_are_listed_with_their_state_and_progress() {
    let Gated { handle, started, go } = gated(4);
    block_on(async {
        let (send, mut events) = event_channel();
        let labelled = Request { label: Some("first".to_owned()), priority: 2, ..request(10, 3) };
        let id = handle.submit(labelled, send.clone()).await.unwrap();
        started.recv().unwrap();
        // The thread is inside a forward and answers after it: one token is there by then, and another request.
        let mut second = Box::pin(handle.submit(request(5, 3), send));
        let mut listed = Box::pin(handle.requests());
        assert!(is_pending(&mut second) && is_pending(&mut listed));
        drop(go);
        let waiting = second.await.unwrap();
        let found = listed.await.unwrap();
        assert_eq!(found.iter().map(|info| info.id).collect::<Vec<_>>(), [id, waiting]);
        assert_eq!((found[0].label.as_deref(), found[0].priority), (Some("first"), 2));
        assert_eq!((found[0].state, found[1].state), (RequestState::Decoding, RequestState::Waiting));
        assert_eq!((found[0].n_prompt, found[0].n_done_prompt, found[0].n_generated), (10, 10, 1));
        assert_eq!((found[1].n_prompt, found[1].n_done_prompt, found[1].n_generated), (5, 0, 0));
        for _ in 0..2 {
            collect(&mut events).await;
        }
        assert_eq!(handle.requests().await.unwrap(), []);
    });
}

#[test]
fn cancel_ends_a_request_with_its_finish() {
    let Gated { handle, started, go } = gated(4);
    block_on(async {
        let (send, mut events) = event_channel();
        let id = handle.submit(request(10, 1000), send).await.unwrap();
        started.recv().unwrap();
        handle.cancel(id).unwrap();
        drop(go);
        let (ids, reason) = collect(&mut events).await;
        assert_eq!((ids.len(), reason), (1, FinishReason::Cancelled));
    });
}

#[test]
fn a_draining_thread_finishes_what_it_has_and_takes_no_more() {
    let Gated { handle, started, go } = gated(4);
    block_on(async {
        let (send, mut events) = event_channel();
        handle.submit(request(10, 5), send.clone()).await.unwrap();
        started.recv().unwrap();
        handle.shut_down(Shutdown::Drain);
        let mut late = Box::pin(handle.submit(request(10, 5), send.clone()));
        assert!(is_pending(&mut late));
        drop(go);
        assert!(matches!(late.await, Err(EngineThreadError::Stopping)));
        assert_eq!(collect(&mut events).await, (collect_alone(request(10, 5)), FinishReason::Length));
        handle.join();
        let refused = handle.submit(request(10, 5), send).await.unwrap_err();
        assert!(matches!(refused, EngineThreadError::Stopping), "{refused:?}");
    });
}

fn collect_alone(request: Request) -> Vec<u32> {
    fake::run(&mut fake::roomy(), request).choices[&0].ids.clone()
}

#[test]
fn a_cancelling_shutdown_ends_every_request() {
    let Gated { handle, started, go } = gated(4);
    block_on(async {
        let (send, mut events) = event_channel();
        handle.submit(request(10, 1000), send).await.unwrap();
        started.recv().unwrap();
        handle.shut_down(Shutdown::Cancel);
        drop(go);
        assert_eq!(collect(&mut events).await.1, FinishReason::Cancelled);
    });
    handle.join();
}

/// Panics where the engine does not expect it.
struct Broken {
    inner: FakeRunner,
    is_broken: Arc<AtomicBool>,
}

impl Runner for Broken {
    fn n_vocab(&self) -> usize {
        assert!(!self.is_broken.load(Ordering::Acquire), "the vocabulary is gone");
        N_VOCAB
    }

    fn run(&mut self, copies: &[BlockCopy], batch: &Batch) -> Result<Vec<f32>, TensorError> {
        let logits = self.inner.run(copies, batch)?;
        self.is_broken.store(true, Ordering::Release);
        Ok(logits)
    }
}

#[test]
fn a_panic_of_the_thread_reaches_every_client_and_marks_the_handle() {
    let options = EngineOptions::default();
    let inner = FakeRunner::new(64, options.block_tokens, Box::new(fake::hashed));
    let runner = Broken { inner, is_broken: Arc::default() };
    let engine = Engine::with_runner(Box::new(runner), fake::tokenizer(), 64, &options).unwrap();
    let handle = spawn(engine);
    block_on(async {
        let (send, mut events) = event_channel();
        // With log-probabilities, for which the engine cuts the logits into rows itself.
        handle.submit(Request { logprobs: Some(0), ..request(10, 5) }, send).await.unwrap();
        let (ids, reason) = collect(&mut events).await;
        assert!(ids.is_empty());
        let FinishReason::Error(reason) = reason else { panic!("{reason:?}") };
        assert!(reason.contains("the vocabulary is gone"), "{reason}");
        handle.join();
        assert_eq!(handle.failure(), Some(reason.as_str()));
        let (send, _events) = event_channel();
        let refused = handle.submit(request(10, 5), send).await.unwrap_err();
        assert!(matches!(refused, EngineThreadError::Failed { .. }), "{refused:?}");
    });
}
