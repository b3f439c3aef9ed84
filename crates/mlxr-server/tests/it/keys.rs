//! Keys on a listener: what they open, how they are refused in each dialect, what they may use.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mlxr_engine::EngineOptions;
use mlxr_server::{App, ClientLimits, KeyFile, Keys, Limits, Listeners, NewKey, Scope, Tokens, serve};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::harness::{TINY, app_with, until};

struct Server {
    dir: tempfile::TempDir,
    file: KeyFile,
    app: Arc<App>,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    done: JoinHandle<std::io::Result<()>>,
}

async fn start(limits: Limits) -> Server {
    let dir = tempfile::tempdir().unwrap();
    let file = KeyFile::new(dir.path().join("keys.json"));
    let keys = Keys::new(Tokens::default(), Some(file.clone())).unwrap();
    let app = app_with(EngineOptions::default(), limits);
    let mut listeners = Listeners::new(Duration::from_secs(60));
    let address = listeners.tcp(SocketAddr::from(([127, 0, 0, 1], 0)), &[], &keys).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let wait = async move {
        let _ = stopped.await;
    };
    let done = tokio::spawn(serve(app.clone(), listeners, wait));
    Server { dir, file, app, address, stop, done }
}

/// An answer off the wire.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let field = |line: &'_ str| line.split_once(": ").filter(|(known, _)| *known == name).is_some();
        self.head.lines().find(|line| field(line)).and_then(|line| Some(line.split_once(": ")?.1))
    }
}

impl Server {
    fn key(&self, name: &str, scope: Scope, limits: ClientLimits) -> String {
        let new = NewKey { name: name.to_owned(), scopes: BTreeSet::from([scope]), expires_s: None, limits };
        self.file.create(new).unwrap().secret
    }

    async fn ask(&self, method: &str, path: &str, headers: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}");
        let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    async fn get(&self, path: &str, secret: &str) -> Answer {
        self.ask("GET", path, &format!("Authorization: Bearer {secret}\r\n"), &Value::Null).await
    }

    async fn complete(&self, secret: &str, max_tokens: usize) -> Answer {
        let body = json!({"model": TINY, "prompt": [5, 6, 7], "max_tokens": max_tokens, "ignore_eos": true});
        self.ask("POST", "/v1/completions", &format!("Authorization: Bearer {secret}\r\n"), &body).await
    }

