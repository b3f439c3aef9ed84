//! A model that reads whole texts and makes vectors or scores of them.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use mlxr_checkpoint::EmbeddingFiles;
use mlxr_engine::{EmbedError, EmbedderHandle, EmbedderLimits, EngineOptions, TextReader};
use mlxr_kernels::{CpuOptions, Kernels, Products};
use mlxr_models::{DecoderConfig, Embedder, EmbedderHead, ModelError, ModelOptions, Text};
use mlxr_server::config::Device;
use mlxr_text::Tokenizer;

use crate::device::Wanted;
use crate::failure::failure;
use crate::model_source::ModelSource;
use crate::text;

/// The context of a generating model when nobody says, unless its own is smaller.
const DEFAULT_CTX: u32 = 4096;

/// Where and how such a model is loaded.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model options")]
pub struct EmbedderArgs {
    /// Tokens a text may have [default: as the model's files say; at most 4096 if it generates]
    #[arg(short = 'c', long = "ctx", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub n_ctx: Option<u32>,
    /// Where to compute: cpu, gpu, auto (a GPU if there is one) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// CPU threads [default: one per physical core]
    #[arg(short = 't', long, value_name = "N", value_parser = crate::args::parse_threads)]
    pub threads: Option<usize>,
    /// CPU kernels: auto for the best this CPU runs, or an instruction set that `mlxr doctor` names, such as avx2
    #[arg(long, value_name = "KERNELS", default_value = "auto")]
    pub cpu_kernels: Kernels,
    /// Cut what is longer at its end, in place of refusing it
    #[arg(long)]
    pub truncate: bool,
}

/// See the module.
pub struct LoadedEmbedder {
    handle: EmbedderHandle,
    tokenizer: Tokenizer,
    pub files: EmbeddingFiles,
    is_cut: bool,
}

impl LoadedEmbedder {
    pub fn load(source: &ModelSource, args: &EmbedderArgs) -> anyhow::Result<LoadedEmbedder> {
        let ckpt = source.open()?;
        let tokenizer = text::tokenizer(&ckpt)?;
        let n_ctx = match args.n_ctx {
            None if !ckpt.arch.encoder => {
                Some(DecoderConfig::for_checkpoint(&ckpt)?.n_ctx_train.min(DEFAULT_CTX))
            }
            asked => asked,
        };
        let options = EngineOptions { n_ctx: n_ctx.map(|n_ctx| n_ctx as usize), ..EngineOptions::default() };
        // Nobody else waits for this one.
        let limits = EmbedderLimits {
            max_waiting_tokens: usize::MAX,
            max_texts: usize::MAX,
            ..EmbedderLimits::default()
        };
        let cpu = CpuOptions { n_threads: args.threads, isa: Some(args.cpu_kernels.isa()) };
        let wanted = Wanted::new(args.device, cpu, Products::Alike);
        let handle = wanted.load(&ckpt, options, |placement, _| {
            let embedder = Embedder::load(&ckpt, placement, &ModelOptions { n_ctx }).map_err(|error| {
                let hint = match &error {
                    ModelError::ContextTooLong { n_ctx_max, .. } => {
                        format!("\nhint: give --ctx at most {n_ctx_max}")
                    }
                    _ => String::new(),
                };
                anyhow::Error::from(error).context(format!("cannot load {source}{hint}"))
            })?;
            EmbedderHandle::spawn(Arc::new(embedder), limits)
                .context("cannot allocate the scratch\nhint: try a smaller --ctx")
        })?;
        Ok(LoadedEmbedder { handle, tokenizer, files: ckpt.embedding, is_cut: args.truncate })
    }

    pub fn head(&self) -> EmbedderHead {
        self.handle.head()
    }

    pub fn reader(&self) -> TextReader<'_> {
        let n_ctx = self.handle.n_ctx();
        let n_ctx = self.files.max_tokens.map_or(n_ctx, |max_tokens| max_tokens.min(n_ctx));
        TextReader { tokenizer: &self.tokenizer, n_ctx, is_cut: self.is_cut }
    }

    /// What comes out for each text.
    pub fn run(&self, texts: Vec<Text>) -> anyhow::Result<Vec<Vec<f32>>> {
        self.handle.run_blocking(texts).map_err(refusal)
    }
}

/// What stands against a text; people count from 1.
pub fn refusal(error: EmbedError) -> anyhow::Error {
    match error {
        EmbedError::TooLong { index, n_tokens, n_ctx } => failure(
            format_args!("text {} has {n_tokens} tokens, but the model reads {n_ctx}", index + 1),
            "--truncate cuts it at its end",
        ),
        EmbedError::Empty { index } => failure(format_args!("text {} is empty", index + 1), "leave it out"),
        other => other.into(),
    }
}

/// The texts of a command: its arguments, or the lines of standard input that are not empty.
pub fn texts(words: &[String], after: &[String]) -> anyhow::Result<Vec<String>> {
    if !words.is_empty() || !after.is_empty() {
        return Ok(words.iter().chain(after).cloned().collect());
    }
    let piped = crate::stdin::read_piped()?.unwrap_or_default();
    Ok(piped.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}
