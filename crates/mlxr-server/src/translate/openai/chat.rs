//! Chat completions: the request.

use mlxr_api::openai::chat::ChatCompletionRequest;
use mlxr_engine::Request;

use super::chat_answer::Answer;
use super::sampling::{Documented, apply};
use super::thinking::{Effort, set_thinking, set_variables};
use super::{form, prompt, tools};
use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::conversation::Conversation;
use crate::translate::sampling::{max_tokens, stop};
use crate::translate::structure::Structure;

/// What a request asks for.
#[derive(Debug)]
pub struct Task {
    pub request: Request,
    pub answer: Answer,
    pub notices: Notices,
    pub is_stream: bool,
}

/// Whether reading the request takes longer than its size tells: a grammar is compiled.
pub fn is_structured(wire: &ChatCompletionRequest) -> bool {
    let extensions = &wire.extensions;
    wire.tools.is_some()
        || wire.functions.is_some()
        || wire.response_format.is_some()
        || wire.reasoning_effort.is_some()
        || extensions.thinking_budget.is_some()
        || form::is_asked_for(extensions)
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(wire: &ChatCompletionRequest, model: &LoadedModel, strict: bool) -> Result<Task, ServeError> {
    check(wire)?;
    let mut notices = Notices::default();
    let tools = tools::read(wire)?;
    let mut conversation = Conversation {
        messages: prompt::messages(&model.template, &wire.messages)?,
        tools: tools.shown,
        ..Conversation::default()
    };
    let effort = Effort { field: "reasoning_effort", name: wire.reasoning_effort.as_deref() };
    let reasoning_budget =
        set_thinking(&mut conversation, effort, &wire.extensions, &model.template, &mut notices)?;
    set_variables(&mut conversation, &wire.extensions, &model.template, &mut notices);
    let form =
        form::read(form::of_response_format(wire.response_format.as_ref())?, &wire.extensions, &mut notices)?;
    note_without_effect(wire, &mut notices);
    notices.enforce(strict || wire.extensions.strict == Some(true))?;

    let structure = Structure { form, choice: tools.choice, parallel: tools.parallel, reasoning_budget };
    let prompt = conversation.prompt(model, true)?;
    let limit = wire.max_completion_tokens.or(wire.max_tokens);
    let mut request = Request {
        max_tokens: limit.or_else(|| max_tokens(&model.generation)),
        stop: wire.stop.clone().map_or_else(|| stop(&model.generation), |texts| texts.0),
        n: wire.n.unwrap_or(1),
        logprobs: (wire.logprobs == Some(true)).then(|| wire.top_logprobs.unwrap_or(0)),
        ..structure.request(model, &prompt)?
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
    let mut answer = Answer::new(model, &request, prompt.output);
    request.label = Some(answer.id().to_owned());
    answer.style = tools.style;
    answer.include_usage = wire.stream_options.unwrap_or_default().include_usage == Some(true);
    answer.warnings = notices.warnings();
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
    let modalities = wire.modalities.as_deref().unwrap_or_default();
    if !modalities.is_empty() && !modalities.iter().any(|modality| modality == "text") {
        return refuse("modalities", "must contain \"text\", which is all this model writes");
    }
    Ok(())
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