    /// Returns the folder of the keys.
    async fn close(self) -> tempfile::TempDir {
        self.stop.send(()).unwrap();
        self.done.await.unwrap().unwrap();
        self.dir
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_made_and_revoked_while_it_runs_count_at_once() {
    let server = start(Limits::default()).await;
    let nothing = |path: &'static str| server.ask("GET", path, "", &Value::Null);
    assert_eq!(nothing("/v1/models").await.status, 200, "without keys loopback is open");
    let secret = server.key("a", Scope::Inference, ClientLimits::default());
    assert_eq!(nothing("/v1/models").await.status, 401);
    assert_eq!(server.get("/v1/models", &secret).await.status, 200);
    server.file.revoke("a").unwrap();
    assert_eq!(server.get("/v1/models", &secret).await.status, 401);
    let (file, address) = (server.file.clone(), server.address);
    let used = server.key("b", Scope::Inference, ClientLimits::default());
    assert_eq!(server.get("/v1/models", &used).await.status, 200);
    let _dir = server.close().await;
    assert!(TcpStream::connect(address).await.is_err());
    let id = &file.read().unwrap()[0].id;
    assert!(file.last_used().contains_key(id), "written down at the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_wrong_key_is_refused_in_the_dialect_of_the_route() {
    let server = start(Limits::default()).await;
    server.key("a", Scope::Inference, ClientLimits::default());
    for (headers, challenge, text) in [
        ("", r#"Bearer realm="mlxr""#, "an API key is needed"),
        ("x-api-key: mlxr-00\r\n", r#"Bearer realm="mlxr", error="invalid_token""#, "is not valid"),
    ] {
        let body = json!({});
        let ask = |path: &'static str| server.ask("POST", path, headers, &body);
        let openai = ask("/v1/chat/completions").await;
        assert_eq!((openai.status, openai.header("www-authenticate")), (401, Some(challenge)));
        let error = &openai.json()["error"];
        assert_eq!(
            (&error["type"], &error["code"]),
            (&json!("authentication_error"), &json!("invalid_api_key"))
        );
        assert!(error["message"].as_str().unwrap().contains(text), "{error}");
        let ollama = ask("/api/chat").await;
        assert_eq!((ollama.status, ollama.header("www-authenticate")), (401, Some(challenge)));
        assert!(ollama.json()["error"].as_str().unwrap().contains(text), "{}", ollama.body);
        let anthropic = ask("/v1/messages").await;
        assert_eq!((anthropic.status, anthropic.header("www-authenticate")), (401, Some(challenge)));
        assert_eq!(anthropic.json()["error"]["type"], "authentication_error");
    }
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_what_its_scope_says() {
    let server = start(Limits::default()).await;
    let plain = server.key("plain", Scope::Inference, ClientLimits::default());
    let metrics = server.key("metrics", Scope::Metrics, ClientLimits::default());
    let admin = server.key("admin", Scope::Admin, ClientLimits::default());
    assert_eq!(server.complete(&plain, 1).await.status, 200);
    assert_eq!(server.complete(&admin, 1).await.status, 200);
    assert_eq!(server.get("/metrics", &metrics).await.status, 200);
    assert_eq!(server.get("/metrics", &admin).await.status, 200);
    assert_eq!(server.get("/v1/models", &metrics).await.status, 200);
    assert_eq!(server.get("/v1/nothing", &metrics).await.status, 404, "there is nothing to protect");

    let refused = server.complete(&metrics, 1).await;
    let challenge = r#"Bearer realm="mlxr", error="insufficient_scope", scope="inference""#;
    assert_eq!((refused.status, refused.header("www-authenticate")), (403, Some(challenge)));
    let error = &refused.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("permission_error"), &json!("insufficient_scope")));
    let text = "the API key \"metrics\" lacks the scope \"inference\", which this needs";
    assert_eq!(error["message"], text);
    let headers = format!("x-api-key: {metrics}\r\n");
    let refused = server.ask("POST", "/v1/messages", &headers, &json!({})).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (403, &json!("permission_error")));
    let refused = server.ask("POST", "/api/chat", &headers, &json!({})).await;
    assert_eq!((refused.status, &refused.json()["error"]), (403, &json!(text)));
    assert_eq!(server.get("/metrics", &plain).await.status, 403);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_a_key_s_limit_are_told_when_to_come_back() {
    let server = start(Limits::default()).await;
    let limits = ClientLimits { requests_per_minute: Some(1), ..ClientLimits::default() };
    let slow = server.key("slow", Scope::Inference, limits);
    let first = server.complete(&slow, 1).await;
    assert_eq!((first.status, first.header("x-ratelimit-limit-requests")), (200, Some("1")));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("0"));
    assert!(first.header("x-ratelimit-limit-tokens").is_none(), "only limits there are");
    let refused = server.complete(&slow, 1).await;
    assert_eq!((refused.status, refused.header("x-ratelimit-remaining-requests")), (429, Some("0")));
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    let error = &refused.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
    let headers = format!("x-api-key: {slow}\r\n");
    let refused = server.ask("POST", "/v1/messages", &headers, &json!({})).await;
    assert_eq!((refused.status, &refused.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    assert_eq!(refused.header("anthropic-ratelimit-requests-limit"), Some("1"));
    let refused = server.ask("POST", "/api/generate", &headers, &json!({})).await;
    assert_eq!((refused.status, refused.header("retry-after").is_some()), (429, true));
    assert!(refused.json()["error"].as_str().unwrap().contains("1 requests per minute"), "{}", refused.body);
    assert_eq!(server.get("/v1/models", &slow).await.status, 200, "looking costs nothing");
    let other = server.key("other", Scope::Inference, ClientLimits::default());
    assert_eq!(server.complete(&other, 1).await.status, 200);
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_as_they_are_used() {
    let client = ClientLimits { tokens_per_minute: Some(20), ..ClientLimits::default() };
    let server = start(Limits { client, ..Limits::default() }).await;
    let secret = server.key("a", Scope::Inference, ClientLimits::default());
    let first = server.complete(&secret, 30).await;
    assert_eq!((first.status, first.header("x-ratelimit-remaining-tokens")), (200, Some("20")));
    let refused = server.complete(&secret, 1).await;
    assert_eq!((refused.status, refused.header("x-ratelimit-remaining-tokens")), (429, Some("0")));
    assert_eq!(refused.json()["error"]["type"], "tokens");
    // 3 of the prompt and 30 of the answer leave 13 to pay back, at 1 in 3 seconds; and one to begin with.
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((30..=43).contains(&wait), "{wait}");
    server.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_without_a_key_are_limited_by_address_and_a_stream_runs_until_its_end() {
    let client = ClientLimits { concurrent: Some(1), ..ClientLimits::default() };
    let server = start(Limits { client, ..Limits::default() }).await;
    let body = json!({"model": TINY, "prompt": [5], "max_tokens": 400, "ignore_eos": true, "stream": true});
    let body = body.to_string();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head =
        format!("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    let lease = server.app.models.acquire(TINY).await.unwrap();
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
    until(|| lease.engine.stats().n_running == 1).await;
    let refused = server.complete("none", 1).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert!(refused.body.contains("1 requests at a time"), "{}", refused.body);
    drop(stream);
    let mut answer = server.complete("none", 1).await;
    while answer.status == 429 {
        answer = server.complete("none", 1).await;
    }
    assert_eq!(answer.status, 200, "{}", answer.body);
    drop(lease);
    server.close().await;
}
