//! Text that is piped in.

use std::io::{self, IsTerminal, Read};

use anyhow::Context;

/// More text than this fits no context.
const MAX_BYTES: u64 = 256 << 20;

/// All of standard input, or `None` when a person sits there.
pub fn read_piped() -> anyhow::Result<Option<String>> {
    if io::stdin().is_terminal() { Ok(None) } else { read().map(Some) }
}

/// All of standard input.
pub fn read() -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_BYTES + 1).read_to_end(&mut bytes).context("cannot read standard input")?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_BYTES, "standard input is longer than {} MiB", MAX_BYTES >> 20);
    String::from_utf8(bytes)
        .context("standard input is not UTF-8 text\nhint: convert it first, for instance with iconv")
}
