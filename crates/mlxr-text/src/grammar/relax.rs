//! Tool schemas as far as they can be enforced.
//!
//! A tool's schema is a hint to the model first. Unless the client asks for strictness, keywords the automaton does not
//! know are left out; what remains allows more than the schema, never less, but for arguments nobody declared: where
//! properties are listed and nothing is said of others, there are no others.

use serde_json::{Map, Value, json};

use super::schema;

/// A schema that passes [`schema::check`] and describes an object.
pub(crate) fn relax(schema: &Value) -> Value {
    let mut relaxed = relaxed(schema, schema);
    let Some(map) = relaxed.as_object_mut() else { return json!({"type": "object"}) };
    map.insert("type".to_owned(), "object".into());
    if schema::check(&relaxed).is_err() {
        return json!({"type": "object"});
    }
    let opens = ["additionalProperties", "patternProperties", "anyOf", "allOf", "$ref"];
    if let Some(map) = relaxed.as_object_mut()
        && map.contains_key("properties")
        && !opens.iter().any(|keyword| map.contains_key(*keyword))
    {
        map.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
    relaxed
}

fn relaxed(root: &Value, schema: &Value) -> Value {
    let Value::Object(map) = schema else {
        return if schema.is_boolean() { schema.clone() } else { Value::Bool(true) };
    };
    let mut out = Map::new();
    for (keyword, value) in map {
        let alone = Value::Object(Map::from_iter([(keyword.clone(), shell(keyword, value))]));
        let resolves = keyword != "$ref" || value.as_str().is_some_and(|target| resolves(root, target));
        if (keyword != "$ref" && schema::check(&alone).is_err()) || !resolves {
            continue;
        }
        let inner = |value: &Value| relaxed(root, value);
        let value = match (keyword.as_str(), value) {
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(schemas)) => {
                schemas.iter().map(|(name, schema)| (name.clone(), inner(schema))).collect()
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(schemas)) => {
                schemas.iter().map(inner).collect()
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => inner(schema),
            (_, value) => value.clone(),
        };
        // Whether alternatives exclude each other is more than the automaton can always tell.
        let keyword = if keyword == "oneOf" { "anyOf" } else { keyword };
        out.insert(keyword.to_owned(), value);
    }
    Value::Object(out)
}

/// The value with the schemas inside it blanked, to check the keyword by itself.
fn shell(keyword: &str, value: &Value) -> Value {
    match (keyword, value) {
        ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(_)) => json!({}),
        ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(_)) => json!([]),
        ("items" | "additionalItems" | "additionalProperties", Value::Object(_)) => json!({}),
        _ => value.clone(),
    }
}

fn resolves(root: &Value, target: &str) -> bool {
    target == "#"
        || target
            .strip_prefix('#')
            .is_some_and(|pointer| pointer.starts_with('/') && root.pointer(pointer).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_enforced_is_left_out() {
        let schema = json!({
            "type": "object",
            "properties": {
                "a": {"type": "array", "items": {"type": "string", "format": "iban"}, "uniqueItems": true},
                "b": {"oneOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/gone"}]},
            },
            "required": ["a"],
            "$defs": {"x": {"not": {}, "type": "null"}},
        });
        let expected = json!({
            "type": "object",
            "properties": {
                "a": {"type": "array", "items": {"type": "string"}},
                "b": {"anyOf": [{"$ref": "#/$defs/x"}, {}]},
            },
            "required": ["a"],
            "$defs": {"x": {"type": "null"}},
            "additionalProperties": false,
        });
        assert_eq!(relax(&schema), expected);
    }

    #[test]
    fn no_schema_is_any_object() {
        for schema in [json!(null), json!("x"), json!(true), json!({"type": 3})] {
            assert_eq!(relax(&schema)["type"], "object", "{schema}");
        }
    }
}
