//! A conversation as the model's template writes it, and how its answer is to be read.

use mlxr_text::reasoning::ReasoningTags;
use mlxr_text::tool_calls::{OutputOptions, ToolFormat, ToolSpec};
use mlxr_text::{ChatInput, ChatTemplate, EncodeOptions, Tokenizer};
use serde_json::{Map, Value, json};

use crate::ServeError;
use crate::loaded::LoadedModel;

/// What goes into the template.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// In OpenAI's shape. An assistant's message at the end is one to go on from.
    pub messages: Vec<Value>,
    /// In OpenAI's shape.
    pub tools: Vec<Value>,
    /// The template's variables.
    pub variables: Map<String, Value>,
}

/// What a model's template was written for, as far as its answers can be read: a tag that is a control token is not
/// part of an answer's text, so nobody would find it there.
#[derive(Clone, Debug, Default)]
pub struct Abilities {
    pub tools: Option<ToolFormat>,
    pub thinking: Option<ReasoningTags>,
}

impl Abilities {
    pub fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> Abilities {
        let source = template.source();
        let is_text = |text: &str| !tokenizer.id_of(text).is_some_and(|id| tokenizer.is_special(id));
        let tools = ToolFormat::detect(source)
            .filter(|format| format.control_texts().iter().all(|text| is_text(text)));
        let thinking =
            ReasoningTags::detect(source).filter(|tags| is_text(&tags.open) && is_text(&tags.close));
        Abilities { tools, thinking }
    }
}

/// A conversation ready for the engine.
#[derive(Clone, Debug)]
pub struct ChatPrompt {
    pub tokens: Vec<u32>,
    pub output: OutputOptions,
}

impl Conversation {
    /// Sets a variable, if the template uses it.
    pub fn set_variable(&mut self, template: &ChatTemplate, name: &str, value: Value) -> bool {
        let is_used = template.source().contains(name);
        if is_used {
            self.variables.insert(name.to_owned(), value);
        }
        is_used
    }

    /// Asks the model to think first, or not to, under the names templates know. Returns whether the template listens.
    pub fn set_thinking(&mut self, template: &ChatTemplate, is_wanted: bool) -> bool {
        let enable = self.set_variable(template, "enable_thinking", json!(is_wanted));
        // `enable_thinking` contains the shorter name.
        enable || self.set_variable(template, "thinking", json!(is_wanted))
    }

    /// Renders and cuts into tokens. Without `reads_thinking` tags of reasoning are text like any other.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn prompt(&self, model: &LoadedModel, reads_thinking: bool) -> Result<ChatPrompt, ServeError> {
        let abilities = Abilities::of(&model.template, &model.tokenizer);
        let text = self.render(&model.template)?;
        // Templates write the beginning-of-sequence token themselves, and the markers around messages.
        let options = EncodeOptions { add_special: false, parse_special: true };
        let tokens = model.tokenizer.encode(&text, options)?;
        let has_tools = !self.tools.is_empty();
        let thinking = abilities.thinking.filter(|_| reads_thinking);
        let output = OutputOptions {
            format: abilities.tools.filter(|_| has_tools),
            tools: self.tools.iter().filter_map(ToolSpec::from_openai).collect(),
            reasoning: thinking.and_then(|tags| tags.after_prompt(&text)),
            id_seed: crate::ids::seed(),
        };
        Ok(ChatPrompt { tokens, output })
    }

    fn render(&self, template: &ChatTemplate) -> Result<String, ServeError> {
        let begun = self.messages.last().and_then(begun_answer);
        let input = ChatInput {
            messages: &self.messages,
            tools: (!self.tools.is_empty()).then_some(&self.tools),
            add_generation_prompt: begun.is_none(),
            extra: self.variables.clone(),
        };
        let mut text = template.render(&input)?;
        if let Some(begun) = begun {
            // What the template writes behind the last message would end it.
            let Some(start) = text.rfind(begun) else {
                let reason = "the model's template does not let an answer be begun for it";
                return Err(ServeError::invalid("messages", reason));
            };
            text.truncate(start + begun.len());
        }
        Ok(text)
    }
}

/// The beginning of an answer that the model is to go on from.
fn begun_answer(last: &Value) -> Option<&str> {
    let is_answer = last["role"] == "assistant" && last.get("tool_calls").is_none();
    last["content"].as_str().map(str::trim).filter(|text| is_answer && !text.is_empty())
}

#[cfg(test)]
mod tests {
    use mlxr_text::TemplateTokens;

    use super::*;

    const TEMPLATE: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}\
        {% if add_generation_prompt %}<assistant>{% if enable_thinking %}<think>{% endif %}{% endif %}";

    fn template() -> ChatTemplate {
        ChatTemplate::new(TEMPLATE, TemplateTokens::default()).unwrap()
    }

    fn render(messages: Value) -> String {
        let messages = messages.as_array().unwrap().clone();
        Conversation { messages, ..Conversation::default() }.render(&template()).unwrap()
    }

    #[test]
    fn an_answer_that_has_begun_goes_on() {
        let user = json!({"role": "user", "content": "a a"});
        assert_eq!(render(json!([user])), "<user>a a</><assistant>");
        let begun = json!({"role": "assistant", "content": " a \n"});
        assert_eq!(render(json!([user, begun])), "<user>a a</><assistant> a");
        let empty = json!({"role": "assistant", "content": ""});
        assert_eq!(render(json!([user, empty])), "<user>a a</><assistant></><assistant>");
    }

    #[test]
    fn only_variables_of_the_template_are_set() {
        let mut conversation = Conversation::default();
        assert!(conversation.set_thinking(&template(), true));
        assert!(!conversation.set_variable(&template(), "reasoning_effort", json!("low")));
        assert_eq!(conversation.variables.keys().collect::<Vec<_>>(), ["enable_thinking"]);
        let plain = ChatTemplate::new("{{ messages }}", TemplateTokens::default()).unwrap();
        assert!(!conversation.set_thinking(&plain, true));
    }
}
