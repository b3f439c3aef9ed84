//! The Jinja environment chat templates expect.

use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use fancy_regex::Regex;
use jiff::{Timestamp, Zoned, tz::TimeZone};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use super::{json, python};
use crate::TextError;

const NAME: &str = "chat_template";
/// Instructions a rendering may take; templates take some hundreds per message.
const FUEL: u64 = 20_000_000;

/// `{% generation %}` only marks the assistant's tokens for training.
static GENERATION_TAG: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").ok());

/// The message of `raise_exception`, carried as the source of an engine error.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

pub(super) fn compile(source: &str) -> Result<Environment<'static>, TextError> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(error)?;
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, _, value| Ok(out.write_str(&python::text(value))?));
    env.add_filter("string", |value: &Value| python::text(value));
    env.add_filter("length", python::length);
    env.add_filter("count", python::length);
    env.add_test("iterable", python::is_iterable);
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", |format: &str| strftime(&Zoned::now(), format));
    env.add_template_owned(NAME, neutral_generation_tags(source)).map_err(error)?;
    Ok(env)
}

pub(super) fn fix_time(env: &mut Environment<'static>, unix_s: i64) {
    let time = Timestamp::from_second(unix_s).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC);
    env.add_function("strftime_now", move |format: &str| strftime(&time, format));
}

/// The names a template expects to be given.
pub(super) fn variables(env: &Environment<'static>) -> HashSet<String> {
    let found =
        AssertUnwindSafe(|| env.get_template(NAME).map(|template| template.undeclared_variables(false)));
    catch_unwind(found).ok().and_then(Result::ok).unwrap_or_default()
}

pub(super) fn render(env: &Environment<'static>, context: Value) -> Result<String, TextError> {
    let rendering = AssertUnwindSafe(|| env.get_template(NAME).and_then(|template| template.render(context)));
    // The engine panics on some template bugs, such as a reversing slice of an empty list (minijinja 3.0.5).
    let Ok(rendered) = catch_unwind(rendering) else {
        return Err(TextError::Template { line: None, reason: "the template engine failed".to_owned() });
    };
    rendered.map_err(error)
}

fn neutral_generation_tags(source: &str) -> String {
    let Some(tag) = GENERATION_TAG.as_ref().filter(|_| source.contains("generation")) else {
        return source.to_owned();
    };
    let neutral = |tag: &fancy_regex::Captures<'_>| {
        let group = |i| tag.get(i).map_or("", |m| m.as_str());
        let statement = if group(2).is_empty() { "if true" } else { "endif" };
        format!("{{%{} {statement} {}%}}", group(1), group(3))
    };
    tag.replace_all(source, neutral).into_owned()
}

fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::BadSerialization, "tojson of an undefined value"));
    }
    let mut style = json::Style {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ..json::Style::default()
    };
    // Positional arguments are `ensure_ascii`, `indent`, ...; templates only ever name the latter.
    if let Some(first) = indent {
        style.ensure_ascii = first.is_true();
    }
    let indent = options.get::<Option<Value>>("indent")?.filter(|v| !v.is_none());
    style.indent = match indent {
        None => None,
        Some(v) => Some(match (v.as_usize(), v.as_str()) {
            (Some(n), _) => " ".repeat(n.min(64)),
            (None, Some(text)) => text.to_owned(),
            (None, None) => return Err(Error::new(ErrorKind::InvalidOperation, "indent is no number")),
        }),
    };
    if let Some(separators) = options.get::<Option<Value>>("separators")?.filter(|v| !v.is_none()) {
        let part =
            |i: usize| separators.get_item_by_index(i).ok().and_then(|v| v.as_str().map(str::to_owned));
        let both = part(0).zip(part(1));
        style.separators =
            Some(both.ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "separators are no pair of strings")
            })?);
    }
    options.assert_all_used()?;
    let plain = serde_json::to_value(value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, "cannot write as JSON").with_source(e))?;
    Ok(json::dumps(&plain, &style))
}

fn raise_exception(message: Value) -> Result<Value, Error> {
    let text = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Refusal(text)))
}

fn strftime(time: &Zoned, format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, time)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, "strftime_now").with_source(e))
}

fn error(e: Error) -> TextError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&e);
    let mut line = None;
    let mut reason = String::new();
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return TextError::Refused { message: message.clone() };
        }
        if let Some(engine) = current.downcast_ref::<Error>() {
            line = line.or(engine.line());
            let detail = engine.detail().map(|d| format!(": {d}")).unwrap_or_default();
            reason = format!("{}{detail}", engine.kind());
        } else {
            reason = format!("{reason}: {current}");
        }
        cause = current.source();
    }
    TextError::Template { line, reason }
}
