//! `/api/generate`: a prompt to an engine request.

use mlxr_api::ollama::generate::GenerateRequest;
use mlxr_api::ollama::output::{Format, Think};
use mlxr_engine::Request;
use mlxr_text::EncodeOptions;
use serde_json::{Map, Value, json};

use super::chat::sent_images;
use super::line::{Answer, Clock, Endpoint, Outcome};
use super::options;
use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::conversation::{ChatPrompt, Conversation, Thinking};
use crate::translate::images;
use crate::translate::openai::fill_in;
use crate::translate::parts::Parts;
use crate::translate::structure::{Form, Structure};

/// The most alternatives per token that Ollama documents.
const MAX_TOP_LOGPROBS: usize = 20;

/// What a request asks for.
#[derive(Debug)]
pub struct Task {
    pub request: Request,
    pub answer: Answer,
    pub notices: Notices,
    pub is_stream: bool,
}

/// Whether there is nothing to go on from: the request is about the model itself.
pub fn has_no_prompt(wire: &GenerateRequest) -> bool {
    let is_empty = |text: &Option<String>| text.as_ref().is_none_or(String::is_empty);
    is_empty(&wire.prompt) && is_empty(&wire.suffix) && wire.images.as_ref().is_none_or(Vec::is_empty)
}

/// Whether reading the request takes longer than its size tells: a grammar is compiled.
pub fn is_structured(wire: &GenerateRequest) -> bool {
    wire.format.is_some() || wire.think.is_some()
}

/// Reads a request for a model.
///
/// # Errors
/// [`ServeError`] names the field that cannot be honoured.
pub fn read(
    wire: &GenerateRequest,
    model: &LoadedModel,
    strict: bool,
    clock: Clock,
) -> Result<Task, ServeError> {
    check(wire)?;
    let mut notices = Notices::default();
    let wire_options = wire.options.clone().unwrap_or_default();
    options::note(&wire_options, model, &mut notices);
    note(wire, &mut notices);
    let mut structure = Structure { form: form(wire.format.as_ref())?, ..Structure::default() };
    let prompt = prompt(wire, model, &mut structure, &mut notices)?;
    notices.enforce(strict)?;

    // Tokens alone would not bring the images back.
    let is_whole = wire.raw != Some(true) && prompt.images.is_empty();
    let context = is_whole.then(|| prompt.tokens.clone());
    let n_prompt = prompt.n_tokens();
    let mut request = Request {
        logprobs: top_logprobs(wire.logprobs, wire.top_logprobs)?,
        ..structure.request(model, &prompt)?
    };
    options::apply(&mut request, n_prompt, &wire_options, model)?;
    let answer = Answer {
        model: wire.model.clone(),
        endpoint: Endpoint::Generate { context },
        parts: Parts::new(prompt.output),
        tokenizer: model.tokenizer.clone(),
        has_logprobs: request.logprobs.is_some(),
        clock,
        warnings: notices.warnings(),
        n_calls: 0,
        outcome: Outcome::default(),
    };
    Ok(Task { request, answer, notices, is_stream: wire.stream != Some(false) })
}

/// Refuses what would change the meaning of the answer.
fn check(wire: &GenerateRequest) -> Result<(), ServeError> {
    let is_said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if is_said(&wire.template) {
        let reason = "template cannot be given with a request: the model's own is written in Jinja, not in Go's \
                      language; use raw and write the prompt yourself";
        return Err(ServeError::invalid("template", reason));
    }
    let is_raw = wire.raw == Some(true);
    let has_context = wire.context.as_ref().is_some_and(|ids| !ids.is_empty());
    if is_raw && (is_said(&wire.system) || has_context) {
        let reason = "raw prompts take neither system nor context: write the whole prompt yourself";
        return Err(ServeError::invalid("raw", reason));
    }
    Ok(())
}

/// The form asked of the answer.
///
/// # Errors
/// A schema that cannot be followed.
pub(super) fn form(format: Option<&Format>) -> Result<Option<Form>, ServeError> {
    match format {
        None | Some(Format::Text) => Ok(None),
        Some(Format::Json) => Ok(Some(Form::json_object("format"))),
        Some(Format::Schema(schema)) => Form::json_schema("format", &Value::Object(schema.clone())).map(Some),
    }
}

fn note(wire: &GenerateRequest, notices: &mut Notices) {
    note_context_fields(wire.truncate, wire.shift, notices);
    for (name, value) in [("width", wire.width), ("height", wire.height), ("steps", wire.steps)] {
        if value.is_some_and(|value| value != 0) {
            notices.add(name, "this model draws no images");
        }
    }
    for name in wire.unknown.keys() {
        notices.add(name, "there is no such field");
    }
}

/// Reports that prompts stay as they are.
pub(super) fn note_context_fields(truncate: Option<bool>, shift: Option<bool>, notices: &mut Notices) {
    if truncate == Some(true) {
        notices.add("truncate", "a prompt longer than the context is refused");
    }
    if shift == Some(true) {
        notices.add("shift", "a full context ends the answer, nothing of it is dropped");
    }
}

