//! Answers, in one piece or line by line: the same reading of events behind both endpoints.

use std::time::{Duration, Instant};

use mlxr_api::ollama::chat::{ChatResponse, Message, ToolCall, ToolCallFunction};
use mlxr_api::ollama::generate::GenerateResponse;
use mlxr_api::ollama::logprobs::{Logprob, TokenLogprob};
use mlxr_api::ollama::metrics::Metrics;
use mlxr_engine::sampler::Logprobs;
use mlxr_engine::{Event, FinishReason, StopCause, Timings, Usage};
use mlxr_text::Tokenizer;
use serde::Serialize;

use super::{error_body, time};
use crate::generation::{Generation, IndexedEvent};
use crate::stream::Frames;
use crate::translate::openai::logprobs;
use crate::translate::parts::{Part, Parts};
use crate::{ServeError, ndjson};

/// When a request came and what it waited for.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub arrived: Instant,
    pub load: Duration,
}

/// What differs between the endpoints.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// With the tokens to go on from, unless the prompt was raw.
    Generate {
        context: Option<Vec<u32>>,
    },
    Chat,
}

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    pub model: String,
    pub endpoint: Endpoint,
    pub parts: Parts,
    pub tokenizer: Tokenizer,
    pub has_logprobs: bool,
    pub clock: Clock,
    pub warnings: Vec<String>,
    pub n_calls: usize,
    pub outcome: Outcome,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    reason: &'static str,
    usage: Usage,
    timings: Timings,
}

/// What a line adds.
#[derive(Clone, Debug, Default)]
struct Piece {
    text: String,
    thinking: String,
    calls: Vec<ToolCall>,
    logprobs: Vec<Logprob>,
}

impl Piece {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.thinking.is_empty() && self.calls.is_empty() && self.logprobs.is_empty()
    }

    fn append(&mut self, later: Piece) {
        self.text += &later.text;
        self.thinking += &later.thinking;
        self.calls.extend(later.calls);
        self.logprobs.extend(later.logprobs);
    }
}

/// A line of either endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Line {
    Generate(GenerateResponse),
    Chat(ChatResponse),
}

/// The answer to a request that only loads or unloads a model.
pub fn without_prompt(model: &str, endpoint: &Endpoint, reason: &str) -> Line {
    line(model, endpoint, Piece::default(), Some(reason))
}

fn line(model: &str, endpoint: &Endpoint, piece: Piece, done_reason: Option<&str>) -> Line {
    let (model, created_at) = (model.to_owned(), time::now());
    let (done, done_reason) = (done_reason.is_some(), done_reason.map(str::to_owned));
    let thinking = (!piece.thinking.is_empty()).then_some(piece.thinking);
    let (metrics, warnings) = (None, Vec::new());
    let logprobs = piece.logprobs;
    match endpoint {
        Endpoint::Generate { .. } => {
            let (response, context) = (piece.text, None);
            Line::Generate(GenerateResponse {
                model,
                created_at,
                response,
                thinking,
                done,
                done_reason,
                context,
                metrics,
                logprobs,
                warnings,
            })
        }
        Endpoint::Chat => {
            let tool_calls = (!piece.calls.is_empty()).then_some(piece.calls);
            let (role, content) = ("assistant".to_owned(), piece.text);
            let message = Message { role, content, thinking, tool_calls, ..Message::default() };
            Line::Chat(ChatResponse {
                model,
                created_at,
                message,
                done,
                done_reason,
                metrics,
                logprobs,
                warnings,
            })
        }
    }
}

impl Answer {
    /// Reads an event.
    ///
    /// # Errors
    /// The answer did not end as clients expect.
    fn read(&mut self, event: Event) -> Result<Piece, ServeError> {
        match event {
            Event::Prompt { .. } => Ok(Piece::default()),
            Event::Token { id, text, logprobs, .. } => {
                let parts = self.parts.push(&text);
                let mut piece = self.piece(parts);
                // The token that ends the answer is none of its content.
                if !self.tokenizer.eog_ids().contains(&id) {
                    self.keep(id);
                    let logprobs = logprobs.filter(|_| self.has_logprobs);
                    piece.logprobs.extend(logprobs.map(|found| self.logprob(&found)));
                }
                Ok(piece)
            }
            Event::ChoiceEnd { reason, text, .. } => {
                let parts = self.parts.finish(&text);
                if let FinishReason::Stop(StopCause::EndOfGeneration(id)) = reason {
                    self.keep(id);
                }
                self.outcome.reason = done_reason(&reason)?;
                Ok(self.piece(parts))
            }
            Event::Finish { reason, usage, timings, .. } => {
                self.outcome = Outcome { reason: done_reason(&reason)?, usage, timings };
                Ok(Piece::default())
            }
        }
    }

