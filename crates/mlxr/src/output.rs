//! Standard output. Every write is checked: a reader that has gone away ends the program quietly.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

pub const HEADING: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();
pub const PROMPT: Style = AnsiColor::Green.on_default().bold();

/// Standard output for text we style; colours go only to a terminal that wants them.
pub fn styled() -> anstream::AutoStream<io::StdoutLock<'static>> {
    anstream::stdout().lock()
}

/// Writes text as it is, at once: generated text belongs to the model and is not touched.
pub fn raw(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// One JSON document, indented for people who read it.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer_pretty(&mut stdout, value).map_err(io::Error::from)?;
    writeln!(stdout)?;
    Ok(())
}

/// One JSON document on a line of its own, written at once.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    serde_json::to_writer(&mut stdout, value).map_err(io::Error::from)?;
    writeln!(stdout)?;
    stdout.flush()?;
    Ok(())
}

pub fn flush() -> anyhow::Result<()> {
    Ok(io::stdout().flush()?)
}

/// Rows in aligned columns; the first one is the heading.
pub fn table<const N: usize>(rows: &[[String; N]]) -> anyhow::Result<()> {
    let mut out = styled();
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    for (n, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        match (n, line.trim_end()) {
            (0, line) => writeln!(out, "{HEADING}{line}{HEADING:#}")?,
            (_, line) => writeln!(out, "{line}")?,
        }
    }
    Ok(())
}

/// Lines `name  value` under a heading, with values aligned.
#[derive(Default)]
pub struct Section {
    title: &'static str,
    rows: Vec<(String, String)>,
}

impl Section {
    pub fn new(title: &'static str) -> Section {
        Section { title, rows: Vec::new() }
    }

    pub fn row(&mut self, name: impl Into<String>, value: impl ToString) -> &mut Section {
        self.rows.push((name.into(), value.to_string()));
        self
    }

    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        const MIN_WIDTH: usize = 18;
        let width =
            self.rows.iter().map(|(name, _)| name.chars().count() + 2).max().unwrap_or(0).max(MIN_WIDTH);
        writeln!(out, "{HEADING}{}{HEADING:#}", self.title)?;
        for (name, value) in &self.rows {
            writeln!(out, "  {DIM}{name:<width$}{DIM:#}{value}")?;
        }
        Ok(())
    }
}
