//! Formats that give arguments one by one: the three with XML-like tags, and Gemma 4's.

use serde_json::Value;

use super::ToolSpec;
use super::reader::{Malformed, Parsed, Reader};

/// Deepest nesting of a value.
const MAX_DEPTH: usize = 64;

/// What surrounds a value.
struct Tags<'a> {
    /// Also ends a value when the model forgets the end tag.
    close: &'a str,
    /// One line break after the opening and before the closing tag belongs to the format.
    has_lines: bool,
}

/// `<tool_call><function=f><parameter=k>v</parameter></function></tool_call>`; the outer tags may be missing.
pub(crate) async fn qwen_xml(r: &Reader, tools: &[ToolSpec]) -> Parsed<()> {
    r.eat("<tool_call>").await;
    r.skip_blanks().await;
    r.expect("<function=").await?;
    let name = r.name_until(">").await?;
    let mut arguments = Arguments::start(r, tools, &name)?;
    loop {
        r.skip_blanks().await;
        if r.eat("</function>").await {
            break;
        }
        r.expect("<parameter=").await?;
        let key = r.name_until(">").await?;
        arguments.value(&key, &Tags { close: "</parameter>", has_lines: true }).await?;
    }
    arguments.end();
    r.end_call();
    // One of the outer tags is often forgotten.
    if r.sees_after_blanks(&["</tool_call>"], true).await.is_some() {
        r.close("</tool_call>").await?;
    }
    r.done();
    Ok(())
}

/// `<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>`.
pub(crate) async fn glm(r: &Reader, tools: &[ToolSpec]) -> Parsed<()> {
    r.expect("<tool_call>").await?;
    r.skip_blanks().await;
    let name = r.name().await?;
    r.skip_blanks().await;
    if r.sees(&["<arg_key>", "</tool_call>"]).await.is_none() {
        return Err(Malformed);
    }
    let mut arguments = Arguments::start(r, tools, &name)?;
    loop {
        r.skip_blanks().await;
        if r.eat("</tool_call>").await {
            break;
        }
        r.expect("<arg_key>").await?;
        let key = r.name_until("</arg_key>").await?;
        r.skip_blanks().await;
        r.expect("<arg_value>").await?;
        arguments.value(&key, &Tags { close: "</arg_value>", has_lines: false }).await?;
    }
    arguments.end();
    r.end_call();
    Ok(())
}

/// `<minimax:tool_call><invoke name="f"><parameter name="k">v</parameter></invoke></minimax:tool_call>`.
pub(crate) async fn minimax(r: &Reader, tools: &[ToolSpec]) -> Parsed<()> {
    r.expect("<minimax:tool_call>").await?;
    loop {
        r.skip_blanks().await;
        r.expect("<invoke name=\"").await?;
        let name = r.name_until("\">").await?;
        let mut arguments = Arguments::start(r, tools, &name)?;
        loop {
            r.skip_blanks().await;
            if r.eat("</invoke>").await {
                break;
            }
            r.expect("<parameter name=\"").await?;
            let key = r.name_until("\">").await?;
            arguments.value(&key, &Tags { close: "</parameter>", has_lines: false }).await?;
        }
        arguments.end();
        r.end_call();
        if r.sees_after_blanks(&["<invoke name=\""], true).await.is_none() {
            break;
        }
    }
    r.close("</minimax:tool_call>").await?;
    r.done();
    Ok(())
}

/// A JSON object written key by key.
struct Arguments<'a> {
    r: &'a Reader,
    tool: Option<&'a ToolSpec>,
    keys: Vec<String>,
}

impl<'a> Arguments<'a> {
    fn start(r: &'a Reader, tools: &'a [ToolSpec], name: &str) -> Parsed<Arguments<'a>> {
        r.start_call(name)?;
        r.arguments("{");
        Ok(Arguments { r, tool: tools.iter().find(|tool| tool.name == name), keys: Vec::new() })
    }

    fn end(self) {
        self.r.arguments("}");
    }

    /// The value of `key`, up to and with its closing tag. Texts go out as they come.
    async fn value(&mut self, key: &str, tags: &Tags<'_>) -> Parsed<()> {
        let r = self.r;
        if self.keys.iter().any(|known| known == key) {
            return Err(Malformed);
        }
        let comma = if self.keys.is_empty() { "" } else { ", " };
        self.keys.push(key.to_owned());
        r.arguments(&format!("{comma}{}: ", Value::from(key)));
        let schema = self.tool.and_then(|tool| tool.parameter(key));
        let is_text =
            schema.is_some_and(|schema| schema.get("type").and_then(Value::as_str) == Some("string"));
        if is_text {
            r.arguments("\"");
        }
        let mut kept = String::new();
        if tags.has_lines {
            r.eat("\n").await;
        }
        let before_close = format!("\n{}", tags.close);
        loop {
            if r.eat(tags.close).await || (tags.has_lines && r.eat(&before_close).await) {
                break;
            }
            let c = r.next().await?;
            if is_text {
                let quoted = Value::from(c.to_string()).to_string();
                r.arguments(&quoted[1..quoted.len() - 1]);
            } else {
                kept.push(c);
            }
        }
        if is_text {
            r.arguments("\"");
        } else {
            r.arguments(&typed(&kept, schema));
        }
        Ok(())
    }
}

