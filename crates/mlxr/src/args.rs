//! The command line as types. What each flag means is said here, once; the modules under `commands` act on it.

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use mlxr_checkpoint::FileType;
use mlxr_kernels::Kernels;
use mlxr_server::config::{Device, GpuLayers};
use mlxr_tensor::{DType, KvSpec};

use crate::commands::catalogue::{CatalogueArgs, CopyArgs, CreateArgs, ListArgs, RemoveArgs};
use crate::commands::config::ConfigArgs;
use crate::commands::doctor::DoctorArgs;
use crate::commands::embed::EmbedArgs;
use crate::commands::keys::KeysArgs;
use crate::commands::logs::LogsArgs;
use crate::commands::ps::PsArgs;
use crate::commands::rerank::RerankArgs;
use crate::commands::serve::ServeArgs;
use crate::commands::stop::StopArgs;
use crate::commands::top::TopArgs;
use crate::logging;
use crate::sampling::{ChoiceArgs, SamplingArgs};
use crate::structure::StructureArgs;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Run language models on this machine: GGUF files, Hugging Face folders, MLX folders.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "mlxr", about, version, styles = STYLES, max_term_width = 110, infer_long_args = false)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// What to log to stderr: error, warn, info, debug, trace, or a filter such as `mlxr_engine=debug` [default: warn, for serve info]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = logging::parse_filter)]
    pub log_level: Option<String>,
    /// When to colour the output [default: auto, which respects NO_COLOR]
    #[arg(long, global = true, value_name = "WHEN")]
    pub color: Option<ColorWhen>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ColorWhen {
    Auto,
    Always,
    Never,
}

impl ColorWhen {
    pub fn choice(self) -> anstream::ColorChoice {
        match self {
            ColorWhen::Auto => anstream::ColorChoice::Auto,
            ColorWhen::Always => anstream::ColorChoice::Always,
            ColorWhen::Never => anstream::ColorChoice::Never,
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<RunArgs>),
    Serve(Box<ServeArgs>),
    Config(ConfigArgs),
    Ps(PsArgs),
    Stop(StopArgs),
    Logs(LogsArgs),
    Top(TopArgs),
    Doctor(DoctorArgs),
    Keys(KeysArgs),
    List(ListArgs),
    Create(Box<CreateArgs>),
    #[command(name = "cp")]
    Copy(CopyArgs),
    #[command(name = "rm")]
    Remove(RemoveArgs),
    Show(ShowArgs),
    Tokenize(TokenizeArgs),
    Embed(EmbedArgs),
    Rerank(RerankArgs),
    Bench(BenchArgs),
    Perplexity(PerplexityArgs),
    Quantize(QuantizeArgs),
    Convert(ConvertArgs),
    Completions(CompletionsArgs),
}

/// Where and how a model is loaded to compute.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Model options")]
pub struct LoadArgs {
    /// Tokens a sequence may have, prompt included [default: the model's own, at most 4096]
    #[arg(short = 'c', long = "ctx", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub n_ctx: Option<u32>,
    /// Where to compute: cpu, gpu, auto (a GPU if there is one) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// Layers on the GPU, the last ones, where the CPU computes the others: a number, all, or auto for as many as fit
    #[arg(long, value_name = "N", default_value = "auto", alias = "n-gpu-layers")]
    pub gpu_layers: GpuLayers,
    /// CPU threads [default: one per physical core]
    #[arg(short = 't', long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// CPU kernels: auto for the best this CPU runs, or an instruction set that `mlxr doctor` names, such as avx2
    #[arg(long, value_name = "KERNELS", default_value = "auto")]
    pub cpu_kernels: Kernels,
    /// Compute prompts and batches in bf16 (CPUs) or f16 (GPUs): faster, but texts depend on their company
    #[arg(long)]
    pub bf16_products: bool,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv_type)]
    pub kv_type: DType,
}

/// A model, named by a flag.
#[derive(Clone, Debug, Args)]
pub struct ModelArg {
    /// A .gguf file, a Hugging Face folder or an MLX folder [default: the bundled model]
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub model: Option<PathBuf>,
}

/// Generate text: from a prompt, from standard input, or in a chat.
///
/// The first word is taken as the model when it is an existing path or looks like one (contains a slash, ends in
/// .gguf); everything else is the prompt. Text piped into the command is appended to the prompt. Without a prompt, on a
/// terminal, a chat opens. The prompt goes through the model's chat template; a model without one completes the text.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr run \"Tell me a story about a dragon.\"
  mlxr run path/to/model.gguf \"Why is the sky blue?\"
  git diff | mlxr run model/ \"Summarise this change.\"
  mlxr run path/to/llava --image cat.jpg \"What is this?\"
  mlxr run --raw --greedy --max-tokens 20 \"Once upon a time\"")]
