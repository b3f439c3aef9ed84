//! JSON Schema keywords, checked one by one before anything is compiled.
//!
//! Invariant: what passes is enforced. A keyword that the automaton would ignore is an error with its path.

use serde_json::{Map, Value};

use super::{GrammarError, MAX_PATTERN_BYTES};

/// Keywords the automaton enforces, and those that only describe.
const ENFORCED: [&str; 27] = [
    "anyOf",
    "oneOf",
    "allOf",
    "$ref",
    "const",
    "enum",
    "type",
    "items",
    "additionalItems",
    "prefixItems",
    "minItems",
    "maxItems",
    "properties",
    "additionalProperties",
    "patternProperties",
    "required",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
const DESCRIPTIVE: [&str; 18] = [
    "$anchor",
    "$defs",
    "definitions",
    "$schema",
    "$id",
    "id",
    "$comment",
    "title",
    "description",
    "default",
    "readOnly",
    "writeOnly",
    "examples",
    "example",
    "deprecated",
    "contentMediaType",
    "contentEncoding",
    "strict",
];
const FORMATS: [&str; 10] =
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"];
/// Deepest nesting of a schema.
const MAX_DEPTH: usize = 64;

/// Checks every keyword of a schema and of the schemas in it.
pub(crate) fn check(schema: &Value) -> Result<(), GrammarError> {
    check_at(schema, schema, "#", 0)
}

fn check_at(root: &Value, schema: &Value, path: &str, depth: usize) -> Result<(), GrammarError> {
    let bad = |reason: &str| GrammarError::Schema { path: path.to_owned(), reason: reason.to_owned() };
    if MAX_DEPTH < depth {
        return Err(bad("nested too deeply"));
    }
    let map = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(map) => map,
        _ => return Err(bad("a schema is an object or a boolean")),
    };
    for (keyword, value) in map {
        let here = format!("{path}/{}", escape(keyword));
        check_keyword(root, keyword, value, &here)?;
        match keyword.as_str() {
            "properties" | "patternProperties" | "$defs" | "definitions" => {
                for (name, schema) in object(value, &here)? {
                    check_at(root, schema, &format!("{here}/{}", escape(name)), depth + 1)?;
                }
            }
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => {
                let schemas = value.as_array().ok_or_else(|| wrong(&here, "expected an array of schemas"))?;
                for (i, schema) in schemas.iter().enumerate() {
                    check_at(root, schema, &format!("{here}/{i}"), depth + 1)?;
                }
            }
            "items" if value.is_array() => {
                for (i, schema) in value.as_array().into_iter().flatten().enumerate() {
                    check_at(root, schema, &format!("{here}/{i}"), depth + 1)?;
                }
            }
            "items" | "additionalItems" | "additionalProperties" => {
                check_at(root, value, &here, depth + 1)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_keyword(root: &Value, keyword: &str, value: &Value, path: &str) -> Result<(), GrammarError> {
    if !ENFORCED.contains(&keyword) && !DESCRIPTIVE.contains(&keyword) {
        return Err(GrammarError::Keyword { keyword: keyword.to_owned(), path: path.to_owned() });
    }
    match (keyword, value) {
        ("format", Value::String(name)) if !FORMATS.contains(&name.as_str()) => {
            Err(wrong(path, &format!("unsupported format {name:?}")))
        }
        ("$ref", Value::String(target)) => check_ref(root, target, path),
        ("pattern", Value::String(pattern)) if MAX_PATTERN_BYTES < pattern.len() => {
            Err(wrong(path, &format!("longer than {MAX_PATTERN_BYTES} bytes")))
        }
        ("format" | "$ref" | "pattern", value) if !value.is_string() => Err(wrong(path, "expected a string")),
        _ => Ok(()),
    }
}

fn check_ref(root: &Value, target: &str, path: &str) -> Result<(), GrammarError> {
    if target == "#" {
        return Ok(());
    }
    match target.strip_prefix('#') {
        // The automaton's own resolver knows no `~1` and no percent signs.
        Some(pointer) if pointer.starts_with('/') && root.pointer(pointer).is_some() => Ok(()),
        Some(_) => Err(wrong(path, &format!("nothing at {target:?}"))),
        None => Err(wrong(path, &format!("{target:?} is outside the schema"))),
    }
}

fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Map<String, Value>, GrammarError> {
    value.as_object().ok_or_else(|| wrong(path, "expected an object of schemas"))
}

fn wrong(path: &str, reason: &str) -> GrammarError {
    GrammarError::Schema { path: path.to_owned(), reason: reason.to_owned() }
}

/// A key as JSON pointers spell it.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_unsupported_keyword_is_named_with_its_path() {
        let schema = json!({"type": "object", "properties": {"a/b": {"type": "array", "items": [{"uniqueItems": true}]}}});
        let e = check(&schema).unwrap_err();
        let path = "#/properties/a~1b/items/0/uniqueItems".to_owned();
        assert_eq!(e, GrammarError::Keyword { keyword: "uniqueItems".to_owned(), path });
    }

    #[test]
    fn a_property_may_be_called_like_a_keyword() {
        check(&json!({"properties": {"not": {"type": "string"}}, "required": ["not"]})).unwrap();
        assert!(check(&json!({"not": {"type": "string"}})).is_err());
    }

    #[test]
    fn references_must_lead_somewhere_inside() {
        check(&json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}})).unwrap();
        for target in ["#/$defs/b", "https://example.com/schema", "#name"] {
            let e = check(&json!({"$ref": target})).unwrap_err();
            assert!(matches!(&e, GrammarError::Schema { path, .. } if path == "#/$ref"), "{e}");
        }
    }

    #[test]
    fn formats_and_shapes_are_checked() {
        for schema in [json!({"format": "iban"}), json!(3), json!({"anyOf": {}}), json!({"properties": []})] {
            assert!(matches!(check(&schema), Err(GrammarError::Schema { .. })), "{schema}");
        }
    }

    #[test]
    fn deep_schemas_are_refused() {
        let mut schema = json!({});
        for _ in 0..80 {
            schema = json!({"items": schema});
        }
        assert!(check(&schema).is_err());
    }
}
