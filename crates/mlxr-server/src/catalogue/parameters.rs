//! Parameters stored with a model, under the names of Ollama's `PARAMETER`.

use mlxr_api::ollama::options::Options;
use serde_json::{Map, Value, json};

use crate::config::did_you_mean;

/// Texts that end an answer, at most.
const MAX_STOPS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Float,
    Bool,
    Texts,
}

const KNOWN: &[(&str, Kind)] = &[
    ("num_ctx", Kind::Int),
    ("num_predict", Kind::Int),
    ("num_keep", Kind::Int),
    ("temperature", Kind::Float),
    ("top_k", Kind::Int),
    ("top_p", Kind::Float),
    ("min_p", Kind::Float),
    ("typical_p", Kind::Float),
    ("tfs_z", Kind::Float),
    ("seed", Kind::Int),
    ("stop", Kind::Texts),
    ("repeat_last_n", Kind::Int),
    ("repeat_penalty", Kind::Float),
    ("presence_penalty", Kind::Float),
    ("frequency_penalty", Kind::Float),
    ("mirostat", Kind::Int),
    ("mirostat_tau", Kind::Float),
    ("mirostat_eta", Kind::Float),
    ("penalize_newline", Kind::Bool),
    ("num_batch", Kind::Int),
    ("num_gpu", Kind::Int),
    ("main_gpu", Kind::Int),
    ("num_thread", Kind::Int),
    ("numa", Kind::Bool),
    ("low_vram", Kind::Bool),
    ("f16_kv", Kind::Bool),
    ("use_mmap", Kind::Bool),
    ("use_mlock", Kind::Bool),
];

/// Those that decide nothing here, and why.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("num_keep", "a full context ends the answer, nothing of it is dropped"),
    ("tfs_z", "there is no tail-free sampling"),
    ("penalize_newline", "penalties make no exceptions"),
    ("num_batch", SERVER),
    ("num_gpu", SERVER),
    ("main_gpu", SERVER),
    ("num_thread", SERVER),
    ("numa", SERVER),
    ("low_vram", SERVER),
    ("f16_kv", "kv_type of the model's file decides it"),
    ("use_mmap", SERVER),
    ("use_mlock", SERVER),
];

const SERVER: &str = "it is decided when the server starts";

/// Parameters by name, each of its type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(Map<String, Value>);

/// A parameter that is none, or a value that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParameterError {
    pub name: String,
    pub message: String,
    pub hint: Option<String>,
}

fn failed(name: &str, message: String) -> ParameterError {
    ParameterError { name: name.to_owned(), message, hint: None }
}

