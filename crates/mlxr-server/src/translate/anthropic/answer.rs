//! Answers, in one piece or as events.

use mlxr_api::anthropic::content::AnswerBlock;
use mlxr_api::anthropic::error::ErrorDetail;
use mlxr_api::anthropic::messages::{MessageAnswer, Usage};
use mlxr_api::anthropic::stream::{BlockDelta, MessageDelta, StreamEvent};
use mlxr_engine::{Event, FinishReason, StopCause};

use super::{kind, message};
use crate::generation::{Generation, IndexedEvent};
use crate::stream::Frames;
use crate::translate::conversation::ChatPrompt;
use crate::translate::parts::{Part, Parts};
use crate::{ServeError, ids, sse};

const PING: &[u8] = b"event: ping\ndata: {\"type\":\"ping\"}\n\n";

/// How to answer.
#[derive(Debug)]
pub struct Answer {
    id: String,
    model: String,
    parts: Parts,
    max_tokens: usize,
    usage: Usage,
    stop: MessageDelta,
    warnings: Vec<String>,
}

impl Answer {
    pub fn new(model: String, prompt: &ChatPrompt, max_tokens: usize, warnings: Vec<String>) -> Answer {
        Answer {
            id: ids::unique("msg_"),
            model,
            parts: Parts::new(prompt.output.clone()),
            max_tokens,
            usage: Usage { input_tokens: prompt.n_tokens(), ..Usage::default() },
            stop: MessageDelta::default(),
            warnings,
        }
    }

    /// What clients call it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Reads an event.
    ///
    /// # Errors
    /// The answer did not end as clients expect.
    fn read(&mut self, event: Event) -> Result<Vec<Part>, ServeError> {
        match event {
            Event::Prompt { .. } => Ok(Vec::new()),
            Event::Token { text, .. } => Ok(self.parts.push(&text)),
            Event::ChoiceEnd { reason, text, .. } => {
                check(&reason)?;
                Ok(self.parts.finish(&text))
            }
            Event::Finish { reason, usage, .. } => {
                check(&reason)?;
                // Here the input is what was not read from the cache.
                self.usage.input_tokens = usage.n_prompt - usage.n_cached;
                self.usage.cache_read_input_tokens = usage.n_cached;
                self.usage.output_tokens = usage.n_completion;
                self.stop = self.stop_of(&reason, usage.n_completion);
                Ok(Vec::new())
            }
        }
    }

    fn stop_of(&self, reason: &FinishReason, n_completion: usize) -> MessageDelta {
        let (reason, sequence) = match reason {
            FinishReason::Stop(StopCause::Text(text)) => ("stop_sequence", Some(text.clone())),
            FinishReason::Length if n_completion < self.max_tokens => ("model_context_window_exceeded", None),
            FinishReason::Length => ("max_tokens", None),
            FinishReason::Loop => ("loop", None),
            _ if self.parts.has_calls() => ("tool_use", None),
            _ => ("end_turn", None),
        };
        MessageDelta { stop_reason: Some(reason.to_owned()), stop_sequence: sequence }
    }

    fn message(&mut self, content: Vec<AnswerBlock>) -> MessageAnswer {
        MessageAnswer {
            id: self.id.clone(),
            r#type: "message".to_owned(),
            role: "assistant".to_owned(),
            model: self.model.clone(),
            content,
            stop_reason: self.stop.stop_reason.clone(),
            stop_sequence: self.stop.stop_sequence.clone(),
            usage: self.usage,
            warnings: std::mem::take(&mut self.warnings),
        }
    }

    /// The answer in one piece.
    ///
    /// # Errors
    /// The model failed, or the server ended the request.
    pub async fn whole(mut self, mut generation: Generation) -> Result<MessageAnswer, ServeError> {
        let mut content = Vec::new();
        while let Some((_, event)) = generation.next().await {
            for part in self.read(event)? {
                append(&mut content, part);
            }
        }
        Ok(self.message(content))
    }

    /// The answer as it comes.
    pub fn stream(self) -> MessageFrames {
        MessageFrames { answer: self, has_begun: false, n_blocks: 0, open: None, failed: false }
    }
}

/// # Errors
/// The model failed, or the server cancelled the answer.
fn check(reason: &FinishReason) -> Result<(), ServeError> {
    crate::translate::openai::finish_reason(reason).map(|_| ())
}

/// Adds a part to the last block, if it is of the same kind, else as a block of its own.
fn append(content: &mut Vec<AnswerBlock>, part: Part) {
    match (content.last_mut(), part) {
        (Some(AnswerBlock::Text { text }), Part::Text(more)) => text.push_str(&more),
        (Some(AnswerBlock::Thinking { thinking, .. }), Part::Thinking(more)) => thinking.push_str(&more),
        (_, part) => content.push(block_of(part)),
    }
}

fn block_of(part: Part) -> AnswerBlock {
    match part {
        Part::Text(text) => AnswerBlock::Text { text },
        Part::Thinking(thinking) => AnswerBlock::Thinking { thinking, signature: String::new() },
        Part::Call(call) => {
            // The parser takes only objects for arguments.
            let input = serde_json::from_str(&call.arguments).unwrap_or_default();
            AnswerBlock::ToolUse { id: call.id, name: call.name, input }
        }
    }
}

