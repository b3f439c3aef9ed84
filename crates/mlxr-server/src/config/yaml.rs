//! YAML as a tree that knows its lines.
//!
//! Files of settings need scalars, lists and mappings; anchors, aliases, tags and further documents are refused, so
//! that a tree is never larger than its text. Scalars are texts: what they mean is the reader's to say.

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::problem::{Place, Problem};

/// Files larger than this are not read.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

/// Lists and mappings inside each other.
const MAX_DEPTH: usize = 16;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub value: NodeValue,
    pub at: Place,
    /// In characters of the text; of a scalar with its quotes.
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeValue {
    /// Nothing, `~` or `null`.
    Null,
    Scalar {
        text: String,
        is_plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub at: Place,
    pub value: Node,
}

impl Node {
    /// What it is, for messages.
    pub const fn kind(&self) -> &'static str {
        match &self.value {
            NodeValue::Null => "nothing",
            NodeValue::Scalar { .. } => "a value",
            NodeValue::List(_) => "a list",
            NodeValue::Map(_) => "a mapping",
        }
    }

    pub const fn is_null(&self) -> bool {
        matches!(self.value, NodeValue::Null)
    }

    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::at(self.at, message)
    }

    /// The entries of a mapping; nothing is an empty one.
    ///
    /// # Errors
    /// It is something else.
    pub fn entries(&self, what: &str) -> Result<&[Entry], Problem> {
        match &self.value {
            NodeValue::Map(entries) => Ok(entries),
            NodeValue::Null => Ok(&[]),
            _ => Err(self.problem(format!("{what} must be a mapping, but is {}", self.kind()))),
        }
    }

    /// # Errors
    /// It is something else than a scalar.
    pub fn text(&self, what: &str) -> Result<&str, Problem> {
        match &self.value {
            NodeValue::Scalar { text, .. } => Ok(text),
            _ => Err(self.problem(format!("{what} must be one value, but is {}", self.kind()))),
        }
    }

    /// The values of a list; a single one is a list of one.
    ///
    /// # Errors
    /// It is something else, or a list of something else.
    pub fn texts(&self, what: &str) -> Result<Vec<(&str, Place)>, Problem> {
        match &self.value {
            NodeValue::List(items) => items.iter().map(|item| Ok((item.text(what)?, item.at))).collect(),
            NodeValue::Null => Ok(Vec::new()),
            _ => Ok(vec![(self.text(what)?, self.at)]),
        }
    }
}

/// Reads one document; an empty text is nothing.
///
/// # Errors
/// The first mistake, with its place.
pub fn parse(text: &str) -> Result<Node, Problem> {
    let mut reader = Reader { parser: Parser::new_from_str(text).keep_tags(false) };
    let mut root = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if root.is_some() => {
                return Err(Problem::at(place(span), "there is more than one document in the file"));
            }
            event => root = Some(reader.node(event, span, 0)?),
        }
    }
    let nothing = Node { value: NodeValue::Null, at: Place { line: 1, column: 1 }, start: 0, end: 0 };
    Ok(root.unwrap_or(nothing))
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => {
                let marker = error.marker();
                let at = Place { line: marker.line(), column: marker.col() + 1 };
                Err(Problem::at(at, format!("this is no YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        let at = place(span);
        if depth > MAX_DEPTH {
            return Err(Problem::at(at, format!("lists and mappings are more than {MAX_DEPTH} deep")));
        }
        let (start, mut end) = (span.start.index(), span.end.index());
        let value = match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_extras(anchor, tag.is_some(), at)?;
                let is_plain = style == ScalarStyle::Plain;
                match is_plain && matches!(&*text, "" | "~" | "null") {
                    true => NodeValue::Null,
                    false => NodeValue::Scalar { text: text.into_owned(), is_plain },
                }
            }
            Event::SequenceStart(anchor, tag) => {
                refuse_extras(anchor, tag.is_some(), at)?;
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        end = span.end.index();
                        break;
                    }
                    items.push(self.node(event, span, depth + 1)?);
                }
                NodeValue::List(items)
            }
            Event::MappingStart(anchor, tag) => {
                refuse_extras(anchor, tag.is_some(), at)?;
                let (entries, after) = self.entries(depth)?;
                end = after;
                NodeValue::Map(entries)
            }
            Event::Alias(_) => return Err(Problem::at(at, "aliases are not read; write the value out")),
            _ => return Err(Problem::at(at, "the file ends too early")),
        };
        Ok(Node { value, at, start, end })
    }

    fn entries(&mut self, depth: usize) -> Result<(Vec<Entry>, usize), Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let at = place(span);
            let key = match event {
                Event::MappingEnd => return Ok((entries, span.end.index())),
                Event::Scalar(text, _, anchor, tag) => {
                    refuse_extras(anchor, tag.is_some(), at)?;
                    text.into_owned()
                }
                _ => return Err(Problem::at(at, "a key must be a single word")),
            };
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                let line = first.at.line;
                return Err(Problem::at(at, format!("{key:?} is set twice, first in line {line}")));
            }
            let (event, span) = self.next()?;
            entries.push(Entry { key, at, value: self.node(event, span, depth + 1)? });
        }
    }
}

