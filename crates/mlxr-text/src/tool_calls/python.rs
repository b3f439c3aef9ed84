//! Calls written as Python: `[f(a=1, b="x"), g()]`.

use serde_json::{Map, Value};

use super::reader::{Malformed, Parsed, Reader};

/// Deepest nesting of a value, and longest one in bytes.
const MAX_DEPTH: usize = 64;
const MAX_VALUE_BYTES: usize = 1 << 20;

/// `[f(..), g(..)]`, perhaps with `end` behind it.
pub(crate) async fn call_list(r: &Reader, end: &str) -> Parsed<()> {
    r.skip_blanks().await;
    r.expect("[").await?;
    loop {
        r.skip_blanks().await;
        call(r).await?;
        r.skip_blanks().await;
        match r.peek().await {
            Some(',') => {
                r.skip();
                r.end_call();
            }
            Some(']') => break,
            _ => return Err(Malformed),
        }
    }
    r.skip();
    r.end_call();
    if !end.is_empty() && r.sees_after_blanks(&[end], true).await.is_some() {
        r.close(end).await?;
        r.done();
    }
    Ok(())
}

/// Lines of calls in a fenced block, each perhaps inside `print(..)`.
pub(crate) async fn fenced_calls(r: &Reader) -> Parsed<()> {
    loop {
        r.skip_blanks().await;
        let is_printed = r.eat("print(").await;
        call(r).await?;
        if is_printed {
            r.skip_blanks().await;
            r.expect(")").await?;
        }
        r.end_call();
        if r.sees_after_blanks(&["```"], true).await.is_some() {
            break;
        }
        if r.peek().await.is_none() {
            return Ok(());
        }
    }
    r.close("```").await?;
    r.done();
    Ok(())
}

/// `f(a=1)`; the call is left open for its end.
async fn call(r: &Reader) -> Parsed<()> {
    let name = r.name_until("(").await?;
    r.start_call(&name)?;
    r.arguments("{");
    let mut keys: Vec<String> = Vec::new();
    r.skip_blanks().await;
    while r.peek().await != Some(')') {
        let key = r.name_until("=").await?;
        if keys.contains(&key) {
            return Err(Malformed);
        }
        let value = literal(&value_text(r).await?)?;
        let comma = if keys.is_empty() { "" } else { ", " };
        r.arguments(&format!("{comma}{}: {value}", Value::from(key.as_str())));
        keys.push(key);
        if r.peek().await == Some(',') {
            r.skip();
            r.skip_blanks().await;
        }
    }
    r.skip();
    r.arguments("}");
    Ok(())
}

/// The text of a value: up to the comma or bracket that is not its own, which is left.
async fn value_text(r: &Reader) -> Parsed<String> {
    let (mut text, mut depth, mut quote) = (String::new(), 0usize, None);
    loop {
        let c = r.peek().await.ok_or(Malformed)?;
        match (quote, c) {
            (Some(_), '\\') => {
                r.skip();
                text.push(c);
                text.push(r.next().await?);
                continue;
            }
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{' | '(') => depth += 1,
            (None, ',' | ')') if depth == 0 => return Ok(text),
            (None, ']' | '}' | ')') => depth = depth.checked_sub(1).ok_or(Malformed)?,
            _ => {}
        }
        if MAX_VALUE_BYTES < text.len() {
            return Err(Malformed);
        }
        r.skip();
        text.push(c);
    }
}

/// A Python literal as JSON.
fn literal(text: &str) -> Parsed<Value> {
    let mut parser = Literal { text, depth: 0 };
    let value = parser.value()?;
    if parser.peek().is_some() { Err(Malformed) } else { Ok(value) }
}

struct Literal<'a> {
    text: &'a str,
    depth: usize,
}

impl Literal<'_> {
    /// The next character that is no white space.
    fn peek(&mut self) -> Option<char> {
        self.text = self.text.trim_start();
        self.text.chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.text = &self.text[c.len_utf8()..];
        }
        found
    }

    fn value(&mut self) -> Parsed<Value> {
        self.depth += 1;
        if MAX_DEPTH < self.depth {
            return Err(Malformed);
        }
        let value = match self.peek().ok_or(Malformed)? {
            '"' | '\'' => self.string().map(Value::from),
            '[' => self.list(']'),
            '(' => self.list(')'),
            '{' => self.dict(),
            _ => self.scalar(),
        };
        self.depth -= 1;
        value
    }

    fn list(&mut self, close: char) -> Parsed<Value> {
        self.text = &self.text[1..];
        let mut items = Vec::new();
        while !self.eat(close) {
            items.push(self.value()?);
            if !self.eat(',') && self.peek() != Some(close) {
                return Err(Malformed);
            }
        }
        Ok(Value::Array(items))
    }

    fn dict(&mut self) -> Parsed<Value> {
        self.text = &self.text[1..];
        let mut map = Map::new();
        while !self.eat('}') {
            self.peek().filter(|&c| c == '"' || c == '\'').ok_or(Malformed)?;
            let key = self.string()?;
            if !self.eat(':') {
                return Err(Malformed);
            }
            map.insert(key, self.value()?);
            if !self.eat(',') && self.peek() != Some('}') {
                return Err(Malformed);
            }
        }
        Ok(Value::Object(map))
    }

    fn scalar(&mut self) -> Parsed<Value> {
        let len = self.text.find([',', ']', ')', '}', ':']).unwrap_or(self.text.len());
        let (word, rest) = self.text.split_at(len);
        self.text = rest;
        match word.trim_end() {
            "True" | "true" => Ok(Value::Bool(true)),
            "False" | "false" => Ok(Value::Bool(false)),
            "None" | "null" => Ok(Value::Null),
            number => serde_json::from_str(number).map_err(|_| Malformed),
        }
    }

    fn string(&mut self) -> Parsed<String> {
        let mut chars = self.text.char_indices();
        let quote = chars.next().ok_or(Malformed)?.1;
        let mut text = String::new();
        while let Some((i, c)) = chars.next() {
            match c {
                c if c == quote => {
                    self.text = &self.text[i + 1..];
                    return Ok(text);
                }
                '\\' => {
                    let (_, escape) = chars.next().ok_or(Malformed)?;
                    match escape {
                        'n' => text.push('\n'),
                        't' => text.push('\t'),
                        'r' => text.push('\r'),
                        '0' => text.push('\0'),
                        '\n' => {}
                        '\\' | '\'' | '"' => text.push(escape),
                        'x' | 'u' | 'U' => {
                            let n = [('x', 2), ('u', 4), ('U', 8)].into_iter().find(|e| e.0 == escape);
                            let hex: String =
                                chars.by_ref().take(n.map_or(0, |e| e.1)).map(|e| e.1).collect();
                            let code = u32::from_str_radix(&hex, 16).map_err(|_| Malformed)?;
                            text.push(char::from_u32(code).ok_or(Malformed)?);
                        }
                        other => {
                            text.push('\\');
                            text.push(other);
                        }
                    }
                }
                c => text.push(c),
            }
        }
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn literals_become_json() {
        let text = r#"{'a': [1, -2.5e3, True, None], "b\n\x41": ('it\'s', "é"), 'c': {},}"#;
        let expected = json!({"a": [1, -2.5e3, true, null], "b\nA": ["it's", "é"], "c": {}});
        assert_eq!(literal(text), Ok(expected));
    }

    #[test]
    fn what_is_no_literal_is_refused() {
        for text in ["", "x", "f()", "[1", "{1: 2}", "'a", "1 2", "[,]", &"[".repeat(100)] {
            assert_eq!(literal(text), Err(Malformed), "{text}");
        }
    }
}
