//! `mlxr perplexity`: how well a model predicts a text.
//!
//! Windows of `n_ctx` tokens that do not overlap. Tokens from the middle of a window on are scored, each with all of
//! the window before it as context, so every scored token has at least half a window to go by. A tokenizer that begins
//! texts with a token of its own has it in place of the first token of each window. The error is the standard error of
//! the mean negative log-likelihood, carried over to the perplexity. The method is llama.cpp's.

use std::process::ExitCode;

use anyhow::Context;
use mlxr_engine::EngineOptions;
use mlxr_kernels::CpuOptions;
use mlxr_tensor::Batch;
use mlxr_text::EncodeOptions;
use serde_json::json;

use crate::args::PerplexityArgs;
use crate::device::{self, Wanted};
use crate::failure::{EXIT_INTERRUPTED, failure};
use crate::loaded::{self, Sequences};
use crate::model_source::ModelSource;
use crate::{interrupt, output, progress, stdin, text};

/// Rows of one forward pass, so that the logits of a pass stay small.
const MAX_BATCH_ROWS: usize = 256;

pub fn run(args: &PerplexityArgs) -> anyhow::Result<ExitCode> {
    let ckpt = ModelSource::named(args.model.model.as_deref()).open()?;
    let tokenizer = text::tokenizer(&ckpt)?;
    let input = read_input(args)?;
    let options = EncodeOptions { add_special: true, parse_special: false };
    let bos =
        tokenizer.bos().filter(|bos| tokenizer.encode("", options).is_ok_and(|ids| ids.first() == Some(bos)));
    let ids = tokenizer.encode(&input, options)?;
    let n_ctx = args.n_ctx as usize;
    let n_windows = (ids.len() / n_ctx).min(args.chunks.map_or(usize::MAX, |n| n as usize));
    if n_windows == 0 {
        return Err(failure(
            format_args!("the text has {} tokens, fewer than a window of {n_ctx}", ids.len()),
            "give a longer text or a smaller --ctx",
        ));
    }
    let cpu = CpuOptions { n_threads: args.threads, isa: Some(args.cpu_kernels.isa()) };
    let wanted = Wanted::new(args.device, cpu, device::products(args.bf16_products));
    let options = EngineOptions { n_ctx: Some(n_ctx), kv_dtype: args.kv_type, ..EngineOptions::default() };
    let mut sequences = wanted.with_gpu_layers(args.gpu_layers).load(&ckpt, options, |placement, _| {
        let model = loaded::model(&ckpt, placement, Some(args.n_ctx))?;
        Sequences::new(model, args.kv_type, 1, args.n_ctx)
    })?;
    interrupt::install(interrupt::JOB_PATIENCE)?;
    let bar = progress::bar(n_windows as u64, "perplexity");
    let mut score = Score::default();
    for window in ids.chunks_exact(n_ctx).take(n_windows) {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        sequences.truncate(0);
        if !score_window(&mut sequences, &window, &mut score)? {
            bar.finish_and_clear();
            return Ok(ExitCode::from(EXIT_INTERRUPTED));
        }
        bar.set_message(format!("{:.4}", score.perplexity()));
        bar.inc(1);
    }
    bar.finish_and_clear();
    report(args, &score, n_windows)?;
    Ok(ExitCode::SUCCESS)
}

fn read_input(args: &PerplexityArgs) -> anyhow::Result<String> {
    if args.file.as_os_str() == "-" {
        return stdin::read();
    }
    std::fs::read_to_string(&args.file).with_context(|| {
        format!("cannot read the text {}\nhint: name a UTF-8 text file", args.file.display())
    })
}

/// Scores the second half of a window. Returns false when Ctrl-C was pressed.
fn score_window(sequences: &mut Sequences, window: &[u32], score: &mut Score) -> anyhow::Result<bool> {
    let first_scored = window.len() / 2;
    // The last token is only ever a target.
    let inputs = &window[..window.len() - 1];
    for (i, chunk) in inputs.chunks(MAX_BATCH_ROWS).enumerate() {
        if interrupt::is_pressed() {
            return Ok(false);
        }
        let start = i * MAX_BATCH_ROWS;
        let mut batch = Batch::new();
        sequences.append(&mut batch, 0, chunk);
        batch.output_rows =
            (0..chunk.len() as u32).filter(|&row| first_scored <= start + row as usize).collect();
        if batch.output_rows.is_empty() {
            // Rows are still stored; one row of logits is the least a pass gives.
            batch.want_last();
            sequences.forward(&batch)?;
            continue;
        }
        let logits = sequences.forward(&batch)?;
        let n_vocab = logits.len() / batch.output_rows.len();
        for (&row, logits) in batch.output_rows.iter().zip(logits.chunks_exact(n_vocab)) {
            score.add(logits, window[start + row as usize + 1]);
        }
    }
    Ok(true)
}

/// Sums of negative log-likelihoods.
#[derive(Default)]
struct Score {
    n: u64,
    sum: f64,
    sum_of_squares: f64,
}

impl Score {
    fn add(&mut self, logits: &[f32], target: u32) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let nll = sum.ln() - f64::from(logits[target as usize] - max);
        self.n += 1;
        self.sum += nll;
        self.sum_of_squares += nll * nll;
    }

    fn mean(&self) -> f64 {
        self.sum / self.n as f64
    }

    fn perplexity(&self) -> f64 {
        self.mean().exp()
    }

    /// One standard error of the perplexity.
    fn standard_error(&self) -> f64 {
        let n = self.n as f64;
        let variance = (self.sum_of_squares / n - self.mean().powi(2)).max(0.0);
        (variance / (n - 1.0).max(1.0)).sqrt() * self.perplexity()
    }
}

fn report(args: &PerplexityArgs, score: &Score, n_windows: usize) -> anyhow::Result<()> {
    if args.json {
        return output::json(&json!({
            "perplexity": score.perplexity(),
            "standard_error": score.standard_error(),
            "mean_nll": score.mean(),
            "n_scored": score.n,
            "n_windows": n_windows,
            "n_ctx": args.n_ctx,
        }));
    }
    let (perplexity, error) = (score.perplexity(), score.standard_error());
    output::raw(&format!(
        "perplexity {perplexity:.4} +/- {error:.5}  ({} tokens scored in {n_windows} windows of {})\n",
        score.n, args.n_ctx
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_odds_have_the_perplexity_of_their_number_and_no_error() {
        let mut score = Score::default();
        for target in 0..4 {
            score.add(&[0.5; 8], target);
        }
        assert!((score.perplexity() - 8.0).abs() < 1e-6);
        assert!(score.standard_error() < 1e-6);
    }

    #[test]
    fn the_error_is_the_standard_error_of_the_mean_times_the_perplexity() {
        let mut score = Score::default();
        // Two tokens, probabilities 1/2 and 1/4: mean nll 1.5 ln 2, deviation 0.5 ln 2, n - 1 = 1.
        score.add(&[0.0, 0.0], 0);
        score.add(&[0.0, 0.0, 0.0, 0.0], 0);
        let ln2 = 2f64.ln();
        assert!((score.perplexity() - (1.5 * ln2).exp()).abs() < 1e-6);
        assert!((score.standard_error() - 0.5 * ln2 * (1.5 * ln2).exp()).abs() < 1e-6);
    }
}
