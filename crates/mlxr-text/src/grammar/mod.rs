//! Grammars: what a text may look like, told to the sampler as the set of tokens that may come next.
//!
//! A [`Grammar`] is checked when it is made, so that a request with a bad one is refused before it runs. A
//! [`GrammarFactory`] knows a vocabulary and turns a [`Constraint`] into the [`ConstraintState`] of one sequence.
//! The automata are llguidance's: Earley over lexemes, lexemes by derivatives.

mod constraint;
mod error;
mod factory;
mod gbnf;
mod matcher;
mod relax;
mod schema;
mod tools;

pub use constraint::{Constraint, ConstraintState, TokenMask};
pub use error::GrammarError;
pub use factory::GrammarFactory;
pub use tools::ToolChoice;

use std::sync::Arc;

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use serde_json::{Value, json};

use crate::tool_calls::{ToolFormat, ToolSpec};

/// Longest source of a grammar.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// Longest regular expression: what it costs to compile grows faster than its length.
pub(crate) const MAX_PATTERN_BYTES: usize = 8 << 10;

/// A language texts must belong to. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct Grammar {
    pub(crate) source: Arc<Source>,
    /// The grammar itself says where reasoning is: channels.
    pub(crate) covers_reasoning: bool,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Source {
    Schema(Value),
    Lark(Vec<Part>),
}

/// A piece of a Lark grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Text(String),
    /// A text of the wire format: a control token where the vocabulary has one, else a literal.
    Marker(String),
    /// A rule: any text up to and with a marker.
    UpTo {
        rule: String,
        marker: String,
    },
    /// A terminal: any text but the empty one, without a marker in it.
    Without {
        terminal: String,
        marker: String,
    },
}

/// How a marker is spelt: its control token, if it is one.
pub(crate) type Control<'a> = &'a dyn Fn(&str) -> Option<u32>;

impl Grammar {
    /// Any JSON object.
    pub fn json_object() -> Grammar {
        Grammar { source: Arc::new(Source::Schema(json!({"type": "object"}))), covers_reasoning: false }
    }

    /// JSON that satisfies a schema; keys come in the order of `properties`.
    ///
    /// # Errors
    /// [`GrammarError`] naming the keyword that is not supported and where it is, or what makes no sense.
    pub fn json_schema(schema: &Value) -> Result<Grammar, GrammarError> {
        schema::check(schema)?;
        check_len("schema", schema.to_string().len(), MAX_SOURCE_BYTES)?;
        Grammar::checked("schema", Source::Schema(schema.clone()))
    }

    /// Texts that match a regular expression as a whole.
    ///
    /// # Errors
    /// [`GrammarError`] when the expression does not parse or uses look-around or back-references.
    pub fn regex(pattern: &str) -> Result<Grammar, GrammarError> {
        check_len("regex", pattern.len(), MAX_PATTERN_BYTES)?;
        let lark = format!("start: /{}/", llguidance::regex_to_lark(pattern, ""));
        Grammar::checked("regex", Source::Lark(vec![Part::Text(lark)]))
    }

    /// Texts of a grammar in llguidance's dialect of Lark.
    ///
    /// # Errors
    /// [`GrammarError`] when it does not parse.
    pub fn lark(source: &str) -> Result<Grammar, GrammarError> {
        check_len("lark", source.len(), MAX_SOURCE_BYTES)?;
        Grammar::checked("lark", Source::Lark(vec![Part::Text(source.to_owned())]))
    }

    /// Texts of a grammar in GBNF, the syntax of llama.cpp.
    ///
    /// # Errors
    /// [`GrammarError`] with line and column when it does not parse.
    pub fn gbnf(source: &str) -> Result<Grammar, GrammarError> {
        check_len("gbnf", source.len(), MAX_SOURCE_BYTES)?;
        Grammar::checked("gbnf", Source::Lark(vec![Part::Text(gbnf::to_lark(source)?)]))
    }

