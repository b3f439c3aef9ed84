//! GBNF, llama.cpp's grammar syntax, to llguidance's Lark.
//!
//! GBNF knows no lexer: it is a grammar over characters. Invariant: the Lark grammar has the same language. A grammar
//! without recursion becomes one terminal; in a recursive one every character is a terminal of its own, so that no
//! longest match ever hides a reading.

use std::collections::HashMap;
use std::fmt::Write;

use super::GrammarError;

/// Deepest nesting of groups.
const MAX_DEPTH: usize = 24;
/// The most times a piece can be asked to repeat.
const MAX_REPEAT: u32 = 2000;

/// The same grammar in Lark.
pub(crate) fn to_lark(source: &str) -> Result<String, GrammarError> {
    let grammar = Parser::new(source).parse()?;
    let is_regular = !grammar.is_recursive() && !grammar.has_tokens;
    let mut lark = format!("start: {}\n", name(grammar.root, is_regular));
    for (i, rule) in grammar.rules.iter().enumerate() {
        let body = rule.body.as_ref().map(|body| write_expr(body, is_regular)).unwrap_or_default();
        let _ = writeln!(lark, "{}: {body}", name(i, is_regular));
    }
    Ok(lark)
}

fn name(rule: usize, is_terminal: bool) -> String {
    if is_terminal { format!("R{rule}") } else { format!("r{rule}") }
}

#[derive(Debug)]
enum Expr {
    /// Alternatives of sequences.
    Alt(Vec<Vec<Expr>>),
    Literal(String),
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    Rule(usize),
    Token(String),
    Repeat(Box<Expr>, u32, Option<u32>),
}

#[derive(Debug, Default)]
struct Rule {
    name: String,
    body: Option<Expr>,
    /// Where it was first named.
    at: usize,
}

#[derive(Debug, Default)]
struct Parsed {
    rules: Vec<Rule>,
    root: usize,
    has_tokens: bool,
}

impl Parsed {
    /// Whether a rule can reach itself.
    fn is_recursive(&self) -> bool {
        // 0 unseen, 1 on the path, 2 done.
        let mut marks = vec![0u8; self.rules.len()];
        for start in 0..self.rules.len() {
            let mut stack = vec![(start, false)];
            while let Some((rule, is_left)) = stack.pop() {
                if is_left {
                    marks[rule] = 2;
                    continue;
                }
                match marks[rule] {
                    1 => continue,
                    2 => continue,
                    _ => marks[rule] = 1,
                }
                stack.push((rule, true));
                let mut used = Vec::new();
                if let Some(body) = &self.rules[rule].body {
                    references(body, &mut used);
                }
                for next in used {
                    match marks[next] {
                        1 => return true,
                        0 => stack.push((next, false)),
                        _ => {}
                    }
                }
            }
        }
        false
    }
}

fn references(expr: &Expr, used: &mut Vec<usize>) {
    match expr {
        Expr::Alt(alternatives) => alternatives.iter().flatten().for_each(|e| references(e, used)),
        Expr::Rule(rule) => used.push(*rule),
        Expr::Repeat(inner, ..) => references(inner, used),
        Expr::Literal(_) | Expr::Class { .. } | Expr::Token(_) => {}
    }
}

