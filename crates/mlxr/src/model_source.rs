//! Which model a command works on: the one named, or the one in the binary.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use mlxr_checkpoint::{Checkpoint, TokenizerSource};

use crate::failure::failure;

/// Where the model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    Bundled,
    Path(PathBuf),
}

impl ModelSource {
    /// The named model, or the bundled one.
    pub fn named(path: Option<&Path>) -> ModelSource {
        path.map_or(ModelSource::Bundled, |path| ModelSource::Path(path.to_owned()))
    }

    pub fn open(&self) -> anyhow::Result<Checkpoint> {
        match self {
            ModelSource::Bundled => crate::bundled::open(),
            ModelSource::Path(path) => open(path),
        }
    }
}

impl ModelSource {
    /// The tokenizer alone, which needs no model that can be run.
    pub fn open_tokenizer(&self) -> anyhow::Result<TokenizerSource> {
        match self {
            ModelSource::Bundled => Ok(crate::bundled::open()?.tokenizer),
            ModelSource::Path(path) => {
                check_exists(path)?;
                Checkpoint::open_tokenizer(path)
                    .with_context(|| format!("cannot open the model {}", path.display()))
            }
        }
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelSource::Bundled => f.write_str("the bundled model"),
            ModelSource::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Opens a model at a path.
pub fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    check_exists(path)?;
    Checkpoint::open(path).with_context(|| format!("cannot open the model {}", path.display()))
}

fn check_exists(path: &Path) -> anyhow::Result<()> {
    if !path.exists() {
        let hint = "name a .gguf file, or a folder with config.json and *.safetensors; \
                    a prompt that looks like a path goes after `--`";
        return Err(failure(format_args!("no model at {}", path.display()), hint));
    }
    Ok(())
}

/// What the positional words of `run` and its kin mean.
#[derive(Debug, PartialEq, Eq)]
pub struct Words {
    pub model: ModelSource,
    /// The words that are not the model, joined by spaces; `None` when there are none.
    pub text: Option<String>,
}

impl Words {
    /// Tells the model from the text: the first word is the model when it exists as a path or looks like one, unless
    /// `--model` names it. Words after `--` (`after`) are always text.
    pub fn sort(model: Option<&Path>, words: &[String], after: &[String]) -> Words {
        let (source, words) = split(model, words);
        let text: Vec<&str> = words.iter().chain(after).map(String::as_str).collect();
        let text = (!text.is_empty()).then(|| text.join(" "));
        Words { model: source, text }
    }
}

/// The model, and the words behind it: the first word is the model when it exists as a path or looks like one, unless
/// `model` is one already.
pub fn split<'a>(model: Option<&Path>, words: &'a [String]) -> (ModelSource, &'a [String]) {
    match words.split_first() {
        Some((first, rest)) if model.is_none() && looks_like_model(first) => {
            (ModelSource::Path(first.into()), rest)
        }
        _ => (ModelSource::named(model), words),
    }
}

/// A path that is there, or one word that can only be meant as a path.
fn looks_like_model(word: &str) -> bool {
    let is_path_like = word.contains('/') || word.ends_with(".gguf");
    Path::new(word).exists() || (is_path_like && !word.contains(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(words: &[&str]) -> (ModelSource, Option<String>) {
        let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
        let sorted = Words::sort(None, &words, &[]);
        (sorted.model, sorted.text)
    }

    #[test]
    fn the_first_word_is_the_model_when_it_is_or_looks_like_a_path() {
        let path = |p: &str| ModelSource::Path(p.into());
        assert_eq!(sort(&["Tell", "me"]), (ModelSource::Bundled, Some("Tell me".to_owned())));
        assert_eq!(sort(&["Is TCP/IP old?"]), (ModelSource::Bundled, Some("Is TCP/IP old?".to_owned())));
        assert_eq!(sort(&["x.gguf", "Hi"]), (path("x.gguf"), Some("Hi".to_owned())));
        assert_eq!(sort(&["./model"]), (path("./model"), None));
        assert_eq!(sort(&["src"]), (path("src"), None), "it exists");
        assert_eq!(sort(&[]), (ModelSource::Bundled, None));
    }

    #[test]
    fn an_explicit_model_leaves_all_words_to_the_text() {
        let words = ["a.gguf".to_owned()];
        let sorted = Words::sort(Some(Path::new("m.gguf")), &words, &["-x".to_owned()]);
        assert_eq!(sorted.model, ModelSource::Path("m.gguf".into()));
        assert_eq!(sorted.text.as_deref(), Some("a.gguf -x"));
    }
}
