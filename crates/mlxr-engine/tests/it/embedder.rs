//! The embedder's thread: shared batches change nothing, limits hold, and who leaves costs nothing.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use mlxr_checkpoint::Checkpoint;
use mlxr_engine::{EmbedError, EmbedderHandle, EmbedderLimits, Shutdown};
use mlxr_kernels::{CpuBackend, CpuOptions};
use mlxr_models::{Embedder, ModelOptions, Placement, Text};

const N_CTX: usize = 128;
/// Takes long enough for whatever is to happen meanwhile.
const N_TEXTS: usize = 20_000;

fn embedder() -> Arc<Embedder> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/embeddings/bert");
    let backend = CpuBackend::new(CpuOptions { n_threads: Some(1), isa: None }).unwrap();
    let ckpt = Checkpoint::open(&path).unwrap();
    Arc::new(Embedder::load(&ckpt, &Placement::whole(Arc::new(backend)), &ModelOptions::default()).unwrap())
}

fn spawn(limits: EmbedderLimits) -> EmbedderHandle {
    EmbedderHandle::spawn(embedder(), limits).unwrap()
}

fn text(seed: u32, n_tokens: u32) -> Text {
    let token = |i| 5 + (seed * 31 + i * 7) % 100;
    Text { tokens: (0..n_tokens).map(token).collect(), types: Vec::new() }
}

#[test]
fn many_requests_at_once_get_what_each_gets_alone() {
    let limits = EmbedderLimits { max_batch_texts: 5, max_batch_tokens: N_CTX, ..EmbedderLimits::default() };
    let handle = spawn(limits);
    let requests: Vec<Vec<Text>> = (0..12)
        .map(|i| (0..=i % 4).map(|j| text(i * 4 + j, 1 + (i * 13 + j * 29) % 128)).collect())
        .collect();
    let alone: Vec<_> = requests.iter().map(|texts| handle.run_blocking(texts.clone()).unwrap()).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = requests
            .iter()
            .map(|texts| scope.spawn(|| handle.run_blocking(texts.clone()).unwrap()))
            .collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    let stats = handle.stats();
    assert_eq!((stats.n_waiting, stats.n_texts), (0, 2 * 30));
    assert_eq!(handle.run_blocking(Vec::new()), Ok(Vec::new()));
}

#[test]
fn texts_that_cannot_run_are_refused_by_name() {
    let handle = spawn(EmbedderLimits::default());
    let refused = |bad: Text| handle.run_blocking(vec![text(0, 3), bad]).unwrap_err();
    assert_eq!(refused(Text::default()), EmbedError::Empty { index: 1 });
    let error = refused(text(0, 129));
    assert_eq!(error, EmbedError::TooLong { index: 1, n_tokens: 129, n_ctx: N_CTX });
    assert!(error.to_string().contains("129") && error.to_string().contains("128"));
    let unknown = Text { tokens: vec![5, u32::MAX], types: Vec::new() };
    assert!(matches!(refused(unknown), EmbedError::NoSuchToken { index: 1, token: u32::MAX, .. }));
    assert_eq!(handle.stats().n_batches, 0, "nothing of a refused request runs");
    let few = spawn(EmbedderLimits { max_texts: 1, ..EmbedderLimits::default() });
    let many = few.run_blocking(vec![text(0, 3), text(1, 3)]);
    assert_eq!(many, Err(EmbedError::TooManyTexts { n_texts: 2, max_texts: 1 }));
}

#[test]
fn a_full_queue_refuses_at_once() {
    let none = spawn(EmbedderLimits { max_waiting: 0, ..EmbedderLimits::default() });
    let full = EmbedError::QueueFull { n_waiting: 0, max_waiting: 0 };
    assert_eq!(none.run_blocking(vec![text(0, 3)]), Err(full));
    let few = spawn(EmbedderLimits { max_waiting_tokens: 10, ..EmbedderLimits::default() });
    let much = EmbedError::TooMuch { n_tokens: 12, max_tokens: 10 };
    assert_eq!(few.run_blocking(vec![text(0, 6), text(1, 6)]), Err(much));
    assert_eq!(few.run_blocking(vec![text(0, 10)]).map(|vectors| vectors.len()), Ok(1));
}

#[test]
fn a_request_whose_client_has_gone_is_dropped() {
    let handle =
        spawn(EmbedderLimits { max_batch_texts: 1, max_texts: N_TEXTS, ..EmbedderLimits::default() });
    let texts = (0..N_TEXTS as u32).map(|i| text(i, 9)).collect();
    let mut asked = Box::pin(handle.run(texts));
    assert!(matches!(asked.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    drop(asked);
    handle.run_blocking(vec![text(0, 9)]).unwrap();
    let stats = handle.stats();
    assert!(stats.n_texts < N_TEXTS as u64, "{stats:?}");
    assert_eq!(stats.n_waiting, 0);
}

#[test]
fn the_end_finishes_what_waits_or_drops_it() {
    let handle = spawn(EmbedderLimits::default());
    let expected = handle.run_blocking(vec![text(0, 9)]).unwrap();
    let mut waits = Box::pin(handle.run(vec![text(0, 9)]));
    let mut cx = Context::from_waker(Waker::noop());
    let first = waits.as_mut().poll(&mut cx);
    handle.shut_down(Shutdown::Drain);
    handle.join();
    let found = if first.is_ready() { first } else { waits.as_mut().poll(&mut cx) };
    assert_eq!(found, Poll::Ready(Ok(expected)));
    assert_eq!(handle.run_blocking(vec![text(0, 9)]), Err(EmbedError::Stopping));

    let handle =
        spawn(EmbedderLimits { max_batch_texts: 1, max_texts: N_TEXTS, ..EmbedderLimits::default() });
    let mut waits = Box::pin(handle.run((0..N_TEXTS as u32).map(|i| text(i, 9)).collect()));
    assert!(waits.as_mut().poll(&mut cx).is_pending());
    handle.shut_down(Shutdown::Cancel);
    handle.join();
    assert_eq!(waits.as_mut().poll(&mut cx), Poll::Ready(Err(EmbedError::Stopping)));
}
