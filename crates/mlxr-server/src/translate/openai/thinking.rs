//! How long a model is to think, and what else its template may ask for.

use mlxr_api::openai::sampling::SamplingExtensions;
use mlxr_text::ChatTemplate;

use crate::ServeError;
use crate::notices::Notices;
use crate::translate::conversation::{Conversation, Thinking};

/// Efforts a request may name; a template may know others.
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// The effort a request names, and the field it does so in.
#[derive(Clone, Copy, Debug)]
pub struct Effort<'a> {
    pub field: &'static str,
    pub name: Option<&'a str>,
}

/// Tells the template how much to think. Returns the budget to enforce where it does not listen.
///
/// # Errors
/// An effort nobody knows.
pub fn set_thinking(
    conversation: &mut Conversation,
    effort: Effort<'_>,
    extensions: &SamplingExtensions,
    template: &ChatTemplate,
    notices: &mut Notices,
) -> Result<Option<usize>, ServeError> {
    let thinking = Thinking {
        is_wanted: effort.name.map(|name| name != "none"),
        effort: effort.name.map(str::to_owned),
        budget: extensions.thinking_budget,
    };
    let heard = conversation.think(template, &thinking);
    if let Effort { field, name: Some(name) } = effort {
        if !template.uses("reasoning_effort") && !EFFORTS.contains(&name) {
            let reason = format!("{field} is {name:?}, but must be one of {}", EFFORTS.join(", "));
            return Err(ServeError::invalid(field, reason));
        }
        // Not to reason is what such a model does anyway.
        if !heard.effort && name != "none" {
            notices.add(field, "the model does not reason before it answers");
        }
    }
    if extensions.thinking_budget.is_some() && !heard.thinks {
        notices.add("thinking_budget", "the model does not reason before it answers");
    }
    Ok(heard.budget)
}

/// What the template may ask for; what it does not ask for has no effect.
pub fn set_variables(
    conversation: &mut Conversation,
    extensions: &SamplingExtensions,
    template: &ChatTemplate,
    notices: &mut Notices,
) {
    for (name, value) in extensions.chat_template_kwargs.iter().flatten() {
        if !conversation.set_variable(template, name, value.clone()) {
            notices.add(name, "the model's chat template does not use it");
        }
    }
}
