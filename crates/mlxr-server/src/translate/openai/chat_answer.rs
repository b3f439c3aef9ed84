//! Chat completions: both shapes of the answer, from the same reading of its events.

use mlxr_api::openai::chat::{
    AnswerMessage, ChatChoice, ChatCompletion, ChatCompletionChunk, ChatLogprobs, ChunkChoice, Delta,
    FunctionCallDelta, ToolCallDelta,
};
use mlxr_api::openai::tools::{FunctionCall, ToolCall};
use mlxr_api::openai::usage::{CompletionTokensDetails, Usage};
use mlxr_engine::sampler::Logprobs;
use mlxr_engine::{Event, FinishReason, Request};
use mlxr_text::Tokenizer;
use mlxr_text::tool_calls::{OutputEvent, OutputOptions};

use super::tools::CallStyle;
use super::{FINGERPRINT, error_body, finish_reason, logprobs};
use crate::ServeError;
use crate::generation::{Generation, IndexedEvent};
use crate::loaded::LoadedModel;
use crate::stream::Frames;
use crate::translate::parts::Pieces;
use crate::{ids, sse};

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    id: String,
    created: u64,
    model: String,
    tokenizer: Tokenizer,
    /// By choice.
    choices: Vec<Pieces>,
    has_logprobs: bool,
    has_tools: bool,
    reasons: bool,
    usage: Usage,
    pub style: CallStyle,
    pub include_usage: bool,
    pub warnings: Vec<String>,
}

impl Answer {
    /// An answer to `request`, read as `output` says.
    pub fn new(model: &LoadedModel, request: &Request, output: OutputOptions) -> Answer {
        let of_choice = |i: u64| Pieces::new(OutputOptions { id_seed: output.id_seed ^ i, ..output.clone() });
        Answer {
            id: ids::unique("chatcmpl-"),
            created: ids::unix_s(),
            model: model.name.clone(),
            tokenizer: model.tokenizer.clone(),
            choices: (0..request.n as u64).map(of_choice).collect(),
            has_logprobs: request.logprobs.is_some(),
            has_tools: output.format.is_some(),
            reasons: output.reasoning.is_some(),
            usage: Usage::default(),
            style: CallStyle::Tools,
            include_usage: false,
            warnings: Vec::new(),
        }
    }

    /// What clients call it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The answer in one piece.
    ///
    /// # Errors
    /// The model failed, or the server ended the request.
    pub async fn whole(mut self, mut generation: Generation) -> Result<ChatCompletion, ServeError> {
        let mut choices: Vec<ChatChoice> =
            (0..).zip(&self.choices).map(|(i, _)| self.empty_choice(i)).collect();
        while let Some((_, event)) = generation.next().await {
            match event {
                Event::Prompt { .. } => {}
                Event::Token { choice, text, logprobs, .. } => {
                    let events = self.choices[choice as usize].push(&text);
                    let found = self.logprobs(logprobs.as_ref());
                    let choice = &mut choices[choice as usize];
                    self.append(&mut choice.message, events);
                    if let (Some(all), Some(found)) = (&mut choice.logprobs, found) {
                        all.content.extend(found.content);
                    }
                }
                Event::ChoiceEnd { choice, reason, text, .. } => {
                    let events = settled(self.choices[choice as usize].finish(&text));
                    self.append(&mut choices[choice as usize].message, events);
                    choices[choice as usize].finish_reason = self.finish_reason(choice, &reason)?;
                }
                Event::Finish { reason, usage, .. } => {
                    finish_reason(&reason)?;
                    self.usage = self.usage_of(usage);
                }
            }
        }
        Ok(ChatCompletion {
            choices,
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            usage: self.usage,
            system_fingerprint: FINGERPRINT.to_owned(),
            warnings: self.warnings,
        })
    }

