//! A conversation: its messages, the prompt they make, and its file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use mlxr_text::{ChatInput, ChatTemplate};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Messages in OpenAI's shape, in order, the system message apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversation {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    messages: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    role: Role,
    content: String,
    /// Files, in the order of their places in the prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    images: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    User,
    Assistant,
}

/// Files larger than this are no conversations.
const MAX_FILE_BYTES: u64 = 64 << 20;

impl Conversation {
    pub fn new(system: Option<String>) -> Conversation {
        Conversation { system, messages: Vec::new() }
    }

    pub fn push_user(&mut self, content: String, images: Vec<PathBuf>) {
        self.messages.push(Message { role: Role::User, content, images });
    }

    pub fn push_assistant(&mut self, content: String) {
        self.messages.push(Message { role: Role::Assistant, content, images: Vec::new() });
    }

    /// Messages of both sides.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn clear(&mut self) {
        self.messages.clear();
    }

    /// Takes the answers after the last user message off. Returns whether there is a message to answer.
    pub fn drop_answer(&mut self) -> bool {
        let is_answer = |message: &Message| message.role == Role::Assistant;
        while self.messages.last().is_some_and(is_answer) {
            self.messages.pop();
        }
        !self.messages.is_empty()
    }

    /// Takes the last user message and its answer off. Returns whether there was one.
    pub fn undo(&mut self) -> bool {
        self.drop_answer() && self.messages.pop().is_some()
    }

    /// The images of all messages.
    pub fn images(&self) -> impl Iterator<Item = &PathBuf> {
        self.messages.iter().flat_map(|message| &message.images)
    }

    /// The prompt up to where the answer begins; `image` stands for each image in a template that takes texts alone.
    pub fn render(&self, template: &ChatTemplate, image: Option<&str>) -> anyhow::Result<String> {
        let system = self.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let turns = self.messages.iter().map(|m| json!({ "role": m.role, "content": m.shown() }));
        let messages = template.adapted(&system.chain(turns).collect::<Vec<Value>>(), image);
        let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
        Ok(template.render(&input)?)
    }

    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    pub fn load(path: &Path) -> anyhow::Result<Conversation> {
        let what = || format!("cannot read the conversation {}", path.display());
        let n_bytes = fs::metadata(path).with_context(what)?.len();
        anyhow::ensure!(n_bytes <= MAX_FILE_BYTES, "{} is too large for a conversation", path.display());
        let text = fs::read_to_string(path).with_context(what)?;
        serde_json::from_str(&text).with_context(what)
    }
}

impl Message {
    /// Its content in OpenAI's shape: a text, or with images parts.
    fn shown(&self) -> Value {
        if self.images.is_empty() {
            return json!(self.content);
        }
        let images = self.images.iter().map(|_| json!({ "type": "image" }));
        images.chain([json!({ "type": "text", "text": self.content })]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Conversation {
        let mut conversation = Conversation::new(Some("Be brief.".to_owned()));
        conversation.push_user("Hi".to_owned(), Vec::new());
        conversation.push_assistant("Hello".to_owned());
        conversation
    }

    #[test]
    fn a_saved_conversation_loads_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chat.json");
        conversation().save(&path).unwrap();
        assert_eq!(Conversation::load(&path).unwrap(), conversation());
        fs::write(&path, r#"{"messages": [{"role": "wizard", "content": ""}]}"#).unwrap();
        assert!(Conversation::load(&path).is_err());
    }

    #[test]
    fn undo_takes_back_a_whole_turn_and_regenerate_only_the_answer() {
        let mut chat = conversation();
        assert!(chat.drop_answer());
        assert_eq!(chat.len(), 1);
        let mut chat = conversation();
        assert!(chat.undo());
        assert_eq!(chat.len(), 0);
        assert!(!chat.undo());
        assert!(!chat.drop_answer());
    }
}
