//! A running `mlxr serve`, and requests to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::command::binary;

/// Ends the server when a test fails before it did.
pub struct Server {
    pub child: Child,
    /// Where it listens.
    pub addresses: Vec<String>,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already when all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Waits for so many lines of where it listens.
    pub fn start(command: &mut Command, n_addresses: usize) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let strip = |line: String| line.strip_prefix("listening on ").unwrap().to_owned();
        let addresses: Vec<String> = lines.take(n_addresses).map(strip).collect();
        assert_eq!(addresses.len(), n_addresses, "the server did not start");
        Server { child, addresses }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

pub fn serve() -> Command {
    let mut command = Command::new(binary());
    command
        .arg("serve")
        .env_remove("HOME")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("XDG_DATA_HOME")
        .stderr(Stdio::null());
    command
}

/// Starts a stream of many tokens and reads until the first of them.
pub fn begin_stream(address: &str, n_tokens: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
    let body = format!(
        r#"{{"model":"mlxr-27m","prompt":"Once","max_tokens":{n_tokens},"ignore_eos":true,"stream":true}}"#
    );
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("data: {") {
        let mut piece = [0; 1024];
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&piece[..n]);
    }
    stream
}

pub fn rest(mut stream: TcpStream) -> String {
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    rest
}

/// Generates so many tokens and waits for them.
pub fn complete(address: &str, n_tokens: usize) {
    rest(begin_stream(address, n_tokens));
}
