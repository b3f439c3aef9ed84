//! `mlxr quantize`: a GGUF file with its matrices in smaller types.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use mlxr_checkpoint::convert::{Fallback, GgufOptions, Progress, hf_to_gguf};
use mlxr_checkpoint::quantize::{ImportanceMatrix, Quantised, QuantizeOptions, quantize_gguf};
use mlxr_checkpoint::{Checkpoint, CheckpointError};
use mlxr_tensor::{DType, Format};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::args::QuantizeArgs;
use crate::failure::{EXIT_INTERRUPTED, failure};
use crate::{interrupt, model_source, output, progress, units};

pub fn run(args: &QuantizeArgs) -> anyhow::Result<ExitCode> {
    check_destination(&args.source, &args.destination, args.force)?;
    let importance = match &args.imatrix {
        Some(path) => Some(ImportanceMatrix::open(path).context("cannot read the importance matrix")?),
        None => None,
    };
    interrupt::install(interrupt::JOB_PATIENCE)?;
    let Some(gguf) = or_cancelled(GgufSource::prepare(args))? else { return Ok(cancelled()) };
    let mut options = QuantizeOptions {
        output_type: args.output_type,
        embedding_type: args.token_embedding_type,
        tensor_types: args.tensor_type.clone(),
        pure: args.pure,
        allow_requantise: args.allow_requantize,
        ..QuantizeOptions::default()
    };
    options.n_threads = args.threads.unwrap_or(options.n_threads);
    let mut bar = TensorBar::new("quantizing");
    let done = quantize_gguf(
        &gguf.path,
        &args.destination,
        args.recipe,
        importance.as_ref(),
        &options,
        &mut |progress| bar.advance(progress),
    );
    bar.finish();
    let Some(done) = or_cancelled(done.map_err(allow_hint))? else { return Ok(cancelled()) };
    warn_of_fallbacks(&done.fallbacks);
    if !done.without_importance.is_empty() {
        tracing::warn!(
            tensors = done.without_importance.len(),
            "the importance matrix has nothing for some tensors"
        );
    }
    report(args, &done)?;
    Ok(ExitCode::SUCCESS)
}

/// The same error, naming the flag where the library speaks of requantising.
fn allow_hint(error: CheckpointError) -> anyhow::Error {
    let needs_flag = error.to_string().contains("requantising");
    let error = anyhow::Error::from(error);
    if needs_flag {
        error
            .context("the model is quantised already\nhint: --allow-requantize accepts the loss of precision")
    } else {
        error
    }
}

/// A source that is GGUF, or was made so in a folder that goes away again.
struct GgufSource {
    path: PathBuf,
    _folder: Option<TempDir>,
}

impl GgufSource {
    fn prepare(args: &QuantizeArgs) -> anyhow::Result<GgufSource> {
        let ckpt = model_source::open(&args.source)?;
        if args.source.is_file() {
            return Ok(GgufSource { path: args.source.clone(), _folder: None });
        }
        // Beside the destination: there is room for a model, which /tmp may not have.
        let parent = args.destination.parent().filter(|dir| !dir.as_os_str().is_empty());
        let folder = tempfile::Builder::new()
            .prefix(".mlxr-quantize-")
            .tempdir_in(parent.unwrap_or(Path::new(".")))
            .context("cannot make a folder beside the destination")?;
        let path = folder.path().join("source.gguf");
        let mut options = GgufOptions { dtype: stored_type(&ckpt), ..GgufOptions::default() };
        options.name = args.source.file_name().map(|name| name.to_string_lossy().into_owned());
        options.n_threads = args.threads.unwrap_or(options.n_threads);
        drop(ckpt);
        let mut bar = TensorBar::new("converting");
        let done = hf_to_gguf(&args.source, &path, &options, &mut |progress| bar.advance(progress));
        bar.finish();
        done?;
        Ok(GgufSource { path, _folder: Some(folder) })
    }
}

/// The type that keeps a folder's matrices as they are: F16 or BF16 where they are that, else F32.
fn stored_type(ckpt: &Checkpoint) -> DType {
    let matrices = || ckpt.tensors().filter(|tensor| tensor.shape().len() > 1);
    let all = |dtype| matrices().all(|tensor| tensor.format() == Format::Plain(dtype));
    [DType::F16, DType::BF16].into_iter().find(|&dtype| all(dtype)).unwrap_or(DType::F32)
}

fn report(args: &QuantizeArgs, done: &Quantised) -> anyhow::Result<()> {
    let destination = args.destination.display();
    if args.json {
        let types: serde_json::Map<String, Value> =
            done.types.iter().map(|(dtype, n)| (dtype.name().to_owned(), json!(n))).collect();
        return output::json(&json!({
            "path": destination.to_string(),
            "recipe": args.recipe.name(),
            "bytes_before": done.bytes_before,
            "bytes_after": done.bytes_after,
            "tensors": types,
            "fallbacks": done.fallbacks.iter().map(fallback_json).collect::<Vec<_>>(),
            "without_importance": done.without_importance,
        }));
    }
    let types: Vec<String> = done.types.iter().map(|(dtype, n)| format!("{n} {dtype}")).collect();
    output::raw(&format!(
        "{destination}: {} -> {}, {}\n",
        units::bytes(done.bytes_before),
        units::bytes(done.bytes_after),
        types.join(", ")
    ))
}

pub fn fallback_json(fallback: &Fallback) -> Value {
    json!({ "tensor": fallback.tensor, "wanted": fallback.wanted.name(), "stored": fallback.stored.name() })
}

/// Tells which tensors could not be what was asked for.
pub fn warn_of_fallbacks(fallbacks: &[Fallback]) {
    if let Some(Fallback { tensor, wanted, stored }) = fallbacks.first() {
        let n = fallbacks.len();
        tracing::warn!(
            "{n} tensors do not fit the blocks of their type: {tensor} is {stored} instead of {wanted}, ..."
        );
    }
}

/// Refuses to write over something unless told to, and over the source in any case.
pub fn check_destination(source: &Path, destination: &Path, force: bool) -> anyhow::Result<()> {
    if !destination.exists() {
        return Ok(());
    }
    if source.canonicalize().ok().zip(destination.canonicalize().ok()).is_some_and(|(a, b)| a == b) {
        return Err(failure("source and destination are the same", "write to another place"));
    }
    if !force || destination.is_dir() {
        let hint =
            if destination.is_dir() { "name another, or remove it first" } else { "--force replaces it" };
        return Err(failure(format_args!("{} exists already", destination.display()), hint));
    }
    Ok(())
}

/// `None` when Ctrl-C ended the work, which left no file.
pub fn or_cancelled<T>(result: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.downcast_ref::<CheckpointError>() {
            Some(CheckpointError::Cancelled) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Says that nothing was written.
pub fn cancelled() -> ExitCode {
    anstream::eprintln!("stopped; nothing was written");
    ExitCode::from(EXIT_INTERRUPTED)
}

/// A progress bar over the bytes of tensors, which Ctrl-C ends.
pub struct TensorBar {
    bar: indicatif::ProgressBar,
}

impl TensorBar {
    pub fn new(what: &'static str) -> TensorBar {
        TensorBar { bar: progress::byte_bar(what) }
    }

    pub fn advance(&mut self, progress: Progress<'_>) -> ControlFlow<()> {
        self.bar.set_length(progress.bytes_total);
        self.bar.set_position(progress.bytes_done);
        self.bar.set_message(format!("{}/{} {}", progress.n_done + 1, progress.n_tensors, progress.tensor));
        if interrupt::is_pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
