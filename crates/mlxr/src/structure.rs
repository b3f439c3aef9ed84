//! Flags that hold the answer to a language, and the constraint they become.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueHint};
use mlxr_text::Tokenizer;
use mlxr_text::grammar::{Constraint, ConstraintState, Grammar, GrammarFactory};
use mlxr_text::reasoning::ReasoningTags;

use crate::failure::usage;

/// What the answer must look like; one of them at most.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Structured output")]
#[group(multiple = false)]
pub struct StructureArgs {
    /// The answer is a JSON object
    #[arg(long)]
    pub json_object: bool,
    /// The answer is JSON that satisfies a schema, given as it is or as @FILE
    #[arg(long, value_name = "SCHEMA")]
    pub json_schema: Option<String>,
    /// The answer matches a regular expression
    #[arg(long, value_name = "REGEX")]
    pub regex: Option<String>,
    /// The answer is in the language of a grammar: a .gbnf file (llama.cpp's syntax) or a .lark file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub grammar: Option<PathBuf>,
}

impl StructureArgs {
    /// The language asked for, checked.
    pub fn language(&self) -> anyhow::Result<Option<Grammar>> {
        if self.json_object {
            return Ok(Some(Grammar::json_object()));
        }
        if let Some(schema) = &self.json_schema {
            return json_schema(schema).map(Some);
        }
        if let Some(pattern) = &self.regex {
            let grammar = Grammar::regex(pattern).map_err(|e| usage(e, "check the pattern of --regex"))?;
            return Ok(Some(grammar));
        }
        self.grammar.as_deref().map(grammar_file).transpose()
    }
}

fn json_schema(given: &str) -> anyhow::Result<Grammar> {
    let text = match given.strip_prefix('@') {
        Some(path) => read(Path::new(path))?,
        None => given.to_owned(),
    };
    let schema = serde_json::from_str(&text).map_err(|e| {
        usage(format_args!("the schema of --json-schema is not JSON: {e}"), "a file is given as @FILE")
    })?;
    Grammar::json_schema(&schema).map_err(|e| usage(e, "leave the keyword out of the schema"))
}

fn grammar_file(path: &Path) -> anyhow::Result<Grammar> {
    let source = read(path)?;
    let grammar = match path.extension().and_then(|e| e.to_str()) {
        Some("gbnf") => Grammar::gbnf(&source),
        Some("lark") => Grammar::lark(&source),
        _ => {
            let message = format_args!("cannot tell the syntax of the grammar {}", path.display());
            return Err(usage(message, "name it .gbnf or .lark"));
        }
    };
    grammar.map_err(|e| usage(format_args!("{}: {e}", path.display()), "correct the grammar"))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Holds the answer to `prompt` to `language`, from where the model's reasoning ends.
pub fn constrain(
    language: Grammar,
    tokenizer: &Tokenizer,
    template: Option<&str>,
    prompt: &str,
) -> anyhow::Result<ConstraintState> {
    let reasoning = template.and_then(ReasoningTags::detect).and_then(|tags| tags.after_prompt(prompt));
    let constraint = Constraint { grammar: Some(language), reasoning, reasoning_budget: None };
    let factory =
        GrammarFactory::for_tokenizer(tokenizer).context("cannot hold this model's tokens to a grammar")?;
    factory.start(&constraint).context("cannot hold the answer to the grammar")
}