/// The kind of the block that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call,
}

/// A streamed answer.
#[derive(Debug)]
pub struct MessageFrames {
    answer: Answer,
    has_begun: bool,
    /// Blocks begun.
    n_blocks: usize,
    open: Option<Kind>,
    failed: bool,
}

impl MessageFrames {
    fn send(&self, event: &StreamEvent, out: &mut Vec<u8>) {
        sse::event(out, event.name(), event);
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.has_begun, true) {
            let message = self.answer.message(Vec::new());
            self.send(&StreamEvent::MessageStart { message }, out);
            self.send(&StreamEvent::Ping {}, out);
        }
    }

    fn part(&mut self, part: Part, out: &mut Vec<u8>) {
        let (kind, empty, delta) = match part {
            Part::Text(text) => (Kind::Text, Part::Text(String::new()), BlockDelta::TextDelta { text }),
            Part::Thinking(thinking) => {
                (Kind::Thinking, Part::Thinking(String::new()), BlockDelta::ThinkingDelta { thinking })
            }
            Part::Call(mut call) => {
                let partial_json = std::mem::take(&mut call.arguments);
                (Kind::Call, Part::Call(call), BlockDelta::InputJsonDelta { partial_json })
            }
        };
        // Every call is a block of its own.
        if self.open != Some(kind) || kind == Kind::Call {
            self.close(out);
            let (index, content_block) = (self.n_blocks, block_of(empty));
            self.send(&StreamEvent::ContentBlockStart { index, content_block }, out);
            self.n_blocks += 1;
            self.open = Some(kind);
        }
        self.send(&StreamEvent::ContentBlockDelta { index: self.n_blocks - 1, delta }, out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            self.send(&StreamEvent::ContentBlockStop { index: self.n_blocks - 1 }, out);
        }
    }
}

impl Frames for MessageFrames {
    fn event(&mut self, (_, event): IndexedEvent, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        match self.answer.read(event) {
            Ok(parts) => {
                self.begin(out);
                for part in parts {
                    self.part(part, out);
                }
            }
            Err(error) => {
                error.log();
                let error = ErrorDetail { r#type: kind(&error).to_owned(), message: message(&error) };
                self.send(&StreamEvent::Error { error }, out);
                self.failed = true;
            }
        }
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        if self.failed {
            return;
        }
        self.begin(out);
        self.close(out);
        let (delta, usage) = (self.answer.stop.clone(), self.answer.usage);
        self.send(&StreamEvent::MessageDelta { delta, usage }, out);
        self.send(&StreamEvent::MessageStop {}, out);
    }

    fn keep_alive(&self) -> &'static [u8] {
        PING
    }
}

#[cfg(test)]
mod tests {
    use mlxr_text::tool_calls::ParsedCall;

    use super::*;

    fn call(name: &str) -> Part {
        let (id, name) = ("toolu_1".to_owned(), name.to_owned());
        Part::Call(ParsedCall { id, name, arguments: "{\"x\":1}".to_owned() })
    }

    #[test]
    fn parts_of_a_kind_are_one_block_and_every_call_is_its_own() {
        let prompt = ChatPrompt { tokens: vec![1], ..ChatPrompt::default() };
        let mut frames = Answer::new("m".to_owned(), &prompt, 9, Vec::new()).stream();
        let (mut out, mut content) = (Vec::new(), Vec::new());
        let text = |text: &str| Part::Text(text.to_owned());
        for part in [Part::Thinking("t".to_owned()), text("a"), text("b"), call("f"), call("g")] {
            append(&mut content, part.clone());
            frames.part(part, &mut out);
        }
        frames.close(&mut out);
        let names: Vec<String> = String::from_utf8(out)
            .unwrap()
            .lines()
            .filter_map(|line| Some(line.strip_prefix("data: ")?.to_owned()))
            .map(|data| match serde_json::from_str(&data).unwrap() {
                StreamEvent::ContentBlockStart { index, .. } => format!("+{index}"),
                StreamEvent::ContentBlockDelta { index, .. } => format!("{index}"),
                StreamEvent::ContentBlockStop { index } => format!("-{index}"),
                other => other.name().to_owned(),
            })
            .collect();
        assert_eq!(names.join(" "), "+0 0 -0 +1 1 1 -1 +2 2 -2 +3 3 -3");
        assert_eq!(content.len(), 4);
        assert_eq!(content[1], AnswerBlock::Text { text: "ab".to_owned() });
        assert!(
            matches!(&content[3], AnswerBlock::ToolUse { name, input, .. } if name == "g" && input["x"] == 1)
        );
    }

    #[test]
    fn a_full_context_is_told_from_a_full_answer() {
        let prompt = ChatPrompt { tokens: vec![1], ..ChatPrompt::default() };
        let answer = Answer::new("m".to_owned(), &prompt, 9, Vec::new());
        let reason = |n| answer.stop_of(&FinishReason::Length, n).stop_reason.unwrap();
        assert_eq!((reason(9).as_str(), reason(8).as_str()), ("max_tokens", "model_context_window_exceeded"));
    }
}
