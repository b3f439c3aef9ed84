//! Ctrl-C as something that long work looks at; pressed again and again without being seen, it ends the program.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::failure::EXIT_INTERRUPTED;

/// Presses nobody has seen yet.
static UNSEEN: AtomicU32 = AtomicU32::new(0);

/// From here on Ctrl-C is only counted, until `patience` presses went unseen: a chat takes more of them than a single
/// job, because ending it loses the conversation.
pub fn install(patience: u32) -> anyhow::Result<()> {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    if INSTALLED.set(()).is_err() {
        return Ok(());
    }
    ctrlc::set_handler(move || {
        if patience <= UNSEEN.fetch_add(1, Ordering::SeqCst) + 1 {
            std::process::exit(EXIT_INTERRUPTED.into());
        }
    })?;
    Ok(())
}

/// Presses that end a job which has not looked.
pub const JOB_PATIENCE: u32 = 2;
/// Presses that end a chat which has not looked.
pub const CHAT_PATIENCE: u32 = 4;

pub fn is_pressed() -> bool {
    0 < UNSEEN.load(Ordering::SeqCst)
}

/// Marks all presses as seen. Returns whether there was one.
pub fn take() -> bool {
    0 < UNSEEN.swap(0, Ordering::SeqCst)
}
