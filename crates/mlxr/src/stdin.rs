//! Text that is piped in.

use std::io::{self, IsTerminal, Read};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::Context;

/// More text than this fits no context.
const MAX_BYTES: u64 = 256 << 20;

/// After so long without an end, the person is told what is being waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// All of standard input, or `None` when a person sits there.
pub fn read_piped() -> anyhow::Result<Option<String>> {
    if io::stdin().is_terminal() { Ok(None) } else { read().map(Some) }
}

/// All of standard input. A pipe that nobody closes is waited for, but not in silence.
pub fn read() -> anyhow::Result<String> {
    let (sender, receiver) = mpsc::channel();
    // Nobody listens any more only when this function has failed already.
    thread::spawn(move || sender.send(read_to_end()));
    match receiver.recv_timeout(PATIENCE) {
        Ok(text) => return text,
        Err(RecvTimeoutError::Disconnected) => {}
        Err(RecvTimeoutError::Timeout) => {
            anstream::eprintln!("reading standard input until it ends (`</dev/null` gives none)");
        }
    }
    receiver.recv().context("cannot read standard input")?
}

fn read_to_end() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_BYTES, "standard input is longer than {} MiB", MAX_BYTES >> 20);
    String::from_utf8(bytes)
        .context("standard input is not UTF-8 text\nhint: convert it first, for instance with iconv")
}
