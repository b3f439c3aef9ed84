//! What is wrong with a file of settings, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in a text, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Place {
    pub line: usize,
    /// In characters.
    pub column: usize,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, or the environment variable or flag.
    pub source: Option<String>,
    pub at: Option<Place>,
    pub message: String,
    pub hint: Option<String>,
}

impl Problem {
    pub fn new(message: impl Into<String>) -> Problem {
        Problem { source: None, at: None, message: message.into(), hint: None }
    }

    pub fn at(at: Place, message: impl Into<String>) -> Problem {
        Problem { at: Some(at), ..Problem::new(message) }
    }

    pub fn with_hint(self, hint: impl Into<String>) -> Problem {
        Problem { hint: Some(hint.into()), ..self }
    }

    pub fn of_file(self, path: &Path) -> Problem {
        Problem { source: Some(path.display().to_string()), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(f, "{source}:")?;
        }
        if let Some(Place { line, column }) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if self.source.is_some() || self.at.is_some() {
            f.write_str(" ")?;
        }
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {max_bytes} bytes", path.display())]
    TooLarge { path: PathBuf, max_bytes: u64 },
    #[error("{} is no text: {source}", path.display())]
    NotText { path: PathBuf, source: std::str::Utf8Error },
    #[error("{}", list(.0))]
    Problems(Vec<Problem>),
    #[error("there is no setting {key:?}{}", suggestion(hint))]
    NoSuchKey { key: String, hint: Option<String> },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{} cannot be changed safely: {reason}\nhint: change it with an editor", path.display())]
    Edit { path: PathBuf, reason: String },
    #[error(
        "there is no place for server.yaml: neither XDG_CONFIG_HOME nor HOME is set\nhint: --config FILE names one"
    )]
    NoPlace,
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

fn suggestion(hint: &Option<String>) -> String {
    hint.as_ref().map_or_else(String::new, |hint| format!("\nhint: {hint}"))
}

/// The known name that `word` was probably meant to be.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let scored = known.into_iter().map(|name| (distance(&word, name), name));
    let allowed = |name: &str| 1 + name.chars().count() / 4;
    scored.filter(|(d, name)| *d <= allowed(name)).min_by_key(|(d, _)| *d).map(|(_, name)| name)
}

/// "did you mean ...?" for a word that is not known.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(word, known).map(|name| format!("did you mean {name:?}?"))
}

/// Letters to insert, remove, replace or swap with their neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, first) in rows[0].iter_mut().enumerate() {
        *first = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_is_recognised() {
        let known = ["host", "port", "keep_alive", "max_body"];
        assert_eq!(closest("prot", known), Some("port"));
        assert_eq!(closest("keepalive", known), Some("keep_alive"));
        assert_eq!(closest("maxbodi", known), Some("max_body"));
        assert_eq!(closest("colour", known), None);
    }

    #[test]
    fn a_problem_says_where() {
        let problem = Problem::at(Place { line: 3, column: 5 }, "no").with_hint("yes");
        assert_eq!(problem.clone().of_file(Path::new("a.yaml")).to_string(), "a.yaml:3:5: no\nhint: yes");
        assert_eq!(problem.to_string(), "3:5: no\nhint: yes");
        assert_eq!(Problem::new("no").to_string(), "no");
    }
}