pub struct RunArgs {
    /// The model (a path), then the prompt
    #[arg(value_name = "MODEL_OR_PROMPT", value_hint = ValueHint::AnyPath)]
    pub words: Vec<String>,
    /// Words that are prompt whatever they look like
    #[arg(last = true, value_name = "PROMPT")]
    pub prompt: Vec<String>,
    #[command(flatten)]
    pub model: ModelArg,
    /// An image for the prompt, or for the first message of a chat; for models that read images, several times for several
    #[arg(long = "image", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub images: Vec<PathBuf>,
    /// A system message for the chat
    #[arg(short, long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Complete the text as it is, without the chat template
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,
    /// A Jinja chat template to use instead of the model's own
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "raw")]
    pub template: Option<PathBuf>,
    /// Say on stderr how fast it was
    #[arg(short, long)]
    pub verbose: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// With --json: one object per token as it comes, then the closing one
    #[arg(long, requires = "json")]
    pub stream: bool,
    /// With --json: the N most likely tokens at every place
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u8).range(0..=20))]
    pub logprobs: Option<u8>,
    /// With --json: the same for the prompt
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u8).range(0..=20))]
    pub prompt_logprobs: Option<u8>,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub choices: ChoiceArgs,
    #[command(flatten)]
    pub structure: StructureArgs,
}

/// Show what a model is: architecture, quantisation, tokenizer, template, memory.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A .gguf file, a Hugging Face folder, an MLX folder, or a name of the catalogue [default: the bundled model]
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: Option<PathBuf>,
    /// List every tensor
    #[arg(long, group = "part")]
    pub tensors: bool,
    /// List the metadata: of a GGUF file its own, else config.json
    #[arg(long, group = "part")]
    pub metadata: bool,
    /// Print the chat template
    #[arg(long, group = "part")]
    pub template: bool,
    /// Print the Modelfile of a model of the catalogue
    #[arg(long, group = "part")]
    pub modelfile: bool,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["template", "modelfile"])]
    pub json: bool,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
    /// Estimate memory for this many tokens [default: the model's context]
    #[arg(short = 'c', long = "ctx", value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub n_ctx: Option<u32>,
    /// Estimate memory for keys and values of this type
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv_type)]
    pub kv_type: DType,
}

/// Turn text into token ids, or ids into text.
///
/// The text comes from the arguments or from standard input. The first word is taken as the model when it is an
/// existing path or looks like one.
#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// The model (a path), then the text; with --decode, ids
    #[arg(value_name = "MODEL_OR_TEXT", value_hint = ValueHint::AnyPath)]
    pub words: Vec<String>,
    /// Words that are text whatever they look like
    #[arg(last = true, value_name = "TEXT")]
    pub text: Vec<String>,
    #[command(flatten)]
    pub model: ModelArg,
    /// Turn ids (separated by spaces or commas) into text
    #[arg(short, long)]
    pub decode: bool,
    /// Print the ids only, on one line
    #[arg(long, conflicts_with_all = ["decode", "count"])]
    pub ids: bool,
    /// Print the number of tokens only
    #[arg(long, conflicts_with = "decode")]
    pub count: bool,
    /// Leave out the tokens the model expects around a text, such as a beginning-of-sequence token
    #[arg(long, conflicts_with = "decode")]
    pub no_special: bool,
    /// Read the spelling of control tokens, such as <|im_end|>, as ordinary text
    #[arg(long, conflicts_with = "decode")]
    pub plain: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Measure prefill and decode speed.
