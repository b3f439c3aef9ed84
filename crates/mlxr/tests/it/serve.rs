//! `mlxr serve`.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use snapbox::str;

use crate::command::mlxr;
use crate::server::{Server, serve};

#[test]
fn other_machines_need_a_key() {
    mlxr(["serve", "--host", "0.0.0.0", "--port", "0", "--no-socket"])
        .assert()
        .code(1)
        .stdout_eq("")
        .stderr_eq(str![[r#"
error: 0.0.0.0:0 can be reached from other machines
hint: make a key with `mlxr keys create NAME`, or listen on 127.0.0.1

"#]]);
}

#[test]
fn a_server_listens_somewhere() {
    mlxr(["serve", "--no-tcp", "--no-socket"]).assert().code(2).stdout_eq("").stderr_eq(str![[r#"
error: nothing to listen on
hint: leave out --no-tcp or --no-socket

"#]]);
    mlxr(["serve", "--model", "a=/nowhere.gguf"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: no model at /nowhere.gguf
hint: name a .gguf file, or a folder with config.json and *.safetensors

"#]]);
}

#[test]
fn kernels_that_this_cpu_lacks_are_refused() {
    mlxr(["serve", "--no-socket", "--port", "0", "--cpu-kernels", "z80"])
        .assert()
        .code(1)
        .stdout_eq("")
        .stderr_eq(str![[r#"
error: engine.cpu_kernels is "z80", but this CPU runs no such kernels; it has scalar[..], and auto
hint: `mlxr config show` says where it is set

"#]]);
}

fn exchange(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The JSON of an answer; a POST if there is a body.
fn ask(server: &Server, path: &str, body: &str) -> Value {
    let address = server.addresses[0].strip_prefix("http://").unwrap();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close");
    let answer = exchange(address, &format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

#[test]
fn the_bundled_model_answers_until_the_server_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("mlxr.sock");
    let mut server = Server::start(serve().args(["--port", "0", "--socket"]).arg(&socket), 2);
    assert_eq!(server.addresses[1], socket.display().to_string());
    assert_eq!(ask(&server, "/v1/models", "")["data"][0]["id"], "mlxr-27m");
    let body = r#"{"model":"mlxr-27m","prompt":"Once upon a","max_tokens":1,"temperature":0}"#;
    assert_eq!(ask(&server, "/v1/completions", body)["choices"][0]["text"], " time");
    server.signal("-TERM");
    assert_eq!(server.code(), Some(0));
    assert!(!socket.exists());
}

/// What a server that was told so much has for a target in ms, and whether it caches prompts.
fn pace_and_cache(args: &[&str], variables: &[(&str, &str)]) -> (Value, bool) {
    let mut command = serve();
    command.args(["--port", "0", "--no-socket"]).args(args).envs(variables.iter().copied());
    let server = Server::start(&mut command, 1);
    let body = json!({"model": "mlxr-27m", "prompt": "once upon a time ".repeat(20), "max_tokens": 1});
    ask(&server, "/v1/completions", &body.to_string());
    let again = ask(&server, "/v1/completions", &body.to_string());
    let n_cached = &again["usage"]["prompt_tokens_details"]["cached_tokens"];
    let stats = ask(&server, "/mlxr/v1/stats", "");
    (stats["models"][0]["pace"]["target_ms"].clone(), n_cached.as_u64().unwrap() > 0)
}

#[test]
fn a_target_for_the_time_between_tokens_and_the_prefix_cache_are_settings() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server.yaml");
    std::fs::write(&file, "engine:\n  target_itl: 1m\n  prefix_cache: false\n").unwrap();
    let file = ["--config", file.to_str().unwrap()];
    assert_eq!(pace_and_cache(&[], &[]), (Value::Null, true));
    let flags = ["--target-itl", "50ms", "--no-prefix-cache"];
    assert_eq!(pace_and_cache(&flags, &[]), (json!(50.0), false));
    assert_eq!(pace_and_cache(&file, &[]), (json!(60_000.0), false));
    let variable = ("MLXR_ENGINE_PREFIX_CACHE", "true");
    assert_eq!(pace_and_cache(&file, &[variable]), (json!(60_000.0), true));
}
