//! The request.

use std::sync::Arc;

use mlxr_api::openai::responses::{
    Item, Response, ResponseRequest, Status, ToolChoice as WireChoice, Truncation,
};
use mlxr_api::openai::tools::ToolChoiceMode;
use mlxr_engine::Request;
use serde_json::json;

use super::answer::Answer;
use super::{items, tools};
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::response_store::{MAX_BYTES, Stored, n_bytes};
use crate::translate::conversation::{ChatPrompt, Conversation};
use crate::translate::openai::sampling::{Documented, apply};
use crate::translate::openai::thinking::{Effort, set_thinking, set_variables};
use crate::translate::openai::{form, prompt};
use crate::translate::sampling::{max_tokens, stop};
use crate::translate::structure::Structure;
use crate::{ServeError, ids};

/// The most alternatives per token, as OpenAI documents it.
const MAX_TOP_LOGPROBS: usize = 20;

/// Entries of `metadata`, and characters of a key and of a value, as OpenAI documents them.
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY: usize = 64;
const MAX_METADATA_VALUE: usize = 512;

/// What asks for the log-probabilities of an answer's text.
const INCLUDE_LOGPROBS: &str = "message.output_text.logprobs";

/// A request and what it refers to.
#[derive(Debug)]
pub struct Asked {
    pub wire: ResponseRequest,
    /// Those of `input`.
    pub items: Vec<Arc<Item>>,
    /// The turn before.
    pub previous: Option<Arc<Stored>>,
}

/// What a request asks for.
#[derive(Debug)]
pub struct Task {
    pub request: Request,
    pub answer: Answer,
    pub notices: Notices,
    pub is_stream: bool,
    pub is_background: bool,
    /// Whether the response is to be kept.
    pub is_kept: bool,
}

