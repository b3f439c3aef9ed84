//! One request from submission to its end, with Ctrl-C, and how fast it was.

use std::time::Duration;

use anyhow::{Context, anyhow};
use mlxr_engine::sampler::Logprobs;
use mlxr_engine::{
    Engine, EngineOptions, Event, FinishReason, PromptToken, Request, StopCause, SubmitError, Timings, Usage,
};
use mlxr_kernels::CpuOptions;
use mlxr_models::DecoderConfig;
use mlxr_text::Tokenizer;
use serde_json::{Value, json};
use std::sync::Arc;

use crate::args::LoadArgs;
use crate::device::{self, Opening, Wanted};
use crate::failure::failure;
use crate::{interrupt, loaded, units};

/// Context a model is opened with when nobody says, unless its own is smaller.
const DEFAULT_CTX: u32 = 4096;

/// A model ready to answer.
pub struct Generator {
    pub engine: Engine,
    /// Bytes of weights one decoded token reads.
    weight_bytes: f64,
    /// Bytes of keys and values stored per token.
    kv_bytes: f64,
}

/// What one request gave.
#[derive(Debug, Default)]
pub struct Answer {
    pub prompt: Vec<PromptToken>,
    pub choices: Vec<Choice>,
    pub usage: Usage,
    pub timings: Timings,
}

/// One continuation.
#[derive(Debug, Default)]
pub struct Choice {
    pub text: String,
    pub ids: Vec<u32>,
    pub logprobs: Vec<Option<Logprobs>>,
    pub reason: Option<FinishReason>,
}

impl Generator {
    /// Begins to open the device that [`Self::load`] takes.
    pub fn open_device(args: &LoadArgs) -> Opening {
        let cpu = CpuOptions { n_threads: args.threads, isa: Some(args.cpu_kernels.isa()) };
        let wanted = Wanted::new(args.device, cpu, device::products(args.bf16_products));
        wanted.with_gpu_layers(args.gpu_layers).open_beside()
    }

    pub fn load(
        device: Opening,
        ckpt: &mlxr_checkpoint::Checkpoint,
        tokenizer: Tokenizer,
        args: &LoadArgs,
        max_seqs: usize,
    ) -> anyhow::Result<Generator> {
        let n_ctx_train = DecoderConfig::for_checkpoint(ckpt)?.n_ctx_train;
        let n_ctx = args.n_ctx.unwrap_or(n_ctx_train.min(DEFAULT_CTX));
        let options = EngineOptions {
            n_ctx: Some(n_ctx as usize),
            kv_dtype: args.kv_type,
            max_seqs,
            ..EngineOptions::default()
        };
        device.load(ckpt, options, |placement, options| {
            let model = loaded::model(ckpt, placement, Some(n_ctx))?;
            let kv_spec = model.kv_spec(1, options.block_tokens, args.kv_type);
            let (weight_bytes, kv_bytes) =
                (model.bytes_per_token() as f64, kv_spec.bytes_per_token().unwrap_or(0) as f64);
            let engine = Engine::new(Arc::new(model), tokenizer.clone(), options)
                .context("cannot set up the engine\nhint: try a smaller --ctx or another --kv-type")?;
            Ok(Generator { engine, weight_bytes, kv_bytes })
        })
    }

    /// Runs a request to its end; Ctrl-C ends it early. `on_event` sees every event as it comes.
    pub fn generate(
        &mut self,
        request: Request,
        mut on_event: impl FnMut(&Event) -> anyhow::Result<()>,
    ) -> anyhow::Result<Answer> {
        let n_choices = request.n;
        let id = self.engine.submit(request).map_err(explain)?;
        let mut answer = Answer::default();
        answer.choices.resize_with(n_choices, Choice::default);
        while !self.engine.is_idle() {
            if interrupt::take() {
                self.engine.cancel(id);
            }
            for event in self.engine.step() {
                if let Err(error) = on_event(&event) {
                    self.engine.cancel(id);
                    return Err(error);
                }
                answer.take(event)?;
            }
        }
        Ok(answer)
    }

    /// How fast an answer was.
    pub fn speed(&self, answer: &Answer) -> Speed {
        let (usage, timings) = (&answer.usage, &answer.timings);
        let rate =
            |n: usize, time: Duration| (n > 0 && !time.is_zero()).then(|| n as f64 / time.as_secs_f64());
        // The first token comes out of the prompt's last pass.
        let n_decoded = usage.n_completion.saturating_sub(answer.choices.len());
        let mean_stored = usage.n_prompt as f64 + n_decoded as f64 / 2.0;
        let decode_tok_s = rate(n_decoded, timings.decode);
        let n_seqs = answer.choices.len().max(1) as f64;
        let bytes_per_step = self.weight_bytes + self.kv_bytes * mean_stored * n_seqs;
        Speed {
            ttft_s: (timings.queued + timings.prefill).as_secs_f64(),
            prefill_tok_s: rate(usage.n_prompt, timings.prefill),
            decode_tok_s,
            decode_gb_s: decode_tok_s.map(|tok_s| tok_s / n_seqs * bytes_per_step / 1e9),
        }
    }
}