    /// Answers in a wire format whose calls have arguments that satisfy the tools' schemas; `choice` says whether
    /// there must be a call. `None` when there is nothing to constrain.
    ///
    /// # Errors
    /// [`GrammarError`] when a tool's schema is not supported or the chosen tool does not exist.
    pub fn tool_calls(
        format: ToolFormat,
        tools: &[ToolSpec],
        choice: &ToolChoice,
        parallel: bool,
    ) -> Result<Option<Grammar>, GrammarError> {
        let parts = tools::lark(format, tools, choice, parallel, None)?;
        parts.map(|parts| Grammar::of_calls(format, parts)).transpose()
    }

    /// Answers that are calls or else JSON of a schema: [`Self::tool_calls`] where calling is up to the model and what
    /// it says instead has a form too.
    ///
    /// # Errors
    /// [`GrammarError`] for the reasons above, and when `answer` is not a grammar of JSON.
    pub fn tool_calls_or(
        format: ToolFormat,
        tools: &[ToolSpec],
        parallel: bool,
        answer: &Grammar,
    ) -> Result<Grammar, GrammarError> {
        let Source::Schema(schema) = &*answer.source else {
            let reason = "beside tools only JSON can be asked for".to_owned();
            return Err(GrammarError::Compile { what: "answer", reason });
        };
        match tools::lark(format, tools, &ToolChoice::Auto, parallel, Some(schema))? {
            Some(parts) => Grammar::of_calls(format, parts),
            None => Ok(answer.clone()),
        }
    }

    fn of_calls(format: ToolFormat, parts: Vec<Part>) -> Result<Grammar, GrammarError> {
        let grammar = Grammar::checked("tool", Source::Lark(parts))?;
        Ok(Grammar { covers_reasoning: format == ToolFormat::Harmony, ..grammar })
    }

    /// Compiles once without a vocabulary, for the errors.
    fn checked(what: &'static str, source: Source) -> Result<Grammar, GrammarError> {
        let grammar = Grammar { source: Arc::new(source), covers_reasoning: false };
        let names_tokens =
            matches!(&*grammar.source, Source::Lark(parts) if parts.iter().any(Part::names_tokens));
        if !names_tokens {
            GrammarInit::Serialized(grammar.serialized(&|_| None))
                .to_internal(None, limits())
                .map_err(|e| GrammarError::compile(what, &e))?;
        }
        Ok(grammar)
    }

    /// The grammar as llguidance takes it.
    pub(crate) fn serialized(&self, control: Control<'_>) -> TopLevelGrammar {
        match &*self.source {
            Source::Schema(schema) => TopLevelGrammar::from_json_schema(schema.clone()),
            Source::Lark(parts) => {
                TopLevelGrammar::from_lark(parts.iter().map(|part| part.spell(control)).collect())
            }
        }
    }
}

impl Part {
    /// Whether a Lark source refers to tokens of the vocabulary (`<|name|>`, `<[12]>`), which only a factory knows.
    fn names_tokens(&self) -> bool {
        matches!(self, Part::Text(text) if text.contains("<[") || text.contains("<|"))
    }

    fn spell(&self, control: Control<'_>) -> String {
        match self {
            Part::Text(text) => text.clone(),
            Part::Marker(text) => match control(text) {
                Some(id) => format!("<[{id}]>"),
                None => tools::quote(text),
            },
            Part::UpTo { rule, marker } => match control(marker) {
                Some(id) => format!("{rule}: ANY? <[{id}]>\n"),
                None => format!("{rule}[suffix={}]: /(?s:.*)/\n", tools::quote(marker)),
            },
            Part::Without { terminal, marker } => match control(marker) {
                Some(_) => format!("{terminal}: /(?s:.+)/\n"),
                None => format!("{terminal}: /(?s:.+)/ & ~/(?s:.*){}(?s:.*)/\n", tools::pattern(marker)),
            },
        }
    }
}

/// Bounds on what a client's grammar may cost.
pub(crate) fn limits() -> ParserLimits {
    ParserLimits { verbose_errors: false, ..ParserLimits::default() }
}

fn check_len(what: &'static str, found: usize, max: usize) -> Result<(), GrammarError> {
    if max < found {
        return Err(GrammarError::TooLong { what, found, max });
    }
    Ok(())
}