fn write_expr(expr: &Expr, is_regular: bool) -> String {
    match expr {
        Expr::Alt(alternatives) => {
            let sequence = |sequence: &Vec<Expr>| match sequence.len() {
                0 => "\"\"".to_owned(),
                _ => sequence.iter().map(|e| write_expr(e, is_regular)).collect::<Vec<_>>().join(" "),
            };
            let all: Vec<String> = alternatives.iter().map(sequence).collect();
            format!("({})", all.join(" | "))
        }
        Expr::Literal(text) if text.is_empty() => "\"\"".to_owned(),
        Expr::Literal(text) => {
            let chars: Vec<String> = text.chars().map(|c| format!("/{}/", escaped(c))).collect();
            format!("({})", chars.join(" "))
        }
        Expr::Class { negated, ranges } => {
            let mut class = String::from(if *negated { "/[^" } else { "/[" });
            for (from, to) in ranges {
                let _ = write!(class, "{}-{}", escaped(*from), escaped(*to));
            }
            class + "]/"
        }
        Expr::Rule(rule) => name(*rule, is_regular),
        Expr::Token(token) => token.clone(),
        Expr::Repeat(_, _, Some(0)) => "\"\"".to_owned(),
        Expr::Repeat(inner, min, max) => {
            let inner = write_expr(inner, is_regular);
            match (min, max) {
                (0, Some(1)) => format!("({inner})?"),
                (0, None) => format!("({inner})*"),
                (1, None) => format!("({inner})+"),
                (min, None) => format!("({inner}){{{min},}}"),
                (min, Some(max)) => format!("({inner}){{{min},{max}}}"),
            }
        }
    }
}

fn escaped(c: char) -> String {
    format!("\\x{{{:x}}}", c as u32)
}

/// Recursive descent over the characters.
struct Parser<'a> {
    source: &'a str,
    at: usize,
    depth: usize,
    parsed: Parsed,
    ids: HashMap<String, usize>,
}