/// # Errors
/// More alternatives than Ollama documents.
pub(super) fn top_logprobs(
    is_wanted: Option<bool>,
    n_top: Option<usize>,
) -> Result<Option<usize>, ServeError> {
    let n_top = n_top.unwrap_or(0);
    if n_top > MAX_TOP_LOGPROBS {
        let reason = format!("top_logprobs is {n_top}, but must be from 0 to {MAX_TOP_LOGPROBS}");
        return Err(ServeError::invalid("top_logprobs", reason));
    }
    Ok((is_wanted == Some(true) || n_top > 0).then_some(n_top))
}

fn prompt(
    wire: &GenerateRequest,
    model: &LoadedModel,
    structure: &mut Structure,
    notices: &mut Notices,
) -> Result<ChatPrompt, ServeError> {
    let text = wire.prompt.as_deref().unwrap_or_default();
    let sent = sent_images("images", wire.images.as_deref());
    let as_text = |tokens| ChatPrompt { tokens, ..ChatPrompt::default() };
    let is_plain = wire.raw == Some(true) || wire.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty());
    if is_plain && !sent.is_empty() {
        let reason = "images go with a prompt that the model's template writes, without raw and suffix";
        return Err(ServeError::invalid("images", reason));
    }
    if let Some(suffix) = wire.suffix.as_deref().filter(|suffix| !suffix.is_empty()) {
        return fill_in::tokens(&model.tokenizer, text, suffix).map(as_text);
    }
    if wire.raw == Some(true) {
        let options = EncodeOptions { add_special: true, parse_special: true };
        return Ok(as_text(model.tokenizer.encode(text, options)?));
    }
    let is_continued = wire.context.as_ref().is_some_and(|context| !context.is_empty());
    let mut conversation = Conversation { goes_on: true, is_continued, ..Conversation::default() };
    if let Some(system) = wire.system.as_ref().filter(|system| !system.is_empty()) {
        conversation.messages.push(json!({"role": "system", "content": system}));
    }
    let mut message =
        Map::from_iter([("role".to_owned(), json!("user")), ("content".to_owned(), json!(text))]);
    images::attach(&mut message, sent);
    conversation.messages.push(Value::Object(message));
    structure.reasoning_budget = set_thinking(&mut conversation, wire.think.as_ref(), model, notices)?;
    let mut prompt = conversation.prompt(model, true)?;
    if let Some(context) = wire.context.as_ref().filter(|context| !context.is_empty()) {
        prompt.tokens = after_context(context, &prompt.tokens, model.tokenizer.bos());
    }
    Ok(prompt)
}

/// A turn behind what came before it; the text has begun already.
fn after_context(context: &[u32], turn: &[u32], bos: Option<u32>) -> Vec<u32> {
    let begins_anew = bos.is_some() && turn.first() == bos.as_ref();
    [context, &turn[usize::from(begins_anew)..]].concat()
}

/// Tells the template whether and how much to think. Returns the budget to enforce where it does not listen.
///
/// # Errors
/// When a model that cannot think is asked to.
pub(super) fn set_thinking(
    conversation: &mut Conversation,
    think: Option<&Think>,
    model: &LoadedModel,
    notices: &mut Notices,
) -> Result<Option<usize>, ServeError> {
    let thinking = match think {
        None => Thinking::default(),
        Some(Think::Whether(is_wanted)) => Thinking { is_wanted: Some(*is_wanted), ..Thinking::default() },
        Some(Think::Effort(effort)) => {
            Thinking { is_wanted: Some(true), effort: Some(effort.clone()), budget: None }
        }
    };
    let heard = conversation.think(&model.template, &thinking);
    if thinking.is_wanted == Some(true) && !heard.thinks {
        return Err(ServeError::invalid("think", format!("{:?} does not support thinking", model.name)));
    }
    if thinking.effort.as_deref() == Some("high") && !model.template.uses("reasoning_effort") {
        notices.add("think", "the model thinks, but its template knows no levels");
    }
    Ok(heard.budget)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_gone_on_from_without_a_second_beginning() {
        assert_eq!(after_context(&[1, 5], &[1, 6], Some(1)), [1, 5, 6]);
        assert_eq!(after_context(&[1, 5], &[6], Some(1)), [1, 5, 6]);
        assert_eq!(after_context(&[1, 5], &[1, 6], None), [1, 5, 1, 6]);
    }

    #[test]
    fn a_request_without_a_prompt_is_about_the_model() {
        let check = |body: &str, expected| {
            assert_eq!(has_no_prompt(&GenerateRequest::parse(body.as_bytes()).unwrap()), expected, "{body}");
        };
        check(r#"{"model": "m"}"#, true);
        check(r#"{"model": "m", "prompt": "", "suffix": "", "images": [], "system": "s"}"#, true);
        check(r#"{"model": "m", "prompt": "x"}"#, false);
        check(r#"{"model": "m", "suffix": "x"}"#, false);
    }
}