/// Adds the next step to what the engine says.
fn explain(error: SubmitError) -> anyhow::Error {
    match error {
        SubmitError::PromptTooLong { n_ctx, .. } => failure(
            &error,
            format_args!("shorten the prompt, or give --ctx a number above {n_ctx} if the model allows it"),
        ),
        SubmitError::EmptyPrompt => failure(&error, "give a text; --raw completes it as it is"),
        SubmitError::ImagePlaces { .. } => failure(
            &error,
            "the chat template writes a place for each image; with --raw the prompt has to, and no other text may",
        ),
        SubmitError::ImageShape { .. } => failure(
            &error,
            "the sizes in the model's preprocessor_config.json and in the vision_config of its config.json differ",
        ),
        SubmitError::Sampling(_) => {
            crate::failure::usage(error, "`mlxr run --help` says what every flag takes")
        }
        error => error.into(),
    }
}

impl Answer {
    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Prompt { tokens, .. } => self.prompt.extend(tokens),
            Event::Token { choice, id, text, logprobs, .. } => {
                let choice = &mut self.choices[choice as usize];
                choice.text.push_str(&text);
                choice.ids.push(id);
                choice.logprobs.push(logprobs);
            }
            Event::ChoiceEnd { choice, reason, text, .. } => {
                let choice = &mut self.choices[choice as usize];
                choice.text.push_str(&text);
                choice.reason = Some(reason);
            }
            Event::Finish {
                reason: FinishReason::Error(reason) | FinishReason::DeviceLost(reason), ..
            } => {
                return Err(anyhow!("the generation failed: {reason}"));
            }
            Event::Finish { usage, timings, .. } => {
                self.usage = usage;
                self.timings = timings;
            }
        }
        Ok(())
    }

    /// Whether Ctrl-C ended it.
    pub fn was_cancelled(&self) -> bool {
        self.choices.iter().any(|choice| choice.reason == Some(FinishReason::Cancelled))
    }
}

/// Rates of one answer; `None` where nothing was computed.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// Time to the first token.
    pub ttft_s: f64,
    pub prefill_tok_s: Option<f64>,
    pub decode_tok_s: Option<f64>,
    pub decode_gb_s: Option<f64>,
}

impl Speed {
    /// One line for people.
    pub fn describe(&self, answer: &Answer) -> String {
        let usage = &answer.usage;
        let rate = |tok_s: Option<f64>| tok_s.map_or(String::new(), |tok_s| format!(", {tok_s:.1} tok/s"));
        let gb_s = self.decode_gb_s.map_or(String::new(), |gb_s| format!(", {gb_s:.2} GB/s"));
        let why = answer.choices.first().and_then(|choice| choice.reason.as_ref());
        format!(
            "first token {} | prompt {} tokens{} | answer {} tokens{}{gb_s} | {} | seed {}",
            units::seconds(self.ttft_s),
            usage.n_prompt,
            rate(self.prefill_tok_s),
            usage.n_completion,
            rate(self.decode_tok_s),
            why.map_or("-".to_owned(), describe_reason),
            usage.seed,
        )
    }

    pub fn to_json(self) -> Value {
        json!({
            "ttft_s": self.ttft_s,
            "prefill_tok_s": self.prefill_tok_s,
            "decode_tok_s": self.decode_tok_s,
            "decode_gb_s": self.decode_gb_s,
        })
    }
}

fn describe_reason(reason: &FinishReason) -> String {
    match reason {
        FinishReason::Stop(StopCause::EndOfGeneration(_)) => "the model ended".to_owned(),
        FinishReason::Stop(StopCause::Id(id)) => format!("stopped at token {id}"),
        FinishReason::Stop(StopCause::Text(text)) => format!("stopped at {text:?}"),
        FinishReason::Stop(StopCause::Grammar) => "the grammar is complete".to_owned(),
        FinishReason::Loop => "the model repeats itself".to_owned(),
        FinishReason::Length => "length reached".to_owned(),
        FinishReason::Cancelled => "cancelled".to_owned(),
        FinishReason::Error(reason) | FinishReason::DeviceLost(reason) => format!("failed: {reason}"),
    }
}

/// A reason for programs: `reason`, and what said stop.
pub fn reason_json(reason: &FinishReason) -> Value {
    match reason {
        FinishReason::Stop(StopCause::EndOfGeneration(id)) => json!({ "reason": "stop", "eog_id": id }),
        FinishReason::Stop(StopCause::Id(id)) => json!({ "reason": "stop", "stop_id": id }),
        FinishReason::Stop(StopCause::Text(text)) => json!({ "reason": "stop", "stop": text }),
        FinishReason::Stop(StopCause::Grammar) => json!({ "reason": "stop", "grammar": true }),
        FinishReason::Loop => json!({ "reason": "loop" }),
        FinishReason::Length => json!({ "reason": "length" }),
        FinishReason::Cancelled => json!({ "reason": "cancelled" }),
        FinishReason::Error(error) | FinishReason::DeviceLost(error) => {
            json!({ "reason": "error", "error": error })
        }
    }
}
