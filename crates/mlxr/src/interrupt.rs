//! Ctrl-C as a flag that long work looks at; pressed again before it was seen, it ends the program.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::EXIT_INTERRUPTED;

static PRESSED: AtomicBool = AtomicBool::new(false);

/// From here on Ctrl-C only raises the flag.
pub fn install() -> anyhow::Result<()> {
    static INSTALLED: OnceLock<()> = OnceLock::new();
    if INSTALLED.set(()).is_err() {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        if PRESSED.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_INTERRUPTED.into());
        }
    })?;
    Ok(())
}

pub fn is_pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

/// Lowers the flag. Returns whether it was up.
pub fn take() -> bool {
    PRESSED.swap(false, Ordering::SeqCst)
}
