//! JSON read character by character.

use super::reader::{Malformed, Parsed, Reader};

/// Deepest nesting of arguments.
const MAX_DEPTH: usize = 128;

/// Checks that characters make one JSON value. Containers only at the top: the end of a number is not its own.
#[derive(Debug, Default)]
pub(crate) struct JsonScanner {
    stack: Vec<bool>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Value,
    /// After `[`: a value or `]`.
    FirstItem,
    /// After `{`: a key or `}`.
    FirstKey,
    Key,
    Colon,
    /// A comma or the end of the container.
    Next,
    String {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    Hex {
        is_key: bool,
        left: u8,
    },
    Number(Number),
    /// `true`, `false` or `null`, of which so much is there.
    Word(&'static str, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Sign,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl JsonScanner {
    /// Takes one more character; true when it was the last.
    pub(crate) fn push(&mut self, c: char) -> Parsed<bool> {
        self.state = match (self.state, c) {
            (State::String { is_key }, '"') if is_key => State::Colon,
            (State::String { .. }, '"') => return Ok(self.value_ends()),
            (State::String { is_key }, '\\') => State::Escape { is_key },
            (State::String { .. }, '\0'..='\x1f') => return Err(Malformed),
            (State::String { is_key }, _) => State::String { is_key },
            (State::Escape { is_key }, 'u') => State::Hex { is_key, left: 4 },
            (State::Escape { is_key }, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                State::String { is_key }
            }
            (State::Hex { is_key, left: 1 }, c) if c.is_ascii_hexdigit() => State::String { is_key },
            (State::Hex { is_key, left }, c) if c.is_ascii_hexdigit() => {
                State::Hex { is_key, left: left - 1 }
            }
            (State::Word(word, n), c) if word[n..].starts_with(c) => {
                if n + 1 == word.len() {
                    return Ok(self.value_ends());
                }
                State::Word(word, n + 1)
            }
            (State::Number(number), c) => match number.next(c) {
                Some(next) => State::Number(next),
                None if number.is_whole() && !self.stack.is_empty() => {
                    self.state = State::Next;
                    return self.push(c);
                }
                None => return Err(Malformed),
            },
            (State::Escape { .. } | State::Hex { .. } | State::Word(..), _) => return Err(Malformed),
            (state, ' ' | '\t' | '\n' | '\r') => state,
            (State::Value | State::FirstItem, c) if c != ']' => return self.value(c),
            (State::FirstItem, _) => return self.close(false),
            (State::FirstKey, '}') => return self.close(true),
            (State::FirstKey | State::Key, '"') => State::String { is_key: true },
            (State::Colon, ':') => State::Value,
            (State::Next, ',') if self.stack.last() == Some(&true) => State::Key,
            (State::Next, ',') => State::Value,
            (State::Next, '}') => return self.close(true),
            (State::Next, ']') => return self.close(false),
            _ => return Err(Malformed),
        };
        Ok(false)
    }

    fn value(&mut self, c: char) -> Parsed<bool> {
        self.state = match c {
            '{' | '[' => {
                if self.stack.len() == MAX_DEPTH {
                    return Err(Malformed);
                }
                self.stack.push(c == '{');
                if c == '{' { State::FirstKey } else { State::FirstItem }
            }
            '"' => State::String { is_key: false },
            '-' => State::Number(Number::Sign),
            '0' => State::Number(Number::Zero),
            '1'..='9' => State::Number(Number::Digits),
            't' => State::Word("true", 1),
            'f' => State::Word("false", 1),
            'n' => State::Word("null", 1),
            _ => return Err(Malformed),
        };
        Ok(false)
    }

    fn close(&mut self, is_object: bool) -> Parsed<bool> {
        if self.stack.pop() != Some(is_object) {
            return Err(Malformed);
        }
        Ok(self.value_ends())
    }

    fn value_ends(&mut self) -> bool {
        self.state = State::Next;
        self.stack.is_empty()
    }
}

impl Number {
    fn next(self, c: char) -> Option<Number> {
        Some(match (self, c) {
            (Number::Sign, '0') => Number::Zero,
            (Number::Sign, '1'..='9') | (Number::Digits, '0'..='9') => Number::Digits,
            (Number::Zero | Number::Digits, '.') => Number::Point,
            (Number::Point | Number::Fraction, '0'..='9') => Number::Fraction,
            (Number::Zero | Number::Digits | Number::Fraction, 'e' | 'E') => Number::Exponent,
            (Number::Exponent, '+' | '-') => Number::ExponentSign,
            (Number::Exponent | Number::ExponentSign | Number::ExponentDigits, '0'..='9') => {
                Number::ExponentDigits
            }
            _ => return None,
        })
    }

    fn is_whole(self) -> bool {
        matches!(self, Number::Zero | Number::Digits | Number::Fraction | Number::ExponentDigits)
    }
}

impl Reader {
    /// A JSON object, each character handed on.
    pub(crate) async fn json_object(&self, mut on: impl FnMut(char)) -> Parsed<()> {
        if self.peek().await != Some('{') {
            return Err(Malformed);
        }
        self.json_value(&mut on).await
    }

    /// A JSON string, decoded.
    pub(crate) async fn json_string(&self) -> Parsed<String> {
        if self.peek().await != Some('"') {
            return Err(Malformed);
        }
        let mut text = String::new();
        self.json_value(&mut |c| text.push(c)).await?;
        serde_json::from_str(&text).map_err(|_| Malformed)
    }

    /// Any JSON value but a bare number.
    pub(crate) async fn json_value(&self, on: &mut impl FnMut(char)) -> Parsed<()> {
        let mut scanner = JsonScanner::default();
        loop {
            let c = self.peek().await.ok_or(Malformed)?;
            let is_done = scanner.push(c)?;
            self.skip();
            on(c);
            if is_done {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The length of the value at the start of `text`.
    fn scan(text: &str) -> Option<usize> {
        let mut scanner = JsonScanner::default();
        for (i, c) in text.char_indices() {
            match scanner.push(c) {
                Ok(true) => return Some(i + c.len_utf8()),
                Ok(false) => {}
                Err(Malformed) => return None,
            }
        }
        None
    }

    proptest! {
        #[test]
        fn containers_are_accepted_like_serde_does(text in r#"[\[{]([\[\]{},:" \\a01.eu+-]|"k":|true|null|-1\.5e3|"\\u00e9"){0,12}[\]}]"#) {
            let whole = scan(&text) == Some(text.len());
            // serde_json also bounds numbers; the scanner does not.
            let expected = match serde_json::from_str::<serde_json::Value>(&text) {
                Ok(_) => true,
                Err(e) => e.to_string().starts_with("number out of range"),
            };
            prop_assert_eq!(whole, expected, "{}", text);
        }
    }

    #[test]
    fn the_value_ends_where_its_bracket_does() {
        assert_eq!(scan(r#"{"a": [1, {"b": "}"}], "c": -0.5e+7} rest"#), Some(36));
        assert_eq!(scan("[] ]"), Some(2));
        assert_eq!(scan("12 "), None);
        assert_eq!(scan(&"[".repeat(200)), None);
    }
}
