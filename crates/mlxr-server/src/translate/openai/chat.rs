//! Chat completions: the request, and both shapes of the answer.

use mlxr_api::openai::chat::{
    AnswerMessage, ChatChoice, ChatCompletion, ChatCompletionChunk, ChatCompletionRequest, ChatLogprobs,
    ChunkChoice, Delta,
};
use mlxr_api::openai::tools::{ResponseFormat, ToolChoice, ToolChoiceMode};
use mlxr_api::openai::usage::Usage;
use mlxr_engine::sampler::Logprobs;
use mlxr_engine::{Event, FinishReason, Prompt, Request};
use mlxr_text::Tokenizer;
use serde_json::{Map, Value, json};

use super::sampling::{Documented, apply};
use super::{FINGERPRINT, error_body, finish_reason, logprobs, prompt};
use crate::ServeError;
use crate::generation::{Generation, IndexedEvent};
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::stream::Frames;
use crate::translate::collect::{CollectedChoice, collect};
use crate::translate::sampling::max_tokens;
use crate::{ids, sse};

/// What a request asks for.
#[derive(Debug)]
pub struct Task {
    pub request: Request,
    pub answer: Answer,
    pub notices: Notices,
    pub is_stream: bool,
}

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    id: String,
    created: u64,
    model: String,
    tokenizer: Tokenizer,
    n: usize,
    has_logprobs: bool,
    include_usage: bool,
    warnings: Vec<String>,
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(wire: &ChatCompletionRequest, model: &LoadedModel, strict: bool) -> Result<Task, ServeError> {
    check(wire)?;
    let mut notices = Notices::default();
    let variables = template_variables(wire, model, &mut notices);
    note_without_effect(wire, &mut notices);
    notices.enforce(strict || wire.extensions.strict == Some(true))?;

    let tokens = prompt::chat_tokens(model, &wire.messages, variables)?;
    let limit = wire.max_completion_tokens.or(wire.max_tokens);
    let n = wire.n.unwrap_or(1);
    let mut request = Request {
        max_tokens: limit.or_else(|| max_tokens(&model.generation)),
        stop: wire.stop.clone().unwrap_or_default().0,
        n,
        logprobs: (wire.logprobs == Some(true)).then(|| wire.top_logprobs.unwrap_or(0)),
        ..Request::new(Prompt::Tokens(tokens))
    };
    let documented = Documented {
        temperature: wire.temperature,
        top_p: wire.top_p,
        frequency_penalty: wire.frequency_penalty,
        presence_penalty: wire.presence_penalty,
        seed: wire.seed,
        logit_bias: wire.logit_bias.as_ref(),
    };
    apply(&mut request, &documented, &wire.extensions, &model.generation)?;
    let answer = Answer {
        id: ids::unique("chatcmpl-"),
        created: ids::unix_s(),
        model: model.name.clone(),
        tokenizer: model.tokenizer.clone(),
        n,
        has_logprobs: request.logprobs.is_some(),
        include_usage: wire.stream_options.unwrap_or_default().include_usage == Some(true),
        warnings: notices.warnings(),
    };
    Ok(Task { request, answer, notices, is_stream: wire.stream == Some(true) })
}

