//! Conversations as the model's chat template writes them.

use mlxr_api::native::text::{TemplateAnswer, TemplateRequest};
use mlxr_api::openai::chat::ChatMessage;
use mlxr_api::openai::tools::Tool;
use serde_json::{Map, Value};

use super::text::encode;
use super::unknown_fields;
use crate::ServeError;
use crate::loaded::LoadedModel;
use crate::notices::Notices;
use crate::translate::conversation::Conversation;
use crate::translate::openai::{prompt, tools};

/// What goes through the template.
pub struct Spoken<'a> {
    pub messages: &'a [ChatMessage],
    pub tools: Option<&'a [Tool]>,
    pub variables: Option<&'a Map<String, Value>>,
    pub goes_on: bool,
}

/// What the template makes of it.
pub struct Written {
    pub text: String,
    pub tokens: Vec<u32>,
}

impl Spoken<'_> {
    /// # Errors
    /// A message or a tool that the model cannot read, or what the template refuses.
    pub fn written(&self, model: &LoadedModel, notices: &mut Notices) -> Result<Written, ServeError> {
        if self.messages.is_empty() {
            return Err(ServeError::invalid("messages", "messages is empty"));
        }
        let mut conversation = Conversation {
            messages: prompt::messages(&model.template, self.messages)?,
            goes_on: self.goes_on,
            tools: tools::shown(self.tools.unwrap_or_default())?,
            ..Conversation::default()
        };
        for (name, value) in self.variables.into_iter().flatten() {
            if !conversation.set_variable(&model.template, name, value.clone()) {
                notices.add(name, "the model's chat template does not use it");
            }
        }
        let text = conversation.written(model)?;
        let tokens = encode(&model.tokenizer, "messages", &text, Some(false), Some(true))?;
        Ok(Written { text, tokens })
    }
}

/// # Errors
/// What [`Spoken::written`] refuses, or fields without effect in strict mode.
pub fn apply(
    wire: &TemplateRequest,
    model: &LoadedModel,
    strict: bool,
) -> Result<(TemplateAnswer, Notices), ServeError> {
    let strict = strict || wire.strict == Some(true);
    let mut notices = unknown_fields(&wire.unknown, strict)?;
    let spoken = Spoken {
        messages: &wire.messages,
        tools: wire.tools.as_deref(),
        variables: wire.chat_template_kwargs.as_ref(),
        goes_on: wire.continue_final_message == Some(true),
    };
    let Written { text, tokens } = spoken.written(model, &mut notices)?;
    notices.enforce(strict)?;
    let answer = TemplateAnswer {
        model: model.name.clone(),
        prompt: text,
        n_tokens: tokens.len(),
        tokens,
        warnings: notices.warnings(),
    };
    Ok((answer, notices))
}
