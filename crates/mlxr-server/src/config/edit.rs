//! Changing some settings of a file and nothing else: comments and order stay.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::layers::{read_file, read_settings};
use super::problem::ConfigError;
use super::value::Text;
use super::yaml::{self, NodeValue};
use super::{Key, key};
use crate::files::write_file;

/// Held from reading a file to writing it, so that no change is lost to another one.
static EDITING: Mutex<()> = Mutex::new(());

/// Gives the named settings these values in the file, which is created when it is not there; all of them or none.
///
/// # Errors
/// There is no such setting, a value makes no sense, or the file cannot be read, understood or written.
pub fn set_in_file(path: &Path, changes: &[(String, Vec<String>)]) -> Result<(), ConfigError> {
    let edit = |reason: &str| ConfigError::Edit { path: path.to_owned(), reason: reason.to_owned() };
    let _editing = EDITING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = read_file(path, false)?.unwrap_or_default();
    // A file with mistakes is not made worse.
    read_settings(&text, path)?;
    for (name, values) in changes {
        text = changed(&text, key(name)?, values).ok_or_else(|| edit("its layout is unusual"))?;
    }
    let settings = read_settings(&text, path)?;
    let is_set = |(name, values): &(String, Vec<String>)| {
        values.is_empty()
            || settings.iter().any(|setting| setting.key.name == name && setting.texts == *values)
    };
    if !changes.iter().all(is_set) {
        return Err(edit("the change would not take effect"));
    }
    let failed = |source| ConfigError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    write_file(path, text.as_bytes()).map_err(failed)
}

/// The text with another value, or `None` when it is laid out in a way this does not handle.
fn changed(text: &str, key: &Key, values: &[String]) -> Option<String> {
    let value = match key.is_list {
        true => {
            format!("[{}]", values.iter().map(|value| yaml::scalar(value)).collect::<Vec<_>>().join(", "))
        }
        false => scalar(key, values.first()?),
    };
    let root = yaml::parse(text).ok()?;
    let sections = root.entries("it").ok()?;
    let line = |indent: usize| format!("{:indent$}{}: {value}\n", "", key.short_name());
    let Some(section) = sections.iter().find(|section| section.key == key.section()) else {
        let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        return Some(format!("{text}{gap}{}:\n{}", key.section(), line(2)));
    };
    let entries = section.value.entries("it").ok()?;
    if let Some(entry) = entries.iter().find(|entry| entry.key == key.short_name()) {
        return replaced(text, entry, &value);
    }
    let is_flow = text.chars().nth(section.value.start) == Some('{');
    if is_flow || (section.value.is_null() && section.value.start != section.value.end) {
        return None;
    }
    // Behind the section's own line, set in like what follows.
    let indent = entries.first().map_or(2, |entry| entry.at.column - 1);
    let mut out = String::new();
    for (i, old) in text.split_inclusive('\n').enumerate() {
        out.push_str(old);
        if i + 1 == section.at.line {
            if !old.ends_with('\n') {
                out.push('\n');
            }
            out.push_str(&line(indent));
        }
    }
    Some(out)
}

/// A value as people write it: texts in quotes where they need them, true and false without.
fn scalar(key: &Key, text: &str) -> String {
    match (key.check)(&[Text { text, base: None }]) {
        Ok(Value::Bool(value)) => value.to_string(),
        _ => yaml::scalar(text),
    }
}

fn replaced(text: &str, entry: &yaml::Entry, value: &str) -> Option<String> {
    let node = &entry.value;
    let is_one_line =
        text.chars().skip(node.start).take(node.end.saturating_sub(node.start)).all(|c| c != '\n');
    let is_flow_list = matches!(node.value, NodeValue::List(_)) && text.chars().nth(node.start) == Some('[');
    let is_scalar = matches!(node.value, NodeValue::Scalar { .. });
    if !(is_one_line && (is_scalar || is_flow_list)) {
        return None;
    }
    let before: String = text.chars().take(node.start).collect();
    let after: String = text.chars().skip(node.end).collect();
    Some(format!("{before}{value}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str, name: &str, values: &[&str]) -> Result<String, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("server.yaml");
        std::fs::write(&path, text).unwrap();
        let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        set_in_file(&path, &[(name.to_owned(), values)])?;
        Ok(std::fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn one_value_changes_and_the_rest_stays() {
        let text = "# mine\nlisten:\n  port: 1 # one\n\nmodels: # x\n    preload: [a]\n";
        let check = |name: &str, values: &[&str], expected: &str| {
            assert_eq!(set(text, name, values).unwrap(), expected);
        };
        check("listen.port", &["2"], "# mine\nlisten:\n  port: 2 # one\n\nmodels: # x\n    preload: [a]\n");
        check(
            "listen.host",
            &["::1"],
            "# mine\nlisten:\n  host: \"::1\"\n  port: 1 # one\n\nmodels: # x\n    preload: [a]\n",
        );
        check(
            "models.preload",
            &["b", "c d"],
            "# mine\nlisten:\n  port: 1 # one\n\nmodels: # x\n    preload: [b, \"c d\"]\n",
        );
        check(
            "models.pin",
            &["b"],
            "# mine\nlisten:\n  port: 1 # one\n\nmodels: # x\n    pin: [b]\n    preload: [a]\n",
        );
        check("engine.max_seqs", &["4"], &format!("{text}engine:\n  max_seqs: 4\n"));
        assert_eq!(set("", "limits.grace", &["1m"]).unwrap(), "limits:\n  grace: 1m\n");
        assert_eq!(set("limits:", "limits.grace", &["1m"]).unwrap(), "limits:\n  grace: 1m\n");
    }

    #[test]
    fn several_settings_change_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/server.yaml");
        let change = |name: &str, value: &str| (name.to_owned(), vec![value.to_owned()]);
        set_in_file(&path, &[change("listen.port", "1"), change("limits.strict", "true")]).unwrap();
        let text = "listen:\n  port: 1\nlimits:\n  strict: true\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let wrong = [change("listen.port", "2"), change("limits.grace", "soon")];
        assert!(matches!(set_in_file(&path, &wrong), Err(ConfigError::Problems(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn what_cannot_be_changed_safely_is_left_alone() {
        assert!(matches!(set("listen: {port: 1}\n", "listen.host", &["::1"]), Err(ConfigError::Edit { .. })));
        assert!(matches!(
            set("models:\n  pin:\n  - a\n", "models.pin", &["b"]),
            Err(ConfigError::Edit { .. })
        ));
        assert!(matches!(set("", "listen.port", &["x"]), Err(ConfigError::Problems(_))));
        assert!(matches!(set("lisen:\n", "listen.port", &["1"]), Err(ConfigError::Problems(_))));
        let error = set("", "listen.prot", &["1"]).unwrap_err().to_string();
        assert_eq!(error, "there is no setting \"listen.prot\"\nhint: did you mean \"listen.port\"?");
        assert_eq!(
            set("", "port", &["1"]).unwrap_err().to_string(),
            "there is no setting \"port\"\nhint: did you mean \"listen.port\"?"
        );
    }
}