/// Whether reading the request takes longer than its size tells: a grammar is compiled, or a long conversation is gone
/// on from.
pub fn is_structured(asked: &Asked) -> bool {
    let wire = &asked.wire;
    asked.previous.is_some()
        || wire.tools.is_some()
        || wire.text.is_some()
        || wire.reasoning.is_some()
        || wire.extensions.thinking_budget.is_some()
        || form::is_asked_for(&wire.extensions)
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(asked: Asked, model: &LoadedModel, strict: bool) -> Result<Task, ServeError> {
    check(&asked.wire)?;
    let Understood { wire, input, prompt, structure, notices, is_kept } = understand(asked, model, strict)?;
    if wire.background == Some(true) && !is_kept {
        let reason = "background needs store, but the conversation is larger than what is stored here";
        return Err(ServeError::invalid("background", reason));
    }
    let is_logprobs_wanted = wire.include.iter().flatten().any(|name| name == INCLUDE_LOGPROBS);
    let logprobs = wire.top_logprobs.or_else(|| is_logprobs_wanted.then_some(0));
    let mut request = Request {
        max_tokens: wire.max_output_tokens.or_else(|| max_tokens(&model.generation)),
        stop: stop(&model.generation),
        logprobs,
        ..structure.request(model, &prompt)?
    };
    let documented = Documented {
        temperature: wire.temperature,
        top_p: wire.top_p,
        frequency_penalty: None,
        presence_penalty: None,
        seed: wire.seed,
        logit_bias: None,
    };
    apply(&mut request, &documented, &wire.extensions, &model.generation)?;
    let (is_stream, is_background) = (wire.stream == Some(true), wire.background == Some(true));
    let response = begun(wire, model, &request, notices.warnings(), is_kept);
    request.label = Some(response.id.clone());
    let tokenizer = model.tokenizer.clone();
    let answer = Answer::new(response, input, prompt.output, tokenizer, logprobs.is_some());
    Ok(Task { request, answer, notices, is_stream, is_background, is_kept })
}

/// The tokens a request's input is.
///
/// # Errors
/// As [`read()`].
pub fn count(asked: Asked, model: &LoadedModel, strict: bool) -> Result<(usize, Notices), ServeError> {
    check(&asked.wire)?;
    let understood = understand(asked, model, strict)?;
    Ok((understood.prompt.tokens.len(), understood.notices))
}

/// A request with what it means to a model.
struct Understood {
    wire: ResponseRequest,
    /// The whole conversation.
    input: Vec<Arc<Item>>,
    prompt: ChatPrompt,
    structure: Structure,
    notices: Notices,
    is_kept: bool,
}

fn understand(asked: Asked, model: &LoadedModel, strict: bool) -> Result<Understood, ServeError> {
    let Asked { wire, items, previous } = asked;
    let mut notices = Notices::default();
    let mut input = previous.map(|stored| stored.conversation()).unwrap_or_default();
    let n_before = input.len();
    input.extend(items::settle(wire.input.as_ref(), items, &mut notices)?);
    if input.is_empty() {
        return Err(ServeError::invalid("input", "input is empty"));
    }
    let is_kept = is_kept(&wire, &input, &mut notices);
    let tools = tools::read(&wire, &mut notices)?;
    let mut conversation = Conversation {
        messages: items::messages(&input, n_before, prompt::knows_developer(&model.template))?,
        tools: tools.shown,
        ..Conversation::default()
    };
    if let Some(instructions) = wire.instructions.as_ref().filter(|text| !text.is_empty()) {
        conversation.messages.insert(0, json!({"role": "system", "content": instructions}));
    }
    let effort = wire.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
    let effort = Effort { field: "reasoning.effort", name: effort };
    let reasoning_budget =
        set_thinking(&mut conversation, effort, &wire.extensions, &model.template, &mut notices)?;
    set_variables(&mut conversation, &wire.extensions, &model.template, &mut notices);
    let documented = wire.text.as_ref().map(|text| form::of_text_format(&text.format));
    let form = form::read(documented.transpose()?.flatten(), &wire.extensions, &mut notices)?;
    note_without_effect(&wire, &mut notices);
    notices.enforce(strict || wire.extensions.strict == Some(true))?;
    let structure = Structure { form, choice: tools.choice, parallel: tools.parallel, reasoning_budget };
    let prompt = fitted(conversation, &wire, model)?;
    Ok(Understood { wire, input, prompt, structure, notices, is_kept })
}

/// Whether the response is to be kept and can be.
fn is_kept(wire: &ResponseRequest, input: &[Arc<Item>], notices: &mut Notices) -> bool {
    if wire.store == Some(false) {
        return false;
    }
    // Room for the answer too.
    let fits = input.iter().map(|item| n_bytes(item)).sum::<usize>() < MAX_BYTES / 2;
    if !fits {
        notices.add("store", "the conversation is larger than what is stored here");
    }
    fits
}

/// The prompt, without the beginning of the conversation where it has no room and may be left out.
fn fitted(
    conversation: Conversation,
    wire: &ResponseRequest,
    model: &LoadedModel,
) -> Result<ChatPrompt, ServeError> {
    let whole = conversation.prompt(model, true)?;
    let n_ctx = model.engine.n_ctx();
    // A quarter of the context is for the answer when nobody says.
    let n_answer = wire.max_output_tokens.unwrap_or(n_ctx / 4).clamp(1, n_ctx / 2);
    let fits = |prompt: &ChatPrompt| prompt.tokens.len() + n_answer <= n_ctx;
    if wire.truncation != Some(Truncation::Auto) || fits(&whole) {
        return Ok(whole);
    }
    // What is left begins with a message of the user's, so that no call loses its output.
    let is_instruction = |role: &str| matches!(role, "system" | "developer");
    let roles: Vec<&str> =
        conversation.messages.iter().map(|message| message["role"].as_str().unwrap_or_default()).collect();
    let starts: Vec<usize> = (0..roles.len()).filter(|&i| roles[i] == "user").skip(1).collect();
    let mut shortest = whole;
    let (mut low, mut high) = (0, starts.len());
    while low < high {
        let middle = low.midpoint(high);
        let left = (0..roles.len()).filter(|&i| starts[middle] <= i || is_instruction(roles[i]));
        let messages = left.map(|i| conversation.messages[i].clone()).collect();
        let prompt = Conversation { messages, ..conversation.clone() }.prompt(model, true)?;
        if fits(&prompt) {
            (high, shortest) = (middle, prompt);
        } else {
            low = middle + 1;
            if !fits(&shortest) {
                shortest = prompt;
            }
        }
    }
    Ok(shortest)
}

/// The response at its beginning.
fn begun(
    wire: ResponseRequest,
    model: &LoadedModel,
    request: &Request,
    warnings: Vec<String>,
    is_kept: bool,
) -> Response {
    Response {
        id: ids::unique("resp_"),
        object: "response",
        created_at: ids::unix_s(),
        status: Status::InProgress,
        completed_at: None,
        background: wire.background == Some(true),
        error: None,
        incomplete_details: None,
        instructions: wire.instructions,
        max_output_tokens: wire.max_output_tokens,
        max_tool_calls: wire.max_tool_calls,
        model: model.name.clone(),
        output: Vec::new(),
        parallel_tool_calls: wire.parallel_tool_calls != Some(false),
        previous_response_id: wire.previous_response_id,
        reasoning: wire.reasoning.unwrap_or_default(),
        service_tier: "default",
        store: is_kept,
        temperature: request.sampling.temperature,
        text: wire.text.unwrap_or_default(),
        tool_choice: wire.tool_choice.unwrap_or(WireChoice::Mode(ToolChoiceMode::Auto)),
        tools: wire.tools.unwrap_or_default(),
        top_logprobs: wire.top_logprobs.unwrap_or(0),
        top_p: request.sampling.top_p,
        truncation: wire.truncation.unwrap_or_default(),
        usage: None,
        metadata: wire.metadata.unwrap_or_default(),
        warnings,
    }
}

/// Refuses what would change the meaning of the answer.
fn check(wire: &ResponseRequest) -> Result<(), ServeError> {
    let refuse = |field: &str, reason: &str| Err(ServeError::invalid(field, format!("{field} {reason}")));
    if wire.max_output_tokens == Some(0) {
        return refuse("max_output_tokens", "is 0, but must be 1 or more");
    }
    if wire.top_logprobs.is_some_and(|n| MAX_TOP_LOGPROBS < n) {
        return refuse("top_logprobs", "must be from 0 to 20");
    }
    if wire.background == Some(true) && wire.store == Some(false) {
        return refuse("background", "needs store, for the response is found where it is stored");
    }
    if wire.background == Some(true) && wire.stream == Some(true) {
        return refuse(
            "background",
            "cannot be streamed: ask for the response by its id, or leave background out",
        );
    }
    if wire.stream_options.is_some() && wire.stream != Some(true) {
        return refuse("stream_options", "needs stream to be true");
    }
    if wire.conversation.is_some() {
        return refuse("conversation", "is not kept by this server; go on with previous_response_id");
    }
    if wire.prompt.is_some() {
        return refuse("prompt", "is not stored by this server; send instructions and input");
    }
    check_metadata(wire)
}

fn check_metadata(wire: &ResponseRequest) -> Result<(), ServeError> {
    let metadata = wire.metadata.iter().flatten();
    let n_entries = metadata.clone().count();
    if MAX_METADATA < n_entries {
        let reason = format!("metadata has {n_entries} entries, but must have {MAX_METADATA} at most");
        return Err(ServeError::invalid("metadata", reason));
    }
    for (key, value) in metadata {
        if MAX_METADATA_KEY < key.chars().count() || MAX_METADATA_VALUE < value.chars().count() {
            let reason = format!(
                "metadata: a key must have {MAX_METADATA_KEY} characters at most and a value {MAX_METADATA_VALUE}"
            );
            return Err(ServeError::invalid("metadata", reason));
        }
    }
    Ok(())
}

fn note_without_effect(wire: &ResponseRequest, notices: &mut Notices) {
    let mut note = |has_no_effect: bool, field: &str, reason: &str| {
        if has_no_effect {
            notices.add(field, reason);
        }
    };
    note(wire.context_management.is_some(), "context_management", "the conversation stays as it is");
    for name in wire.include.iter().flatten().filter(|name| *name != INCLUDE_LOGPROBS) {
        let reason = match name.as_str() {
            "reasoning.encrypted_content" => "reasoning is given as it is",
            _ => "there is no such thing to include",
        };
        note(true, &format!("include.{name}"), reason);
    }
    note(wire.max_tool_calls.is_some(), "max_tool_calls", "this server runs no tools of its own");
    note(wire.moderation.is_some(), "moderation", "nothing is moderated");
    let by_key = "prompts are not cached by key";
    note(wire.prompt_cache_key.is_some(), "prompt_cache_key", by_key);
    note(wire.prompt_cache_options.is_some(), "prompt_cache_options", by_key);
    note(wire.prompt_cache_retention.is_some(), "prompt_cache_retention", by_key);
    if let Some(reasoning) = &wire.reasoning {
        let summary = reasoning.summary.as_ref().or(reasoning.generate_summary.as_ref());
        note(summary.is_some(), "reasoning.summary", "reasoning is given as it is");
        for (name, _) in reasoning.other.iter().filter(|(_, value)| !value.is_null()) {
            note(true, &format!("reasoning.{name}"), "the field is unknown");
        }
    }
    if let Some(text) = &wire.text {
        let verbosity = text.verbosity.as_deref().is_some_and(|verbosity| verbosity != "medium");
        note(verbosity, "text.verbosity", "the model has one verbosity");
        for name in text.other.keys() {
            note(true, &format!("text.{name}"), "the field is unknown");
        }
    }
    let tier = wire.service_tier.as_deref();
    note(tier.is_some_and(|tier| !matches!(tier, "auto" | "default")), "service_tier", "there is one tier");
    let padding = wire.stream_options.unwrap_or_default().include_obfuscation == Some(true);
    note(padding, "stream_options.include_obfuscation", "events are not padded");
    let usage = wire.stream_options.unwrap_or_default().include_usage.is_some();
    note(usage, "stream_options.include_usage", "the last event always has the usage");
    note(wire.user.is_some(), "user", "users are not told apart");
    note(wire.safety_identifier.is_some(), "safety_identifier", "users are not told apart");
    for field in wire.unknown.keys() {
        note(true, field, "the field is unknown");
    }
}
