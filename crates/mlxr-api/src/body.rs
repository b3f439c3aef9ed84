//! Request bodies: JSON to a type, with the place of the mistake.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// A body that is no JSON, or not the JSON that was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyError {
    /// The field, as in `messages[0].role`; `None` when the body as a whole is wrong.
    pub field: Option<String>,
    pub reason: String,
}

impl std::fmt::Display for BodyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{field}: {}", self.reason),
            None => write!(f, "the request body is not what was expected: {}", self.reason),
        }
    }
}

impl std::error::Error for BodyError {}

/// Reads a body.
///
/// # Errors
/// [`BodyError`] names the field that is wrong.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(from_path_error)?;
    json.end().map_err(|error| BodyError { field: None, reason: error.to_string() })?;
    Ok(value)
}

/// Reads the fields that another type left over.
pub(crate) fn parse_rest<T: DeserializeOwned>(fields: Map<String, Value>) -> Result<T, BodyError> {
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(from_path_error)
}

/// Gives requests that are read in one go their `parse`.
macro_rules! parsed {
    ($($request:ty),+) => { $(
        impl $request {
            /// Reads a body.
            ///
            /// # Errors
            /// [`BodyError`](crate::BodyError) names the field that is wrong.
            pub fn parse(body: &[u8]) -> Result<Self, crate::BodyError> {
                crate::body::parse(body)
            }
        }
    )+ };
}
pub(crate) use parsed;

/// Reads a part of a body that stands at `field`.
pub(crate) fn parse_at<T: DeserializeOwned>(field: &str, value: Value) -> Result<T, BodyError> {
    serde_path_to_error::deserialize(value).map_err(from_path_error).map_err(|error| {
        let inner = error.field.map_or_else(String::new, |inner| {
            if inner.starts_with('[') { inner } else { format!(".{inner}") }
        });
        BodyError { field: Some(format!("{field}{inner}")), reason: error.reason }
    })
}

/// For fields where null is the same as nothing.
pub(crate) fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

fn from_path_error(error: serde_path_to_error::Error<serde_json::Error>) -> BodyError {
    let is_syntax = matches!(
        error.inner().classify(),
        serde_json::error::Category::Syntax | serde_json::error::Category::Eof
    );
    let path = error.path().to_string();
    // Where the syntax breaks, the fields around it do not matter; a path of `.` is the body itself.
    let field = (!is_syntax && path != ".").then_some(path);
    BodyError { field, reason: error.inner().to_string() }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[expect(dead_code, reason = "only its type matters")]
        n: u32,
    }

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[expect(dead_code, reason = "only its type matters")]
        list: Vec<Inner>,
        #[serde(flatten)]
        unknown: Map<String, Value>,
    }

    fn error(body: &str) -> BodyError {
        parse::<Outer>(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn a_wrong_type_is_named_by_its_path_also_beside_unknown_fields() {
        let found = error(r#"{"x": 1, "list": [{"n": 1}, {"n": "two"}]}"#);
        assert_eq!(found.field.as_deref(), Some("list[1].n"));
        assert!(found.reason.starts_with("invalid type: string \"two\", expected u32"), "{found}");
        assert_eq!(error(r#"{"list": 3}"#).field.as_deref(), Some("list"));
        assert_eq!(error("[]").field, None);
    }

    #[test]
    fn broken_json_is_told_by_its_place() {
        let found = error(r#"{"list": [}"#);
        assert_eq!(found.field, None);
        assert!(found.reason.contains("line 1 column 11"), "{found}");
        assert!(error("").reason.contains("EOF"));
        assert!(error(r#"{"list": []} {}"#).reason.contains("trailing characters"));
        assert!(error(r#"{"x": 1}"#).reason.contains("missing field `list`"));
    }

    #[test]
    fn unknown_fields_are_kept() {
        let body: Outer = parse(br#"{"list": [], "x": 1, "y": null}"#).unwrap();
        assert_eq!(body.unknown.keys().collect::<Vec<_>>(), ["x", "y"]);
    }
}