impl Parameters {
    /// Sets a parameter from a text; `stop` adds up.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn set_text(&mut self, name: &str, text: &str) -> Result<(), ParameterError> {
        let kind = kind_of(name)?;
        let expected = |what: &str| failed(name, format!("{name} is {text:?}, but expected {what}"));
        let value = match kind {
            Kind::Int => json!(text.parse::<i64>().map_err(|_| expected("a whole number"))?),
            Kind::Float => {
                let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
                json!(number.ok_or_else(|| expected("a number"))?)
            }
            Kind::Bool => json!(text.parse::<bool>().map_err(|_| expected("true or false"))?),
            Kind::Texts => {
                let mut texts = self.0.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
                texts.push(json!(text));
                Value::Array(texts)
            }
        };
        self.set(name, value)
    }

    /// Sets a parameter from JSON, in place of what it was.
    ///
    /// # Errors
    /// [`ParameterError`].
    pub fn set_json(&mut self, name: &str, value: &Value) -> Result<(), ParameterError> {
        let kind = kind_of(name)?;
        let expected = |what: &str| failed(name, format!("{name} is {value}, but expected {what}"));
        let read = match (kind, value) {
            (_, Value::Null) => {
                self.0.remove(name);
                return Ok(());
            }
            // Clients in languages with one type of number send 40.0.
            (Kind::Int, Value::Number(number)) => {
                let float = number.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15);
                let int = number.as_i64().or(float.map(|float| float as i64));
                json!(int.ok_or_else(|| expected("a whole number"))?)
            }
            (Kind::Float, Value::Number(_)) | (Kind::Bool, Value::Bool(_)) => value.clone(),
            (Kind::Texts, Value::String(_)) => json!([value]),
            (Kind::Texts, Value::Array(texts)) if texts.iter().all(Value::is_string) => value.clone(),
            (Kind::Int, _) => return Err(expected("a whole number")),
            (Kind::Float, _) => return Err(expected("a number")),
            (Kind::Bool, _) => return Err(expected("true or false")),
            (Kind::Texts, _) => return Err(expected("a list of texts")),
        };
        self.set(name, read)
    }

    fn set(&mut self, name: &str, value: Value) -> Result<(), ParameterError> {
        if value.as_array().is_some_and(|texts| texts.len() > MAX_STOPS) {
            return Err(failed(name, format!("{name} has more than {MAX_STOPS} texts")));
        }
        let mut changed = self.0.clone();
        changed.insert(name.to_owned(), value);
        let options: Result<Options, _> = serde_json::from_value(Value::Object(changed.clone()));
        let options = options.map_err(|error| failed(name, format!("{name}: {error}")))?;
        crate::translate::ollama::options::check(&options)
            .map_err(|error| failed(name, format!("{name}: {error}")))?;
        self.0 = changed;
        Ok(())
    }

    /// Parameters laid over these.
    pub fn extend(&mut self, other: Parameters) {
        self.0.extend(other.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that are kept but decide nothing, and why.
    pub fn without_effect(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        WITHOUT_EFFECT.iter().copied().filter(|(name, _)| self.0.contains_key(*name))
    }

    /// These with others laid over them.
    pub fn overlaid(&self, others: &Parameters) -> Parameters {
        let mut merged = self.0.clone();
        merged.extend(others.0.clone());
        Parameters(merged)
    }

    /// As JSON, for requests that say nothing themselves.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// The context the model is loaded with.
    pub fn n_ctx(&self) -> Option<u32> {
        self.0.get("num_ctx").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
    }

    /// Names and values as text, one of each.
    pub fn lines(&self) -> Vec<(&str, String)> {
        let mut lines = Vec::new();
        for (name, value) in &self.0 {
            match value {
                Value::Array(texts) => lines.extend(texts.iter().map(|text| (name.as_str(), plain(text)))),
                value => lines.push((name.as_str(), plain(value))),
            }
        }
        lines
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn kind_of(name: &str) -> Result<Kind, ParameterError> {
    let found = KNOWN.iter().find(|(known, _)| *known == name);
    found.map(|(_, kind)| *kind).ok_or_else(|| {
        let hint = did_you_mean(name, KNOWN.iter().map(|(known, _)| *known));
        ParameterError { name: name.to_owned(), message: format!("there is no parameter {name:?}"), hint }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_types_and_stops_add_up() {
        let mut parameters = Parameters::default();
        parameters.set_text("temperature", "0.7").unwrap();
        parameters.set_text("top_k", "40").unwrap();
        parameters.set_text("stop", "a").unwrap();
        parameters.set_text("stop", "b c").unwrap();
        let expected = json!({"temperature": 0.7, "top_k": 40, "stop": ["a", "b c"]});
        assert_eq!(parameters.as_map(), expected.as_object().unwrap());
        assert_eq!(parameters.lines()[2..], [("stop", "a".to_owned()), ("stop", "b c".to_owned())]);
        parameters.set_json("stop", &json!("x")).unwrap();
        parameters.set_json("num_ctx", &json!(128.0)).unwrap();
        parameters.set_json("top_k", &Value::Null).unwrap();
        assert_eq!(
            parameters.as_map(),
            json!({"temperature": 0.7, "stop": ["x"], "num_ctx": 128}).as_object().unwrap()
        );
        assert_eq!(parameters.n_ctx(), Some(128));
    }

    #[test]
    fn parameters_without_effect_are_known() {
        let mut parameters = Parameters::default();
        for (name, text) in [("num_gpu", "1"), ("top_k", "1"), ("use_mmap", "true")] {
            parameters.set_text(name, text).unwrap();
        }
        let names: Vec<&str> = parameters.without_effect().map(|(name, _)| name).collect();
        assert_eq!(names, ["num_gpu", "use_mmap"]);
        assert!(WITHOUT_EFFECT.iter().all(|(name, _)| KNOWN.iter().any(|(known, _)| known == name)));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let text = |name: &str, text: &str| Parameters::default().set_text(name, text).unwrap_err();
        assert_eq!(text("temprature", "1").hint.as_deref(), Some("did you mean \"temperature\"?"));
        assert_eq!(text("top_k", "many").message, "top_k is \"many\", but expected a whole number");
        assert!(text("temperature", "-1").message.contains("temperature"));
        assert!(text("temperature", "NaN").message.contains("a number"));
        assert!(text("num_ctx", "-5").message.starts_with("num_ctx"));
        let json = |name: &str, value: Value| Parameters::default().set_json(name, &value).unwrap_err();
        assert_eq!(json("top_k", json!(1.5)).message, "top_k is 1.5, but expected a whole number");
        assert!(json("stop", json!([1])).message.contains("a list of texts"));
        assert!(json("mirostat", json!(3)).message.contains("mirostat"));
    }
}
