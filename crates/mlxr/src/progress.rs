//! Progress bars on stderr, only where a person watches.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over `n` units of work with a changing message; silent when stderr is no terminal.
pub fn bar(n: u64, what: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(n), target());
    bar.set_style(style("{prefix} [{bar:32}] {pos}/{len} {msg} ({eta})").progress_chars("=> "));
    bar.set_prefix(what);
    bar
}

/// A bar over bytes whose number the work tells.
pub fn byte_bar(what: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    bar.set_style(style("{prefix} [{bar:32}] {bytes}/{total_bytes} {msg} ({eta})").progress_chars("=> "));
    bar.set_prefix(what);
    bar
}

/// Something that takes a while and cannot say how long.
pub fn spinner(what: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    bar.set_style(style("{spinner} {prefix} {msg}"));
    bar.set_prefix(what);
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(120));
    }
    bar
}

fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates in this file parse")
}
