//! Real sockets: who is let in, how connections end, how the server does.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mlxr_engine::EngineOptions;
use mlxr_server::{App, Keys, Limits, ListenError, Listeners, Tokens, serve};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::harness::{HOUSE, TINY, app_with, assert_idle, until};

struct Server {
    app: Arc<App>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<std::io::Result<()>>,
}

fn start(limits: Limits, tokens: &Tokens, socket: Option<&Path>, grace: Duration) -> Server {
    let app = app_with(EngineOptions::default(), limits);
    let mut listeners = Listeners::new(grace);
    let address = listeners.tcp(SocketAddr::from(([127, 0, 0, 1], 0)), &[], &tokens.clone().into()).unwrap();
    if let Some(path) = socket {
        listeners.unix(path).unwrap();
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let wait = async move {
        let _ = stopped.await;
    };
    let done = tokio::spawn(serve(app.clone(), listeners, wait));
    Server { app, address, stop, done }
}

const GRACE: Duration = Duration::from_secs(60);

fn plain() -> Server {
    start(Limits::default(), &Tokens::default(), None, GRACE)
}

impl Server {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn close(self) {
        self.stop.send(()).unwrap();
        self.done.await.unwrap().unwrap();
        assert!(TcpStream::connect(self.address).await.is_err(), "nobody listens any more");
    }
}

fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a request on a connection that ends with its answer.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    method: &str,
    path: &str,
    headers: &str,
) -> String {
    let text = request(method, path, &format!("Connection: close\r\n{headers}"), "");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn endless(model: &str) -> String {
    json!({"model": model, "prompt": "Once", "max_tokens": 1500, "ignore_eos": true, "stream": true})
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unix_socket_is_its_owner_s_alone_and_goes_with_the_server() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mlxr.sock");
    let server = start(Limits::default(), &Tokens::default(), Some(&path), GRACE);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let answer = exchange(UnixStream::connect(&path).await.unwrap(), "GET", "/v1/models", "").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"tiny\""), "{answer}");
    let mut second = Listeners::new(GRACE);
    assert!(matches!(second.unix(&path), Err(ListenError::Taken { .. })));
    server.close().await;
    assert!(!path.exists());
    // What a killed server leaves behind is no obstacle.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    second.unix(&path).unwrap();
    drop(second);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_kept_out() {
    let server = plain();
    let rebound = "GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    let mut stream = server.connect().await;
    stream.write_all(rebound.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let answer =
        exchange(server.connect().await, "GET", "/v1/models", "Origin: https://evil.example\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("permission_error"), "{answer}");
    let local = "Origin: http://localhost:3000\r\n";
    let answer = exchange(server.connect().await, "GET", "/v1/models", local).await;
    let allowed = "access-control-allow-origin: http://localhost:3000\r\n";
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(allowed), "{answer}");
    server.close().await;

    let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let refused = Listeners::new(GRACE).tcp(everywhere, &[], &Keys::default()).unwrap_err();
    assert!(matches!(refused, ListenError::KeyNeeded { .. }), "{refused}");

    let server = start(Limits::default(), &Tokens::new(["0123456789abcdef"]), None, GRACE);
    let answer = exchange(server.connect().await, "GET", "/v1/models", "").await;
    assert!(
        answer.starts_with("HTTP/1.1 401") && answer.contains("www-authenticate: Bearer realm=\"mlxr\"\r\n"),
        "{answer}"
    );
    let preflight = format!("{local}Access-Control-Request-Method: POST\r\n");
    let answer = exchange(server.connect().await, "OPTIONS", "/v1/models", &preflight).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(allowed), "{answer}");
    let with_token = "Authorization: Bearer 0123456789abcdef\r\n";
    let answer = exchange(server.connect().await, "GET", "/v1/models", with_token).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_in_mid_stream_or_mid_answer_frees_everything() {
    let server = plain();
    let lease = server.app.models.acquire(HOUSE).await.unwrap();
    let whole = endless(HOUSE).replace("true}", "false}");
    assert_ne!(whole, endless(HOUSE));
    for body in [endless(HOUSE), whole] {
        let mut stream = server.connect().await;
        stream.write_all(request("POST", "/v1/completions", "", &body).as_bytes()).await.unwrap();
        until(|| lease.engine.stats().n_running == 1).await;
        drop(stream);
        assert_idle(&server.app, HOUSE).await;
    }
    assert!(lease.engine.stats().n_generated < 3000, "they did not run to their ends");
    drop(lease);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_do_not_end_are_given_up() {
    let limits = Limits { header_timeout: Duration::from_millis(50), ..Limits::default() };
    let server = start(limits, &Tokens::default(), None, GRACE);
    let mut stream = server.connect().await;
    stream.write_all(b"GET /health HTTP/1.1\r\nHost: loc").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = exchange(server.connect().await, "GET", "/health", "").await;
    assert!(answer.ends_with(r#"{"status":"ok"}"#), "{answer}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_and_do_not_keep_the_server_from_stopping() {
    let limits = Limits { max_connections: 1, ..Limits::default() };
    let server = start(limits, &Tokens::default(), None, GRACE);
    let mut first = server.connect().await;
    first.write_all(request("GET", "/health", "", "").as_bytes()).await.unwrap();
    let mut answer = [0; 15];
    first.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    let waiting = tokio::spawn(exchange(server.connect().await, "GET", "/health", ""));
    drop(first);
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200 OK"));
    // One that stays open without a request in it.
    let idle = server.connect().await;
    server.close().await;
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_finishes_its_answers() {
    let server = plain();
    let lease = server.app.models.acquire(TINY).await.unwrap();
    let body = endless(TINY).replace("1500", "200");
    let mut stream = server.connect().await;
    stream.write_all(request("POST", "/v1/completions", "", &body).as_bytes()).await.unwrap();
    until(|| lease.engine.stats().n_running == 1).await;
    drop(lease);
    server.close().await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(r#""finish_reason":"length""#) && answer.contains("data: [DONE]"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_must_not_wait_cancels_its_answers() {
    let server = start(Limits::default(), &Tokens::default(), None, Duration::ZERO);
    let lease = server.app.models.acquire(HOUSE).await.unwrap();
    let mut stream = server.connect().await;
    stream.write_all(request("POST", "/v1/completions", "", &endless(HOUSE)).as_bytes()).await.unwrap();
    until(|| lease.engine.stats().n_running == 1).await;
    drop(lease);
    server.close().await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\"cancelled\"") && !answer.contains("[DONE]"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_ends_the_server_and_what_runs_finishes_or_not() {
    for (force, n_tokens, end) in
        [("{}", "200", "data: [DONE]"), (r#"{"force": true}"#, "1500", "\"cancelled\"")]
    {
        let server = plain();
        let lease = server.app.models.acquire(HOUSE).await.unwrap();
        let mut running = server.connect().await;
        let body = endless(HOUSE).replace("1500", n_tokens);
        running.write_all(request("POST", "/v1/completions", "", &body).as_bytes()).await.unwrap();
        until(|| lease.engine.stats().n_running == 1).await;
        drop(lease);
        let mut stream = server.connect().await;
        stream.write_all(request("POST", "/mlxr/v1/shutdown", "", force).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(r#""n_running":1"#), "{answer}");
        server.done.await.unwrap().unwrap();
        let mut answer = String::new();
        running.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains(end), "{answer}");
    }
}