impl<'a> Parser<'a> {
    fn new(source: &'a str) -> Parser<'a> {
        Parser { source, at: 0, depth: 0, parsed: Parsed::default(), ids: HashMap::new() }
    }

    fn parse(mut self) -> Result<Parsed, GrammarError> {
        self.skip_blanks(true);
        while self.at < self.source.len() {
            self.rule()?;
            self.skip_blanks(true);
        }
        for rule in &self.parsed.rules {
            if rule.body.is_none() {
                return Err(self.error_at(rule.at, format!("rule {:?} is not defined", rule.name)));
            }
        }
        match self.ids.get("root") {
            Some(&root) => self.parsed.root = root,
            None => return Err(self.error("there is no rule \"root\"")),
        }
        Ok(self.parsed)
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let start = self.at;
        let name = self.name()?;
        self.skip_blanks(false);
        if !self.eat("::=") {
            return Err(self.error("expected \"::=\""));
        }
        self.skip_blanks(true);
        let id = self.rule_id(&name, start);
        let body = self.alternatives(false)?;
        if self.peek().is_some_and(|c| c != '\n' && c != '\r') {
            return Err(self.error("expected the end of the rule"));
        }
        if self.parsed.rules[id].body.replace(body).is_some() {
            return Err(self.error_at(start, format!("rule {name:?} is defined twice")));
        }
        Ok(())
    }

    fn alternatives(&mut self, is_nested: bool) -> Result<Expr, GrammarError> {
        self.depth += 1;
        if MAX_DEPTH < self.depth {
            return Err(self.error("groups are nested too deeply"));
        }
        let mut all = vec![self.sequence(is_nested)?];
        loop {
            // A line may go on with `|`.
            let before = self.at;
            self.skip_blanks(true);
            if !self.eat("|") {
                self.at = before;
                break;
            }
            self.skip_blanks(true);
            all.push(self.sequence(is_nested)?);
        }
        self.depth -= 1;
        Ok(Expr::Alt(all))
    }

    fn sequence(&mut self, is_nested: bool) -> Result<Vec<Expr>, GrammarError> {
        let mut items: Vec<Expr> = Vec::new();
        loop {
            let item = match self.peek() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    Expr::Class { negated: false, ranges: vec![('\0', char::MAX)] }
                }
                Some('(') => self.group()?,
                Some('<') => self.token()?,
                Some('!') => return Err(self.error("negated tokens are not supported")),
                Some('*' | '+' | '?' | '{') => return Err(self.error("nothing to repeat")),
                Some(c) if is_name_char(c) => {
                    let start = self.at;
                    let name = self.name()?;
                    Expr::Rule(self.rule_id(&name, start))
                }
                _ => return Ok(items),
            };
            let item = self.repetition(item, is_nested)?;
            items.push(item);
        }
    }

    fn group(&mut self) -> Result<Expr, GrammarError> {
        self.at += 1;
        self.skip_blanks(true);
        let inner = self.alternatives(true)?;
        self.skip_blanks(true);
        if !self.eat(")") {
            return Err(self.error("expected \")\""));
        }
        Ok(inner)
    }

    fn repetition(&mut self, mut item: Expr, is_nested: bool) -> Result<Expr, GrammarError> {
        loop {
            self.skip_blanks(is_nested);
            let (min, max) = match self.peek() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => {
                    let (min, max) = self.bounds()?;
                    item = Expr::Repeat(Box::new(item), min, max);
                    continue;
                }
                _ => return Ok(item),
            };
            self.at += 1;
            item = Expr::Repeat(Box::new(item), min, max);
        }
    }

    /// `{m}`, `{m,}`, `{,n}` or `{m,n}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), GrammarError> {
        let start = self.at;
        self.at += 1;
        self.skip_blanks(false);
        let min = self.number()?;
        self.skip_blanks(false);
        let max = if self.eat(",") {
            self.skip_blanks(false);
            self.number()?
        } else {
            min
        };
        self.skip_blanks(false);
        if !self.eat("}") || (min.is_none() && max.is_none()) {
            return Err(self.error("expected a repetition such as {2,5}"));
        }
        let low = min.unwrap_or(0);
        if max.is_some_and(|max| max < low) {
            return Err(self.error_at(start, "the repetition ends below its beginning"));
        }
        Ok((low, max))
    }

    fn number(&mut self) -> Result<Option<u32>, GrammarError> {
        let digits = self.rest().chars().take_while(char::is_ascii_digit).count();
        if digits == 0 {
            return Ok(None);
        }
        let number = self.rest()[..digits].parse().ok().filter(|&n| n <= MAX_REPEAT);
        let number = number.ok_or_else(|| self.error(format!("repetition above {MAX_REPEAT}")))?;
        self.at += digits;
        Ok(Some(number))
    }

    fn literal(&mut self) -> Result<Expr, GrammarError> {
        let start = self.at;
        self.at += 1;
        let mut text = String::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error_at(start, "the string does not end")),
                Some('"') => break,
                Some(_) => text.push(self.character()?),
            }
        }
        self.at += 1;
        Ok(Expr::Literal(text))
    }

    fn class(&mut self) -> Result<Expr, GrammarError> {
        let start = self.at;
        self.at += 1;
        let negated = self.eat("^");
        let mut ranges = Vec::new();
        loop {
            match self.peek() {
                None | Some('\n') => return Err(self.error_at(start, "the character class does not end")),
                Some(']') => break,
                Some(_) => {}
            }
            let from = self.character()?;
            let is_range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let to = if is_range {
                self.at += 1;
                self.character()?
            } else {
                from
            };
            if to < from {
                return Err(self.error(format!("the range {from:?}-{to:?} is empty")));
            }
            ranges.push((from, to));
        }
        self.at += 1;
        if ranges.is_empty() {
            return Err(self.error_at(start, "the character class is empty"));
        }
        Ok(Expr::Class { negated, ranges })
    }

    /// `<name>` or `<[id]>`.
    fn token(&mut self) -> Result<Expr, GrammarError> {
        let len = self.rest().find(['>', '\n', ' ']).filter(|&n| self.rest()[n..].starts_with('>'));
        let Some(len) = len else { return Err(self.error("the token does not end with \">\"")) };
        let token = self.rest()[..=len].to_owned();
        self.at += len + 1;
        self.parsed.has_tokens = true;
        Ok(Expr::Token(token))
    }

    fn character(&mut self) -> Result<char, GrammarError> {
        let Some(c) = self.peek() else { return Err(self.error("the grammar ends too early")) };
        if c != '\\' {
            self.at += c.len_utf8();
            return Ok(c);
        }
        let start = self.at;
        self.at += 1;
        let kind = self.peek();
        self.at += kind.map_or(0, char::len_utf8);
        let digits = match kind {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some(c @ ('\\' | '"' | '[' | ']' | '-' | '^' | '/')) => return Ok(c),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(self.error_at(start, "unknown escape")),
        };
        let code = self.rest().get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let c = code.and_then(|hex| u32::from_str_radix(hex, 16).ok()).and_then(char::from_u32);
        let c =
            c.ok_or_else(|| self.error_at(start, format!("expected {digits} hex digits of a character")))?;
        self.at += digits;
        Ok(c)
    }

    fn name(&mut self) -> Result<String, GrammarError> {
        let len = self.rest().find(|c| !is_name_char(c)).unwrap_or(self.rest().len());
        if len == 0 {
            return Err(self.error("expected the name of a rule"));
        }
        let name = self.rest()[..len].to_owned();
        self.at += len;
        Ok(name)
    }

    fn rule_id(&mut self, name: &str, at: usize) -> usize {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let id = self.parsed.rules.len();
        self.parsed.rules.push(Rule { name: name.to_owned(), body: None, at });
        self.ids.insert(name.to_owned(), id);
        id
    }

    fn skip_blanks(&mut self, with_lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.at += 1,
                '\r' | '\n' if with_lines => self.at += 1,
                '#' => self.at += self.rest().find('\n').unwrap_or(self.rest().len()),
                _ => return,
            }
        }
    }

    fn eat(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn error(&self, reason: impl Into<String>) -> GrammarError {
        self.error_at(self.at, reason)
    }

    fn error_at(&self, at: usize, reason: impl Into<String>) -> GrammarError {
        let before = &self.source[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        GrammarError::Syntax { what: "gbnf", line, column, reason: reason.into() }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(source: &str, line: usize, column: usize) {
        match to_lark(source) {
            Err(GrammarError::Syntax { line: l, column: c, .. }) => {
                assert_eq!((l, c), (line, column), "{source:?}")
            }
            other => panic!("{source:?}: {other:?}"),
        }
    }

    #[test]
    fn errors_name_line_and_column() {
        fails("root ::= \"a", 1, 10);
        fails("root ::= a\na ::= [z-a]", 2, 11);
        fails("root ::= b", 1, 10);
        fails("# nothing\n", 2, 1);
        fails("root ::= \"a\"\nroot ::= \"b\"", 2, 1);
        fails("root := \"a\"", 1, 6);
        fails("root ::= (\"a\"", 1, 14);
        fails("root ::= \"\\q\"", 1, 11);
        fails("root ::= * \"a\"", 1, 10);
        fails("root ::= \"a\"{3,2}", 1, 13);
        fails("root ::= !<think>", 1, 10);
        fails("root ::= \"a\" )", 1, 14);
        fails(&format!("root ::= {}", "(".repeat(100)), 1, 34);
    }

    #[test]
    fn a_grammar_without_recursion_is_one_terminal() {
        let lark = to_lark("root ::= a{2} \"é\"\na ::= [0-9] | \"\\x41\" ").unwrap();
        assert_eq!(lark, "start: R0\nR0: ((R1){2,2} (/\\x{e9}/))\nR1: (/[\\x{30}-\\x{39}]/ | (/\\x{41}/))\n");
    }

    #[test]
    fn recursion_is_seen_through_other_rules() {
        let lark = to_lark("root ::= \"(\" a\na ::= root |\n  \")\"").unwrap();
        assert!(lark.starts_with("start: r0\n"), "{lark}");
        assert!(!to_lark("root ::= a a\na ::= b b\nb ::= \"x\"").unwrap().contains("r0"));
    }
}
