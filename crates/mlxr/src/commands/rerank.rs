//! `mlxr rerank`: documents in the order of their relevance to a query.

use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueHint};
use mlxr_models::ranking;
use serde_json::{Value, json};

use crate::args::ModelArg;
use crate::embedder::{EmbedderArgs, LoadedEmbedder, refusal, texts};
use crate::failure::usage;
use crate::model_source;
use crate::output::{self, DIM};

/// Order documents by how well they answer a query, with a cross-encoder.
///
/// Each argument is a document; without any, each line of standard input is one. The first word is taken as the model
/// when it is an existing path or looks like one. Prints the score, the document's number and its first line, the best
/// first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr rerank path/to/reranker --query \"what is a panda?\" \"a bear of China\" \"a kind of bread\"
  mlxr rerank path/to/reranker --query \"disk full\" --top-n 5 < log.txt")]
pub struct RerankArgs {
    /// The model (a path), then the documents
    #[arg(value_name = "MODEL_OR_DOCUMENT", value_hint = ValueHint::AnyPath)]
    pub words: Vec<String>,
    /// Words that are documents whatever they look like
    #[arg(last = true, value_name = "DOCUMENT")]
    pub documents: Vec<String>,
    #[command(flatten)]
    pub model: ModelArg,
    /// What the documents are to answer
    #[arg(short, long, value_name = "TEXT")]
    pub query: String,
    /// Print only so many [default: all]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub top_n: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub load: EmbedderArgs,
}

pub fn run(args: &RerankArgs) -> anyhow::Result<ExitCode> {
    let (source, words) = model_source::split(args.model.model.as_deref(), &args.words);
    let documents = texts(words, &args.documents)?;
    if documents.is_empty() {
        let hint = "give the documents as arguments or pipe them in, one per line";
        return Err(usage("nothing to rank", hint));
    }
    let model = LoadedEmbedder::load(&source, &args.load)?;
    let activation = model.head().relevance()?;
    let reader = model.reader();
    let read = documents.iter().enumerate();
    let read = read.map(|(i, document)| reader.pair(i, &args.query, document, usize::MAX));
    let pairs = read.collect::<Result<Vec<_>, _>>().map_err(refusal)?;
    let top_n = args.top_n.map_or(usize::MAX, |n| n as usize);
    let results = ranking(&model.run(pairs)?, activation, top_n)?;
    if args.json {
        let result = |&(index, score): &(usize, f32)| json!({ "index": index, "relevance_score": score, "document": documents[index] });
        let results: Vec<Value> = results.iter().map(result).collect();
        return output::json(&json!({ "model": source.to_string(), "results": results }))
            .map(|()| ExitCode::SUCCESS);
    }
    let mut out = output::styled();
    for (index, score) in results {
        let line = documents[index].lines().next().unwrap_or_default();
        writeln!(out, "{score:>9.5}  {DIM}{:>4}{DIM:#}  {line}", index + 1)?;
    }
    Ok(ExitCode::SUCCESS)
}
