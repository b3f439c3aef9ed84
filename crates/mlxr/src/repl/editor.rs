//! The line editor of the chat: history on disk, several lines, completion of commands.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustyline::completion::{Completer, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

use super::command::{COMMANDS, is_unfinished};
use crate::output::PROMPT;

/// Inputs remembered at most.
const MAX_HISTORY: usize = 1000;

/// What the person did at the prompt.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    Text(String),
    /// Ctrl-C.
    Interrupted,
    /// Ctrl-D on an empty line.
    Ended,
}

/// Reads inputs from the terminal.
pub struct LineEditor {
    editor: Editor<ChatHelper, FileHistory>,
    history: Option<PathBuf>,
}

impl LineEditor {
    /// An editor that remembers in `history`, when there is a place for it.
    pub fn new(history: Option<PathBuf>, colour: bool) -> anyhow::Result<LineEditor> {
        let config = Config::builder()
            .max_history_size(MAX_HISTORY)
            .context("cannot set up the line editor")?
            .history_ignore_space(true)
            .auto_add_history(false)
            .build();
        let mut editor = Editor::with_config(config).context("cannot set up the line editor")?;
        editor.set_helper(Some(ChatHelper { colour }));
        if let Some(path) = &history
            && path.is_file()
            && let Err(error) = editor.load_history(path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot read the history");
        }
        Ok(LineEditor { editor, history })
    }

    pub fn read(&mut self, prompt: &str) -> anyhow::Result<Line> {
        match self.editor.readline(prompt) {
            Ok(text) => {
                self.remember(&text);
                Ok(Line::Text(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::Ended),
            Err(error) => Err(error).context("cannot read from the terminal"),
        }
    }

    /// Adds to the history and writes it at once, so that nothing is lost when the terminal goes away.
    fn remember(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        let written = self.editor.add_history_entry(text).and_then(|is_new| match &self.history {
            Some(path) if is_new => write_history(&mut self.editor, path),
            _ => Ok(()),
        });
        if let Err(error) = written {
            tracing::debug!(%error, "cannot write the history");
        }
    }
}

fn write_history(editor: &mut Editor<ChatHelper, FileHistory>, path: &Path) -> rustyline::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    editor.append_history(path)
}

/// Where the history is kept: `$XDG_STATE_HOME` or `~/.local/state` on Linux, Application Support on macOS.
pub fn history_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = if cfg!(target_os = "macos") {
        set("HOME")?.join("Library/Application Support")
    } else {
        set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?
    };
    Some(dir.join("mlxr/history"))
}

struct ChatHelper {
    colour: bool,
}

impl Helper for ChatHelper {}

impl Hinter for ChatHelper {
    type Hint = String;
}

impl Validator for ChatHelper {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let unfinished = is_unfinished(context.input());
        Ok(if unfinished { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Highlighter for ChatHelper {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        if self.colour { Cow::Owned(format!("{PROMPT}{prompt}{PROMPT:#}")) } else { Cow::Borrowed(prompt) }
    }
}

impl Completer for ChatHelper {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..pos];
        let names = COMMANDS.iter().map(|(name, ..)| *name);
        let fitting = names.filter(|name| typed.starts_with('/') && name.starts_with(typed));
        Ok((
            0,
            fitting.map(|name| Pair { display: name.to_owned(), replacement: format!("{name} ") }).collect(),
        ))
    }
}