/// Refuses what would change the meaning of the answer.
fn check(wire: &ChatCompletionRequest) -> Result<(), ServeError> {
    let refuse = |field: &str, reason: &str| Err(ServeError::invalid(field, format!("{field} {reason}")));
    if wire.messages.is_empty() {
        return refuse("messages", "is empty");
    }
    if wire.n == Some(0) {
        return refuse("n", "is 0, but must be 1 or more");
    }
    if wire.max_completion_tokens == Some(0) {
        return refuse("max_completion_tokens", "is 0, but must be 1 or more");
    }
    if wire.max_completion_tokens.is_none() && wire.max_tokens == Some(0) {
        return refuse("max_tokens", "is 0, but must be 1 or more");
    }
    if wire.top_logprobs.is_some() && wire.logprobs != Some(true) {
        return refuse("top_logprobs", "needs logprobs to be true");
    }
    if wire.stream_options.is_some() && wire.stream != Some(true) {
        return refuse("stream_options", "needs stream to be true");
    }
    if let Some(ResponseFormat::JsonObject | ResponseFormat::JsonSchema { .. }) = wire.response_format {
        return refuse(
            "response_format",
            "must be {\"type\": \"text\"}: this server does not constrain answers",
        );
    }
    let wants_no_call = wire.tool_choice == Some(ToolChoice::Mode(ToolChoiceMode::None));
    if wire.tools.as_ref().is_some_and(|tools| !tools.is_empty()) && !wants_no_call {
        return refuse("tools", "cannot be called: this server does not read calls out of answers");
    }
    if wire.functions.as_ref().is_some_and(|functions| !functions.is_empty()) {
        return refuse("functions", "cannot be called: this server does not read calls out of answers");
    }
    let modalities = wire.modalities.as_deref().unwrap_or_default();
    if !modalities.is_empty() && !modalities.iter().any(|modality| modality == "text") {
        return refuse("modalities", "must contain \"text\", which is all this model writes");
    }
    Ok(())
}

/// What the template may ask for; what it does not ask for has no effect.
fn template_variables(
    wire: &ChatCompletionRequest,
    model: &LoadedModel,
    notices: &mut Notices,
) -> Map<String, Value> {
    let source = model.template.source();
    let mut variables = Map::new();
    if let Some(effort) = &wire.reasoning_effort {
        variables.insert("reasoning_effort".to_owned(), json!(effort));
    }
    variables.extend(wire.extensions.chat_template_kwargs.clone().unwrap_or_default());
    for name in variables.keys().filter(|name| !source.contains(name.as_str())) {
        notices.add(name, "the model's chat template does not use it");
    }
    variables
}

fn note_without_effect(wire: &ChatCompletionRequest, notices: &mut Notices) {
    let mut note = |has_effect: bool, field: &str, reason: &str| {
        if has_effect {
            notices.add(field, reason);
        }
    };
    let only_text = "this model writes text only";
    note(wire.audio.is_some(), "audio", only_text);
    note(wire.modalities.iter().flatten().any(|modality| modality != "text"), "modalities", only_text);
    note(wire.store == Some(true), "store", "nothing is stored");
    note(wire.metadata.as_ref().is_some_and(|map| !map.is_empty()), "metadata", "nothing is stored");
    note(wire.prediction.is_some(), "prediction", "answers are not predicted");
    note(wire.prompt_cache_key.is_some(), "prompt_cache_key", "prompts are not cached by key");
    note(wire.prompt_cache_retention.is_some(), "prompt_cache_retention", "prompts are not cached by key");
    note(
        wire.verbosity.as_deref().is_some_and(|v| v != "medium"),
        "verbosity",
        "the model has one verbosity",
    );
    note(wire.web_search_options.is_some(), "web_search_options", "this server searches nothing");
    let tier = wire.service_tier.as_deref();
    note(tier.is_some_and(|t| !matches!(t, "auto" | "default")), "service_tier", "there is one tier");
    let padding = wire.stream_options.unwrap_or_default().include_obfuscation == Some(true);
    note(padding, "stream_options.include_obfuscation", "chunks are not padded");
    note(wire.user.is_some(), "user", "users are not told apart");
    note(wire.safety_identifier.is_some(), "safety_identifier", "users are not told apart");
    for field in wire.unknown.keys() {
        notices.add(field, "the field is unknown");
    }
}