fn place(span: Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

fn refuse_extras(anchor: usize, has_tag: bool, at: Place) -> Result<(), Problem> {
    if anchor != 0 {
        return Err(Problem::at(at, "anchors are not read; write the value out wherever it is needed"));
    }
    if has_tag {
        return Err(Problem::at(at, "tags are not read; leave out what begins with an exclamation mark"));
    }
    Ok(())
}

/// A scalar that reads as `text` whatever it contains.
pub fn scalar(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-' | '+');
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '.')
        && text.chars().all(is_word)
        && !matches!(text, "null" | "true" | "false");
    match is_plain {
        true => text.to_owned(),
        // A JSON string is a double-quoted scalar; these three are line breaks or marks to some readers.
        false => serde_json::Value::from(text)
            .to_string()
            .replace('\u{85}', "\\u0085")
            .replace('\u{2028}', "\\u2028")
            .replace('\u{2029}', "\\u2029")
            .replace('\u{feff}', "\\ufeff")
            .replace('\u{7f}', "\\u007f"),
    }
}

/// A text of several lines as a block under a key, set in by `indent`; anything else as [`scalar`].
pub fn block(text: &str, indent: usize) -> String {
    let is_printable = |c: char| {
        c == '\n' || c == '\t' || (!c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}'))
    };
    let body = text.trim_end_matches('\n');
    if !body.contains('\n')
        || !text.chars().all(is_printable)
        || body.lines().any(|line| line.ends_with([' ', '\t']))
    {
        return scalar(text);
    }
    let chomp = match text.len() - body.len() {
        0 => "-",
        1 => "",
        _ => "+",
    };
    let pad = " ".repeat(indent);
    let mut out = format!("|2{chomp}");
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.push_str(&pad);
            out.push_str(line);
        }
    }
    // The line break that ends the block is the caller's.
    out.push_str(&"\n".repeat((text.len() - body.len()).saturating_sub(1)));
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn values_know_their_lines() {
        let root = parse("# x\na:\n  b: [1, \"two\"]\n\n  c: ~\n").unwrap();
        let a = &root.entries("it").unwrap()[0];
        assert_eq!((a.key.as_str(), a.at), ("a", Place { line: 2, column: 1 }));
        let inner = a.value.entries("a").unwrap();
        assert_eq!(inner[0].at, Place { line: 3, column: 3 });
        let texts = inner[0].value.texts("b").unwrap();
        assert_eq!(texts, [("1", Place { line: 3, column: 7 }), ("two", Place { line: 3, column: 10 })]);
        assert!(inner[1].value.is_null());
        assert!(parse("").unwrap().is_null());
    }

    #[test]
    fn what_is_not_plain_settings_is_refused_by_its_place() {
        assert!(refused("a: &x 1\nb: *x").starts_with("1:4: anchors"));
        assert!(refused("a: !!str 1").contains("tags"));
        assert!(refused("a: 1\na: 2").starts_with("2:1: \"a\" is set twice, first in line 1"));
        assert!(refused("a: 1\n---\nb: 2").contains("more than one document"));
        assert!(refused("? [a]\n: 1").contains("a key must be"));
        assert!(refused("a: [1").contains("no YAML"));
        assert!(refused(&"[".repeat(100)).contains("deep"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_back(text in any::<String>(), lines in "[ -~\n\t#:]{0,60}") {
            for text in [text, lines] {
                let written = format!("a:\n  b: {}\n  c: 1\n", block(&text, 4));
                let root = parse(&written).map_err(|error| TestCaseError::fail(format!("{error}: {written:?}")))?;
                let inner = root.entries("it").unwrap()[0].value.entries("a").unwrap();
                prop_assert_eq!(inner[0].value.text("b").unwrap_or(""), &text, "{:?}", written);
                prop_assert_eq!(inner.len(), 2);
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in any::<String>(), yaml in "[a-c:\\[\\]{}\"'|>\n &*!#-]{0,80}") {
            let _ = parse(&text);
            let _ = parse(&yaml);
        }
    }
}
