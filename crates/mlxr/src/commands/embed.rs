//! `mlxr embed`: texts to vectors.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use clap::{Args, ValueHint};
use mlxr_models::vectors;
use serde_json::{Value, json};

use crate::args::ModelArg;
use crate::embedder::{EmbedderArgs, LoadedEmbedder, refusal, texts};
use crate::failure::{failure, usage};
use crate::model_source;
use crate::output;

/// Make vectors of texts, to compare them by meaning.
///
/// Each argument is a text; without any, each line of standard input is one. The first word is taken as the model when
/// it is an existing path or looks like one. Prints a vector of length 1 per line. An embedding model is read as its
/// files say; one that generates gives its last token's hidden state.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr embed path/to/minilm \"a cat\" \"a dog\"
  mlxr embed path/to/minilm --similarity \"a cat\" \"a dog\" \"the stock market\"
  mlxr embed path/to/minilm --json < lines.txt")]
pub struct EmbedArgs {
    /// The model (a path), then the texts
    #[arg(value_name = "MODEL_OR_TEXT", value_hint = ValueHint::AnyPath)]
    pub words: Vec<String>,
    /// Words that are texts whatever they look like
    #[arg(last = true, value_name = "TEXT")]
    pub text: Vec<String>,
    #[command(flatten)]
    pub model: ModelArg,
    /// Print how alike the texts are, each with each, in place of the vectors
    #[arg(long)]
    pub similarity: bool,
    /// Cut the vectors to so many elements; only for models that say that these mean something
    #[arg(short, long, value_name = "N")]
    pub dims: Option<usize>,
    /// Put the model's prompt of this name before every text, in place of its default
    #[arg(short, long, value_name = "NAME")]
    pub prompt_name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub load: EmbedderArgs,
}

pub fn run(args: &EmbedArgs) -> anyhow::Result<ExitCode> {
    let (source, words) = model_source::split(args.model.model.as_deref(), &args.words);
    let texts = texts(words, &args.text)?;
    if texts.is_empty() {
        let hint = "give the texts as arguments or pipe them in, one per line: mlxr embed \"some text\"";
        return Err(usage("nothing to embed", hint));
    }
    let model = LoadedEmbedder::load(&source, &args.load)?;
    let n_dims = model.head().n_dims(args.dims, &model.files.matryoshka)?;
    let prompt = model.files.prompt(args.prompt_name.as_deref()).ok_or_else(|| {
        let known: Vec<&str> = model.files.prompts.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { known.join(", ") };
        let name = args.prompt_name.as_deref().unwrap_or_default();
        failure(
            format_args!("the model has no prompt {name:?}"),
            format_args!("the model's prompts: {known}"),
        )
    })?;
    let reader = model.reader();
    let read = texts.iter().enumerate().map(|(i, text)| reader.text(i, &format!("{prompt}{text}")));
    let inputs = read.collect::<Result<Vec<_>, _>>().map_err(refusal)?;
    let n_tokens: Vec<usize> = inputs.iter().map(|input| input.tokens.len()).collect();
    let vectors = vectors(&model.run(inputs)?, n_dims)?;
    if args.json {
        let items = vectors.iter().zip(&n_tokens);
        let items: Vec<Value> =
            items.map(|(vector, n)| json!({ "n_tokens": n, "embedding": vector })).collect();
        let mut answer = json!({ "model": source.to_string(), "n_dims": n_dims, "embeddings": items });
        if args.similarity {
            answer["similarity"] = json!(similarities(&vectors));
        }
        output::json_line(&answer)?;
    } else if args.similarity {
        for row in similarities(&vectors) {
            print(&row, |line, value| write!(line, "{value:.4}"))?;
        }
    } else {
        for vector in &vectors {
            print(vector, |line, value| write!(line, "{value}"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The cosine of the angle between each and each, which for vectors of length 1 is their product.
fn similarities(vectors: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let product =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    vectors.iter().map(|a| vectors.iter().map(|b| product(a, b) as f32).collect()).collect()
}

/// Numbers on one line.
fn print(values: &[f32], write: impl Fn(&mut String, f32) -> std::fmt::Result) -> anyhow::Result<()> {
    let mut line = String::new();
    for (i, &value) in values.iter().enumerate() {
        if i > 0 {
            line.push(' ');
        }
        write(&mut line, value)?;
    }
    writeln!(output::styled(), "{line}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_compared_with_each() {
        let found = similarities(&[vec![1.0, 0.0], vec![0.6, 0.8]]);
        assert_eq!(found, [[1.0, 0.6], [0.6, 1.0]]);
    }
}
