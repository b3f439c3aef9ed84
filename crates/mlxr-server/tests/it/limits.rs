//! What a client cannot do to the others: bodies, headers and connections that are too large, too slow or too many.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mlxr_engine::EngineOptions;
use mlxr_server::{App, Keys, Limits, Listeners, serve};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::harness::{HOUSE, app_with, assert_idle};

const SHORT: Duration = Duration::from_millis(100);

struct Server {
    app: Arc<App>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<std::io::Result<()>>,
}

fn start(limits: Limits) -> Server {
    let app: Arc<App> = app_with(EngineOptions::default(), limits);
    let mut listeners = Listeners::new(Duration::from_secs(60));
    let address = listeners.tcp(SocketAddr::from(([127, 0, 0, 1], 0)), &[], &Keys::default()).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let wait = async move {
        let _ = stopped.await;
    };
    let done = tokio::spawn(serve(app.clone(), listeners, wait));
    Server { app, address, stop, done }
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    async fn check_health(&self) {
        let stream = self.send("GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        let answer = rest(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    /// It still answers, and ends as it should.
    async fn close_unharmed(self) {
        self.check_health().await;
        self.stop.send(()).unwrap();
        self.done.await.unwrap().unwrap();
    }
}

/// What comes until the server closes the connection, or breaks it off.
async fn rest(mut stream: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    // A reset after the answer, because we had more to say, is no news.
    let _ = read.expect("the server closes the connection");
    String::from_utf8(answer).unwrap()
}

fn head(n_bytes: usize) -> String {
    format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {n_bytes}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_refused_by_their_announcement_and_as_they_come() {
    const MEGABYTES: usize = 10 << 20;
    let server = start(Limits { max_body_bytes: 1 << 20, ..Limits::default() });
    // Announced: the answer comes without a byte of it.
    let mut stream = server.send(&format!("{}\r\n", head(MEGABYTES))).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    drop(stream);
    // In chunks, nobody knows how many.
    let chunked = "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let (mut read, mut write) = server.send(chunked).await.into_split();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    let writing = tokio::spawn(async move {
        for _ in 0..MEGABYTES / 0x10000 {
            // It fails once the server has heard enough.
            if write.write_all(chunk.as_bytes()).await.is_err() {
                break;
            }
        }
    });
    read.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
    drop(read);
    writing.await.unwrap();
    server.close_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_within_the_limit_are_read_and_judged() {
    let server = start(Limits::default());
    let body = "[".repeat(10 << 20);
    let stream = server.send(&format!("{}Connection: close\r\n\r\n{body}", head(body.len()))).await;
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("invalid_request_error"), "{answer}");
    server.close_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_trickle_are_given_up() {
    let server = start(Limits { header_timeout: SHORT, ..Limits::default() });
    let (mut read, mut write) = server.send("GET /health HTTP/1.1\r\n").await.into_split();
    let trickle = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SHORT / 10);
        // Each line is quick; together they would never end.
        while write.write_all(b"x: y\r\n").await.is_ok() {
            ticks.tick().await;
        }
    });
    let mut answer = Vec::new();
    // Broken off, or closed.
    let _ = tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    trickle.await.unwrap();
    server.close_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_headers_are_refused() {
    let server = start(Limits::default());
    let fields = "x-a: b\r\n".repeat(20_000);
    let mut stream = server.connect().await;
    let text = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n");
    let _ = stream.write_all(text.as_bytes()).await;
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
    server.close_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_is_given_up() {
    let server = start(Limits { body_timeout: SHORT, ..Limits::default() });
    let stream = server.send(&format!("{}Connection: close\r\n\r\n{{", head(100))).await;
    let answer = rest(stream).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    server.close_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_is_given_up() {
    let server = start(Limits { body_deadline: 5 * SHORT, ..Limits::default() });
    let head = format!("{}Connection: close\r\n\r\n", head(1 << 20));
    let (mut read, mut write) = server.send(&head).await.into_split();
    let trickle = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SHORT / 10);
        while write.write_all(b" ").await.is_ok() {
            ticks.tick().await;
        }
    });
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(60), read.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    trickle.await.unwrap();
    server.close_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room_for_others() {
    let limits = Limits { header_timeout: SHORT, max_connections: 2, ..Limits::default() };
    let server = start(limits);
    // One that never says anything, and one that has had its answer.
    let silent = server.connect().await;
    let mut kept = server.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let mut answer = [0; 15];
    kept.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    // Both take the two places there are; the third gets its turn when they are sent away.
    server.close_unharmed().await;
    assert_eq!(rest(silent).await, "");
    rest(kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_is_sent_away_and_frees_what_it_held() {
    const N_CHOICES: u64 = 4;
    const N_TOKENS: u64 = 1500;
    let server = start(Limits { write_timeout: SHORT, max_connections: 1, ..Limits::default() });
    // Each token brings two kilobytes: together more than all buffers on the way hold.
    let body = json!({
        "model": HOUSE, "messages": [{"role": "user", "content": "Tell me a long story."}], "n": N_CHOICES,
        "max_tokens": N_TOKENS, "ignore_eos": true, "stream": true, "logprobs": true, "top_logprobs": 20,
    });
    let body = body.to_string();
    let head =
        format!("POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}", body.len());
    let socket = TcpSocket::new_v4().unwrap();
    // What it does not read fills little of the system's memory.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stubborn = socket.connect(server.address).await.unwrap();
    stubborn.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    // There is one connection at a time: this one begins when the other has ended.
    server.check_health().await;
    assert_idle(&server.app, HOUSE).await;
    let lease = server.app.models.acquire(HOUSE).await.unwrap();
    assert!(lease.engine.stats().n_generated < N_CHOICES * N_TOKENS, "it did not run to its end");
    drop((lease, stubborn));
    server.close_unharmed().await;
}