impl Answer {
    /// The answer in one piece.
    ///
    /// # Errors
    /// The model failed, or the server is shutting down.
    pub async fn whole(self, mut generation: Generation) -> Result<ChatCompletion, ServeError> {
        let mut collected = collect(&mut generation, 1, self.n).await?;
        let collected = collected.pop().unwrap_or_default();
        let choices = (0..).zip(collected.choices).map(|(index, choice)| self.choice(index, choice));
        Ok(ChatCompletion {
            choices: choices.collect::<Result<_, _>>()?,
            id: self.id,
            object: "chat.completion",
            created: self.created,
            model: self.model,
            usage: super::usage(&collected.usage),
            system_fingerprint: FINGERPRINT.to_owned(),
            warnings: self.warnings,
        })
    }

    fn choice(&self, index: u32, choice: CollectedChoice) -> Result<ChatChoice, ServeError> {
        let reason = choice.reason.unwrap_or(FinishReason::Cancelled);
        let logprobs = self.has_logprobs.then(|| {
            let found = choice.tokens.iter().filter_map(|(_, logprobs)| logprobs.as_ref());
            self.logprobs(found)
        });
        let content = Some(choice.text);
        let message = AnswerMessage { role: "assistant", content, ..AnswerMessage::default() };
        Ok(ChatChoice { index, message, logprobs, finish_reason: finish_reason(&reason)? })
    }

    fn logprobs<'a>(&self, found: impl IntoIterator<Item = &'a Logprobs>) -> ChatLogprobs {
        // The token that ends the answer is none of its content.
        let content = found.into_iter().filter(|found| !self.tokenizer.eog_ids().contains(&found.token.id));
        let content = content.map(|found| logprobs::chat_token(&self.tokenizer, found)).collect();
        ChatLogprobs { content, refusal: None }
    }

    /// The answer as it comes.
    pub fn stream(self) -> ChatFrames {
        ChatFrames { has_begun: vec![false; self.n], usage: Usage::default(), failed: false, answer: self }
    }
}

/// A streamed answer.
#[derive(Debug)]
pub struct ChatFrames {
    answer: Answer,
    /// Whether the chunk with the role is out, by choice.
    has_begun: Vec<bool>,
    usage: Usage,
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
            let role = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
            let choice = ChunkChoice { index, delta: role, logprobs: None, finish_reason: None };
            self.chunk(vec![choice], None, out);
        }
        if delta != Delta::default() || logprobs.is_some() {
            self.chunk(vec![ChunkChoice { index, delta, logprobs, finish_reason: None }], None, out);
        }
    }

    fn fail(&mut self, error: &ServeError, out: &mut Vec<u8>) {
        error.log();
        sse::data(out, &error_body(error));
        self.failed = true;
    }
}

/// A piece of content, if there is any.
fn content(text: String) -> Delta {
    Delta { content: (!text.is_empty()).then_some(text), ..Delta::default() }
}

impl Frames for ChatFrames {
    fn event(&mut self, (_, event): IndexedEvent, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        match event {
            Event::Prompt { .. } => {}
            Event::Token { choice, text, logprobs, .. } => {
                let logprobs = logprobs.filter(|_| self.answer.has_logprobs);
                let logprobs = logprobs.map(|found| self.answer.logprobs([&found]));
                let logprobs = logprobs.filter(|found| !found.content.is_empty());
                self.delta(choice, content(text), logprobs, out);
            }
            Event::ChoiceEnd { choice, reason, text, .. } => match finish_reason(&reason) {
                Ok(reason) => {
                    self.delta(choice, content(text), None, out);
                    let delta = Delta::default();
                    let finish_reason = Some(reason);
                    let end = ChunkChoice { index: choice, delta, logprobs: None, finish_reason };
                    self.chunk(vec![end], None, out);
                }
                Err(error) => self.fail(&error, out),
            },
            Event::Finish { usage: found, .. } => self.usage = super::usage(&found),
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        if self.answer.include_usage {
            self.chunk(Vec::new(), Some(self.usage), out);
        }
        sse::done(out);
    }

    fn keep_alive(&self) -> &'static [u8] {
        sse::KEEP_ALIVE
    }
}
