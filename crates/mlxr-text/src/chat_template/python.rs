//! Values as Python prints them, where Jinja for Rust differs.

use minijinja::value::{Value, ValueKind};

use super::json::float;

/// `str(value)`.
pub(super) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Number => number(value),
        ValueKind::Seq | ValueKind::Map if holds_float(value, 0) => repr(value),
        _ => value.to_string(),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::Number => number(value),
        ValueKind::Seq => format!("[{}]", items().map(|item| repr(&item)).collect::<Vec<_>>().join(", ")),
        ValueKind::Map => {
            let field = |key: Value| {
                let field = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&field))
            };
            format!("{{{}}}", items().map(field).collect::<Vec<_>>().join(", "))
        }
        _ => format!("{value:?}"),
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => float(x),
        _ => value.to_string(),
    }
}

/// Whether a list or map holds a float whose spelling differs; nothing deeper than any message goes.
fn holds_float(value: &Value, depth: usize) -> bool {
    if 64 < depth {
        return false;
    }
    let mut items = value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::Number => !value.is_integer(),
        ValueKind::Seq => items.any(|item| holds_float(&item, depth + 1)),
        ValueKind::Map => {
            items.any(|key| value.get_item(&key).is_ok_and(|field| holds_float(&field, depth + 1)))
        }
        _ => false,
    }
}

/// Jinja's test `iterable`: nothing can be looped over in `none`.
pub(super) fn is_iterable(value: &Value) -> bool {
    !value.is_none() && (value.is_undefined() || value.as_str().is_some() || value.try_iter().is_ok())
}

/// Jinja's filter `length`: what is undefined is empty.
pub(super) fn length(value: &Value) -> Result<usize, minijinja::Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}
