//! `mlxr tokenize`: text to ids and pieces, or ids to text.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use mlxr_text::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

use crate::args::TokenizeArgs;
use crate::failure::usage;
use crate::model_source::Words;
use crate::output::{self, DIM};
use crate::{stdin, text};

pub fn run(args: &TokenizeArgs) -> anyhow::Result<ExitCode> {
    let words = Words::sort(args.model.model.as_deref(), &args.words, &args.text);
    let input = match words.text {
        Some(text) => text,
        None => stdin::read_piped()?.ok_or_else(|| {
            usage(
                "nothing to tokenize",
                "give the text as an argument or pipe it in: mlxr tokenize \"some text\"",
            )
        })?,
    };
    let source = words.model.open_tokenizer()?;
    let tokenizer = Tokenizer::from_source(&source)
        .with_context(|| format!("cannot read the tokenizer of {}", words.model))?;
    if args.decode { decode(args, &tokenizer, &input) } else { encode(args, &tokenizer, &input) }?;
    Ok(ExitCode::SUCCESS)
}

fn encode(args: &TokenizeArgs, tokenizer: &Tokenizer, input: &str) -> anyhow::Result<()> {
    let options = EncodeOptions { add_special: !args.no_special, parse_special: !args.plain };
    let ids = tokenizer.encode(input, options)?;
    if args.json {
        let tokens: Vec<Value> = ids.iter().map(|&id| token_json(tokenizer, id)).collect();
        return output::json(&json!({ "count": ids.len(), "ids": ids, "tokens": tokens }));
    }
    let mut out = output::styled();
    if args.count {
        writeln!(out, "{}", ids.len())?;
    } else if args.ids {
        let words: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", words.join(" "))?;
    } else {
        for &id in &ids {
            let mark = if tokenizer.is_special(id) { "  special" } else { "" };
            writeln!(out, "{id:>7}  {}{DIM}{mark}{DIM:#}", text::quoted(tokenizer.token_bytes(id)))?;
        }
        writeln!(out, "{DIM}{} token{}{DIM:#}", ids.len(), if ids.len() == 1 { "" } else { "s" })?;
    }
    Ok(())
}

/// One token: its text, or its bytes where they are no text on their own.
fn token_json(tokenizer: &Tokenizer, id: u32) -> Value {
    let mut token = json!({ "id": id });
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => token["text"] = json!(text),
        Err(_) => token["bytes"] = json!(bytes),
    }
    if tokenizer.is_special(id) {
        token["special"] = json!(true);
    }
    token
}

fn decode(args: &TokenizeArgs, tokenizer: &Tokenizer, input: &str) -> anyhow::Result<()> {
    let ids = parse_ids(input, tokenizer.n_vocab())?;
    let text = tokenizer.decode(&ids, false);
    if args.json {
        output::json(&json!({ "count": ids.len(), "ids": ids, "text": text }))
    } else {
        output::raw(&text)?;
        output::raw("\n")
    }
}

/// Ids separated by whitespace, commas or brackets, each inside the vocabulary.
fn parse_ids(input: &str, n_vocab: usize) -> anyhow::Result<Vec<u32>> {
    let is_separator = |c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']');
    input
        .split(is_separator)
        .filter(|word| !word.is_empty())
        .map(|word| {
            let id: u32 = word.parse().ok().with_context(|| {
                format!("{word:?} is no token id\nhint: ids are numbers, such as 850 745 264")
            })?;
            anyhow::ensure!(
                (id as usize) < n_vocab,
                "token id {id} is outside the vocabulary of {n_vocab}\nhint: ids go from 0 to {}",
                n_vocab - 1
            );
            Ok(id)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_in_any_list_form_and_stay_inside_the_vocabulary() {
        assert_eq!(parse_ids("[1, 2,3]\n4", 5).unwrap(), [1, 2, 3, 4]);
        assert!(parse_ids("1 x", 5).unwrap_err().to_string().starts_with("\"x\" is no token id"));
        assert!(parse_ids("5", 5).unwrap_err().to_string().starts_with("token id 5 is outside"));
    }
}
