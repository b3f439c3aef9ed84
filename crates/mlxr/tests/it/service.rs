//! `mlxr serve` under a service manager: sockets it is passed, what it reports, how it ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::command::{binary, json, mlxr};
use crate::server::{Server, begin_stream, rest, serve};

/// `mlxr serve` with sockets 3 and 4, as systemd starts it: the process id is known once the shell has become it.
fn activated(tcp: TcpListener, unix: UnixListener, args: &[&str]) -> Command {
    let script = r#"exec 3<&0 4<&2 0</dev/null 2>/dev/null
        LISTEN_FDS=2 LISTEN_FDNAMES=http:socket LISTEN_PID=$$ exec "$0" serve "$@""#;
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(binary()).args(args);
    command.env_remove("HOME").env_remove("XDG_CONFIG_HOME");
    command.stdin(Stdio::from(OwnedFd::from(tcp))).stderr(Stdio::from(OwnedFd::from(unix)));
    command
}

fn exchange(mut stream: impl Read + Write, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn unix_listener(path: &Path, mode: u32) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    listener
}

#[test]
fn sockets_it_is_passed_are_served_and_left_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mlxr.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = tcp.local_addr().unwrap();
    // A client that comes before the server waits in the socket's queue.
    let early = TcpStream::connect(address).unwrap();
    let mut server = Server::start(&mut activated(tcp, unix_listener(&path, 0o600), &[]), 2);
    assert_eq!(server.addresses, [format!("http://{address}"), path.display().to_string()]);
    let answer = exchange(early, "/v1/models");
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("mlxr-27m"), "{answer}");
    let answer = exchange(UnixStream::connect(&path).unwrap(), "/health");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    server.signal("-TERM");
    assert_eq!(server.code(), Some(0));
    assert!(path.exists(), "the socket is the service manager's");
}

#[test]
fn a_passed_socket_that_everybody_may_open_needs_a_key() {
    let dir = tempfile::tempdir().unwrap();
    let start = |name: &str, args: &[&str]| {
        let unix = unix_listener(&dir.path().join(name), 0o666);
        activated(TcpListener::bind("127.0.0.1:0").unwrap(), unix, args)
    };
    let output = start("a", &[]).stdout(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));

    let file = dir.path().join("keys.json");
    json(mlxr(["keys", "create", "a", "--json", "--file"]).arg(&file));
    let mut server = Server::start(&mut start("b", &["--keys", file.to_str().unwrap()]), 2);
    let answer = exchange(UnixStream::connect(dir.path().join("b")).unwrap(), "/v1/models");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    server.signal("-TERM");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn the_service_manager_hears_how_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let next = || {
        let mut message = [0; 256];
        let n = manager.recv(&mut message).expect("the server says something");
        String::from_utf8(message[..n].to_vec()).unwrap().trim_end().to_owned()
    };
    let mut command = serve();
    command.args(["--port", "0", "--no-socket"]);
    // Without WATCHDOG_PID, which only the service manager can know, it is meant for whoever reads it.
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000").env_remove("WATCHDOG_PID");
    let mut server = Server::start(&mut command, 1);
    let mut heard = vec![next(), next(), next(), next()];
    assert_eq!(heard.iter().filter(|message| *message == "READY=1").count(), 1, "{heard:?}");
    assert_eq!(heard.iter().filter(|message| *message == "WATCHDOG=1").count(), 3, "{heard:?}");
    server.signal("-TERM");
    while heard.last().is_some_and(|last| last == "WATCHDOG=1" || last == "READY=1") {
        heard.push(next());
    }
    assert_eq!(heard.last().unwrap(), "STOPPING=1");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn the_first_signal_lets_requests_finish() {
    let mut server = Server::start(serve().args(["--port", "0", "--no-socket"]), 1);
    let stream = begin_stream(&server.addresses[0], 40);
    server.signal("-TERM");
    let rest = rest(stream);
    assert!(rest.contains("data: [DONE]") && rest.contains(r#""finish_reason":"length""#), "{rest}");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn requests_beyond_the_grace_period_are_cancelled() {
    let mut server = Server::start(serve().args(["--port", "0", "--no-socket", "--grace", "0"]), 1);
    let stream = begin_stream(&server.addresses[0], 2000);
    server.signal("-TERM");
    let rest = rest(stream);
    assert!(rest.contains("\"cancelled\"") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn the_second_signal_cancels_requests_at_once() {
    let mut server = Server::start(serve().args(["--port", "0", "--no-socket", "--grace", "1h"]), 1);
    let stream = begin_stream(&server.addresses[0], 2000);
    server.signal("-TERM");
    // The first signal has arrived when nobody gets in any more.
    let address = server.addresses[0].strip_prefix("http://").unwrap().to_owned();
    while TcpStream::connect(&address).is_ok() {
        std::thread::yield_now();
    }
    server.signal("-TERM");
    let rest = rest(stream);
    assert!(rest.contains("\"cancelled\"") && !rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.code(), Some(0));
}

#[test]
fn the_log_file_says_of_every_request_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mlxr.log");
    let mut command = serve();
    command.args(["--port", "0", "--no-socket", "--log-format", "json", "--log-file"]).arg(&path);
    let mut server = Server::start(&mut command, 1);
    let stream = begin_stream(&server.addresses[0], 5);
    server.signal("-TERM");
    rest(stream);
    assert_eq!(server.code(), Some(0));
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().find(|line| line["message"] == "generation").expect("a line of the request");
    assert_eq!((&line["model"], &line["client"]), (&"mlxr-27m".into(), &"127.0.0.1".into()));
    assert_eq!((&line["outcome"], &line["n_completion"]), (&"length".into(), &5.into()));
    for field in ["n_prompt", "n_cached", "queued_ms", "prefill_ms", "ttft_ms", "itl_ms", "total_ms"] {
        assert!(line[field].is_number(), "{field}: {line}");
    }
    let ms = |field: &str| line[field].as_f64().unwrap();
    assert!(ms("queued_ms") + ms("prefill_ms") <= ms("ttft_ms") && ms("ttft_ms") <= ms("total_ms"), "{line}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_model_made_over_http_is_there_after_a_restart_even_a_hard_one() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = serve();
        command.args(["--port", "0", "--no-socket", "--data-dir"]).arg(dir.path());
        Server::start(&mut command, 1)
    };
    let post = |server: &Server, path: &str, body: &str| {
        let mut stream = TcpStream::connect(server.addresses[0].strip_prefix("http://").unwrap()).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let mut server = start();
    let body = r#"{"model": "mario", "from": "mlxr-27m", "system": "You are Mario.", "stream": false}"#;
    let answer = post(&server, "/api/create", body);
    assert!(answer.contains(r#"{"status":"success"}"#), "{answer}");
    server.signal("-KILL");
    assert_eq!(server.code(), None);
    let mut server = start();
    let answer = post(&server, "/api/show", r#"{"model": "mario"}"#);
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("You are Mario."), "{answer}");
    let ask = r#"{"model": "mario", "prompt": "Hi", "stream": false, "options": {"num_predict": 2}}"#;
    let answer = post(&server, "/api/generate", ask);
    assert!(answer.contains(r#""done":true"#), "{answer}");
    // What another program does is noticed.
    mlxr(["rm", "mario", "--data-dir"]).arg(dir.path()).assert().success();
    let asked = std::time::Instant::now();
    while !post(&server, "/api/show", r#"{"model": "mario"}"#).starts_with("HTTP/1.1 404") {
        assert!(asked.elapsed() < Duration::from_secs(30), "the server does not notice");
    }
    server.signal("-TERM");
    assert_eq!(server.code(), Some(0));
}
