//! `mlxr serve`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use snapbox::str;

use crate::command::{binary, mlxr};

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

/// Ends the server when a test fails before it did.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already when all went well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn exchange(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[cfg(unix)]
#[test]
fn the_bundled_model_answers_until_the_server_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("mlxr.sock");
    let mut command = Command::new(binary());
    command.args(["serve", "--port", "0", "--socket"]).arg(&socket);
    let mut server = Server(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let tcp = lines.next().unwrap();
    let address = tcp.strip_prefix("listening on http://").unwrap();
    assert_eq!(lines.next().unwrap(), format!("listening on {}", socket.display()));

    let head = format!("HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let answer = exchange(address, &format!("GET /v1/models {head}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains(r#""id":"mlxr-27m""#), "{answer}");
    let body = r#"{"model":"mlxr-27m","prompt":"Once upon a","max_tokens":1,"temperature":0}"#;
    let request = format!("POST /v1/completions {head}Content-Length: {}\r\n\r\n{body}", body.len());
    let answer = exchange(address, &request);
    assert!(answer.contains(r#""text":" time""#), "{answer}");

    let pid = server.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(server.0.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
}
