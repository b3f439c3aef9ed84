//! A conversation as the model's template writes it, and how its answer is to be read.

use std::borrow::Cow;
use std::sync::Arc;

use mlxr_tensor::Pixels;
use mlxr_text::reasoning::ReasoningTags;
use mlxr_text::tool_calls::{OutputOptions, ToolFormat, ToolSpec};
use mlxr_text::{ChatInput, ChatTemplate, EncodeOptions};
use serde_json::{Map, Value, json};

use super::images;
use super::tool_block::{self, Place};
use crate::ServeError;
use crate::catalogue::ModelSettings;
use crate::loaded::LoadedModel;

/// What goes into the template.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    /// In OpenAI's shape.
    pub messages: Vec<Value>,
    /// Whether an assistant's message at the end is one to go on from.
    pub goes_on: bool,
    /// In OpenAI's shape.
    pub tools: Vec<Value>,
    /// The template's variables.
    pub variables: Map<String, Value>,
    /// Whether the tokens go behind an earlier conversation, which had the model's own messages.
    pub is_continued: bool,
}

/// What a model's template was written for.
#[derive(Clone, Debug, Default)]
pub struct Abilities {
    pub tools: Option<ToolFormat>,
    pub thinking: Option<ReasoningTags>,
}

impl Abilities {
    pub fn of(template: &ChatTemplate) -> Abilities {
        let source = template.source();
        Abilities { tools: ToolFormat::detect(source), thinking: ReasoningTags::detect(source) }
    }
}

/// A conversation ready for the engine.
#[derive(Clone, Debug, Default)]
pub struct ChatPrompt {
    pub tokens: Vec<u32>,
    /// In the order of their placeholders among the tokens.
    pub images: Vec<Arc<Pixels>>,
    /// What the images take beside their placeholders.
    pub n_more_tokens: usize,
    /// How the answer is to be read.
    pub output: OutputOptions,
}

impl ChatPrompt {
    /// Tokens that the engine makes of it.
    pub fn n_tokens(&self) -> usize {
        self.tokens.len() + self.n_more_tokens
    }
}

/// Whether and how long the model is asked to think first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thinking {
    pub is_wanted: Option<bool>,
    pub effort: Option<String>,
    /// Tokens at most.
    pub budget: Option<usize>,
}

/// What becomes of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The model marks its reasoning.
    pub thinks: bool,
    /// An effort makes a difference.
    pub effort: bool,
    /// Tokens of reasoning after which its end is to be forced.
    pub budget: Option<usize>,
}

/// Tokens of reasoning an effort stands for, with templates that know no efforts. `None` is no bound.
fn effort_budget(effort: &str) -> Option<usize> {
    match effort {
        "none" => Some(0),
        "minimal" => Some(256),
        "low" => Some(1024),
        "medium" => Some(8192),
        _ => None,
    }
}

impl Conversation {
    /// Sets a variable, if the template uses it.
    pub fn set_variable(&mut self, template: &ChatTemplate, name: &str, value: Value) -> bool {
        let is_used = template.uses(name);
        if is_used {
            self.variables.insert(name.to_owned(), value);
        }
        is_used
    }

    /// Asks the model to think first, or not to, under the names templates know. Returns whether the template listens.
    fn set_thinking(&mut self, template: &ChatTemplate, is_wanted: bool) -> bool {
        let enable = self.set_variable(template, "enable_thinking", json!(is_wanted));
        enable || self.set_variable(template, "thinking", json!(is_wanted))
    }

    /// Tells the template how to think, and where it does not listen how long the model may.
    pub fn think(&mut self, template: &ChatTemplate, thinking: &Thinking) -> Heard {
        let thinks = Abilities::of(template).thinking.is_some();
        let is_heard = thinking.is_wanted.is_some_and(|is_wanted| self.set_thinking(template, is_wanted));
        let effort = thinking.effort.as_deref();
        let is_effort_heard =
            effort.is_some_and(|effort| self.set_variable(template, "reasoning_effort", json!(effort)));
        let by_effort = effort.filter(|_| !is_effort_heard).and_then(effort_budget);
        let forbidden = (thinking.is_wanted == Some(false) && !is_heard).then_some(0);
        let budget = thinking.budget.or(forbidden).or(by_effort).filter(|_| thinks);
        Heard { thinks, effort: is_effort_heard || thinks, budget }
    }