///
/// tok/s come with GB/s, the bytes of weights and of keys and values that a token makes the processor read, and with
/// GFLOP/s, the multiplications with weights and their additions; each with its share of what this machine does at most,
/// measured in the same run.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A .gguf file, a Hugging Face folder or an MLX folder [default: the bundled model]
    #[arg(value_name = "MODEL", value_hint = ValueHint::AnyPath)]
    pub model: Option<PathBuf>,
    /// Prompt lengths to prefill; 0 for none
    #[arg(short = 'p', long, value_name = "TOKENS", value_delimiter = ',', default_value = "512")]
    pub prefill: Vec<u32>,
    /// Numbers of tokens to decode; 0 for none
    #[arg(short = 'n', long, value_name = "TOKENS", value_delimiter = ',', default_value = "128")]
    pub decode: Vec<u32>,
    /// Tokens already stored when decoding begins; those beyond the first 2048 are copies of these
    #[arg(short, long, value_name = "TOKENS", default_value_t = 0)]
    pub depth: u32,
    /// Sequences decoded at once
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<u32>,
    /// Decode every batch a second time, with almost nothing to twice --depth stored of its sequences, the same in total,
    /// and their blocks scattered over the arena
    #[arg(long, requires = "depth")]
    pub uneven: bool,
    /// Rows of one prefill pass [default: 512; 2048 on a GPU with memory of its own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch_rows: Option<u32>,
    /// Also time each kernel, on a GPU that has a clock; in a pass of its own, as it makes everything slower
    #[arg(long)]
    pub profile: bool,
    /// Measure first how products are best divided on this GPU, where that is not known yet; every command uses it from
    /// then on, and no result changes
    #[arg(long)]
    pub tune: bool,
    /// Times each measurement is taken
    #[arg(short, long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeats: u32,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to compute: cpu, gpu, auto (a GPU if there is one) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// Layers on the GPU, the last ones, where the CPU computes the others: a number, all, or auto for as many as fit
    #[arg(long, value_name = "N", default_value = "auto", alias = "n-gpu-layers")]
    pub gpu_layers: GpuLayers,
    /// CPU threads [default: one per physical core]
    #[arg(short = 't', long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// CPU kernels: auto for the best this CPU runs, or an instruction set that `mlxr doctor` names, such as avx2
    #[arg(long, value_name = "KERNELS", default_value = "auto")]
    pub cpu_kernels: Kernels,
    /// Compute prompts and batches in bf16 (CPUs) or f16 (GPUs): faster, but texts depend on their company
    #[arg(long)]
    pub bf16_products: bool,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv_type)]
    pub kv_type: DType,
}

/// Measure how well a model predicts a text.
///
/// The text is cut into windows of --ctx tokens that do not overlap; in each one the second half is scored with the
/// first as context, the way llama.cpp does it.
#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// A text file; `-` is standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub model: ModelArg,
    /// Tokens of a window
    #[arg(short = 'c', long = "ctx", value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    pub n_ctx: u32,
    /// Windows to score [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where to compute: cpu, gpu, auto (a GPU if there is one) or the number of a GPU
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: Device,
    /// Layers on the GPU, the last ones, where the CPU computes the others: a number, all, or auto for as many as fit
    #[arg(long, value_name = "N", default_value = "auto", alias = "n-gpu-layers")]
    pub gpu_layers: GpuLayers,
    /// CPU threads [default: one per physical core]
    #[arg(short = 't', long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// CPU kernels: auto for the best this CPU runs, or an instruction set that `mlxr doctor` names, such as avx2
    #[arg(long, value_name = "KERNELS", default_value = "auto")]
    pub cpu_kernels: Kernels,
    /// Compute prompts and batches in bf16 (CPUs) or f16 (GPUs): faster, but texts depend on their company
    #[arg(long)]
    pub bf16_products: bool,
    /// How keys and values are stored
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = parse_kv_type)]
    pub kv_type: DType,
}

