//! `mlxr ps`, `stop` and `logs`: a running server from the command line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use snapbox::str;

use crate::command::{binary, json, mlxr};
use crate::server::{Server, begin_stream, complete, rest, serve};

/// A server with a socket of its own.
struct Running {
    server: Server,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

fn start(extra: &[&str]) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("mlxr.sock");
    let server = Server::start(serve().args(["--port", "0"]).args(extra).arg("--socket").arg(&socket), 2);
    Running { server, socket, _dir: dir }
}

impl Running {
    fn mlxr(&self, args: &[&str]) -> snapbox::cmd::Command {
        mlxr(args).arg("--server").arg(&self.socket)
    }

    fn http(&self) -> &str {
        &self.server.addresses[0]
    }

    fn end(mut self) {
        self.server.signal("-TERM");
        assert_eq!(self.server.code(), Some(0));
    }
}

#[test]
fn models_in_memory_and_their_requests_are_listed() {
    let running = start(&[]);
    running.mlxr(&["ps"]).assert().success().stdout_eq("no model is in memory\n");
    running.mlxr(&["ps", "--all"]).assert().success().stdout_eq(str![[r#"
NAME      MEMORY  CONTEXT  REQUESTS  UNLOADED
mlxr-27m  -       -        -         -

"#]]);
    let stream = begin_stream(running.http(), 2000);
    running.mlxr(&["ps"]).assert().success().stderr_eq("").stdout_eq(str![[r#"
NAME      MEMORY   CONTEXT  REQUESTS  UNLOADED
mlxr-27m  [..] MiB  2048     1         5 min after use

REQUEST  [..]MODEL     STATE     PROMPT  CACHED  GENERATED  AGE
[..]  mlxr-27m  decoding  1/1     0       [..] s

"#]]);
    let listed = json(running.mlxr(&["ps", "--json"]));
    assert_eq!(listed["models"][0]["name"], "mlxr-27m");
    assert_eq!(listed["requests"][0]["state"], "decoding");
    assert!(listed["memory"]["used_bytes"].as_u64().unwrap() > 1 << 20, "{listed}");
    drop(stream);
    running.end();
}

#[test]
fn a_model_leaves_memory_and_its_requests_keep_it_there() {
    let running = start(&[]);
    running.mlxr(&["stop", "mlxr-27m"]).assert().success().stdout_eq("mlxr-27m was not in memory\n");
    let stream = begin_stream(running.http(), 2000);
    running.mlxr(&["stop", "mlxr-27m"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: [..]mlxr-27m[..]
hint: wait for them (`mlxr ps` lists them), or cancel them with --force

"#]]);
    let forced = running.mlxr(&["stop", "mlxr-27m", "--force"]);
    forced.assert().success().stdout_eq("unloaded mlxr-27m; 1 request was cancelled\n");
    let rest = rest(stream);
    assert!(!rest.contains("[DONE]"), "{rest}");
    running.mlxr(&["stop", "nobody"]).assert().code(1).stderr_eq(str![[r#"
error: [..]nobody[..]

"#]]);
    running.end();
}

#[test]
fn the_server_is_stopped_and_waited_for() {
    let mut running = start(&[]);
    let stream = begin_stream(running.http(), 40);
    running.mlxr(&["stop"]).assert().success().stdout_eq("the server has ended\n");
    assert_eq!(running.server.code(), Some(0));
    let rest = rest(stream);
    assert!(rest.contains("data: [DONE]"), "{rest}");
    running.mlxr(&["stop"]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: no server answers at [..]mlxr.sock
  caused by: No such file or directory (os error 2)
hint: start one with `mlxr serve`, or name another with --server

"#]]);

    let mut running = start(&["--grace", "1h"]);
    let stream = begin_stream(running.http(), 2000);
    let answer = json(running.mlxr(&["stop", "--force", "--json"]));
    assert_eq!(answer, json!({"pid": running.server.child.id(), "n_running": 1}));
    assert_eq!(running.server.code(), Some(0));
    assert!(!crate::server::rest(stream).contains("[DONE]"));
}

#[test]
fn the_last_lines_of_the_log_are_shown() {
    let running = start(&["--log-level", "debug"]);
    complete(running.http(), 3);
    let shown = running.mlxr(&["logs", "--target", "mlxr_server::generation", "-n", "1"]);
    shown.assert().success().stdout_eq(str![[r#"
[..]Z  INFO mlxr_server::generation: generation [..]model=mlxr-27m[..]

"#]]);
    let output =
        running.mlxr(&["logs", "--json", "--level", "info"]).assert().success().get_output().stdout.clone();
    let lines: Vec<Value> = output
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert!(lines.iter().any(|line| line["message"] == "generation"), "{lines:?}");
    assert!(lines.iter().all(|line| line["level"] != "debug"), "{lines:?}");
    running.mlxr(&["logs", "--level", "loud"]).assert().code(2).stdout_eq("");
    running.end();
}

/// Ends the command when a test fails before it did.
struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn follow(socket: &Path) -> Following {
    let mut command = Command::new(binary());
    command.args(["logs", "-f", "-n", "1", "--server"]).arg(socket).env("NO_COLOR", "1");
    Following(command.stdout(Stdio::piped()).spawn().unwrap())
}

#[test]
fn a_followed_log_shows_what_comes_and_ends_with_the_server() {
    let running = start(&["--log-level", "debug"]);
    complete(running.http(), 1);
    let mut following = follow(&running.socket);
    let mut lines = BufReader::new(following.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    // One from before; whatever is written from here on comes too.
    assert!(!lines.next().expect("a line").contains("n_completion=2"));
    complete(running.http(), 2);
    assert!(lines.any(|line| line.contains("n_completion=2")), "the generation is told");
    running.end();
    lines.for_each(drop);
    assert_eq!(following.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_server_that_demands_a_key_is_shown_one() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys.json");
    let secret = |name: &str, scope: &str| {
        let made = json(mlxr(["keys", "create", name, "--json", "--scope", scope, "--file"]).arg(&keys));
        made["secret"].as_str().unwrap().to_owned()
    };
    let (plain, admin) = (secret("plain", "inference"), secret("root", "admin"));
    let mut server = Server::start(serve().args(["--port", "0", "--no-socket", "--keys"]).arg(&keys), 1);
    let url = server.addresses[0].clone();
    let ps = |key: &str| mlxr(["ps", "--server", &url]).env("MLXR_KEY", key);
    ps("").assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: [..]key[..]
hint: put a key into MLXR_KEY, or name its file with --key-file

"#]]);
    ps(&plain).assert().success().stdout_eq("no model is in memory\n").stderr_eq(str![[r#"
the key may not see the requests; that takes the scope admin

"#]]);
    ps(&admin).assert().success().stderr_eq("");
    let stop = mlxr(["stop", "--server", &url]).env("MLXR_KEY", &plain);
    stop.assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: [..]admin[..]

"#]]);
    let file = dir.path().join("key");
    std::fs::write(&file, format!("{admin}\n")).unwrap();
    mlxr(["stop", "--server", &url, "--key-file"]).arg(&file).assert().success();
    assert_eq!(server.code(), Some(0));
}

#[test]
fn what_is_no_server_of_ours_is_told() {
    let nowhere = mlxr(["ps", "--server", "http://127.0.0.1:1"]);
    nowhere.assert().code(1).stderr_eq(str![[r#"
error: no server answers at http://127.0.0.1:1
  caused by: Connection refused (os error [..])
hint: start one with `mlxr serve`, or name another with --server

"#]]);
    mlxr(["ps", "--server", "https://box"]).assert().code(2).stdout_eq("");
    mlxr(["ps"]).env("MLXR_SERVER", "a b").assert().code(1).stderr_eq(str![[r#"
error: MLXR_SERVER: expected http://HOST:PORT or the path of a Unix socket

"#]]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let stranger = std::thread::spawn(move || {
        use std::io::{Read, Write};

        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno").unwrap();
    });
    mlxr(["logs", "--server", &address]).assert().code(1).stdout_eq("").stderr_eq(str![[r#"
error: http://127.0.0.1:[..] answers with 404 Not Found, and not as an mlxr server does

"#]]);
    stranger.join().unwrap();
}