    /// Renders and cuts into tokens. Without `reads_thinking` tags of reasoning are text like any other.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn prompt(&self, model: &LoadedModel, reads_thinking: bool) -> Result<ChatPrompt, ServeError> {
        let abilities = Abilities::of(&model.template);
        let images = images::read(&self.messages, model)?;
        let text = self.opened(&model.settings).text(&model.template, &abilities, placeholder(model))?;
        // Templates write the beginning-of-sequence token themselves, and the markers around messages.
        let options = EncodeOptions { add_special: false, parse_special: true };
        let tokens = model.tokenizer.encode(&text, options)?;
        let has_tools = !self.tools.is_empty();
        let thinking = abilities.thinking.filter(|_| reads_thinking);
        let output = OutputOptions {
            format: has_tools.then(|| abilities.tools.unwrap_or(tool_block::FORMAT)),
            tools: self.tools.iter().filter_map(ToolSpec::from_openai).collect(),
            reasoning: thinking.and_then(|tags| tags.after_prompt(&text)),
            id_seed: crate::ids::seed(),
        };
        let n_more_tokens = model.images.as_ref().map_or(0, |reader| images.len() * (reader.n_tokens - 1));
        Ok(ChatPrompt { tokens, images, n_more_tokens, output })
    }

    /// The prompt's text.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn written(&self, model: &LoadedModel) -> Result<String, ServeError> {
        images::read(&self.messages, model)?;
        self.opened(&model.settings).text(
            &model.template,
            &Abilities::of(&model.template),
            placeholder(model),
        )
    }

    /// The whole conversation, with what the model brings along.
    fn opened(&self, settings: &ModelSettings) -> Cow<'_, Conversation> {
        if self.is_continued || !settings.opens_conversations() {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Conversation { messages: settings.open(self.messages.clone()), ..self.clone() })
    }

    /// The prompt, with tools spelt out where the template knows none.
    fn text(
        &self,
        template: &ChatTemplate,
        abilities: &Abilities,
        image: Option<&str>,
    ) -> Result<String, ServeError> {
        if abilities.tools.is_some() || !tool_block::is_needed(&self.messages, &self.tools) {
            return self.render(template, image);
        }
        let spelt_out = |place| Conversation {
            messages: tool_block::spell_out(&self.messages, &self.tools, place),
            tools: Vec::new(),
            ..self.clone()
        };
        let written = |place| spelt_out(place).render(template, image);
        written(Place::System).or_else(|_| written(Place::User))
    }

    /// `image` stands for an image in templates that take texts alone.
    fn render(&self, template: &ChatTemplate, image: Option<&str>) -> Result<String, ServeError> {
        let begun = self.messages.last().filter(|_| self.goes_on).and_then(begun_answer);
        let messages = template.adapted(&images::shown(&self.messages), image);
        let input = ChatInput {
            messages: &messages,
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

/// What stands for an image in a prompt.
fn placeholder(model: &LoadedModel) -> Option<&str> {
    model.images.as_ref().ok().map(|images| images.placeholder.as_str())
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
        Conversation { messages, goes_on: true, ..Conversation::default() }.render(&template(), None).unwrap()
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

    #[test]
    fn an_effort_is_the_template_s_or_else_a_budget() {
        let think = |source: &str, thinking: &Thinking| {
            let template = ChatTemplate::new(source, TemplateTokens::default()).unwrap();
            Conversation::default().think(&template, thinking)
        };
        let effort = |effort: &str| Thinking { effort: Some(effort.to_owned()), ..Thinking::default() };
        let tags = "<think> {{ messages }} </think>";
        let heard = think(tags, &effort("low"));
        assert_eq!(heard, Heard { thinks: true, effort: true, budget: Some(1024) });
        assert_eq!(think(tags, &effort("high")).budget, None);
        let levels = format!("{tags} {{{{ reasoning_effort }}}}");
        assert_eq!(think(&levels, &effort("low")).budget, None);
        assert_eq!(think("{{ messages }}", &effort("low")), Heard::default());
        let off = Thinking { is_wanted: Some(false), ..Thinking::default() };
        assert_eq!(think(tags, &off).budget, Some(0), "nobody else stops it");
        let switch = format!("{tags} {{{{ enable_thinking }}}}");
        assert_eq!(think(&switch, &off).budget, None);
        let bounded = Thinking { budget: Some(7), ..effort("low") };
        assert_eq!(think(&levels, &bounded).budget, Some(7));
    }

    #[test]
    fn a_template_without_a_system_s_message_has_the_tools_from_the_user() {
        let source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}\
            <{{ m.role }}>{{ m.content }}{% endfor %}";
        let template = ChatTemplate::new(source, TemplateTokens::default()).unwrap();
        let conversation = Conversation {
            messages: vec![json!({"role": "user", "content": "Hi"})],
            tools: vec![json!({"type": "function", "function": {"name": "f"}})],
            ..Conversation::default()
        };
        let text = conversation.text(&template, &Abilities::of(&template), None).unwrap();
        assert!(text.starts_with("<user># Tools") && text.ends_with("\n\nHi"), "{text}");
    }
}