    fn keep(&mut self, id: u32) {
        if let Endpoint::Generate { context: Some(context) } = &mut self.endpoint {
            context.push(id);
        }
    }

    fn piece(&mut self, parts: Vec<Part>) -> Piece {
        let mut piece = Piece::default();
        for part in parts {
            match part {
                Part::Text(text) => piece.text += &text,
                Part::Thinking(text) => piece.thinking += &text,
                Part::Call(call) => {
                    // The parser takes only objects for arguments.
                    let arguments = serde_json::from_str(&call.arguments).unwrap_or_default();
                    let function = ToolCallFunction { index: Some(self.n_calls), name: call.name, arguments };
                    piece.calls.push(ToolCall { id: Some(call.id), function });
                    self.n_calls += 1;
                }
            }
        }
        piece
    }

    fn logprob(&self, found: &Logprobs) -> Logprob {
        let token = logprobs::chat_token(&self.tokenizer, found);
        let top = token.top_logprobs.into_iter();
        let top = top.map(|t| TokenLogprob { token: t.token, logprob: t.logprob, bytes: t.bytes });
        Logprob {
            chosen: TokenLogprob { token: token.token, logprob: token.logprob, bytes: token.bytes },
            top_logprobs: top.collect(),
        }
    }

    /// The last line, and the only one of an answer in one piece.
    fn end(&mut self, piece: Piece) -> Line {
        let Outcome { reason, usage, timings } = self.outcome;
        let mut line = line(&self.model, &self.endpoint, piece, Some(reason));
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let found = Metrics {
            total_duration: ns(self.clock.arrived.elapsed()),
            load_duration: ns(self.clock.load),
            prompt_eval_count: usage.n_prompt,
            prompt_eval_duration: ns(timings.prefill),
            eval_count: usage.n_completion,
            eval_duration: ns(timings.decode),
        };
        match &mut line {
            Line::Generate(GenerateResponse { metrics, warnings, context, .. }) => {
                *metrics = Some(found);
                *warnings = std::mem::take(&mut self.warnings);
                if let Endpoint::Generate { context: tokens } = &mut self.endpoint {
                    *context = tokens.take();
                }
            }
            Line::Chat(ChatResponse { metrics, warnings, .. }) => {
                *metrics = Some(found);
                *warnings = std::mem::take(&mut self.warnings);
            }
        }
        line
    }

    /// The answer in one piece.
    ///
    /// # Errors
    /// The model failed, or the server ended the request.
    pub async fn whole(mut self, mut generation: Generation) -> Result<Line, ServeError> {
        let mut all = Piece::default();
        while let Some((_, event)) = generation.next().await {
            all.append(self.read(event)?);
        }
        Ok(self.end(all))
    }

    /// The answer as it comes.
    pub fn stream(self) -> Lines {
        Lines { answer: self, failed: false }
    }
}

/// # Errors
/// The model failed, or the server cancelled the answer.
fn done_reason(reason: &FinishReason) -> Result<&'static str, ServeError> {
    crate::translate::openai::finish_reason(reason)
}

/// A streamed answer.
#[derive(Debug)]
pub struct Lines {
    answer: Answer,
    failed: bool,
}

impl Frames for Lines {
    fn event(&mut self, (_, event): IndexedEvent, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        match self.answer.read(event) {
            Ok(piece) if piece.is_empty() => {}
            Ok(piece) => ndjson::line(out, &line(&self.answer.model, &self.answer.endpoint, piece, None)),
            Err(error) => {
                error.log();
                ndjson::line(out, &error_body(&error));
                self.failed = true;
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if !self.failed {
            ndjson::line(out, &self.answer.end(Piece::default()));
        }
    }

    fn keep_alive(&self) -> &'static [u8] {
        ndjson::KEEP_ALIVE
    }
}