/// A value whose type the text does not tell: JSON where it is that, else a text.
fn typed(text: &str, schema: Option<&Value>) -> String {
    let trimmed = text.trim();
    let json = match trimmed {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    let allows_text = schema.is_some_and(|schema| {
        let types = schema.get("type").and_then(Value::as_array);
        types.is_some_and(|types| types.iter().any(|t| t == "string"))
            || schema
                .get("enum")
                .and_then(Value::as_array)
                .is_some_and(|values| values.iter().any(|v| v == text))
    });
    match serde_json::from_str::<Value>(json) {
        Ok(value) if !(allows_text && value.is_number()) => value.to_string(),
        _ => Value::from(text).to_string(),
    }
}

/// `<|tool_call>call:f{k:v}<tool_call|>` where texts stand between `<|"|>`.
pub(crate) async fn gemma4(r: &Reader) -> Parsed<()> {
    r.expect("<|tool_call>").await?;
    r.expect("call:").await?;
    let name = r.name().await?;
    if r.peek().await != Some('{') {
        return Err(Malformed);
    }
    r.start_call(&name)?;
    gemma_value(r).await?;
    r.close("<tool_call|>").await?;
    r.end_call();
    Ok(())
}

/// An object, a list or a scalar, put out as JSON. The stack holds the closing bracket of each open container.
async fn gemma_value(r: &Reader) -> Parsed<()> {
    let mut stack: Vec<char> = Vec::new();
    let mut is_first = true;
    loop {
        r.skip_blanks().await;
        let close = stack.last().copied();
        if close.is_some() && r.peek().await == close && is_first {
            r.skip();
            r.arguments(&stack.pop().map(String::from).unwrap_or_default());
        } else {
            if close == Some('}') {
                let key = gemma_key(r).await?;
                r.arguments(&format!("{}: ", Value::from(key)));
                r.skip_blanks().await;
                r.expect(":").await?;
                r.skip_blanks().await;
            }
            match r.peek().await {
                Some(open @ ('{' | '[')) if stack.len() < MAX_DEPTH => {
                    r.skip();
                    r.arguments(&open.to_string());
                    stack.push(if open == '{' { '}' } else { ']' });
                    is_first = true;
                    continue;
                }
                Some('<') => gemma_text(r).await?,
                _ => gemma_scalar(r).await?,
            }
        }
        // After a value: more of the container, or its end, perhaps of several.
        loop {
            let Some(&close) = stack.last() else { return Ok(()) };
            r.skip_blanks().await;
            match r.next().await? {
                ',' => {
                    r.arguments(", ");
                    is_first = false;
                    break;
                }
                c if c == close => {
                    stack.pop();
                    r.arguments(&c.to_string());
                }
                _ => return Err(Malformed),
            }
        }
    }
}

const GEMMA_QUOTE: &str = "<|\"|>";

async fn gemma_key(r: &Reader) -> Parsed<String> {
    if r.eat(GEMMA_QUOTE).await {
        return r.name_until(GEMMA_QUOTE).await;
    }
    let mut key = String::new();
    while let Some(c) = r.peek().await.filter(|&c| c != ':' && !c.is_whitespace() && !",{}[]".contains(c)) {
        r.skip();
        key.push(c);
    }
    if key.is_empty() { Err(Malformed) } else { Ok(key) }
}

async fn gemma_text(r: &Reader) -> Parsed<()> {
    r.expect(GEMMA_QUOTE).await?;
    r.arguments("\"");
    while !r.eat(GEMMA_QUOTE).await {
        let c = r.next().await?;
        let quoted = Value::from(c.to_string()).to_string();
        r.arguments(&quoted[1..quoted.len() - 1]);
    }
    r.arguments("\"");
    Ok(())
}

async fn gemma_scalar(r: &Reader) -> Parsed<()> {
    let mut text = String::new();
    while let Some(c) = r.peek().await.filter(|&c| !",}]".contains(c)) {
        if text.len() > 64 {
            return Err(Malformed);
        }
        r.skip();
        text.push(c);
    }
    let value: Value = serde_json::from_str(text.trim()).map_err(|_| Malformed)?;
    r.arguments(&value.to_string());
    Ok(())
}