    fn empty_choice(&self, index: u32) -> ChatChoice {
        // Without tools there is always a text, if only an empty one.
        let content = (!self.has_tools).then(String::new);
        let message = AnswerMessage { role: "assistant", content, ..AnswerMessage::default() };
        let logprobs = self.has_logprobs.then(ChatLogprobs::default);
        ChatChoice { index, message, logprobs, finish_reason: "stop" }
    }

    fn append(&self, message: &mut AnswerMessage, events: Vec<OutputEvent>) {
        for event in events {
            match event {
                OutputEvent::Content(text) => message.content.get_or_insert_default().push_str(&text),
                OutputEvent::Reasoning(text) => {
                    message.reasoning_content.get_or_insert_default().push_str(&text);
                }
                OutputEvent::ToolCallStart { id, name, .. } => {
                    let function = FunctionCall { name, arguments: String::new() };
                    match self.style {
                        CallStyle::Tools => message.tool_calls.get_or_insert_default().push(ToolCall {
                            id,
                            r#type: "function".to_owned(),
                            function,
                        }),
                        CallStyle::Function => message.function_call = Some(function),
                    }
                }
                OutputEvent::ToolCallArguments { delta, .. } => {
                    let call = message.tool_calls.as_mut().and_then(|calls| calls.last_mut());
                    let call = call.map(|call| &mut call.function).or(message.function_call.as_mut());
                    if let Some(call) = call {
                        call.arguments.push_str(&delta);
                    }
                }
                OutputEvent::ToolCallEnd { .. } => {}
            }
        }
    }

    fn delta(&self, event: OutputEvent) -> Delta {
        let call = |index: usize, id: Option<String>, function: FunctionCallDelta| match self.style {
            CallStyle::Tools => {
                let r#type = id.is_some().then_some("function");
                let call = ToolCallDelta { index: index as u32, id, r#type, function };
                Delta { tool_calls: Some(vec![call]), ..Delta::default() }
            }
            CallStyle::Function => Delta { function_call: Some(function), ..Delta::default() },
        };
        match event {
            OutputEvent::Content(text) => Delta { content: Some(text), ..Delta::default() },
            OutputEvent::Reasoning(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
            OutputEvent::ToolCallStart { index, id, name } => {
                let function = FunctionCallDelta { name: Some(name), arguments: Some(String::new()) };
                call(index, Some(id), function)
            }
            OutputEvent::ToolCallArguments { index, delta } => {
                call(index, None, FunctionCallDelta { name: None, arguments: Some(delta) })
            }
            OutputEvent::ToolCallEnd { .. } => Delta::default(),
        }
    }

    fn logprobs(&self, found: Option<&Logprobs>) -> Option<ChatLogprobs> {
        // The token that ends the answer is none of its content.
        let found =
            found.filter(|found| self.has_logprobs && !self.tokenizer.eog_ids().contains(&found.token.id));
        found.map(|found| ChatLogprobs {
            content: vec![logprobs::chat_token(&self.tokenizer, found)],
            refusal: None,
        })
    }

    fn finish_reason(&self, choice: u32, reason: &FinishReason) -> Result<&'static str, ServeError> {
        let has_calls = self.choices[choice as usize].has_calls();
        match (finish_reason(reason)?, self.style) {
            ("stop", CallStyle::Tools) if has_calls => Ok("tool_calls"),
            ("stop", CallStyle::Function) if has_calls => Ok("function_call"),
            (reason, _) => Ok(reason),
        }
    }

    fn usage_of(&self, usage: mlxr_engine::Usage) -> Usage {
        let reasoning_tokens = self.choices.iter().map(Pieces::n_reasoning).sum();
        let details = CompletionTokensDetails { reasoning_tokens };
        let completion_tokens_details = self.reasons.then_some(details);
        Usage { completion_tokens_details, ..super::usage(&usage) }
    }

    /// The answer as it comes.
    pub fn stream(self) -> ChatFrames {
        ChatFrames { has_begun: vec![false; self.choices.len()], failed: false, answer: self }
    }
}

/// The end of an answer as clients that have seen all of its events read it. A call that breaks off has been sent as
/// far as it came; its text is not sent again.
pub(super) fn settled(mut events: Vec<OutputEvent>) -> Vec<OutputEvent> {
    let is_broken =
        |event: &OutputEvent| matches!(event, OutputEvent::ToolCallEnd { is_complete: false, .. });
    if let Some(end) = events.iter().position(is_broken) {
        events.truncate(end);
    }
    events
}

/// A streamed answer.
#[derive(Debug)]
pub struct ChatFrames {
    answer: Answer,
    /// Whether the chunk with the role is out, by choice.
    has_begun: Vec<bool>,
    failed: bool,
}

impl ChatFrames {
    fn chunk(&mut self, choices: Vec<ChunkChoice>, usage: Option<Usage>, out: &mut Vec<u8>) {
        let chunk = ChatCompletionChunk {
            id: self.answer.id.clone(),
            object: "chat.completion.chunk",
            created: self.answer.created,
            model: self.answer.model.clone(),
            system_fingerprint: FINGERPRINT.to_owned(),
            choices,
            usage: self.answer.include_usage.then_some(usage),
            warnings: std::mem::take(&mut self.answer.warnings),
        };
        sse::data(out, &chunk);
    }

