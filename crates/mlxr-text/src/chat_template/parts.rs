//! Contents of messages as a template takes them: as text, or as lists of parts.
//!
//! Templates of models that read images go through a message's parts, and a text is not among them: it would be left out
//! of the prompt without a word. Others know texts alone. So a template is tried out once, with both.

use serde_json::{Value, json};

use super::{ChatInput, ChatTemplate};

/// A text that no template writes by itself.
const PROBE: &str = "fJ7qXv";

/// Which contents of messages a template writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    Texts,
    Parts,
    Both,
}

impl ChatTemplate {
    fn contents(&self) -> Contents {
        *self.contents.get_or_init(|| {
            let written = |content: Value| {
                let messages = [json!({ "role": "user", "content": content })];
                let input =
                    ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
                self.render(&input).ok().filter(|text| text.contains(PROBE))
            };
            let parts = written(json!([{ "type": "text", "text": PROBE }]));
            // A template of texts may write the list itself.
            let knows_parts =
                parts.is_some_and(|text| !text.contains("'type'") && !text.contains("\"type\""));
            match (written(json!(PROBE)), knows_parts) {
                (_, false) => Contents::Texts,
                (None, true) => Contents::Parts,
                (Some(_), true) => Contents::Both,
            }
        })
    }

    /// The messages with contents as the template takes them. In a text `image` stands for each image, on a line of its own
    /// before the rest; without it such contents stay what they are.
    pub fn adapted(&self, messages: &[Value], image: Option<&str>) -> Vec<Value> {
        let contents = self.contents();
        let adapt = |message: &Value| {
            let mut message = message.clone();
            let content = match &message["content"] {
                Value::String(text) if contents == Contents::Parts => {
                    Some(json!([{ "type": "text", "text": text }]))
                }
                Value::Array(parts) if contents == Contents::Texts => {
                    image.and_then(|image| as_text(parts, image)).map(Value::from)
                }
                _ => None,
            };
            if let Some(content) = content {
                message["content"] = content;
            }
            message
        };
        messages.iter().map(adapt).collect()
    }
}

/// Images and texts as one text; `None` where there is something else.
fn as_text(parts: &[Value], image: &str) -> Option<String> {
    let (mut images, mut texts) = (String::new(), Vec::new());
    for part in parts {
        match part["type"].as_str()? {
            "image" => images.push_str(&format!("{image}\n")),
            "text" => texts.push(part["text"].as_str()?),
            _ => return None,
        }
    }
    Some(images + &texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use crate::TemplateTokens;

    use super::*;

    const PARTS: &str = "{% for m in messages %}{{ m['role'].upper() + ': ' }}\
        {% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
        {% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}{% endfor %}";
    const TEXT: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    const BOTH: &str = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
        {% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}\
        {% endif %}{% endfor %}";

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, TemplateTokens::default()).unwrap()
    }

    fn written(source: &str, messages: &[Value]) -> String {
        let template = template(source);
        let messages = template.adapted(messages, Some("<image>"));
        template.render(&ChatInput { messages: &messages, ..ChatInput::default() }).unwrap()
    }

    #[test]
    fn texts_and_images_reach_the_prompt_of_either_kind_of_template() {
        let found = [PARTS, TEXT, BOTH].map(|source| template(source).contents());
        assert_eq!(found, [Contents::Parts, Contents::Texts, Contents::Both]);
        let text = [json!({ "role": "user", "content": "Hi" })];
        assert_eq!(written(PARTS, &text), "USER: Hi");
        assert_eq!(written(TEXT, &text), "<user>Hi");
        assert_eq!(written(BOTH, &text), "Hi");
        let image = [
            json!({ "role": "user", "content": [{ "type": "image" }, { "type": "text", "text": "What?" }] }),
        ];
        assert_eq!(written(PARTS, &image), "USER: <image>\nWhat?");
        assert_eq!(written(TEXT, &image), "<user><image>\nWhat?");
        assert_eq!(written(BOTH, &image), "<image>What?");
    }

    #[test]
    fn what_is_neither_text_nor_image_stays_what_it_is() {
        let other =
            [json!({ "role": "user", "content": [{ "type": "audio" }] }), json!({ "role": "assistant" })];
        assert_eq!(template(TEXT).adapted(&other, Some("<image>"))[0], other[0]);
        assert_eq!(template(PARTS).adapted(&other, None)[1]["role"], "assistant");
        let refuses = "{{ raise_exception('no') }}";
        assert_eq!(template(refuses).contents(), Contents::Texts);
    }
}