/// Quantise a model into a GGUF file.
///
/// TYPE is a tensor type (Q4_0, Q5_1, Q8_0, Q6_K, IQ4_XS, F16, ...) or a mixed recipe (Q4_K_M, Q5_K_S, ...). A folder is
/// converted on the way.
#[derive(Debug, Args)]
pub struct QuantizeArgs {
    /// The model to read: a GGUF file, Hugging Face folder or MLX folder
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// The GGUF file to write
    #[arg(value_name = "DST", value_hint = ValueHint::FilePath)]
    pub destination: PathBuf,
    /// The type or recipe
    #[arg(value_name = "TYPE", value_parser = parse_recipe)]
    pub recipe: FileType,
    /// An importance matrix, as llama.cpp writes them
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub imatrix: Option<PathBuf>,
    /// The type of the output matrix, instead of the recipe's
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    pub output_type: Option<DType>,
    /// The type of the token embedding, instead of the recipe's
    #[arg(long, value_name = "TYPE", value_parser = parse_dtype)]
    pub token_embedding_type: Option<DType>,
    /// The type of tensors whose name contains TEXT, may be given again
    #[arg(long, value_name = "TEXT=TYPE", value_parser = parse_tensor_type)]
    pub tensor_type: Vec<(String, DType)>,
    /// Make every matrix the recipe's base type
    #[arg(long)]
    pub pure: bool,
    /// Accept a model that is quantised already, at a loss of precision
    #[arg(long)]
    pub allow_requantize: bool,
    /// Replace DST if it exists
    #[arg(short, long)]
    pub force: bool,
    /// CPU threads [default: one per processor]
    #[arg(short = 't', long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Convert a model between GGUF, Hugging Face and MLX.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr convert model/ model.gguf --to gguf --type bf16
  mlxr convert model/ model-4bit/ --to mlx --bits 4
  mlxr convert model.gguf model/ --to hf")]
pub struct ConvertArgs {
    /// The model to read: a GGUF file, Hugging Face folder or MLX folder
    #[arg(value_name = "SRC", value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// The file (gguf) or folder (hf, mlx) to write
    #[arg(value_name = "DST", value_hint = ValueHint::AnyPath)]
    pub destination: PathBuf,
    /// The format to write
    #[arg(long, value_name = "FORMAT")]
    pub to: TargetFormat,
    /// The type of what is not quantised: f16, bf16 or f32; for GGUF any type without a recipe [default: f16 for GGUF,
    /// else as stored]
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_dtype)]
    pub dtype: Option<DType>,
    /// With --to gguf: the model's name in the file [default: the folder's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// With --to mlx: quantise to so many bits
    #[arg(long, value_name = "N", value_parser = parse_mlx_bits, conflicts_with = "float_mode")]
    pub bits: Option<u8>,
    /// With --bits: columns that share a scale
    #[arg(long, value_name = "N", requires = "bits", default_value = "64", value_parser = parse_group_size)]
    pub group_size: u16,
    /// With --to mlx: quantise to a block float format
    #[arg(long, value_name = "MODE")]
    pub float_mode: Option<FloatMode>,
    /// With --to gguf: replace DST if it exists
    #[arg(short, long)]
    pub force: bool,
    /// CPU threads [default: one per processor]
    #[arg(short = 't', long, value_name = "N", value_parser = parse_threads)]
    pub threads: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TargetFormat {
    Gguf,
    Hf,
    Mlx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FloatMode {
    Mxfp4,
    Nvfp4,
    Mxfp8,
}

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  mlxr completions bash > ~/.local/share/bash-completion/completions/mlxr
  mlxr completions zsh > ~/.zfunc/_mlxr
  mlxr completions fish > ~/.config/fish/completions/mlxr.fish")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// More threads than any machine this runs on has.
const MAX_THREADS: usize = 1024;

pub fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if (1..=MAX_THREADS).contains(&n) => Ok(n),
        _ => Err(format!("expected a number from 1 to {MAX_THREADS}")),
    }
}

fn parse_recipe(text: &str) -> Result<FileType, String> {
    text.parse::<FileType>().map_err(|e| e.to_string().replace("\nhint: known", ", known"))
}

fn parse_tensor_type(text: &str) -> Result<(String, DType), String> {
    let (part, dtype) =
        text.split_once('=').ok_or("expected a part of a name and a type, such as attn_v=q8_0")?;
    Ok((part.to_owned(), parse_dtype(dtype)?))
}

fn parse_mlx_bits(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(bits @ (2 | 3 | 4 | 5 | 6 | 8)) => Ok(bits),
        _ => Err("expected 2, 3, 4, 5, 6 or 8".to_owned()),
    }
}

fn parse_group_size(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(size @ (32 | 64 | 128)) => Ok(size),
        _ => Err("expected 32, 64 or 128".to_owned()),
    }
}

fn parse_dtype(text: &str) -> Result<DType, String> {
    text.parse::<DType>().map_err(|e| e.to_string())
}

fn parse_kv_type(text: &str) -> Result<DType, String> {
    KvSpec::dtype_named(text).ok_or_else(|| format!("expected {}", KvSpec::DTYPE_NAMES))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn models_go_to_a_gpu_where_there_is_one() {
        let of_server = Device::default();
        assert_eq!(of_server, Device::Auto);
        let setting = mlxr_server::config::KEYS.iter().find(|key| key.name == "engine.device").unwrap();
        assert_eq!(setting.default.parse(), Ok(of_server));
        let embed = &["embed", "text"][..];
        let rerank = &["rerank", "--query", "text", "text"][..];
        for args in [&["run"][..], &["bench"], &["perplexity", "text"], embed, rerank] {
            let matches = Cli::command().try_get_matches_from([&["mlxr"], args].concat()).unwrap();
            let (_, of_command) = matches.subcommand().unwrap();
            assert_eq!(of_command.get_one("device"), Some(&of_server), "{args:?}");
        }
    }

    #[test]
    fn kv_types_are_those_the_cache_can_hold() {
        assert_eq!(parse_kv_type("fp8"), Ok(DType::F8E4M3));
        assert_eq!(parse_kv_type("q8_0"), Ok(DType::Q8_0));
        assert_eq!(parse_kv_type("q4_0"), Ok(DType::Q4_0));
        assert!(parse_kv_type("q5_0").is_err());
    }
}