    fn delta(&mut self, index: u32, delta: Delta, logprobs: Option<ChatLogprobs>, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun[index as usize], true) {
            // Before a call there may be no text at all.
            let content = (!self.answer.has_tools).then(String::new);
            let role = Delta { role: Some("assistant"), content, ..Delta::default() };
            let choice = ChunkChoice { index, delta: role, logprobs: None, finish_reason: None };
            self.chunk(vec![choice], None, out);
        }
        if delta != Delta::default() || logprobs.is_some() {
            self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason: None }], None, out);
        }
    }

    /// Sends events; the log-probabilities go with the first.
    fn send(
        &mut self,
        index: u32,
        events: Vec<OutputEvent>,
        mut logprobs: Option<ChatLogprobs>,
        out: &mut Vec<u8>,
    ) {
        let mut deltas: Vec<Delta> = events.into_iter().map(|event| self.answer.delta(event)).collect();
        deltas.retain(|delta| *delta != Delta::default());
        if deltas.is_empty() {
            deltas.push(Delta::default());
        }
        for delta in deltas {
            self.delta(index, delta, logprobs.take(), out);
        }
    }

    fn fail(&mut self, error: &ServeError, out: &mut Vec<u8>) {
        error.log();
        sse::data(out, &error_body(error));
        self.failed = true;
    }
}

impl Frames for ChatFrames {
    fn event(&mut self, (_, event): IndexedEvent, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        match event {
            Event::Prompt { .. } => {}
            Event::Token { choice, text, logprobs, .. } => {
                let events = self.answer.choices[choice as usize].push(&text);
                let logprobs = self.answer.logprobs(logprobs.as_ref());
                self.send(choice, events, logprobs, out);
            }
            Event::ChoiceEnd { choice, reason, text, .. } => {
                let events = settled(self.answer.choices[choice as usize].finish(&text));
                match self.answer.finish_reason(choice, &reason) {
                    Ok(reason) => {
                        self.send(choice, events, None, out);
                        let delta = Delta::default();
                        let finish_reason = Some(reason);
                        let end = ChunkChoice { index: choice, delta, logprobs: None, finish_reason };
                        self.chunk(vec![end], None, out);
                    }
                    Err(error) => self.fail(&error, out),
                }
            }
            Event::Finish { reason, usage, .. } => match finish_reason(&reason) {
                Ok(_) => self.answer.usage = self.answer.usage_of(usage),
                Err(error) => self.fail(&error, out),
            },
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        if self.answer.include_usage {
            self.chunk(Vec::new(), Some(self.answer.usage), out);
        }
        sse::done(out);
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::KEEP_ALIVE
    }
}
