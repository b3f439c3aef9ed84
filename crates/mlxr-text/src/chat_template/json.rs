//! JSON as Python's `json.dumps` writes it.

use std::fmt::Write as _;

use serde_json::Value;

/// The options of `json.dumps` that templates use.
#[derive(Debug, Clone, Default)]
pub(super) struct Style {
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    /// One level of indentation.
    pub(super) indent: Option<String>,
    /// Between items, between key and value.
    pub(super) separators: Option<(String, String)>,
}

pub(super) fn dumps(value: &Value, style: &Style) -> String {
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None if style.indent.is_some() => (",", ": "),
        None => (", ", ": "),
    };
    let mut writer = Writer { out: String::new(), style, item, key, depth: 0 };
    writer.value(value);
    writer.out
}

struct Writer<'a> {
    out: String,
    style: &'a Style,
    item: &'a str,
    key: &'a str,
    depth: usize,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.push_str("null"),
            Value::Bool(b) => self.out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => self.number(n),
            Value::String(s) => self.string(s),
            Value::Array(items) => self.nested('[', ']', items, |w, item| w.value(item)),
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.style.sort_keys {
                    fields.sort_by_key(|(name, _)| name.as_str());
                }
                self.nested('{', '}', &fields, |w, (name, value)| {
                    w.string(name);
                    w.out.push_str(w.key);
                    w.value(value);
                });
            }
        }
    }

    fn nested<T>(&mut self, open: char, close: char, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.out.push(open);
        self.depth += 1;
        for (i, item) in items.iter().enumerate() {
            if i != 0 {
                self.out.push_str(self.item);
            }
            self.newline();
            write(self, item);
        }
        self.depth -= 1;
        if !items.is_empty() {
            self.newline();
        }
        self.out.push(close);
    }

    fn newline(&mut self) {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            for _ in 0..self.depth {
                self.out.push_str(indent);
            }
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn number(&mut self, n: &serde_json::Number) {
        match n.as_f64().filter(|_| n.is_f64()) {
            Some(x) => self.out.push_str(&float(x)),
            None => self.out.push_str(&n.to_string()),
        }
    }
}

/// A float as Python's `repr` writes it: plain between 1e-4 and 1e16, with an exponent outside.
pub(super) fn float(x: f64) -> String {
    let scientific = format!("{x:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_and_strings_read_like_python() {
        let value =
            json!({"b": [1, 1.0, 1e16, 1e-5, 0.1, 1.5e300, -0.0], "a": "é\n\u{7f}\u{1}", "e": {}, "f": []});
        assert_eq!(
            dumps(&value, &Style::default()),
            "{\"b\": [1, 1.0, 1e+16, 1e-05, 0.1, 1.5e+300, -0.0], \"a\": \"é\\n\u{7f}\\u0001\", \"e\": {}, \"f\": []}"
        );
        let ascii = Style { ensure_ascii: true, sort_keys: true, ..Style::default() };
        assert_eq!(
            dumps(&json!({"b": "😀", "a": "\u{7f}"}), &ascii),
            r#"{"a": "\u007f", "b": "\ud83d\ude00"}"#
        );
    }

    #[test]
    fn indentation_drops_the_space_after_the_comma() {
        let style = Style { indent: Some("  ".to_owned()), ..Style::default() };
        assert_eq!(
            dumps(&json!({"a": [1, 2], "b": {}}), &style),
            "{\n  \"a\": [\n    1,\n    2\n  ],\n  \"b\": {}\n}"
        );
    }
}
