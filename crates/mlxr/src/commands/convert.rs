//! `mlxr convert`: a model in another format.

use std::process::ExitCode;

use mlxr_checkpoint::convert::{
    Converted, FolderOptions, GgufOptions, MlxQuantisation, OnProgress, gguf_to_hf, hf_to_gguf, hf_to_mlx,
    mlx_to_hf,
};
use mlxr_checkpoint::{CheckpointError, CheckpointFormat};
use mlxr_tensor::MlxFloat;
use serde_json::{Value, json};

use super::quantize::{
    TensorBar, cancelled, check_destination, fallback_json, or_cancelled, warn_of_fallbacks,
};
use crate::args::{ConvertArgs, FloatMode, TargetFormat};
use crate::failure::usage;
use crate::{interrupt, model_source, output, units};

pub fn run(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let quantisation = quantisation(args);
    if quantisation.is_some() && args.to != TargetFormat::Mlx {
        return Err(usage(
            "--bits and --float-mode belong to --to mlx",
            "for GGUF, convert first and then use `mlxr quantize`",
        ));
    }
    if args.name.is_some() && args.to != TargetFormat::Gguf {
        return Err(usage("--name belongs to --to gguf", "folders are named by their path"));
    }
    check_destination(&args.source, &args.destination, args.force)?;
    let source = model_source::open(&args.source)?.format;
    interrupt::install(interrupt::JOB_PATIENCE)?;
    let mut bar = TensorBar::new("converting");
    let done = convert(args, source, quantisation, &mut |progress| bar.advance(progress));
    bar.finish();
    let Some(done) = or_cancelled(done.map_err(anyhow::Error::from))? else { return Ok(cancelled()) };
    warn_of_fallbacks(&done.fallbacks);
    report(args, &done)?;
    Ok(ExitCode::SUCCESS)
}

fn convert(
    args: &ConvertArgs,
    source: CheckpointFormat,
    quantisation: Option<MlxQuantisation>,
    on_progress: OnProgress<'_>,
) -> Result<Converted, CheckpointError> {
    let (src, dst) = (&args.source, &args.destination);
    let mut folder = FolderOptions { dtype: args.dtype, ..FolderOptions::default() };
    folder.n_threads = args.threads.unwrap_or(folder.n_threads);
    match args.to {
        TargetFormat::Gguf => {
            let mut options = GgufOptions { name: args.name.clone(), ..GgufOptions::default() };
            options.dtype = args.dtype.unwrap_or(options.dtype);
            options.n_threads = folder.n_threads;
            hf_to_gguf(src, dst, &options, on_progress)
        }
        TargetFormat::Hf if source == CheckpointFormat::Gguf => gguf_to_hf(src, dst, &folder, on_progress),
        TargetFormat::Hf => mlx_to_hf(src, dst, &folder, on_progress),
        TargetFormat::Mlx => hf_to_mlx(src, dst, quantisation, &folder, on_progress),
    }
}

fn quantisation(args: &ConvertArgs) -> Option<MlxQuantisation> {
    let float = args.float_mode.map(|mode| match mode {
        FloatMode::Mxfp4 => MlxFloat::Mxfp4,
        FloatMode::Nvfp4 => MlxFloat::Nvfp4,
        FloatMode::Mxfp8 => MlxFloat::Mxfp8,
    });
    let affine = args.bits.map(|bits| MlxQuantisation::Affine { bits, group_size: args.group_size });
    float.map(MlxQuantisation::Float).or(affine)
}

fn report(args: &ConvertArgs, done: &Converted) -> anyhow::Result<()> {
    let destination = args.destination.display();
    if args.json {
        let fallbacks: Vec<Value> = done.fallbacks.iter().map(fallback_json).collect();
        return output::json(&json!({
            "path": destination.to_string(),
            "n_tensors": done.n_tensors,
            "n_bytes": done.n_bytes,
            "fallbacks": fallbacks,
        }));
    }
    output::raw(&format!("{destination}: {} tensors, {}\n", done.n_tensors, units::bytes(done.n_bytes)))
}
