//! Names of models, by Ollama's rules: `[[HOST/]NAMESPACE/]MODEL[:TAG]`.
//!
//! A name without a tag means `:latest`, one without a namespace `library`, one without a host Ollama's registry; what
//! is meant anyway is not written. Names that differ only in case are the same name.

use std::fmt;
use std::path::{Path, PathBuf};

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

const MAX_HOST: usize = 350;
const MAX_PART: usize = 80;

/// A name that may be a model's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    host: Option<String>,
    namespace: Option<String>,
    model: String,
    tag: Option<String>,
}

/// A name that cannot be a model's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no name for a model: {reason}")]
pub struct NameError {
    pub name: String,
    pub reason: String,
}

impl ModelName {
    /// # Errors
    /// [`NameError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<ModelName, NameError> {
        let failed = |reason: String| NameError { name: text.to_owned(), reason };
        // A colon before a slash belongs to the host's port.
        let (path, tag) = match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (text, None),
        };
        let mut parts = path.split('/').rev();
        let model = parts.next().unwrap_or_default();
        let (namespace, host) = (parts.next(), parts.next());
        if parts.next().is_some() {
            return Err(failed("it has more than two slashes".to_owned()));
        }
        check("the model", model, MAX_PART, &['_', '-', '.']).map_err(failed)?;
        if let Some(tag) = tag {
            check("the tag", tag, MAX_PART, &['_', '-', '.']).map_err(failed)?;
        }
        if let Some(namespace) = namespace {
            check("the namespace", namespace, MAX_PART, &['_', '-']).map_err(failed)?;
        }
        if let Some(host) = host {
            check("the host", host, MAX_HOST, &['_', '-', '.', ':']).map_err(failed)?;
        }
        let is_meant = |part: &str, default: &str| part.eq_ignore_ascii_case(default);
        let host = host.filter(|host| !is_meant(host, HOST));
        // With a host the namespace is needed to tell the parts apart.
        let namespace = namespace.filter(|namespace| host.is_some() || !is_meant(namespace, NAMESPACE));
        let tag = tag.filter(|tag| !is_meant(tag, TAG));
        let owned = |part: Option<&str>| part.map(str::to_owned);
        Ok(ModelName {
            host: owned(host),
            namespace: owned(namespace),
            model: model.to_owned(),
            tag: owned(tag),
        })
    }

    /// What names that are the same have in common.
    pub fn key(&self) -> String {
        self.to_string().to_lowercase()
    }

    /// The file of a model with this name in the folder of models.
    pub fn file(&self, folder: &Path) -> PathBuf {
        let mut path = folder.to_owned();
        path.extend(self.host.as_deref());
        path.extend(self.namespace.as_deref());
        match &self.tag {
            Some(tag) => path.join(format!("{}:{tag}.yaml", self.model)),
            None => path.join(format!("{}.yaml", self.model)),
        }
    }

    /// The name whose file this is.
    pub fn of_file(folder: &Path, file: &Path) -> Option<ModelName> {
        let relative = file.strip_prefix(folder).ok()?.to_str()?;
        let name = ModelName::parse(relative.strip_suffix(".yaml")?).ok()?;
        (name.file(folder) == file).then_some(name)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.host.iter().chain(&self.namespace) {
            write!(f, "{part}/")?;
        }
        f.write_str(&self.model)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

fn check(what: &str, part: &str, max: usize, marks: &[char]) -> Result<(), String> {
    if part.is_empty() {
        return Err(format!("{what} is empty"));
    }
    if part.len() > max {
        return Err(format!("{what} is longer than {max} characters"));
    }
    if !part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        return Err(format!("{what} must begin with a letter or a digit"));
    }
    match part.chars().find(|c| !c.is_ascii_alphanumeric() && !marks.contains(c)) {
        Some(c) => Err(format!("{what} has {c:?} in it")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_meant_anyway_is_not_written() {
        let check = |text: &str, expected: &str| {
            assert_eq!(ModelName::parse(text).unwrap().to_string(), expected, "{text}");
        };
        check("mario", "mario");
        check("mario:latest", "mario");
        check("Mario:7B", "Mario:7B");
        check("library/mario", "mario");
        check("registry.ollama.ai/library/mario:x", "mario:x");
        check("me/mario", "me/mario");
        check("hf.co/me/m-1.5_b.gguf:Q8_0", "hf.co/me/m-1.5_b.gguf:Q8_0");
        check("localhost:5000/library/m", "localhost:5000/library/m");
        assert_eq!(ModelName::parse("Mario:LATEST").unwrap().key(), ModelName::parse("mario").unwrap().key());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let refused = |text: &str| ModelName::parse(text).unwrap_err().reason;
        assert_eq!(refused(""), "the model is empty");
        assert_eq!(refused("a:"), "the tag is empty");
        assert_eq!(refused("/a"), "the namespace is empty");
        assert_eq!(refused("a b"), "the model has ' ' in it");
        assert_eq!(refused(".."), "the model must begin with a letter or a digit");
        assert_eq!(refused("a/../b"), "the namespace must begin with a letter or a digit");
        assert_eq!(refused("a.b/c"), "the namespace has '.' in it");
        assert_eq!(refused("a/b/c/d"), "it has more than two slashes");
        assert_eq!(refused(&"x".repeat(81)), "the model is longer than 80 characters");
    }

    proptest! {
        #[test]
        fn a_file_gives_its_name_back(text in "([a-z0-9.:]{1,8}/)?([a-zA-Z0-9_-]{1,8}/)?[a-zA-Z0-9_.-]{1,8}(:[a-z0-9.]{1,5})?", any in any::<String>()) {
            let folder = Path::new("/models");
            for text in [text, any] {
                let Ok(name) = ModelName::parse(&text) else { continue };
                let file = name.file(folder);
                prop_assert!(file.starts_with(folder) && file.components().all(|part| part.as_os_str() != ".."));
                prop_assert_eq!(ModelName::of_file(folder, &file), Some(name.clone()));
                prop_assert_eq!(ModelName::parse(&name.to_string()).unwrap(), name);
            }
        }
    }
}
